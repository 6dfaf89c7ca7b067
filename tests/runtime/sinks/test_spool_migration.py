"""Spools that version 0.1.0 left behind: undelivered messages come out in order, under their ids, and its files go."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from nnet_edge.errors import SinkError
from nnet_edge.runtime.sinks import Message
from nnet_edge.runtime.sinks.spool import Spool, SpoolSettings


def message(index: int) -> Message:
    return Message(f"left/ä/{index}", (("topic/ö", b"\n\x00" * index), ("empty", b"")))


def ids(numbers: Sequence[int]) -> list[str]:
    return [message(index).id for index in numbers]


def old_record(one: Message) -> bytes:
    """The message as version 0.1.0 wrote it."""
    parts = [[name, len(content)] for name, content in one.parts]
    names = json.dumps({"id": one.id, "parts": parts}, ensure_ascii=False).encode()
    payload = b"".join([names, b"\n", *(content for _, content in one.parts)])
    return struct.pack("<4sII", b"nnSP", len(payload), zlib.crc32(payload)) + payload


def write_old_spool(folder: Path, segments: dict[int, Sequence[int]], cursor: tuple[int, int] | None) -> None:
    """An old spool: segments by number with their messages; the cursor is a segment and how many of it are delivered."""
    folder.mkdir(exist_ok=True)
    (folder / "lock").write_bytes(b"")
    for number, indices in segments.items():
        (folder / f"{number:012d}.segment").write_bytes(b"".join(old_record(message(index)) for index in indices))
    if cursor is not None:
        number, done = cursor
        offset = sum(len(old_record(message(index))) for index in segments.get(number, ())[:done])
        where = struct.pack("<QQ", number, offset)
        (folder / "cursor").write_bytes(where + struct.pack("<I", zlib.crc32(where)))


def take_all(folder: Path) -> list[Message]:
    """All messages that the spool in `folder` holds, taken care of; nothing of the old one is left."""
    found = []
    with Spool(SpoolSettings(folder)) as spool:
        while messages := spool.peek(7, 0):
            spool.done(len(messages))
            found += messages
        assert (spool.waiting, spool.damaged) == (0, 0)
    assert {path.name for path in folder.iterdir()} == {"lock", "spool.db"}
    return found


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_partly_delivered_spool_goes_on_where_it_was(tmp_path: Path, done: int) -> None:
    write_old_spool(tmp_path, {2: range(0, 3), 3: range(3, 20), 10: range(20, 30)}, (2, done))
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert spool.waiting == 30 - done
        spool.append(message(30))
    assert take_all(tmp_path) == [message(index) for index in range(done, 31)]
    assert take_all(tmp_path) == []


def test_segments_before_the_cursor_are_delivered(tmp_path: Path) -> None:
    write_old_spool(tmp_path, {2: range(0, 3), 3: range(3, 6)}, (3, 1))
    assert take_all(tmp_path) == [message(4), message(5)]


def test_a_cursor_whose_segment_is_gone_stands_before_the_next(tmp_path: Path) -> None:
    write_old_spool(tmp_path, {3: range(3, 6)}, (2, 2))
    assert take_all(tmp_path) == [message(3), message(4), message(5)]


@pytest.mark.parametrize("cut_bytes", [1, 30, 60])
def test_a_torn_last_record_costs_itself_only(tmp_path: Path, cut_bytes: int, caplog: pytest.LogCaptureFixture) -> None:
    write_old_spool(tmp_path, {1: range(0, 4), 2: range(4, 7)}, (1, 2))
    newest = tmp_path / "000000000002.segment"
    newest.write_bytes(newest.read_bytes()[:-cut_bytes])
    assert take_all(tmp_path) == [message(index) for index in range(2, 6)]
    assert "bytes of 000000000002.segment cannot be read" in caplog.text


def test_a_damaged_record_costs_the_rest_of_its_segment(tmp_path: Path) -> None:
    write_old_spool(tmp_path, {1: range(0, 4), 2: range(4, 7)}, None)
    first = tmp_path / "000000000001.segment"
    held = bytearray(first.read_bytes())
    held[len(old_record(message(0))) + 20] ^= 1
    first.write_bytes(held)
    assert [each.id for each in take_all(tmp_path)] == ids([0, 4, 5, 6])


@pytest.mark.parametrize("cursor", [b"", b"short", b"\0" * 20, struct.pack("<QQ", 1, 10**6) + b"\0" * 4])
def test_a_damaged_cursor_sends_all_again(tmp_path: Path, cursor: bytes) -> None:
    write_old_spool(tmp_path, {1: range(0, 3), 2: range(3, 5)}, (1, 2))
    (tmp_path / "cursor").write_bytes(cursor)
    assert [each.id for each in take_all(tmp_path)] == ids(range(5))


def test_an_empty_old_spool_leaves_nothing(tmp_path: Path) -> None:
    write_old_spool(tmp_path, {4: []}, (4, 0))
    assert take_all(tmp_path) == []
    write_old_spool(tmp_path, {}, (4, 0))
    assert take_all(tmp_path) == []


def test_a_stop_in_the_middle_neither_repeats_nor_loses_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_old_spool(tmp_path, {1: range(0, 3), 2: range(3, 6), 3: range(6, 9)}, (1, 1))
    true_unlink = Path.unlink

    def stopping(path: Path, missing_ok: bool = False) -> None:
        if path.name == "000000000002.segment":
            raise OSError("stopped")
        true_unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stopping)
    with pytest.raises(SinkError, match="stopped"), Spool(SpoolSettings(tmp_path)):
        pass
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.segment"))) == 2
    assert [each.id for each in take_all(tmp_path)] == ids(range(1, 9))


def test_an_old_spool_that_comes_again_follows_what_waits(tmp_path: Path) -> None:
    """After a step back to the old version and forth again."""
    with Spool(SpoolSettings(tmp_path)) as spool:
        spool.append(message(0))
    write_old_spool(tmp_path, {1: range(1, 3)}, None)
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert spool.waiting == 3
    write_old_spool(tmp_path, {1: range(3, 5)}, (1, 1))
    assert [each.id for each in take_all(tmp_path)] == ids([0, 1, 2, 4])


def test_a_full_old_spool_is_taken_over_whole(tmp_path: Path) -> None:
    write_old_spool(tmp_path, {1: range(0, 400)}, None)
    settings = SpoolSettings(
        tmp_path, limit_bytes=1 << 16
    )  # old segments: 180 KB, as of a spool that had a higher bound
    with Spool(settings) as spool:
        assert spool.waiting == 400
        with pytest.raises(SinkError, match="of 65536 bytes"):
            spool.append(message(1000))
    assert len(take_all(tmp_path)) == 400
