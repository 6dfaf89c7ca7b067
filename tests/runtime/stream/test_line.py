"""A line of several cameras: shared batches, controls while it runs, faults, hot swap; every frame accounted for."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SourceError, StreamError
from nnet_edge.events import Event
from nnet_edge.frame import Crop, Frame, Outputs, Prediction
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.sinks import CallbackSink, JsonLinesSettings, JsonLinesSink, QueuedSink, to_fields
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.scoring import GoodScores, describe_scores
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.policy import EVERY_FRAME, FRESHEST
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import BufferSettings, LineStream, Smoothing, VerdictSettings

LIMIT_S = 20.0
MakeRunner = Callable[..., Any]
CAMERA = CameraSettings("synthetic", first_retry_s=0.05)


def pictures(values: Any) -> Iterator[np.ndarray]:
    """Grey pictures, uint8 BGR (32, 32, 3), of these values."""
    return (np.full((32, 32, 3), value, np.uint8) for value in values)


def model_of(runner: Any, name: str = "parts", threshold: float = 0.5) -> Model:
    return Model(name, Path(name), runner, threshold)


def line_of(runner: Any, seen: list[Prediction] | None = None, **more: Any) -> Line:
    return Line(model_of(runner), [] if seen is None else [CallbackSink(seen.append)], **more)


def add(line: Line, name: str, values: Any, rate_hz: float | None = None, **settings: Any) -> None:
    line.add_source(LineStream(name, CAMERA, **settings), SyntheticSource(pictures(values), rate_hz))


def require_balanced(report: LineReport) -> None:
    """captured = judged + dropped by cause + still queued, of each stream and of all; nothing is queued at the end."""
    for one in report.streams.values():
        assert one.counts.is_balanced
        assert one.counts.queued == 0
    assert report.total.is_balanced
    assert report.total.captured == sum(one.counts.captured for one in report.streams.values())


class Running:
    """A line that runs in a thread of its own; leaving the block stops it, and the report is there."""

    def __init__(self, line: Line) -> None:
        self.line, self.stop, self.report = (
            line,
            threading.Event(),
            LineReport({}, line.buffer.total(), 0.0),
        )
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.report = run_line(self.line, self.stop)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self.stop.set()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        if about[0] is None and self.error is None:
            require_balanced(self.report)


def until(is_so: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait until it is so; fail when it is not within the limit."""
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not [one for one in threading.enumerate() if one.name.startswith(("capture of", "camera "))], 2.0)


def test_several_files_share_batches_and_each_frame_is_judged_once_in_order(make_runner: MakeRunner) -> None:
    seen: list[Prediction] = []
    runner = make_runner(infer_s=0.005)
    line = line_of(runner, seen)
    for name, bad in (("a", 3), ("b", 5), ("c", 7)):
        add(line, name, [255 * (index == bad) for index in range(40)])
    batches: list[int] = []
    line.meters.listener = SimpleNamespace(
        batch=batches.append, judged=lambda prediction: None, took=lambda *what: None
    )
    report = run_line(line)
    require_balanced(report)
    for name, bad in (("a", 3), ("b", 5), ("c", 7)):
        mine = [one for one in seen if one.frame.stream == name]
        assert [one.frame.index for one in mine] == list(range(40))
        assert [one.frame.index for one in mine if one.is_anomalous] == [bad]
    assert len({one.id for one in seen}) == 120
    assert (report.total.judged, report.ended) == (120, "sources ended")
    assert max(runner.batches) > 3
    assert sum(runner.batches) == 120
    assert batches == runner.batches
    assert line.stream("a").meters.latencies()["inference"].count == 40
    assert (runner.entered, runner.exited) == (1, 1)


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_a_score_does_not_depend_on_the_frames_in_the_batch(graph: Path, kind: str) -> None:
    """Bit for bit: OpenVINO takes image by image, ONNX Runtime the whole batch."""
    values = list(range(60, 200, 7))
    found: list[dict[tuple[str, int], tuple[float, bytes]]] = []
    for streams, batch in ((["a"], 1), (["a", "b", "c"], 8)):
        seen: list[Prediction] = []
        line = Line(
            model_of(load_runner(graph, RunnerSettings(kind=kind, max_batch=batch))), [CallbackSink(seen.append)]
        )
        for number, name in enumerate(streams):
            random = np.random.default_rng(number)
            images = [(value + random.integers(-20, 20, (48, 64, 3))).astype(np.uint8) for value in values]
            line.add_source(LineStream(name, CAMERA), SyntheticSource(images))
        require_balanced(run_line(line))
        found.append({(one.frame.stream, one.frame.index): (one.image_score, one.anomaly_map.tobytes())  # type: ignore[union-attr]
                      for one in seen})  # fmt: skip
    alone, together = found
    assert len(alone) == len(values)
    assert all(together[key] == value for key, value in alone.items())


