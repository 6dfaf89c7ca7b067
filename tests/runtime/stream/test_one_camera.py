"""The walk: every frame judged or counted, in order, and an end within a second whatever breaks."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.errors import SinkError, SourceError, StreamError
from nnet_edge.frame import Frame, Outputs, Prediction
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.sinks import CallbackSink, JsonLinesSettings, JsonLinesSink, Sink
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.meters import STAGES
from nnet_edge.runtime.stream.report import LineReport, StreamReport
from nnet_edge.runtime.stream.running import run as run_stream
from nnet_edge.settings.policy import EVERY_FRAME
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import BufferSettings, VerdictSettings

LIMIT_S = 1.0
SETTINGS = VerdictSettings(threshold=0.5)
MakeRunner = Callable[..., Any]


def run(*arguments: Any, **options: Any) -> StreamReport:
    """`run`, and the identity that holds for every stream: captured = judged + dropped by cause + still queued."""
    report = run_stream(*arguments, **options)
    assert report.counts.is_balanced
    assert report.counts.queued == 0
    return report


def pictures(count: int, bad: Iterable[int] = ()) -> Iterator[np.ndarray]:
    """`count` black pictures, white those whose number is in `bad`."""
    return (np.full((32, 32, 3), 255 * (index in set(bad)), np.uint8) for index in range(count))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Fails when a capture outlives its stream."""
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("capture of")]


def test_every_frame_of_a_file_is_judged_in_order(make_runner: MakeRunner) -> None:
    seen: list[Prediction] = []
    runner = make_runner(infer_s=0.001)
    report = run(SyntheticSource(pictures(50, bad=[7, 31])), runner, [CallbackSink(seen.append)], SETTINGS)
    assert [prediction.frame.index for prediction in seen] == list(range(50))
    assert [prediction.frame.index for prediction in seen if prediction.is_anomalous] == [7, 31]
    assert (report.frames, report.rejected, report.dropped, report.ended) == (50, 2, 0, "source ended")
    assert max(runner.batches) <= runner.max_batch
    assert (runner.entered, runner.exited) == (1, 1)
    assert set(seen[0].latencies_ms) == set(STAGES) == set(report.latencies)
    for prediction in seen:
        latencies_ms = prediction.latencies_ms
        assert sum(latencies_ms[stage] for stage in STAGES[:-1]) == pytest.approx(latencies_ms["total"], abs=0.01)
    assert all(report.latencies[stage].count == 50 for stage in STAGES)


def test_a_backlog_is_taken_in_batches_of_the_runners_size(make_runner: MakeRunner) -> None:
    runner = make_runner(infer_s=0.02)
    run(SyntheticSource(pictures(40)), runner, [], SETTINGS)
    assert runner.batches.count(8) >= 3


def test_a_live_source_that_is_too_fast_drops_and_counts(make_runner: MakeRunner) -> None:
    seen: list[int] = []
    sink = CallbackSink(lambda prediction: seen.append(prediction.frame.index))
    report = run(SyntheticSource(pictures(60), rate_hz=300), make_runner(infer_s=0.05), [sink], SETTINGS)
    assert report.dropped > 0
    assert report.frames + report.dropped == 60
    assert seen == sorted(set(seen))
    assert len(seen) == report.frames
    assert seen[-1] == 59  # the newest is kept


def test_a_live_source_may_be_told_to_wait(make_runner: MakeRunner) -> None:
    buffer = BufferSettings(EVERY_FRAME, 2)
    report = run(SyntheticSource(pictures(20), rate_hz=1000), make_runner(infer_s=0.005), [], SETTINGS, buffer=buffer)
    assert (report.frames, report.dropped) == (20, 0)


def test_a_single_live_source_is_opened_again_until_it_is_back(make_runner: MakeRunner) -> None:
    seen: list[int] = []
    stop = threading.Event()
    opened = itertools.count(1)

    def open_camera() -> SyntheticSource:
        if next(opened) == 2:
            raise SourceError("the camera starts")
        return SyntheticSource(pictures(3), rate_hz=200)

    def see(prediction: Prediction) -> None:
        seen.append(prediction.frame.index)
        if len(seen) == 7:
            stop.set()

    report = run(open_camera(), make_runner(), [CallbackSink(see)], SETTINGS, stop, reopen=open_camera)
    assert report.ended == "stopped"
    assert len(seen) >= 7
    assert seen == sorted(set(seen))


