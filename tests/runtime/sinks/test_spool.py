"""Spool: messages come out in order, once, after a restart, a kill or damage; never more bytes than allowed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.runtime.sinks import Message
from nnet_edge.runtime.sinks.spool import Spool, SpoolFullError, SpoolSettings
from nnet_edge.runtime.sinks.spool_database import PAGE_BYTES

LOG_BYTES = 140_000  # of the smallest log, 64 pages and their heads


def message(index: int, size_bytes: int = 100) -> Message:
    return Message(f"left/ä/{index}", (("topic/ö", b"\n" * size_bytes), ("empty", b"")))


def take_all(spool: Spool) -> list[str]:
    """The ids of all that waits, taken care of."""
    found = []
    while messages := spool.peek(7, 0):
        spool.done(len(messages))
        found += [message.id for message in messages]
    return found


def fill(spool: Spool, size_bytes: int = 100) -> None:
    for index in range(10**6):
        spool.append(message(index, size_bytes))


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def ids(numbers: Iterable[int]) -> list[str]:
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
        assert spool.size_bytes <= 1 << 16
        assert bytes_of(tmp_path) <= (1 << 16) + LOG_BYTES
        assert take_all(spool) == ids(range(kept))
        for index in range(20 * kept):  # repeatedly, in bounded room
            spool.append(message(index))
            assert spool.peek(1, 0) == [message(index)]
            spool.done(1)
        assert bytes_of(tmp_path) <= (1 << 16) + LOG_BYTES
        assert spool.size_bytes <= 4 * PAGE_BYTES
    assert bytes_of(tmp_path) <= 4 * PAGE_BYTES


def test_a_message_as_large_as_the_spool_is_taken_when_there_is_room(tmp_path: Path) -> None:
    large = message(0, 60_000)
    with Spool(SpoolSettings(tmp_path, limit_bytes=1 << 16)) as spool:
        for _ in range(5):
            spool.append(large)
            with pytest.raises(SpoolFullError):
                spool.append(large)
            assert spool.peek(2, 0) == [large]
            spool.done(1)


def test_the_files_stay_small_when_nobody_syncs_and_shrink_after_an_outage(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path, limit_bytes=8 << 20, fsync_every_s=None)) as spool:
        with pytest.raises(SpoolFullError):
            fill(spool, 50_000)
        assert 150 < spool.waiting < 8 * (1 << 20) // 50_000
        assert 7 << 20 < bytes_of(tmp_path) <= (8 << 20) + (1 << 20) + LOG_BYTES  # the log: an eighth of the bound
        take_all(spool)
        spool.append(message(1))
        assert spool.size_bytes <= 4 * PAGE_BYTES
        assert bytes_of(tmp_path) <= 4 << 20  # the log, and what waits for a checkpoint
    assert bytes_of(tmp_path) <= 4 * PAGE_BYTES


def test_sync_brings_the_log_into_the_database(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path, limit_bytes=1 << 20)) as spool:
        for index in range(100):
            spool.append(message(index))
            spool.sync()
        assert (tmp_path / "spool.db-wal").stat().st_size < LOG_BYTES
        assert b"left/" in (tmp_path / "spool.db").read_bytes()


def killed(folder: Path) -> Path:
    """What a kill would leave of the open spool in `folder`: a copy of its files as they are."""
    return Path(shutil.copytree(folder, folder.with_name(f"{folder.name}-killed"), dirs_exist_ok=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut_bytes=st.integers(1, 6000), done=st.integers(0, 3))
def test_a_torn_end_costs_the_torn_transactions_only(
    tmp_path_factory: pytest.TempPathFactory, cut_bytes: int, done: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    sizes = []
    with Spool(SpoolSettings(folder)) as spool:
        if done:
            for index in range(done):
                spool.append(message(index))
            spool.peek(done, 0)
            spool.done(done)
        for index in range(done, 6):
            spool.append(message(index))
            sizes.append((folder / "spool.db-wal").stat().st_size)
        left = killed(folder)
    end = max(sizes[-1] - cut_bytes, sizes[0])
    os.truncate(left / "spool.db-wal", end)
    whole = range(done, done + sum(size <= end for size in sizes))
    with Spool(SpoolSettings(left)) as spool:
        assert spool.waiting == len(whole)
        spool.append(message(9))
        assert take_all(spool) == [*ids(whole), message(9).id]


def test_a_cut_off_done_sends_again(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        for index in range(3):
            spool.append(message(index))
        spool.peek(2, 0)
        spool.done(2)
        left = killed(tmp_path)
    log = left / "spool.db-wal"
    os.truncate(log, log.stat().st_size - 1)
    with Spool(SpoolSettings(left)) as spool:
        assert take_all(spool) == ids(range(3))


def filled(folder: Path, count: int, size_bytes: int) -> list[int]:
    """Fill the spool and close it; gives where each message's content begins in the database, after its id and parts."""
    with Spool(SpoolSettings(folder)) as spool:
        for index in range(count):
            spool.append(message(index, size_bytes))
    held = (folder / "spool.db").read_bytes()
    return [held.rindex(f"left/ä/{index}[[".encode()) for index in range(count)]