def test_live_cameras_that_want_too_much_lose_fairly(make_runner: MakeRunner) -> None:
    line = line_of(make_runner(infer_s=0.04))
    for number in range(8):
        add(line, f"camera-{number}", itertools.repeat(0), rate_hz=50.0)
    with Running(line) as running:
        time.sleep(1.5)
    counts = line.buffer.all_counts()
    judged = [one.judged for one in counts.values()]
    assert min(judged) > 10
    # by turns; a capture thread that a loaded machine lets wait misses a turn now and then
    assert max(judged) - min(judged) <= 0.25 * max(judged)
    assert all(one.dropped["full"] > 5 for one in counts.values())
    assert running.report.ended == "stopped"


@pytest.mark.alone
def test_eight_cameras_on_two_cores_lose_fairly_with_a_real_runner(
    graph: Path, note_fault: Callable[..., None]
) -> None:
    runner = load_runner(graph, RunnerSettings(kind="openvino", max_batch=8, threads=2))
    line = Line(model_of(runner, threshold=10.0))
    random = np.random.default_rng(0)
    shown = [random.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(4)]
    batch = random.integers(0, 256, (8, 256, 256, 3), np.uint8)
    runner.infer(batch)
    began_s = time.perf_counter()
    for _ in range(10):
        runner.infer(batch)
    rate_hz = max(
        150.0, 2.5 * 10 / (time.perf_counter() - began_s)
    )  # together 2.5 times what this machine's runner can do
    for number in range(8):
        line.add_source(LineStream(f"camera-{number}", CAMERA), SyntheticSource(itertools.cycle(shown), rate_hz))
    with only_cores(2), Running(line) as running:
        time.sleep(3.0)
    counts = line.buffer.all_counts()
    judged = [one.judged for one in counts.values()]
    assert min(judged) > 20
    # by turns: the drops are shared. A capture thread that two full cores let wait misses a turn now and then
    assert max(judged) - min(judged) <= max(3, 0.03 * max(judged))
    assert all(sum(one.dropped.values()) > 20 for one in counts.values())
    total = running.report.total
    recovered = f"not overcome: {min(judged)} to {max(judged)} verdicts a camera in 3 s"
    note_fault("8 cameras on 2 cores", total.captured, total.judged, total.dropped, recovered)


