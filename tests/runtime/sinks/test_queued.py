"""A sink costs the line nothing but its own events, and everything it was given is accounted for at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import (
    CallbackSink,
    JsonLinesSettings,
    JsonLinesSink,
    Message,
    MessageSink,
    QueuedSink,
    QueueSettings,
    RefusedError,
    RejectsSettings,
    RejectsSink,
    VideoSettings,
    VideoSink,
    serve,
)
from nnet_edge.runtime.sinks.spool import SpoolSettings
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model

MakePrediction = Callable[..., Prediction]
QUICK = {"first_pause_s": 0.01, "longest_pause_s": 0.05, "dead_after_s": 0.1}


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("sink ", "spool "))]


class Receiver(MessageSink):
    """Keeps the ids of messages; fails while `is_down`, takes `takes_s` for each, refuses those in `refused`."""

    name = "receiver"
    wants_pixels = wants_maps = False
    largest_batch = 4
    wants_events = True

    def __init__(self, takes_s: float = 0.0, refused: Sequence[str] = ()) -> None:
        self.is_down = threading.Event()
        self.takes_s, self.refused = takes_s, refused
        self.got: list[str] = []
        self.tries = 0
        self.is_closed = False

    def __exit__(self, *about: object) -> None:
        self.is_closed = True

    def to_message(self, prediction: Prediction) -> Message:
        if prediction.threshold != prediction.threshold:
            raise ValueError("a NaN as threshold")
        return Message(prediction.id, (("", b"x" * 100),))

    def event_message(self, event: Event) -> Message:
        return Message(event.kind, (("", b""),))

    def send(self, messages: Sequence[Message]) -> int:
        self.tries += 1
        time.sleep(self.takes_s)
        if self.is_down.is_set():
            raise SinkError("cannot reach the receiver: nobody is there")
        if messages[0].id in self.refused:
            raise RefusedError(f"{messages[0].id} was refused")
        taken = list(takewhile(lambda each: each not in self.refused, (message.id for message in messages[:3])))
        self.got += taken
        return len(taken)


class NoRunner:
    """Is entered and left, and asked for nothing."""

    max_batch = 8

    def __enter__(self) -> NoRunner:
        return self

    def __exit__(self, *about: object) -> None:
        return None


def until(is_true: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait until it is true; fails after `limit_s`."""
    end_s = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < end_s, "it did not become true in time"
        time.sleep(0.005)


def log_to(path: Path, append: bool = True) -> JsonLinesSink:
    return JsonLinesSink(JsonLinesSettings(path=path, append=append, fsync_every_s=None, events=False))


def ids(*numbers: int) -> list[str]:
    return [f"test/{number}" for number in numbers]


def test_everything_arrives_in_order_and_the_sink_is_closed(make_prediction: MakePrediction) -> None:
    sink, latencies_ms = Receiver(), []
    with QueuedSink(sink, observe=lambda content, latency_ms: latencies_ms.append(latency_ms)) as queued:
        for index in range(50):
            queued.write(make_prediction(index))
        queued.tell(Event("source.lost", "test"))
    assert sink.got == [*ids(*range(50)), "source.lost"]
    assert sink.is_closed
    counts = queued.counts()
    assert (counts.offered, counts.delivered, counts.queued, counts.dropped) == (51, 51, 0, {})
    assert counts.is_balanced
    assert len(latencies_ms) == 51
    assert all(0 <= latency_ms < 5000 for latency_ms in latencies_ms)