def damage(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def test_a_damaged_message_costs_itself_only_and_is_counted(tmp_path: Path) -> None:
    places = filled(tmp_path, 30, 100)
    damage(tmp_path / "spool.db", places[0] + 60, b"x")
    damage(tmp_path / "spool.db", places[7] + 3, b"\xff\xff")  # no text any more
    damage(tmp_path / "spool.db", places[8] + 60, b"x")
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert spool.waiting == 30
        assert take_all(spool) == ids([index for index in range(30) if index not in (0, 7, 8)])
        assert (spool.waiting, spool.damaged) == (0, 3)
        spool.append(message(30))
        assert take_all(spool) == ids([30])


def test_a_damaged_page_costs_its_messages_and_the_database_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = filled(tmp_path, 100, 100)
    damage(tmp_path / "spool.db", places[50] // PAGE_BYTES * PAGE_BYTES, b"\xff" * 100)
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert 80 < spool.waiting < 100
        found = take_all(spool)
        spool.append(message(100))
        assert take_all(spool) == ids([100])
    numbers = [int(each.rpartition("/")[2]) for each in found]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[-1]) == (0, 99)
    lost = set(range(100)) - set(numbers)
    assert 50 in lost
    assert len(lost) == max(lost) - min(lost) + 1
    assert "malformed: it is set aside as" in caplog.text
    assert (tmp_path / "spool.db.damaged").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "spool.db", "spool.db.damaged"}


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 5000, b"x" * 5000])
def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, content: bytes) -> None:
    filled(tmp_path, 3, 100)
    (tmp_path / "spool.db").write_bytes(content)
    for _ in range(2):  # a second one replaces the first
        with Spool(SpoolSettings(tmp_path)) as spool:
            assert spool.waiting == 0
            spool.append(message(3))
            assert take_all(spool) == ids([3])
        assert (tmp_path / "spool.db.damaged").exists() == (content != b"")
        (tmp_path / "spool.db").write_bytes(content)