@contextmanager
def only_cores(count: int) -> Iterator[None]:
    """This process on so many cores, where the system can; as before afterwards."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def test_streams_are_added_paused_resumed_and_removed_while_it_runs(make_runner: MakeRunner) -> None:
    seen: list[Prediction] = []
    events: list[Event] = []
    line = line_of(make_runner(), seen, keep_open=True)
    line.events.subscribe(events.append)
    with Running(line):
        add(line, "a", itertools.repeat(0), rate_hz=100.0)
        until(lambda: line.latest("a"))
        add(line, "b", itertools.repeat(255), rate_hz=100.0)
        until(lambda: line.latest("b"))
        with pytest.raises(ConfigError, match="a stream called 'b' already"):
            add(line, "b", [])
        line.pause("b")
        time.sleep(0.1)
        judged = line.buffer.counts("b").judged
        time.sleep(0.2)
        (status,) = [one for one in line.streams() if one.name == "b"]
        assert status.is_paused
        assert status.counts.judged == judged
        assert status.counts.dropped["paused"] > 5
        line.resume("b")
        until(lambda: line.buffer.counts("b").judged > judged)
        line.remove("a")
        assert [one.name for one in line.streams()] == ["b"]
        with pytest.raises(ConfigError, match="no stream called 'a': there are b"):
            line.latest("a")
        count = len([one for one in seen if one.frame.stream == "a"])
        time.sleep(0.1)
        assert len([one for one in seen if one.frame.stream == "a"]) <= count + 2
    kinds = Counter((event.kind, event.stream) for event in events)
    for kind, stream in (("stream.added", "a"), ("source.live", "b"), ("stream.paused", "b"), ("stream.resumed", "b"),
                         ("stream.removed", "a")):  # fmt: skip
        assert kinds[kind, stream] == 1


def test_a_threshold_and_regions_change_verdicts_at_once(make_runner: MakeRunner) -> None:
    line = line_of(make_runner())
    add(line, "a", itertools.repeat(150), rate_hz=100.0)  # score 0.59
    with Running(line):
        until(lambda: line.latest("a"))
        assert line.latest("a").is_anomalous  # type: ignore[union-attr]
        line.set_threshold("a", 0.8)
        until(lambda: not line.latest("a").is_anomalous)  # type: ignore[union-attr]
        assert line.streams()[0].threshold == 0.8
        line.set_threshold("a", None)
        until(lambda: line.latest("a").is_anomalous)  # type: ignore[union-attr]
        line.set_regions_of_interest("a", [((8, 8), (24, 8), (24, 24), (8, 24))])
        until(lambda: line.latest("a").is_masked)  # type: ignore[union-attr]
        (region,) = line.latest("a").regions  # type: ignore[union-attr]
        assert (region.x, region.y) == (8, 8)
        assert (region.width, region.height) == (pytest.approx(16, abs=1), pytest.approx(16, abs=1))
        with pytest.raises(ConfigError, match="leave nothing of the picture"):
            line.set_regions_of_interest("a", [((100, 100), (120, 100), (120, 120))])
        with pytest.raises(ConfigError, match="threshold is -1"):
            line.set_threshold("a", -1)
        until(lambda: len(line.scores("a")) > 10)


def test_crops_of_one_picture_are_judged_for_themselves(make_runner: MakeRunner) -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 60:] = 255
    crops = (Crop("left", 0, 0, 50, 40), Crop("right", 60, 0, 40, 40))
    seen: list[Prediction] = []
    line = line_of(make_runner(), seen)
    settings = LineStream("a", CAMERA, verdict=VerdictSettings(crops=crops))
    line.add_source(settings, SyntheticSource([image] * 10))
    report = run_line(line)
    require_balanced(report)
    assert [(one.frame.index, one.frame.crop.name, one.is_anomalous) for one in seen] == [  # type: ignore[union-attr]
        (index, name, name == "right") for index in range(10) for name in ("left", "right")
    ]
    assert seen[1].id.endswith("/0/right")
    assert (report.total.captured, report.total.judged, report.streams["a"].frames) == (10, 10, 20)
    assert [one.frame.crop for one in line.latest_parts("a")] == list(crops)


def test_one_bad_frame_of_three_rejects_nothing_where_two_are_asked_for(make_runner: MakeRunner) -> None:
    seen: list[Prediction] = []
    line = line_of(make_runner(), seen)
    add(line, "a", [0, 255, 0, 0, 255, 255, 0, 0], verdict=VerdictSettings(smoothing=Smoothing(2, 3)))
    require_balanced(run_line(line))
    assert [one.is_above for one in seen] == [False, True, False, False, True, True, False, False]
    assert [one.is_anomalous for one in seen] == [False, False, False, False, False, True, True, False]


class BreaksAt:
    """What a runner's `infer` does when one of its images is white at a bad moment."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, images: np.ndarray) -> None:
        if self.times and (images == 255).all(axis=(1, 2, 3)).any():
            self.times -= 1
            raise StreamError("the accelerator gave an error")


def breaking(make_runner: MakeRunner, breaks: BreaksAt) -> Any:
    class Breaking(make_runner):  # type: ignore[misc]
        def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
            breaks(images)
            return super().infer(images, layer_maps)  # type: ignore[no-any-return]

    return Breaking()


