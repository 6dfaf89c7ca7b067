"""Triggers: one verdict or one named outcome each, whatever comes when; all of them accounted for."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.events import Event
from nnet_edge.frame import Crop, Frame, Prediction, Stamp
from nnet_edge.runtime.sinks import CallbackSink, JsonLinesSettings, JsonLinesSink, QueuedSink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.runtime.stream.triggers import Triggers
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.stream import LineStream, Smoothing, TriggerSettings, VerdictSettings

IMAGE = np.zeros((32, 32, 3), np.uint8)
MakeRunner = Callable[..., Any]


class Told:
    """Keeps what a stream's triggers tell."""

    def __init__(self, **settings: Any) -> None:
        self.facts: list[dict[str, Any]] = []
        self.triggers = Triggers(
            "a", TriggerSettings(**settings), lambda kind, stream, **facts: self.facts.append(facts)
        )

    @property
    def outcomes(self) -> dict[int, str]:
        return {facts["trigger"]: facts["outcome"] for facts in self.facts}

    def frame(self, captured_s: float) -> tuple[int | None, str | None]:
        """The number of the trigger of a frame of that moment, and the cause for which it is dropped."""
        frame, cause = self.triggers.admit(Frame(IMAGE, 0, captured_s), now_s=captured_s)
        return None if frame.trigger is None else frame.trigger.number, cause


def test_the_first_frame_after_the_trigger_is_its_part_s() -> None:
    told = Told(delay_ms=50, window_ms=100, deadline_ms=300)
    assert told.frame(0.9) == (None, "untriggered")
    assert told.triggers.order("page", now_s=1.0).number == 1
    assert told.frame(1.04) == (None, "untriggered")  # the part is not there yet
    frame, cause = told.triggers.admit(Frame(IMAGE, 0, 1.06), now_s=1.06)
    assert frame.trigger is not None
    assert (frame.trigger.number, frame.trigger.by, cause) == (1, "page", None)
    assert told.frame(1.07) == (None, "untriggered")  # the camera runs freely
    assert told.triggers.claim(frame.trigger, 1.29)
    assert not told.triggers.claim(frame.trigger, 1.29)  # once
    assert told.frame(1.08) == (None, "untriggered")
    assert (str(told.triggers.counts()), told.facts) == ("1 triggers, 1 verdicts", [])


@pytest.mark.parametrize(
    ("frames_s", "outcome", "causes"),
    [
        ([], "missed", []),
        ([1.15], "late", ["late"]),
        ([1.01, 1.02], "double", [None, "double"]),
        ([1.05], "no_answer", [None]),
        ([1.35], "missed", ["untriggered"]),
    ],
)
def test_each_fault_has_its_name_and_is_rejected(frames_s: list[float], outcome: str, causes: list[str | None]) -> None:
    told = Told(frames="one", window_ms=100, deadline_ms=300)
    told.triggers.order("modbus", 77, now_s=1.0)
    assert [told.frame(one)[1] for one in frames_s if one < 1.3] == [
        c for c, one in zip(causes, frames_s, strict=True) if one < 1.3
    ]
    assert told.triggers.expire(1.29) in (None, 1.3)
    told.triggers.expire(1.3)
    assert [told.frame(one)[1] for one in frames_s if one > 1.3] == [
        c for c, one in zip(causes, frames_s, strict=True) if one > 1.3
    ]
    (facts,) = told.facts
    assert (facts["trigger"], facts["outcome"], facts["answer"], facts["triggered_by"]) == (
        77,
        outcome,
        "reject",
        "modbus",
    )
    assert facts["reason"].startswith("trigger 77: ")
    assert told.triggers.counts().as_dict() == {"triggers": 1, "verdicts": 0, "open": 0, "outcomes": {outcome: 1}}


def test_a_verdict_behind_the_deadline_is_none() -> None:
    told = Told(deadline_ms=300)
    told.triggers.order("page", now_s=1.0)
    frame, _ = told.triggers.admit(Frame(IMAGE, 0, 1.1), now_s=1.1)
    assert frame.trigger is not None
    assert not told.triggers.claim(frame.trigger, 1.301)
    assert told.outcomes == {1: "no_answer"}