def test_a_slow_sink_holds_nobody_up_and_its_losses_are_counted_and_told(make_prediction: MakePrediction) -> None:
    sink, told = Receiver(takes_s=0.1), []
    settings = QueueSettings(queue_items=10)
    with QueuedSink(sink, settings) as queued:
        queued.report_to(told.append)
        prediction = make_prediction(0)
        began_s = time.monotonic()
        for _ in range(200):
            queued.write(prediction)
            assert queued.counts().is_balanced
        assert time.monotonic() - began_s < 5  # 20 s, had every write waited for the sink
        counts = queued.counts()
        assert counts.state == "late"
        assert counts.dropped["queue full"] >= 180
        until(lambda: queued.counts().state == "ok")
    assert [event.kind for event in told] == ["sink.late", "sink.back"]
    assert told[0].facts["sink"] == "receiver"
    assert told[0].facts["reason"] == "its queue of 10 is full"
    counts = queued.counts()
    assert counts.is_balanced
    assert (counts.offered, counts.queued) == (200, 0)
    assert counts.delivered == len(sink.got)


def test_the_newest_stay_when_the_queue_is_full(make_prediction: MakePrediction) -> None:
    sink = Receiver()
    sink.is_down.set()
    with QueuedSink(sink, QueueSettings(queue_items=5, **QUICK)) as queued:
        queued.write(make_prediction(0))
        until(lambda: sink.tries > 0)
        for index in range(1, 30):
            queued.write(make_prediction(index))
        sink.is_down.clear()
    assert sink.got == ids(0, *range(25, 30))
    assert queued.counts().dropped == {"queue full": 24}


def test_a_queue_is_bounded_in_bytes_where_the_sink_wants_pictures(make_prediction: MakePrediction) -> None:
    release = threading.Event()
    prediction = make_prediction(0)
    assert prediction.anomaly_map is not None
    one = prediction.frame.image.nbytes + prediction.anomaly_map.nbytes
    with QueuedSink(CallbackSink(lambda _: release.wait(5)), QueueSettings(queue_bytes=3 * one)) as queued:
        for _ in range(20):
            queued.write(prediction)
        assert queued.counts().queued <= 4  # three, and the one that is being written
        release.set()
    assert queued.counts().is_balanced


def test_files_may_wait_for_their_sink(make_prediction: MakePrediction) -> None:
    sink = Receiver(takes_s=0.01)
    with QueuedSink(sink, QueueSettings(queue_items=2, waits=True)) as queued:
        for index in range(60):
            queued.write(make_prediction(index))
    assert sink.got == ids(*range(60))


def test_waiting_for_a_sink_ends(make_prediction: MakePrediction) -> None:
    sink = Receiver()
    sink.is_down.set()
    settings = QueueSettings(queue_items=1, waits=True, wait_limit_s=0.1, flush_s=0.1, **QUICK)
    with QueuedSink(sink, settings) as queued:
        began_s = time.monotonic()
        for index in range(5):
            queued.write(make_prediction(index))
        assert time.monotonic() - began_s < 2
    counts = queued.counts()
    assert counts.is_balanced
    assert counts.dropped == {"queue full": 3, "stopped": 2}


def test_an_event_never_waits_for_a_dead_sink(make_prediction: MakePrediction) -> None:
    """Where predictions do: an event comes from a camera's thread, which has to open its camera again."""
    sink = Receiver()
    sink.is_down.set()
    settings = QueueSettings(queue_items=1, waits=True, flush_s=0.1, **QUICK)
    with QueuedSink(sink, settings) as queued:
        queued.write(make_prediction(0))
        until(lambda: sink.tries > 0)  # it is in the sink's hand
        queued.write(make_prediction(1))
        began_s = time.monotonic()
        for _ in range(100):
            queued.tell(Event("source.lost", "test"))
        assert time.monotonic() - began_s < 5  # of 30 s each
        counts = queued.counts()
        assert (counts.queued, counts.dropped) == (66, {"queue full": 36})  # they are bounded, and counted
    assert queued.counts().is_balanced