@pytest.mark.parametrize(("times", "failed"), [(1, 0), (2, 1)])
def test_a_runner_that_fails_once_costs_nothing_and_twice_one_frame(
    make_runner: MakeRunner, times: int, failed: int, note_fault: Callable[..., None]
) -> None:
    seen: list[Prediction] = []
    events: list[Event] = []
    line = line_of(breaking(make_runner, BreaksAt(times)), seen)
    line.events.subscribe(events.append)
    add(line, "a", [255 * (index == 20) for index in range(40)])
    report = run_line(line)
    require_balanced(report)
    assert report.total.judged == 40 - failed
    assert report.total.dropped == ({"failed": 1} if failed else {})
    told = [event for event in events if event.kind == "frame.failed"]
    assert len(told) == failed
    assert [str(event.facts["frame"]).rpartition("/")[2] for event in told] == ["20"] * failed
    assert [one.frame.index for one in seen] == [index for index in range(40) if not (failed and index == 20)]
    if not failed:
        recovered = "the same batch, its frames tried once more, alone"
        note_fault("runner throws once", report.total.captured, report.total.judged, report.total.dropped, recovered)


def test_a_runner_that_always_fails_ends_the_line_with_its_error(
    make_runner: MakeRunner, tmp_path: Path, note_fault: Callable[..., None]
) -> None:
    log = JsonLinesSink(JsonLinesSettings(path=tmp_path / "verdicts.jsonl", fsync_every_s=60.0))
    line = Line(model_of(breaking(make_runner, BreaksAt(10_000))), [QueuedSink(log)])
    add(line, "a", itertools.repeat(255))
    with pytest.raises(StreamError, match=r"8 frames in a row could not be judged.*the accelerator gave an error"):
        run_line(line)
    assert line.buffer.total().is_balanced
    assert line.buffer.total().queued == 0
    total = line.buffer.total()
    assert total.dropped["failed"] == 8
    lines = [json.loads(each) for each in (tmp_path / "verdicts.events.jsonl").read_text().splitlines()]
    assert sum(each.get("event") == "frame.failed" for each in lines) == 8  # the sinks were flushed
    recovered = "none: the line ends with the runner's error, sinks flushed"
    note_fault("runner throws always", total.captured, total.judged, total.dropped, recovered)


def test_a_score_lower_than_any_good_parts_is_told_and_counted(make_runner: MakeRunner) -> None:
    good = describe_scores(np.linspace(0.5, 0.7, 20)).as_dict()
    limit = GoodScores.from_dict(good).too_low
    assert limit is not None
    assert 0.3 < limit < 0.5
    events: list[Event] = []
    line = Line(replace(model_of(make_runner(), threshold=1.0), manifest={"good_scores": good}))
    line.events.subscribe(events.append)
    add(line, "a", [255 * 0.6, *[2] * 17, 255 * 0.51, 3, 255 * limit + 1])
    add(line, "crops", [2] * 3, verdict=VerdictSettings(crops=(Crop("left", 0, 0, 16, 16),)))
    report = run_line(line)
    require_balanced(report)
    told = [event for event in events if event.kind == "score.low"]
    assert [(event.stream, event.facts["in_a_row"]) for event in told] == [("a", 1), ("a", 8), ("a", 16), ("a", 1)]
    assert "look at the camera's picture" in str(told[0].facts["reason"])
    assert json.dumps(told[0].as_dict())
    assert report.streams["a"].low == report.streams["a"].as_dict()["low_scores"] == 18
    assert "18 with a score lower than any good part's" in report.streams["a"].lines()[0]
    assert report.streams["crops"].low == 0
    assert {one.name: one.low for one in line.streams()} == {"a": 18, "crops": 0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["score", "map"])