def test_a_verdict_never_waits_for_a_later_frame(make_runner: MakeRunner) -> None:
    seen = threading.Event()
    waited: list[bool] = []

    def one_then_another_when_the_first_was_seen() -> Iterator[np.ndarray]:
        yield from pictures(1)
        waited.append(seen.wait(LIMIT_S))
        yield from pictures(1)

    run(SyntheticSource(one_then_another_when_the_first_was_seen()), make_runner(),
        [CallbackSink(lambda prediction: seen.set())], SETTINGS)  # fmt: skip
    assert waited == [True]


@pytest.mark.parametrize(("at_once", "ahead"), [(1, 2), (3, 4)])
def test_what_a_runner_computes_next_is_started_before_the_last_is_waited_for(
    make_runner: MakeRunner, at_once: int, ahead: int
) -> None:
    moments: list[str] = []

    class Telling(make_runner):  # type: ignore[misc]
        max_batch = 1

        def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
            moments.append("start")
            outputs = super().start(images, layer_maps)
            time.sleep(0.02)  # the source fills the buffer meanwhile

            def wait() -> Outputs:
                moments.append("wait")
                return outputs()

            return wait

    runner, seen = Telling(), list[Prediction]()
    runner.at_once = at_once
    report = run(SyntheticSource(pictures(24)), runner, [CallbackSink(seen.append)], SETTINGS)
    assert report.frames == 24
    assert [one.frame.index for one in seen] == list(range(24))
    assert moments.count("start") == moments.count("wait")
    started = np.cumsum([1 if moment == "start" else -1 for moment in moments])
    assert started.max() == ahead  # an image more than are computed at once, and two batches at least


def test_an_empty_source_ends_at_once(make_runner: MakeRunner) -> None:
    report = run(SyntheticSource([]), make_runner(), [], SETTINGS)
    assert (report.frames, report.frames_per_s, report.ended) == (0, None, "source ended")


class Breaking(SyntheticSource):
    """Gives three frames, then raises."""

    def __iter__(self) -> Iterator[Frame]:
        yield from super().__iter__()
        raise SourceError("camera 0 stopped after 3 frames")


def test_a_source_that_dies_is_raised_after_its_frames_were_judged(make_runner: MakeRunner) -> None:
    seen: list[Prediction] = []
    shown: list[LineReport] = []
    with pytest.raises(SourceError, match="camera 0 stopped"):
        run(Breaking(pictures(3)), make_runner(), [CallbackSink(seen.append)], SETTINGS, show=shown.append)
    assert len(seen) == 3
    assert shown[-1].ended == "failed: camera 0 stopped after 3 frames"
    assert shown[-1].total.judged == 3


def test_a_source_that_cannot_be_opened_is_raised(make_runner: MakeRunner) -> None:
    runner = make_runner()
    with pytest.raises(SourceError, match="camera 77 cannot be opened"):
        run(open_source("77"), runner, [], SETTINGS)
    assert runner.exited == 1


class ClosingSink(CallbackSink):
    """Knows whether it was closed."""

    is_closed = False

    def __exit__(self, *about: object) -> None:
        self.is_closed = True


def fail_at(index: int) -> Callable[[Prediction], None]:
    def callback(prediction: Prediction) -> None:
        if prediction.frame.index == index:
            raise OSError("No space left on device")

    return callback


@pytest.mark.parametrize("rate_hz", [None, 200.0])
def test_a_sink_that_fails_ends_the_stream_within_a_second(make_runner: MakeRunner, rate_hz: float | None) -> None:
    endless = (picture for _ in iter(int, 1) for picture in pictures(10))
    good = ClosingSink(lambda prediction: None)
    shown: list[LineReport] = []
    runner = make_runner()
    start_s = time.monotonic()
    with pytest.raises(SinkError, match=r"failed at frame 2: .*No space left"):
        run(SyntheticSource(endless, rate_hz), runner, [good, CallbackSink(fail_at(2))], SETTINGS, show=shown.append)
    assert time.monotonic() - start_s < LIMIT_S
    assert good.is_closed
    assert runner.exited == 1
    assert shown[-1].ended.startswith("failed: the callback")