def test_a_line_that_stops_waits_for_no_dead_sink(make_prediction: MakePrediction) -> None:
    sink, stop = Receiver(), threading.Event()
    sink.is_down.set()
    settings = QueueSettings(queue_items=1, waits=True, flush_s=0.1, **QUICK)
    with QueuedSink(sink, settings) as queued:
        queued.stop_with(stop)
        threading.Timer(0.3, stop.set).start()
        began_s = time.monotonic()
        for index in range(20):
            queued.write(make_prediction(index))
        assert time.monotonic() - began_s < 10  # of 30 s for each of 18
    counts = queued.counts()
    assert counts.is_balanced
    assert counts.losses() == "the sink receiver lost 20 verdicts and events: 18 queue full, 2 stopped"


def test_a_dead_sink_is_told_once_and_its_return_too(make_prediction: MakePrediction) -> None:
    sink, told = Receiver(), []
    sink.is_down.set()
    with QueuedSink(sink, QueueSettings(**QUICK), name="plc") as queued:
        queued.report_to(told.append)
        queued.write(make_prediction(0))
        until(lambda: queued.counts().state == "dead")
        assert queued.counts().reason == "cannot reach the receiver: nobody is there"
        time.sleep(0.2)
        sink.is_down.clear()
        until(lambda: queued.counts().state == "ok")
    assert [event.kind for event in told] == ["sink.dead", "sink.back"]
    assert told[0].facts["sink"] == "plc"
    assert told[0].facts["reason"] == "cannot reach the receiver: nobody is there"
    assert 0.2 < told[1].facts["outage_s"] < 5
    assert sink.got == ids(0)


def test_a_sink_that_is_dead_for_too_long_costs_what_it_was_given(make_prediction: MakePrediction) -> None:
    sink = Receiver()
    sink.is_down.set()
    with QueuedSink(sink, QueueSettings(retry_s=0.2, **QUICK)) as queued:
        for index in range(3):
            queued.write(make_prediction(index))
        until(lambda: queued.counts().dropped.get("undelivered") == 3)
        sink.is_down.clear()
        queued.write(make_prediction(3))
    assert sink.got == ids(3)
    assert queued.counts().is_balanced


def test_what_a_receiver_refuses_is_counted_and_holds_nothing_up(make_prediction: MakePrediction) -> None:
    sink = Receiver(refused=ids(2, 3, 7))
    with QueuedSink(sink) as queued:
        for index in range(10):
            queued.write(make_prediction(index))
    assert sink.got == ids(0, 1, 4, 5, 6, 8, 9)
    assert queued.counts().dropped == {"refused": 3}


def test_what_cannot_become_a_message_is_refused(make_prediction: MakePrediction) -> None:
    sink = Receiver()
    with QueuedSink(sink) as queued:
        broken = make_prediction(0)
        object.__setattr__(broken, "threshold", float("nan"))
        queued.write(broken)
        queued.write(make_prediction(1))
    assert sink.got == ids(1)
    assert queued.counts().dropped == {"refused": 1}


def test_a_callback_that_fails_loses_that_prediction_only(make_prediction: MakePrediction) -> None:
    seen: list[int] = []

    def callback(prediction: Prediction) -> None:
        seen.append(prediction.frame.index)
        if prediction.frame.index == 1:
            raise OSError("no PLC")

    with QueuedSink(CallbackSink(callback)) as queued:
        for index in range(4):
            queued.write(make_prediction(index))
    assert seen == [0, 1, 2, 3]  # never twice
    counts = queued.counts()
    assert (counts.delivered, counts.dropped) == (3, {"failed": 1})


def test_a_sink_that_hangs_ends_with_the_line_and_is_counted(
    make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnet_edge.runtime.sinks.queued.END_LIMIT_S", 0.2)
    release = threading.Event()
    began_s = time.monotonic()
    with QueuedSink(CallbackSink(lambda _: release.wait(30)), QueueSettings(flush_s=0.1)) as queued:
        for index in range(4):
            queued.write(make_prediction(index))
    assert time.monotonic() - began_s < 2
    counts = queued.counts()
    assert counts.is_balanced
    assert counts.dropped == {"stopped": 4}
    release.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "sink callback"])
    assert queued.counts() == counts