def test_what_is_not_finite_is_never_good(make_runner: MakeRunner, tmp_path: Path, bad: float, part: str) -> None:
    """On its way through a line: no sink hears a verdict, the event says why, and it is counted by its cause."""

    class Poisoned(make_runner):  # type: ignore[misc, valid-type]
        def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
            outputs = super().infer(images, layer_maps)
            anomaly_map, score = outputs.anomaly_map.copy(), outputs.image_score.copy()
            white = outputs.image_score > 0.9
            if part == "score":
                score[white] = bad
            else:
                anomaly_map[white, 200, 3] = bad
            return Outputs(anomaly_map, score)

    seen: list[Prediction] = []
    log = JsonLinesSink(JsonLinesSettings(path=tmp_path / "verdicts.jsonl"))
    line = Line(model_of(Poisoned(), threshold=2.0), [CallbackSink(seen.append), QueuedSink(log)])
    events: list[Event] = []
    line.events.subscribe(events.append)
    add(line, "a", [128, 255] * 5)
    report = run_line(line)
    require_balanced(report)
    assert report.total.dropped == {"not_finite": 5}
    assert [one.frame.index for one in seen] == [0, 2, 4, 6, 8]
    lines = [json.loads(each) for each in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [each["index"] for each in lines if "score" in each] == [0, 2, 4, 6, 8]
    told = [event for event in events if event.kind == "frame.failed"]
    assert len(told) == 5
    assert "try another --runner" in json.dumps(told[0].as_dict())


def test_a_stream_whose_own_bundle_is_broken_does_not_end_the_others(make_runner: MakeRunner) -> None:
    seen: list[Prediction] = []
    events: list[Event] = []
    line = line_of(make_runner(), seen, load=lambda path: model_of(breaking(make_runner, BreaksAt(10_000)), path.name))
    line.events.subscribe(events.append)
    add(line, "broken", [255] * 60, bundle=Path("own"))
    add(line, "sound", [255] * 200)
    report = run_line(line)
    require_balanced(report)
    assert report.streams["sound"].counts.judged == len(seen) == 200
    assert report.streams["broken"].counts.dropped == {"failed": 60}
    told = [event for event in events if event.kind == "frame.failed"]
    assert {event.stream for event in told} == {"broken"}
    assert len(told) == 10  # the first eight, then the 16th and the 32nd


def test_a_source_that_breaks_costs_its_own_stream_only(make_runner: MakeRunner) -> None:
    class Breaking(SyntheticSource):
        def __iter__(self) -> Iterator[Frame]:
            yield from itertools.islice(super().__iter__(), 3)
            raise SourceError("the file is cut off")

    line = line_of(make_runner())
    line.add_source(LineStream("bad", CAMERA), Breaking(pictures(range(10))))
    add(line, "good", [0] * 200, buffer=BufferSettings(EVERY_FRAME, 4))
    report = run_line(line)
    require_balanced(report)
    assert (report.streams["bad"].counts.judged, report.streams["good"].counts.judged) == (3, 200)
    assert report.errors == {"bad": "the file is cut off"}


class Half:
    """Makes a model whose scores are half of another's, as another bundle would; counts what was left open."""

    def __init__(self, make_runner: MakeRunner) -> None:
        class Halved(make_runner):  # type: ignore[misc]
            name = "halved"

            def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
                outputs = super().infer(images, layer_maps)
                return Outputs(outputs.anomaly_map / 2, outputs.image_score / 2)

        self.runner = Halved()

    def __call__(self, path: Path) -> Model:
        return model_of(self.runner, path.name, threshold=0.2)


def test_a_swap_under_load_loses_no_frame_and_says_what_it_did(
    make_runner: MakeRunner, note_fault: Callable[..., None]
) -> None:
    seen: list[Prediction] = []
    events: list[Event] = []
    old, load = make_runner(infer_s=0.002), Half(make_runner)
    line = Line(model_of(old, "old"), [CallbackSink(seen.append)], load)
    line.events.subscribe(events.append)
    for name in ("a", "b"):
        add(line, name, itertools.chain([204] * 200), buffer=BufferSettings(EVERY_FRAME, 8))  # score 0.8
    with Running(line) as running:
        until(lambda: len(seen) > 40)
        began_s = time.monotonic()
        line.swap(Path("new"))
        switched, took_s = len(seen), time.monotonic() - began_s
        assert (old.exited, load.runner.entered) == (1, 1)
        until(lambda: line.buffer.has_ended("a") and line.buffer.has_ended("b"))
    assert 40 < switched < 400
    assert running.report.total.judged == running.report.total.captured == len(seen) == 400
    for name in ("a", "b"):
        mine = [one for one in seen if one.frame.stream == name]
        assert [one.frame.index for one in mine] == list(range(200))
        thresholds = [one.threshold for one in mine]
        assert thresholds == sorted(thresholds, reverse=True)
        assert set(thresholds) == {0.5, 0.2}
        assert all(one.image_score == pytest.approx(0.8 if one.threshold == 0.5 else 0.4) for one in mine)
    (event,) = [event for event in events if event.kind == "bundle.swapped"]
    assert (event.facts["old"]["bundle"], event.facts["new"]["bundle"]) == ("old", "new")  # type: ignore[index]
    assert event.facts["streams"] == ["a", "b"]
    assert load.runner.exited == 1
    recovered = f"{1e3 * took_s:.0f} ms from loaded to judging"
    note_fault("bundle swapped under load", len(seen), running.report.total.judged, {}, recovered)


def test_a_swap_that_cannot_be_loaded_leaves_everything_as_it_was(make_runner: MakeRunner) -> None:
    def load(path: Path) -> Model:
        raise StreamError(f"{path} is broken")

    line = Line(model_of(make_runner()), [], load)
    add(line, "a", itertools.repeat(0), rate_hz=100.0)
    with Running(line):
        until(lambda: line.latest("a"))
        with pytest.raises(StreamError, match="new is broken"):
            line.swap(Path("new"))
        judged = line.buffer.counts("a").judged
        until(lambda: line.buffer.counts("a").judged > judged)
        assert line.model().name == "parts"


def test_a_swap_that_was_given_up_does_not_happen_later(make_runner: MakeRunner) -> None:
    """The runner hangs for longer than the swap waits; what was told to have failed stays failed."""
    let_go = threading.Event()

    class Hanging(make_runner):  # type: ignore[misc]
        def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
            let_go.wait(20)
            return super().infer(images, layer_maps)  # type: ignore[no-any-return]

    load = Half(make_runner)
    line = line_of(Hanging(), load=load)
    add(line, "a", itertools.repeat(204), rate_hz=100.0)
    with Running(line):
        until(lambda: line.buffer.counts("a").captured > 3)
        with pytest.raises(StreamError, match=r"waited for 0\.2 s for its turn and was put back"):
            line.swap(Path("new"), timeout_s=0.2)
        assert (load.runner.entered, load.runner.exited) == (1, 1)
        let_go.set()
        until(lambda: line.buffer.counts("a").judged > 3)
        assert (line.model().name, line.streams()[0].bundle_threshold) == ("parts", 0.5)


def test_two_swaps_that_wait_together_both_happen(make_runner: MakeRunner) -> None:
    loads = {"first": Half(make_runner), "second": Half(make_runner)}
    line = line_of(make_runner(), load=lambda path: loads[path.name](path))
    with line.running():
        add(line, "a", [])
        threads = [threading.Thread(target=line.swap, args=(Path(name),)) for name in loads]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: line.models.waiting == number + 1)
        line.models.switch()  # what the line's thread does between two batches
        for thread in threads:
            thread.join(LIMIT_S)
        assert (line.model().name, line.model("a").name) == ("second", "second")
        runners = loads["first"].runner, loads["second"].runner
        assert [(one.entered, one.exited) for one in runners] == [(1, 1), (1, 0)]