def test_a_second_frame_behind_the_verdict_is_dropped_and_counted() -> None:
    told = Told(frames="one", window_ms=100, deadline_ms=300)
    told.triggers.order("page", now_s=1.0)
    frame, _ = told.triggers.admit(Frame(IMAGE, 0, 1.01), now_s=1.01)
    assert frame.trigger is not None
    assert told.triggers.claim(frame.trigger, 1.02)
    assert told.frame(1.05) == (None, "double")
    assert told.frame(1.15) == (None, "untriggered")


def test_frames_that_may_be_of_either_of_two_parts_are_nobody_s() -> None:
    """The first frame is lost, and the second part's would be judged as the first part's."""
    told = Told(frames="one", window_ms=100, deadline_ms=300)
    told.triggers.order("page", now_s=1.0)
    told.triggers.order("page", now_s=1.08)
    assert told.frame(1.09) == (None, "overlap")
    assert told.outcomes == {1: "overlap", 2: "overlap"}
    told.triggers.order("page", now_s=1.1)  # whose frame may still be the second's
    assert told.outcomes[3] == "overlap"
    told.triggers.order("page", now_s=1.3)
    assert told.frame(1.31) == (4, None)


def test_a_free_camera_s_frame_is_the_newest_part_s() -> None:
    told = Told(window_ms=100, deadline_ms=300)
    told.triggers.order("page", now_s=1.0)
    told.triggers.order("page", now_s=1.05)
    assert told.frame(1.06) == (2, None)
    assert told.outcomes == {1: "missed"}


def test_the_camera_s_own_numbers_say_what_was_lost() -> None:
    told = Told(by="camera", deadline_ms=300)
    numbers = []
    for number in (7, 8, 11, 2, 3):  # it was started again behind 11
        frame, cause = told.triggers.admit(Frame(IMAGE, 0, 1.0), number, now_s=1.0)
        assert cause is None
        assert frame.trigger is not None
        assert told.triggers.claim(frame.trigger, 1.1)
        numbers.append(frame.trigger.number)
    assert numbers == [7, 8, 11, 2, 3]
    assert told.outcomes == {9: "missed", 10: "missed"}
    assert told.triggers.counts().is_balanced


def test_who_may_trigger_and_with_which_number() -> None:
    told = Told(by="modbus")
    with pytest.raises(ConfigError, match="triggered by 'modbus', not by 'page'"):
        told.triggers.order("page")
    told.triggers.order("modbus", 5)
    with pytest.raises(ConfigError, match="trigger 5 of stream a waits"):
        told.triggers.order("modbus", 5)
    with pytest.raises(ConfigError, match="from 0 to"):
        told.triggers.order("modbus", -1)
    told.triggers.end()
    assert told.outcomes == {5: "stopped"}
    with pytest.raises(ConfigError, match="has ended"):
        told.triggers.order("modbus")


def test_settings_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(ConfigError, match="raise deadline_ms"):
        TriggerSettings(window_ms=300, deadline_ms=200)
    with pytest.raises(ConfigError, match="smoothing"):
        LineStream(
            "a", CameraSettings("0"), verdict=VerdictSettings(smoothing=Smoothing(1, 2)), trigger=TriggerSettings()
        )
    with pytest.raises(ConfigError, match="choose reject or nothing"):
        TriggerSettings(on_lost="good")