def test_sinks_that_hang_end_together(make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnet_edge.runtime.sinks.queued.END_LIMIT_S", 1.5)
    release, ended_s = threading.Event(), [0.0]

    class Hanging(Receiver):
        def send(self, messages: Sequence[Message]) -> int:
            release.wait(30)
            return super().send(messages)

    sinks = [QueuedSink(Hanging(), QueueSettings(flush_s=0.1), f"hanging-{number}") for number in range(4)]
    line = Line(Model("parts", None, NoRunner(), 0.5), sinks)  # type: ignore[arg-type]
    with line.running():
        for sink in sinks:
            sink.write(make_prediction(0))
        ended_s[0] = time.monotonic()
    assert time.monotonic() - ended_s[0] < 4  # 6.4 one after the other
    assert all(sink.counts().dropped == {"stopped": 1} for sink in sinks)
    release.set()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("sink ")])


def test_a_strict_sink_raises_its_first_fault_in_the_caller(make_prediction: MakePrediction) -> None:
    def write_on_and_on(queued: QueuedSink) -> None:
        for index in range(10**6):
            queued.write(make_prediction(index))
            time.sleep(0.001)

    sink = Receiver()
    sink.is_down.set()
    settings = QueueSettings(is_strict=True, waits=True)
    with pytest.raises(SinkError, match="nobody is there"), QueuedSink(sink, settings) as queued:
        write_on_and_on(queued)
    assert sink.tries == 1
    with pytest.raises(SinkError, match="nobody is there"), QueuedSink(sink, settings) as queued:
        queued.write(make_prediction(0))  # the fault comes after the last write
    assert queued.counts().is_balanced


def test_a_place_that_cannot_be_written_is_told_on_entering(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SinkError, match="cannot write verdicts"), QueuedSink(log_to(tmp_path / "file" / "x")):
        pass
    sink, spool = Receiver(), SpoolSettings(tmp_path / "file" / "spool")
    with pytest.raises(SinkError, match="cannot use the spool"), QueuedSink(sink, QueueSettings(must_deliver=spool)):
        pass
    assert sink.is_closed


def must_deliver(folder: Path, **facts: object) -> QueueSettings:
    return QueueSettings(must_deliver=SpoolSettings(folder, **facts), flush_s=0.3, **QUICK)  # type: ignore[arg-type]


def test_must_deliver_delivers_after_restarts_in_order(tmp_path: Path, make_prediction: MakePrediction) -> None:
    sink = Receiver()
    sink.is_down.set()
    for start in (0, 20):
        with QueuedSink(sink, must_deliver(tmp_path)) as queued:
            assert queued.counts().recovered == start
            for index in range(start, start + 20):
                queued.write(make_prediction(index))
        counts = queued.counts()
        assert counts.is_balanced
        assert (counts.spooled, counts.delivered, counts.dropped) == (start + 20, 0, {})
    sink.is_down.clear()
    with QueuedSink(sink, must_deliver(tmp_path)) as queued:
        queued.write(make_prediction(40))
        until(lambda: queued.counts().delivered == 41)
    assert sink.got == ids(*range(41))
    assert queued.counts().is_balanced
    assert queued.counts().spooled == 0