def test_a_stream_may_have_a_bundle_of_its_own(make_runner: MakeRunner) -> None:
    seen: list[Prediction] = []
    load = Half(make_runner)
    line = Line(model_of(make_runner()), [CallbackSink(seen.append)], load)
    add(line, "a", [204] * 20)
    line.add_source(LineStream("b", CAMERA, bundle=Path("own")), SyntheticSource(pictures([204] * 20)))
    require_balanced(run_line(line))
    scores = {(one.frame.stream, round(one.image_score, 3), one.threshold) for one in seen}
    assert scores == {("a", 0.8, 0.5), ("b", 0.4, 0.2)}
    assert load.runner.exited == 1


def test_the_model_of_a_removed_stream_is_let_go(make_runner: MakeRunner) -> None:
    load = Half(make_runner)
    line = line_of(make_runner(), load=load)
    add(line, "a", itertools.repeat(0), rate_hz=100.0)
    with Running(line):
        for number in range(3):
            add(line, "b", itertools.repeat(0), rate_hz=100.0, bundle=Path(f"own-{number}"))
            until(lambda: line.latest("b"))
            line.remove("b")
            until(lambda number=number: load.runner.exited == number + 1)
        judged = line.buffer.counts("a").judged
        until(lambda: line.buffer.counts("a").judged > judged)
    assert load.runner.entered == 3