def test_damage_that_comes_while_the_spool_is_open_is_counted(tmp_path: Path) -> None:
    places = filled(tmp_path, 3, 3_000_000)
    with Spool(SpoolSettings(tmp_path)) as spool:
        damage(tmp_path / "spool.db", places[0] // PAGE_BYTES * PAGE_BYTES, b"x" * 9_100_000)
        assert spool.peek(3, 0) == []
        assert (spool.waiting, spool.damaged) == (0, 3)
        spool.append(message(3))
        assert take_all(spool) == [message(3).id]


def test_a_chain_of_pages_that_is_damaged_while_open_costs_one_message(tmp_path: Path) -> None:
    places = filled(tmp_path, 5, 1_000_000)
    with Spool(SpoolSettings(tmp_path)) as spool:
        first_page_of_chain = (places[2] // PAGE_BYTES + 1) * PAGE_BYTES
        damage(tmp_path / "spool.db", first_page_of_chain + 100 * PAGE_BYTES, b"\xff" * (PAGE_BYTES * 50))
        found = take_all(spool)
        assert len(found) == 4
        assert spool.damaged == 1
        spool.append(message(5))
        assert take_all(spool) == ids([5])


def test_a_rescue_that_was_killed_is_done_again(tmp_path: Path) -> None:
    filled(tmp_path, 3, 100)
    (tmp_path / "spool.db").rename(tmp_path / "spool.db.salvage")
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert take_all(spool) == ids(range(3))
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "spool.db", "spool.db.damaged"}


def test_files_that_a_person_took_away_do_not_stop_the_next_messages(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        for index in range(3):
            spool.append(message(index))
        spool.peek(2, 0)
        spool.done(2)
    for path in tmp_path.glob("spool.db*"):
        path.unlink()
    for index in (3, 4):
        with Spool(SpoolSettings(tmp_path)) as spool:
            spool.append(message(index))
            assert take_all(spool) == [message(index).id]


@pytest.mark.parametrize("how", ["removed", "renamed", "without its database", "without its log"])
@pytest.mark.parametrize("noticed_by", ["append", "sync", "close"])
def test_a_spool_that_vanishes_while_it_is_open_is_made_again_with_what_waits(
    tmp_path: Path, how: str, noticed_by: str
) -> None:
    folder = tmp_path / "spool"
    with Spool(SpoolSettings(folder)) as spool:
        for index in range(4):
            spool.append(message(index))
        spool.peek(1, 0)
        spool.done(1)
        if how == "removed":
            shutil.rmtree(folder)
        elif how == "renamed":
            folder.rename(tmp_path / "elsewhere")
        else:
            for path in folder.glob("spool.db" if how == "without its database" else "spool.db-wal"):
                path.unlink()
        if noticed_by == "append":
            spool.append(message(4))
        elif noticed_by == "sync":
            spool.sync()
        if noticed_by != "close" and how != "without its log":
            assert (folder / "spool.db").exists()
            with pytest.raises(SinkError, match="used by another process"):
                Spool(SpoolSettings(folder)).__enter__()
    with Spool(SpoolSettings(folder)) as spool:
        assert take_all(spool) == ids(range(1, 5 if noticed_by == "append" else 4))
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "spool.db"]


def test_a_spool_that_cannot_be_made_again_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with Spool(SpoolSettings(folder)) as spool:
        spool.append(message(0))
        shutil.rmtree(folder)
        folder.write_text("in the way")
        with pytest.raises(SinkError, match=r"cannot use the spool .*; left/ä/1 was not kept"):
            spool.append(message(1))
        folder.unlink()
        spool.append(message(2))
        assert take_all(spool) == ids([0, 2])


def test_a_full_disk_keeps_nothing_half(
    tmp_path: Path, files_up_to: Callable[[int], AbstractContextManager[None]]
) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        spool.append(message(0))
        small_disk = files_up_to(PAGE_BYTES // 2)  # not a page more of the log, nor of the database
        with small_disk, pytest.raises(SinkError, match="File too large; left/ä/1 was not kept"):
            spool.append(message(1))
        spool.append(message(2))
        assert take_all(spool) == [message(0).id, message(2).id]


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "spool.db").mkdir()
    with pytest.raises(SinkError, match=r"cannot use the spool .*: Is a directory"), Spool(SpoolSettings(tmp_path)):
        pass
    (tmp_path / "spool.db").rmdir()
    with Spool(SpoolSettings(tmp_path)) as spool:  # the lock is free again
        spool.append(message(0))


def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        spool.append(message(0))
    mounted = subprocess.run(["mount", "--bind", "-r", str(tmp_path), str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted read-only here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(SinkError, match=r"cannot use the spool .*: Read-only"), Spool(SpoolSettings(tmp_path)):
            pass
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_program_that_has_the_database_open_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnet_edge.runtime.sinks.spool_database.BUSY_S", 0.1)
    filled(tmp_path, 1, 100)
    look = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); print(flush=True); input()"
    command = [sys.executable, "-c", look, str(tmp_path / "spool.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(SinkError, match=r"another program has spool.db open"), Spool(SpoolSettings(tmp_path)):
            pass
        process.communicate(b"\n")
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert take_all(spool) == ids([0])


def test_a_spool_that_is_closed_says_so(tmp_path: Path) -> None:
    with Spool(SpoolSettings(tmp_path)) as spool:
        pass
    spool.sync()
    spool.close()
    with pytest.raises(SinkError, match=r"is closed: .*; left/ä/0 was not kept"):
        spool.append(message(0))


def test_an_error_in_the_block_leaves_the_spool_free(tmp_path: Path) -> None:
    def fail() -> None:
        with Spool(SpoolSettings(tmp_path)) as spool:
            spool.append(message(0))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    with Spool(SpoolSettings(tmp_path)) as spool:
        assert spool.waiting == 1


def test_one_process_has_a_spool(tmp_path: Path) -> None:
    settings = SpoolSettings(tmp_path)
    with Spool(settings), pytest.raises(SinkError, match="used by another process"), Spool(settings):
        pass
    with Spool(settings):
        pass


def test_one_thread_appends_while_another_takes(tmp_path: Path) -> None:
    found: list[str] = []
    with Spool(SpoolSettings(tmp_path)) as spool:

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
from nnet_edge.runtime.sinks.spool import Spool, SpoolSettings

with Spool(SpoolSettings(Path(sys.argv[1]))) as spool:
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
        ({"fsync_every_s": -1.0}, "between two fsyncs of a spool are -1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SpoolSettings(tmp_path, **wrong)  # type: ignore[arg-type]