def test_must_deliver_is_on_disk_when_write_returns_and_the_disk_itself_is_asked_aside(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, asked, true_fsync = Receiver(), [], os.fsync
    sink.is_down.set()

    def slow_fsync(number: int) -> None:
        time.sleep(0.3)
        asked.append(threading.current_thread().name)
        true_fsync(number)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    with QueuedSink(sink, must_deliver(tmp_path, fsync_every_s=0.05)) as queued:
        began_s = time.monotonic()
        for index in range(30):
            queued.write(make_prediction(index))
            assert (queued.counts().queued, queued.counts().spooled) == (0, index + 1)
            assert b"test/%d" % index in b"".join(path.read_bytes() for path in tmp_path.glob("spool.db*"))
        assert time.monotonic() - began_s < 3  # 9 s, had every write waited for the disk
        until(lambda: asked)
        assert set(asked) == {"spool receiver"}


def test_must_deliver_passes_over_what_the_receiver_refuses(tmp_path: Path, make_prediction: MakePrediction) -> None:
    sink = Receiver(refused=ids(0, 5))
    with QueuedSink(sink, must_deliver(tmp_path)) as queued:
        for index in range(8):
            queued.write(make_prediction(index))
        until(lambda: queued.counts().delivered == 6)
    assert sink.got == ids(1, 2, 3, 4, 6, 7)
    assert queued.counts().dropped == {"refused": 2}


def test_a_spool_that_is_full_costs_the_newest_and_is_told(tmp_path: Path, make_prediction: MakePrediction) -> None:
    sink, told = Receiver(), []
    sink.is_down.set()
    with QueuedSink(sink, must_deliver(tmp_path, limit_bytes=1 << 16)) as queued:
        queued.report_to(told.append)
        for index in range(2000):
            queued.write(make_prediction(index))
            queued.flush(1)
        counts = queued.counts()
        assert counts.is_balanced
        assert counts.dropped == {"spool full": 2000 - counts.spooled}
        sink.is_down.clear()
        until(lambda: queued.counts().spooled == 0)
    assert sink.got == ids(*range(counts.spooled))
    assert "of 65536 bytes" in str(next(event for event in told if event.kind == "sink.late").facts["reason"])
    assert queued.counts().is_balanced


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: CallbackSink(print), "cannot lie on a disk"),
        (lambda folder: VideoSink(VideoSettings(path=folder / "x.mp4")), "cannot lie on a disk"),
    ],
)
def test_what_cannot_be_made_to_deliver_is_refused(
    tmp_path: Path, make: Callable[[Path], MessageSink], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        QueuedSink(make(tmp_path), must_deliver(tmp_path))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a true file system of 1 MB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_the_log_stops_and_goes_on_when_there_is_room(
    small_disk: Path, make_prediction: MakePrediction, note_fault: Callable[..., None]
) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 900_000)
    path, told = small_disk / "verdicts.jsonl", []
    settings = QueueSettings(queue_items=4000, **QUICK)
    with QueuedSink(log_to(path), settings) as queued:
        queued.report_to(told.append)
        for index in range(2000):  # about 800 KB
            queued.write(make_prediction(index))
            assert queued.counts().is_balanced
        until(lambda: queued.counts().state == "dead")
        assert "No space left on device" in str(queued.counts().reason)
        *whole, rest = path.read_bytes().split(b"\n")
        assert rest == b""
        assert [json.loads(line)["index"] for line in whole] == list(range(len(whole)))
        (small_disk / "ballast").unlink()
        began_s = time.monotonic()
        until(lambda: queued.counts().state == "ok")
        took_s = time.monotonic() - began_s
    assert [json.loads(line)["index"] for line in path.read_bytes().splitlines()] == list(range(2000))
    assert queued.counts().delivered == 2000
    assert [event.kind for event in told] == ["sink.dead", "sink.back"]
    note_fault("disk full", 2000, queued.counts().delivered, queued.counts().dropped,
               f"{took_s:.2f} s after there is room", "verdicts")  # fmt: skip


def test_on_a_full_disk_pictures_are_lost_and_counted_and_none_is_half(
    small_disk: Path, make_prediction: MakePrediction
) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 900_000)
    settings = QueueSettings(retry_s=0.1, **QUICK)
    with QueuedSink(
        RejectsSink(RejectsSettings(folder=small_disk, pictures=("overlay",), budget_bytes=None, by_stream=False)),
        settings,
    ) as queued:
        for index in range(30):
            queued.write(make_prediction(index))
        assert queued.flush(10)
        counts = queued.counts()
    assert counts.is_balanced
    assert counts.state == "dead"
    assert counts.dropped["undelivered"] > 5
    pictures = [path for path in small_disk.rglob("*") if path.is_file() and path.name != "ballast"]
    assert len(pictures) == counts.delivered > 0
    assert all(path.read_bytes().endswith(b"\xff\xd9") for path in pictures)  # the end of a JPEG


