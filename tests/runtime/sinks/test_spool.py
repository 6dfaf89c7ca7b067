"""What was appended comes out in order, once, after a restart, a kill, a torn end; never more bytes than allowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.runtime.sinks import Message
from nnet_edge.runtime.sinks.spool import Spool, SpoolFullError, SpoolSettings


def message(index: int, size_bytes: int = 100) -> Message:
    return Message(f"left/ä/{index}", (("topic/ö", b"\n" * size_bytes), ("empty", b"")))


def take_all(spool: Spool) -> list[str]:
    """The ids of all that waits, taken care of."""
    found = []
    while messages := spool.peek(7, 0):
        spool.done(len(messages))
        found += [message.id for message in messages]
    return found


def fill(spool: Spool) -> None:
    for index in range(10**6):
        spool.append(message(index))


def ids(numbers: range) -> list[str]:
    return [message(index).id for index in numbers]


def test_messages_come_out_in_order_and_outlive_the_spool(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        for index in range(10):
            spool.append(message(index))
        assert spool.peek(3, 0) == [message(index) for index in range(3)]
        assert spool.peek(2, 0) == [message(0), message(1)]  # nothing is done yet
        spool.done(1)
        assert spool.waiting == 9
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert spool.waiting == 9
        assert take_all(spool) == ids(range(1, 10))
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert (spool.waiting, spool.peek(1, 0)) == (0, [])


def test_a_full_spool_refuses_and_takes_again_when_something_is_done(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path, limit_bytes=1 << 16)) as spool:
        with pytest.raises(SpoolFullError, match=r"holds \d+ of 65536 bytes: left/ä/\d+ was not kept"):
            fill(spool)
        kept = spool.waiting
        assert 300 < kept < 65536 // 100
        assert sum(path.stat().st_size for path in tmp_path.glob("*.segment")) <= 1 << 16
        assert take_all(spool) == ids(range(kept))
        for index in range(20 * kept):  # for ever, in bounded room
            spool.append(message(index))
            assert spool.peek(1, 0) == [message(index)]
            spool.done(1)
        assert len(list(tmp_path.glob("*.segment"))) <= 2


def test_a_message_as_large_as_the_spool_is_taken_when_there_is_room(tmp_path: Path) -> None:
    large = message(0, 60_000)
    with Spool(SpoolSettings(tmp_path, limit_bytes=1 << 16)) as spool:
        for _ in range(5):
            spool.append(large)
            with pytest.raises(SpoolFullError):
                spool.append(large)
            assert spool.peek(2, 0) == [large]
            spool.done(1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut_bytes=st.integers(1, 400), done=st.integers(0, 3))
def test_a_torn_end_costs_the_torn_record_only(
    tmp_path_factory: pytest.TempPathFactory, cut_bytes: int, done: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    with Spool(SpoolSettings(folder)) as spool:
        for index in range(4):
            spool.append(message(index))
        sizes = spool.size_bytes
        if done:
            spool.peek(done, 0)
            spool.done(done)
    (segment,) = folder.glob("*.segment")
    os.truncate(segment, sizes - cut_bytes)
    whole = (sizes - cut_bytes) // (sizes // 4)
    with Spool(SpoolSettings(folder)) as spool:
        first = done if done <= whole else 0  # a cursor behind the end is of no use: all that is there comes again
        assert spool.waiting == whole - first
        spool.append(message(9))
        assert take_all(spool) == [*ids(range(first, whole)), message(9).id]


def test_a_damaged_segment_costs_its_rest_and_the_next_goes_on(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path, segment_bytes=1024)) as spool:
        for index in range(30):
            spool.append(message(index))
    first = min(tmp_path.glob("*.segment"))
    held = bytearray(first.read_bytes())
    held[300] ^= 1
    first.write_bytes(held)
    with Spool(SpoolSettings(tmp_path, segment_bytes=1024)) as spool:
        assert spool.waiting < 30
        found = take_all(spool)
    assert found[:1] == ids(range(1))
    assert found[1:] == ids(range(30 - len(found) + 1, 30))


def test_damage_that_comes_while_the_spool_is_open_is_counted(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        for index in range(3):
            spool.append(message(index))
        (segment,) = tmp_path.glob("*.segment")
        segment.write_bytes(b"x" * spool.size_bytes)
        assert spool.peek(3, 0) == []
        assert (spool.waiting, spool.damaged) == (0, 3)
        spool.append(message(3))
        assert take_all(spool) == [message(3).id]


@pytest.mark.parametrize("cursor", [b"", b"short", b"\0" * 20])
def test_a_damaged_cursor_sends_all_again(tmp_path: Path, cursor: bytes) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        for index in range(3):
            spool.append(message(index))
        spool.peek(2, 0)
        spool.done(2)
    (tmp_path / "cursor").write_bytes(cursor)
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert take_all(spool) == ids(range(3))


def test_segments_that_a_person_took_away_do_not_stop_the_next_messages(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        for index in range(3):
            spool.append(message(index))
        spool.peek(2, 0)
        spool.done(2)
    for path in tmp_path.glob("*.segment"):
        path.unlink()
    for index in (3, 4):
        with Spool(SpoolSettings(tmp_path)) as spool:
            spool.append(message(index))
            assert take_all(spool) == [message(index).id]


def test_a_full_disk_keeps_nothing_half(
    tmp_path: Path, files_up_to: Callable[[int], AbstractContextManager[None]]
) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        spool.append(message(0))
        small_disk = files_up_to(spool.size_bytes + 50)
        with small_disk, pytest.raises(SinkError, match="File too large; left/ä/1 was not kept"):
            spool.append(message(1))
        spool.append(message(2))
        assert take_all(spool) == [message(0).id, message(2).id]


def test_one_process_has_a_spool(tmp_path: Path) -> None:
    settings = SpoolSettings(tmp_path)
    with Spool(settings), pytest.raises(SinkError, match="used by another process"), Spool(settings):
        pass
    with Spool(settings):
        pass


def test_one_thread_appends_while_another_takes(tmp_path: Path) -> None:
    found: list[str] = []
    with Spool(SpoolSettings(tmp_path, segment_bytes=2048)) as spool:

        def take() -> None:
            while len(found) < 1000 and (messages := spool.peek(16, 5.0)):
                found.extend(message.id for message in messages)
                spool.done(len(messages))

        thread = threading.Thread(target=take)
        thread.start()
        for index in range(1000):
            spool.append(message(index))
        thread.join(20)
        assert not thread.is_alive()
    assert found == ids(range(1000))


KILLED = """
import sys
from pathlib import Path
from nnet_edge.runtime.sinks import Message
from nnet_edge.runtime.spool import Spool, SpoolSettings

with Spool(SpoolSettings(Path(sys.argv[1]), segment_bytes=200_000)) as spool:
    for index in range(int(sys.argv[2]), 10**9):
        spool.append(Message(str(index), (("", b"x" * 5000),)))
        print(index, flush=True)
"""


def test_a_kill_9_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    next_index = 0
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(next_index)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(80):
                last = int(process.stdout.readline())
            process.kill()
            said = [int(line) for line in process.stdout.read().split("\n")[:-1] if line]
            last = said[-1] if said else last
        assert process.returncode == -signal.SIGKILL
        with Spool(SpoolSettings(tmp_path)) as spool:
            found = [int(each) for each in take_all(spool)]
        assert found == list(range(next_index, found[-1] + 1))
        assert found[-1] in (last, last + 1)  # the one that was appended and not said
        next_index = found[-1] + 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"limit_bytes": 10}, "bytes of a spool is 10"),
        ({"segment_bytes": 1}, "bytes of a spool's segment is 1"),
        ({"fsync_every_s": -1.0}, "between two fsyncs of a spool are -1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SpoolSettings(tmp_path, **wrong)  # type: ignore[arg-type]