def test_a_clock_that_jumps_back_and_forth_by_an_hour_changes_nothing(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, note_fault: Callable[..., None]
) -> None:
    """Nothing is stale, stalled, late or lost: only the times that people read follow the wall clock."""
    seen: list[Prediction] = []
    events: list[Event] = []
    line = line_of(make_runner(), seen, keep_open=True)
    line.events.subscribe(events.append)
    camera = replace(CAMERA, stall_s=0.6, read_timeout_s=0.6, open_timeout_s=0.6)
    buffer = BufferSettings(FRESHEST, 4, staleness_s=0.5)
    for name in ("a", "b"):
        stream = LineStream(name, camera, buffer)
        line.add_source(stream, SyntheticSource(pictures(itertools.repeat(0)), 50.0))
    real, offset_s = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset_s[0])
    said_s: list[float] = []
    with Running(line) as running:
        until(lambda: line.latest("a") and line.latest("b"))
        began_s, before = time.monotonic(), line.buffer.total().judged
        for jump_s in (3600.0, -3600.0, 3600.0, -7200.0, 0.0):
            offset_s[0] = jump_s
            judged = line.buffer.total().judged
            until(lambda judged=judged: line.buffer.total().judged > judged + 20)
            said = str(to_fields(line.latest("a"))["time"])  # type: ignore[arg-type]  # the time that people read
            said_s.append(datetime.fromisoformat(said.replace("Z", "+00:00")).timestamp() - real())
        rate_hz = (line.buffer.total().judged - before) / (time.monotonic() - began_s)
    assert [round(each / 3600) for each in said_s] == [1, -1, 1, -2, 0]
    assert rate_hz > 50  # of 100 that both cameras give: no deadline was missed by an hour
    assert set(running.report.total.dropped) <= {"full", "stopped"}
    assert not [event for event in events if event.kind in ("source.stalled", "source.lost", "stream.failed")]
    totals_ms = [one.latencies_ms["total"] for one in seen]
    assert min(totals_ms) >= 0
    assert max(totals_ms) < 2000
    assert max(numbers.mean_ms or 0.0 for numbers in line.stream("a").meters.latencies().values()) < 2000
    total = running.report.total
    note_fault("clock jumps by an hour", total.captured, total.judged, total.dropped, "nothing to recover from")


def test_a_slow_subscriber_that_fails_is_only_logged(make_runner: MakeRunner, caplog: pytest.LogCaptureFixture) -> None:
    line = line_of(make_runner())
    add(line, "a", [0] * 3)

    def fail(prediction: Prediction) -> None:
        raise ValueError("no chart")

    line.subscribe(fail)
    report = run_line(line)
    assert report.total.judged == 3
    assert "a subscriber failed" in caplog.text


def test_the_report_reads_as_lines_and_json(make_runner: MakeRunner) -> None:
    line = line_of(make_runner())
    for name in ("a", "b"):
        add(line, name, [0, 255, 0])
    report = run_line(line)
    assert report.lines()[0].startswith("sources ended: 6 frames of 2 streams")
    assert report.lines()[1].startswith("a: sources ended: 3 frames")
    assert report.as_dict()["judged"] == 6
    assert replace(report, seconds=0.0).frames_per_s is None


def test_the_report_of_a_single_camera_is_that_of_its_stream(make_runner: MakeRunner) -> None:
    line = line_of(make_runner())
    add(line, "a", [0, 255, 0])
    report = run_line(line)
    assert report.lines()[0].startswith("source ended: 3 frames in ")
    assert [line.split()[0] for line in report.lines()[1:]] == ["queue", "resize", "inference", "verdict", "total"]