def test_a_spool_on_a_full_disk_costs_the_newest_and_goes_on_when_there_is_room(
    small_disk: Path, make_prediction: MakePrediction
) -> None:
    ballast = small_disk / "ballast"
    sink, told = Receiver(), []
    sink.is_down.set()
    with QueuedSink(sink, must_deliver(small_disk / "spool")) as queued:
        queued.report_to(told.append)
        ballast.write_bytes(b"x" * 900_000)
        for index in range(1500):  # records of about 150 bytes
            queued.write(make_prediction(index))
            queued.flush(1)
        counts = queued.counts()
        assert counts.is_balanced
        assert counts.dropped == {"spool failed": 1500 - counts.spooled}
        assert 100 < counts.spooled < 1500
        ballast.unlink()
        queued.write(make_prediction(1500))
        sink.is_down.clear()
        until(lambda: queued.counts().spooled == 0 and queued.counts().queued == 0)
    assert sink.got == ids(*range(counts.spooled), 1500)
    assert queued.counts().is_balanced
    assert any("No space left on device" in str(event.facts.get("reason")) for event in told)


def test_files_wait_for_room_in_a_spool_and_end_the_line_where_none_comes(
    small_disk: Path, make_prediction: MakePrediction, note_fault: Callable[..., None]
) -> None:
    """300 frames of files, must-deliver, a full disk: none is lost while there may be room, and the line ends where not."""
    ballast, sink, wanted = small_disk / "ballast", Receiver(), 300
    settings = replace(must_deliver(small_disk / "spool"), waits=True, is_finite=True, wait_limit_s=20.0)
    with QueuedSink(sink, settings) as queued:
        sink.is_down.set()
        ballast.write_bytes(b"x" * 995_000)
        make_room = threading.Timer(0.5, ballast.unlink)
        make_room.start()
        began_s = time.monotonic()
        for index in range(wanted):
            queued.write(make_prediction(index))
        took_s = time.monotonic() - began_s
        sink.is_down.clear()
        until(lambda: queued.counts().spooled == 0)
    assert sink.got == ids(*range(wanted))
    assert took_s > 0.4
    note_fault("disk of the spool full", wanted, queued.counts().delivered, queued.counts().dropped,
               f"{took_s - 0.5:.2f} s after there is room", "verdicts")  # fmt: skip

    def write_on_and_on(queued: QueuedSink) -> None:
        for index in range(wanted, 5 * wanted):
            queued.write(make_prediction(index))

    sink.is_down.set()
    ballast.write_bytes(b"x" * 900_000)
    with (
        pytest.raises(SinkError, match=r"the line waited 0\.2 s for it and ends: make room where the spool lies"),
        QueuedSink(sink, replace(settings, wait_limit_s=0.2)) as queued,
    ):
        write_on_and_on(queued)
    assert queued.counts().is_balanced
    assert queued.counts().dropped == {"spool failed": 1}


def test_a_spool_that_is_removed_while_the_line_runs_loses_nothing(
    tmp_path: Path, make_prediction: MakePrediction, note_fault: Callable[..., None]
) -> None:
    sink, folder = Receiver(), tmp_path / "spool"
    sink.is_down.set()
    with QueuedSink(sink, must_deliver(folder, fsync_every_s=0.05)) as queued:
        for index in range(100):
            queued.write(make_prediction(index))
        shutil.rmtree(folder)
        began_s = time.monotonic()
        until(lambda: (folder / "spool.db").exists())  # nothing is written meanwhile: it is noticed all the same
        took_s = time.monotonic() - began_s
        for index in range(100, 200):
            queued.write(make_prediction(index))
        sink.is_down.clear()
        until(lambda: queued.counts().spooled == 0)
    assert sink.got == ids(*range(200))
    note_fault("spool removed", 200, queued.counts().delivered, queued.counts().dropped,
               f"{took_s:.2f} s until it is made again", "verdicts")  # fmt: skip