def test_a_sink_that_cannot_be_opened_leaves_the_others_closed(tmp_path: Path, make_runner: MakeRunner) -> None:
    (tmp_path / "file").write_bytes(b"")
    first = ClosingSink(lambda prediction: None)
    sinks: list[Sink] = [first, JsonLinesSink(JsonLinesSettings(path=tmp_path / "file" / "verdicts.jsonl"))]
    with pytest.raises(SinkError, match="cannot write verdicts"):
        run(SyntheticSource(pictures(3)), make_runner(), sinks, SETTINGS)
    assert first.is_closed


def test_a_runner_that_fails_is_raised_within_a_second(make_runner: MakeRunner) -> None:
    class Failing(make_runner):  # type: ignore[misc]
        def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
            raise StreamError("OpenVINO could not compute 8 images")

    start_s = time.monotonic()
    with pytest.raises(StreamError, match="could not compute"):
        run(SyntheticSource(pictures(100)), Failing(), [], SETTINGS)
    assert time.monotonic() - start_s < LIMIT_S


@pytest.mark.parametrize("rate_hz", [None, 0.01, 100.0])
def test_a_stop_ends_any_source_within_a_second_and_loses_no_count(
    make_runner: MakeRunner, rate_hz: float | None
) -> None:
    captured = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal captured
        while True:
            captured += 1
            yield np.zeros((32, 32, 3), np.uint8)

    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    start_s = time.monotonic()
    report = run(SyntheticSource(endless(), rate_hz), make_runner(0.005), [], SETTINGS, stop)
    assert time.monotonic() - start_s < 0.2 + LIMIT_S
    assert report.ended == "stopped"
    assert report.frames > 0
    assert 0 <= captured - (report.frames + report.dropped) <= 1  # the picture that a slow camera had not shown yet


def test_progress_is_shown_now_and_then_and_at_the_end(make_runner: MakeRunner) -> None:
    shown: list[LineReport] = []
    every_s = 0.05
    started_s = time.monotonic()
    run(
        SyntheticSource(pictures(100)), make_runner(infer_s=0.02), [], SETTINGS, show=shown.append, show_every_s=every_s
    )
    assert 3 <= len(shown) <= 2 + (time.monotonic() - started_s) / every_s
    assert {report.ended for report in shown[:-1]} == {"running"}
    assert [report.total.judged for report in shown] == sorted(report.total.judged for report in shown)
    assert shown[-1].ended == "source ended"


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_a_folder_of_images_through_a_real_graph(graph: Path, tmp_path: Path, kind: str) -> None:
    for index in range(11):
        brightness = 255 if index == 4 else 128
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((100, 140, 3), brightness, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    seen: list[Prediction] = []
    source = open_source(str(tmp_path), skip_bad_images=True)
    settings = VerdictSettings(threshold=0.25)  # distance from mid grey: white has 0.5
    report = run(source, load_runner(graph, RunnerSettings(kind=kind)), [CallbackSink(seen.append)], settings)
    assert [prediction.frame.name for prediction in seen if prediction.is_anomalous] == ["4.png"]
    assert (report.frames, report.rejected, report.dropped, report.skipped) == (11, 1, 0, 1)
    (region,) = seen[4].regions
    assert (region.x, region.y, region.width, region.height) == (0, 0, 140, 100)


ENDLESS = """
import sys
from pathlib import Path
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.sinks.json_lines import JsonLinesSettings, JsonLinesSink
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.stream.running import run, stopping_on_signals
from nnet_edge.runtime.stream.terminal import TerminalView
from nnet_edge.settings.stream import VerdictSettings

with stopping_on_signals() as stop, TerminalView("line") as view:
    sinks = [JsonLinesSink(JsonLinesSettings(path=Path("-"), events=False))]
    run(open_source("synthetic"), load_runner(Path(sys.argv[1])), sinks, VerdictSettings(0.9), stop, view.show)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_cleanly_with_its_report(graph: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", ENDLESS, str(graph)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith('{"id": "synthetic/')  # it runs
        process.send_signal(number)
        output, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert "stopped: " in errors
    assert "Traceback" not in errors
    assert output == "" or output.endswith("}\n")