@profile(max_examples=40, stateful_step_count=30, deadline=None)
class AnyOrder(RuleBasedStateMachine):
    """Triggers, frames, verdicts and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s, self.under_way, self.answered = 1.0, list[Frame](), list[int]()
        self.given: dict[int, int] = {}
        self.ordered: list[int] = []

    @rule(frames=st.sampled_from(["first", "one"]), delay_ms=st.sampled_from([0, 20]))
    @precondition(lambda self: not hasattr(self, "told"))
    def begin(self, frames: str, delay_ms: float) -> None:
        self.told = Told(frames=frames, delay_ms=delay_ms, window_ms=100, deadline_ms=250)

    @rule(ms=st.integers(1, 120))
    def pass_time(self, ms: int) -> None:
        self.now_s += 1e-3 * ms

    @precondition(lambda self: hasattr(self, "told"))
    @rule()
    def order(self) -> None:
        self.ordered.append(self.told.triggers.order("page", now_s=self.now_s).number)

    @precondition(lambda self: hasattr(self, "told"))
    @rule(ago_ms=st.integers(0, 30))
    def give_frame(self, ago_ms: int) -> None:
        captured_s = max(self.now_s - 1e-3 * ago_ms, getattr(self, "captured_s", 0.0))  # frames come in order
        self.captured_s = captured_s
        frame, cause = self.told.triggers.admit(Frame(IMAGE, 0, captured_s), now_s=self.now_s)
        assert (frame.trigger is None) == (cause is not None)
        if frame.trigger is not None:
            number = frame.trigger.number
            self.given[number] = self.given.get(number, 0) + 1
            assert frame.trigger.at_s <= captured_s <= frame.trigger.at_s + 0.12 + 1e-9
            self.under_way.append(frame)

    @precondition(lambda self: self.under_way)
    @rule()
    def judge(self) -> None:
        trigger = self.under_way.pop(0).trigger
        assert trigger is not None
        if self.told.triggers.claim(trigger, self.now_s):
            assert self.now_s <= trigger.answer_by_s
            self.answered.append(trigger.number)

    @precondition(lambda self: hasattr(self, "told"))
    @rule()
    def expire(self) -> None:
        due_s = self.told.triggers.expire(self.now_s)
        assert due_s is None or due_s > self.now_s

    @invariant()
    def each_is_accounted_for_once(self) -> None:
        if not hasattr(self, "told"):
            return
        counts, outcomes = self.told.triggers.counts(), self.told.outcomes
        assert counts.is_balanced
        assert counts.triggers == len(self.ordered) == len(set(self.ordered))
        assert len(outcomes) == len(self.told.facts) == sum(counts.outcomes.values())
        assert len(set(self.answered)) == len(self.answered) == counts.verdicts
        assert not set(outcomes) & set(self.answered)
        assert all(count == 1 for count in self.given.values())

    def teardown(self) -> None:
        if hasattr(self, "told"):
            self.told.triggers.end()
            counts = self.told.triggers.counts()
            assert counts.open == 0
            assert counts.triggers == counts.verdicts + sum(counts.outcomes.values())


test_any_order = AnyOrder.TestCase


PARTS = st.lists(st.tuples(st.integers(0, 60), st.lists(st.integers(1, 99), max_size=2)), min_size=1, max_size=12)


@profile(max_examples=80, deadline=None)
@given(parts=PARTS, judging_ms=st.integers(0, 40), frames=st.sampled_from(["one", "asked"]))
def test_no_part_ever_gets_another_s_verdict(parts: list[tuple[int, list[int]]], judging_ms: int, frames: str) -> None:
    """Frames are lost, late and double; a window of 80 ms lies within the 100 ms or more between two parts."""
    told = Told(frames=frames, window_ms=80, deadline_ms=300)
    happens: list[tuple[float, str, int]] = []  # when, what, and whose it truly is
    at_ms = 1000
    for number, (more_ms, latencies_ms) in enumerate(parts, start=1):
        happens += [(at_ms, "trigger", number), *((at_ms + latency, "frame", number) for latency in latencies_ms)]
        at_ms += 100 + more_ms
    verdicts: dict[int, int] = {}
    under_way: list[tuple[float, Any, int]] = []

    def give(until_ms: float) -> None:
        while under_way and under_way[0][0] <= until_ms:
            judged_ms, trigger, truly = under_way.pop(0)
            told.triggers.expire(judged_ms / 1000)
            if told.triggers.claim(trigger, judged_ms / 1000):
                assert trigger.number not in verdicts
                verdicts[trigger.number] = truly

    for now_ms, what, number in sorted(happens):
        give(now_ms)
        told.triggers.expire(now_ms / 1000)
        if what == "trigger":
            assert told.triggers.order("plc", number, now_s=now_ms / 1000).number == number
        else:
            frame, _ = told.triggers.admit(Frame(IMAGE, 0, now_ms / 1000), now_s=now_ms / 1000)
            if frame.trigger is not None:
                under_way.append((now_ms + judging_ms, frame.trigger, number))
    give(at_ms + 1000)
    told.triggers.expire(at_ms / 1000 + 1)
    assert all(number == truly for number, truly in verdicts.items())
    counts = told.triggers.counts()
    assert (counts.is_balanced, counts.open, counts.verdicts) == (True, 0, len(verdicts))
    assert set(verdicts) | set(told.outcomes) == set(range(1, len(parts) + 1))


class PartsCamera(Source):
    """A triggered camera: gives the pictures that the test puts into `parts`, as they come."""

    is_live = True

    def __init__(self) -> None:
        super().__init__("parts")
        self.parts: queue.Queue[int | None] = queue.Queue()

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while not self._interrupted.is_set():
            try:
                value = self.parts.get(timeout=0.05)
            except queue.Empty:
                continue
            yield Frame(np.full((32, 32, 3), value, np.uint8), index, time.monotonic())
            index += 1

    def describe(self) -> str:
        return "parts"


def until(is_so: Callable[[], object], limit_s: float = 10.0) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_a_line_answers_each_trigger_once_with_its_number(make_runner: MakeRunner, tmp_path: Path) -> None:
    seen, events, path = list[Prediction](), list[Event](), tmp_path / "verdicts.jsonl"
    log = QueuedSink(JsonLinesSink(JsonLinesSettings(path=path)))
    line = Line(Model("parts", Path("parts"), make_runner(0.02), 0.5), [CallbackSink(seen.append), log])
    camera, stop, reports = PartsCamera(), threading.Event(), list[LineReport]()
    crops = (Crop("left", 0, 0, 16, 32), Crop("right", 16, 0, 16, 32))
    asked = TriggerSettings(frames="one", window_ms=150, deadline_ms=400)
    settings = LineStream("a", CameraSettings("parts"), verdict=VerdictSettings(crops=crops), trigger=asked)
    line.add_source(settings, camera)
    line.events.subscribe(lambda event: events.append(event) if event.kind == "trigger.failed" else None)
    thread = threading.Thread(target=lambda: reports.append(run_line(line, stop)))
    thread.start()
    until(lambda: line.streams()[0].camera.state != "lost")
    for number, value in ((11, 0), (12, 255)):
        assert line.trigger(number=number, by="test") == number
        camera.parts.put(value)
        until(lambda number=number: any(one.frame.trigger.number == number for one in seen))  # type: ignore[misc, union-attr]
    line.trigger()  # without a frame
    until(lambda: events)
    line.pause("a")
    line.trigger()
    camera.parts.put(0)
    until(lambda: len(events) == 2)
    line.resume("a")
    camera.parts.put(0)
    until(lambda: line.streams()[0].counts.dropped.get("double"))
    time.sleep(0.15)
    camera.parts.put(0)  # without a trigger
    until(lambda: line.streams()[0].counts.dropped.get("untriggered"))
    line.trigger()
    stop.set()
    thread.join(10)
    (report,) = reports
    stream = report.streams["a"]
    assert stream.counts.is_balanced
    assert stream.triggers is not None
    outcomes = {"missed": 1, "not_judged": 1, "stopped": 1}
    assert stream.triggers.as_dict() == {"triggers": 5, "verdicts": 2, "open": 0, "outcomes": outcomes}
    assert [event.facts["trigger"] for event in events] == [13, 14, 15]
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [(one["trigger"], one["part"], one["triggered_by"]) for one in lines] == [
        (number, part, "test") for number, part in ((11, "good"), (12, "anomalous")) for _ in crops
    ]
    assert {one["latencies_ms"]["trigger"] >= one["latencies_ms"]["total"] for one in lines} == {True}
    assert stream.latencies["trigger"].count == 4  # crops
    assert (stream.latencies["trigger"].max_ms or 0) >= (stream.latencies["trigger"].p50_ms or 0) * 0.99
    assert "5 triggers, 2 verdicts" in "\n".join(report.lines())
    told = [json.loads(text) for text in path.with_suffix(".events.jsonl").read_text().splitlines()]
    assert (
        "no frame came for it within 150 ms"
        in next(e for e in told if e["event"] == "trigger.failed")["facts"]["reason"]
    )


def test_the_numbers_of_a_camera_that_is_triggered_itself_reach_the_sinks(make_runner: MakeRunner) -> None:
    class Counting(PartsCamera):
        def __iter__(self) -> Iterator[Frame]:
            return (
                replace(frame, stamp=Stamp(frame.index + 1 + 2 * (frame.index > 1), None))
                for frame in super().__iter__()
            )

    seen, events, stop = list[Prediction](), list[Event](), threading.Event()
    line = Line(Model("parts", Path("parts"), make_runner(), 0.5), [CallbackSink(seen.append)])
    line.events.subscribe(lambda event: events.append(event) if event.kind == "trigger.failed" else None)
    camera = Counting()
    line.add_source(LineStream("a", CameraSettings("parts"), trigger=TriggerSettings(by="camera")), camera)
    thread = threading.Thread(target=lambda: run_line(line, stop))
    thread.start()
    for count in range(1, 5):
        camera.parts.put(0)
        until(lambda count=count: len(seen) == count)  # type: ignore[misc]
    stop.set()
    thread.join(10)
    assert [one.frame.trigger.number for one in seen if one.frame.trigger] == [1, 2, 5, 6]
    assert [(event.facts["trigger"], event.facts["outcome"]) for event in events] == [(3, "missed"), (4, "missed")]


def test_a_camera_is_asked_for_each_part_s_picture(make_runner: MakeRunner) -> None:
    class AskedCamera(PartsCamera):
        def trigger(self) -> None:
            self.parts.put(0)

    line, stop, events = Line(Model("parts", Path("parts"), make_runner(), 0.5)), threading.Event(), list[Event]()
    line.events.subscribe(events.append)
    asked = {"a": AskedCamera(), "b": AskedCamera(), "c": PartsCamera()}
    for name, camera in asked.items():
        settings = TriggerSettings(frames="asked", delay_ms=30 * (name == "b"), deadline_ms=500)
        line.add_source(LineStream(name, CameraSettings("parts"), trigger=settings), camera)
    thread = threading.Thread(target=lambda: run_line(line, stop))
    thread.start()
    until(lambda: sum(event.kind == "source.connecting" for event in events) == 3)
    time.sleep(0.1)
    for name in asked:
        line.trigger(name)
    until(lambda: {name: line.stream(name).meters.verdicts for name in asked} == {"a": 1, "b": 1, "c": 0})
    assert (line.stream("b").meters.latencies(("trigger",))["trigger"].max_ms or 0) >= 30
    stop.set()
    thread.join(10)
    (failed,) = [event for event in events if event.kind == "trigger.failed"]
    assert (failed.stream, failed.facts["outcome"]) == ("c", "missed")
    assert "takes no software trigger" in str(failed.facts["reason"])


def test_a_frame_that_cannot_be_judged_is_answered_at_once(make_runner: MakeRunner) -> None:
    events, stop = list[Event](), threading.Event()
    runner = make_runner()
    runner.infer = lambda images, layer_maps=False: (_ for _ in ()).throw(RuntimeError("out of order"))
    line = Line(Model("parts", Path("parts"), runner, 0.5))
    camera = PartsCamera()
    line.add_source(
        LineStream("a", CameraSettings("parts"), trigger=TriggerSettings(by="camera", deadline_ms=60_000)), camera
    )
    line.events.subscribe(lambda event: events.append(event) if event.kind == "trigger.failed" else None)

    def run() -> None:
        with suppress(StreamError):  # nothing was judged
            run_line(line, stop)

    thread = threading.Thread(target=run)
    thread.start()
    camera.parts.put(0)
    until(lambda: events)
    stop.set()
    thread.join(10)
    assert events[0].facts["outcome"] == "not_judged"
    assert "out of order" in str(events[0].facts["reason"])