def test_live_sources_do_not_end_at_a_spool_without_room(small_disk: Path, make_prediction: MakePrediction) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 995_000)
    sink = Receiver()
    sink.is_down.set()
    with QueuedSink(sink, must_deliver(small_disk / "spool")) as queued:
        for index in range(300):
            queued.write(make_prediction(index))
        assert queued.counts().dropped["spool failed"] > 100
    assert queued.counts().is_balanced


def test_a_video_that_is_removed_while_it_is_written_is_counted_and_begun_anew(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    with QueuedSink(VideoSink(VideoSettings(path=tmp_path / "line.avi", by_stream=False))) as queued:
        for index in range(5):
            queued.write(make_prediction(index))
        assert queued.flush(10)
        (part,) = tmp_path.glob(".line.*part.avi")
        part.unlink()
        for index in range(5, 9):
            queued.write(make_prediction(index))
        assert queued.flush(10)
    counts = queued.counts()
    assert counts.is_balanced
    assert (counts.delivered, counts.dropped) == (3, {"failed": 1, "removed": 5})
    assert cv2.VideoCapture(str(tmp_path / "line.avi")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_a_video_is_whole_when_the_line_ends_or_its_fault_is_raised_then(
    tmp_path: Path, make_prediction: MakePrediction, files_up_to: Callable[[int], AbstractContextManager[None]]
) -> None:
    with QueuedSink(VideoSink(VideoSettings(path=tmp_path / "good.avi", by_stream=False))) as queued:
        for index in range(5):
            queued.write(make_prediction(index))
    assert queued.counts().delivered == 5
    assert cv2.VideoCapture(str(tmp_path / "good.avi")).get(cv2.CAP_PROP_FRAME_COUNT) == 5

    def film() -> None:
        with QueuedSink(VideoSink(VideoSettings(path=tmp_path / "bad.avi", by_stream=False))) as queued:
            for index in range(20):
                queued.write(make_prediction(index))

    with files_up_to(5_000), pytest.raises(SinkError, match="of 20 frames: is the disk full"):
        film()
    assert [path.name for path in tmp_path.iterdir()] == ["good.avi"]


LINE = """
import os, sys, time, threading
from pathlib import Path
import numpy as np
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.sinks import JsonLinesSettings, JsonLinesSink, QueuedSink, QueueSettings
from nnet_edge.runtime.sinks.spool import SpoolSettings
from nnet_edge.runtime.stream.running import stopping_on_signals

folder, start = Path(sys.argv[1]), int(sys.argv[2])
accepted = os.open(folder / "accepted", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
settings = QueueSettings(must_deliver=SpoolSettings(folder / "spool"))
sink = JsonLinesSink(JsonLinesSettings(path=folder / "verdicts.jsonl", fsync_every_s=None, events=False))
image = np.zeros((8, 8, 3), np.uint8)
index = start
with stopping_on_signals() as stop:
    with QueuedSink(sink, settings) as queued:
        while not stop.is_set():
            queued.write(Prediction(Frame(image, index, time.monotonic(), "left"), 3.0, 2.0, None))
            os.write(accepted, index.to_bytes(8, "little"))
            index += 1
            time.sleep(0.0002)
    counts = queued.counts()
    print(index, counts.offered, counts.recovered, counts.delivered, counts.spooled, sum(counts.dropped.values()))
"""


def line_until(folder: Path, start: int, number: signal.Signals, lines: int) -> tuple[str, int]:
    """What a line said that was given a signal after so many lines of its log, and its exit status."""
    path = folder / "verdicts.jsonl"
    before = path.read_bytes().count(b"\n") if path.exists() else 0
    process = subprocess.Popen([sys.executable, "-c", LINE, str(folder), str(start)], stdout=subprocess.PIPE, text=True)
    until(lambda: path.exists() and path.read_bytes().count(b"\n") >= before + lines, 20)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    return output, process.returncode


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM")
def test_kill_9_and_sigterm_lose_no_message_that_was_accepted(tmp_path: Path, note_fault: Callable[..., None]) -> None:
    """Accepted is what `write` returned from: its number is noted at once, and each of them is in the log at the end."""
    start = 0
    for _ in range(2):
        _, status = line_until(tmp_path, start, signal.SIGKILL, 300)
        assert status == -signal.SIGKILL
        start += 1_000_000  # another number for each run: its first frames follow the last ones of the run before
    began_s = time.monotonic()
    output, status = line_until(tmp_path, start, signal.SIGTERM, 300)
    took_s = time.monotonic() - began_s
    assert status == 0
    index, offered, recovered, delivered, spooled, dropped = (int(word) for word in output.split())
    assert offered == index - start
    assert (spooled, dropped) == (0, 0)  # flushed
    assert delivered == offered + recovered
    found = [json.loads(line)["id"] for line in (tmp_path / "verdicts.jsonl").read_bytes().splitlines()]
    numbers = [int(each.removeprefix("left/")) for each in dict.fromkeys(found)]  # a second copy has the same id
    for run in range(3):
        of_run = [number for number in numbers if number // 1_000_000 == run]
        assert of_run == list(range(run * 1_000_000, run * 1_000_000 + len(of_run)))  # no gap, in order
    assert numbers == sorted(numbers)
    assert numbers[-1] == index - 1
    noted = np.frombuffer((tmp_path / "accepted").read_bytes(), "<u8")
    assert len(noted) > 900
    assert len(set(noted.tolist()) - set(numbers)) == 0  # lost
    assert len(set(numbers) - set(noted.tolist())) <= 2  # a kill between the two writes, in each of the first runs
    both = len(set(noted.tolist()) & set(numbers))
    copies = len(found) - len(numbers)
    note_fault("kill -9 in mid-write, twice", len(noted), both, {},
               f"{took_s:.1f} s with the start of the program and its end, {copies} copies", "verdicts")  # fmt: skip


def test_serve_makes_the_sink_of_settings_with_a_queue_unless_there_is_none(tmp_path: Path) -> None:
    observed: list[float] = []
    settings = JsonLinesSettings(
        path=tmp_path / "log.jsonl", name="log", queue=9, every_frame=True, retry_s=7.0, must_deliver=tmp_path / "spool"
    )
    queued = serve(settings, lambda content, latency_ms: observed.append(latency_ms))
    assert isinstance(queued, QueuedSink)
    assert isinstance(queued.sink, JsonLinesSink)
    assert (queued.name, queued.settings.queue_items, queued.settings.waits) == ("log", 9, True)
    assert (queued.settings.retry_s, queued.settings.must_deliver) == (7.0, SpoolSettings(tmp_path / "spool"))
    with queued:
        queued.tell(Event("source.lost", "left"))
    assert len(observed) == 1
    piped = serve(JsonLinesSettings(path=Path("-")))
    assert isinstance(piped, QueuedSink)
    assert (piped.settings.is_strict, piped.settings.ends_when_closed) == (False, True)
    assert isinstance(serve(JsonLinesSettings(path=tmp_path / "x", queue=0, events=False)), JsonLinesSink)
    with pytest.raises(ConfigError, match=r"the sink json-lines takes events, .* set events = false, or leave queue"):
        serve(JsonLinesSettings(path=tmp_path / "x", queue=0))


def test_a_sink_learns_which_streams_come(tmp_path: Path) -> None:
    expected: list[tuple[str, float | None]] = []

    class Expecting(CallbackSink):
        def expect(self, stream: str, rate_hz: float | None, is_live: bool = False) -> None:
            expected.append((stream, rate_hz))

    QueuedSink(Expecting(print)).expect("left", 25.0)
    assert expected == [("left", 25.0)]
