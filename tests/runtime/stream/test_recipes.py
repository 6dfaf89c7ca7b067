"""Recipes: bundles, thresholds, masks and cameras under a name; no frame is judged by the wrong one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import CallbackSink
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.kept import LineChanges
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.line import LineSettings, line_settings
from nnet_edge.settings.stream import TriggerSettings

TOML = {
    "bundle": "small",
    "web": {},
    "stream": [
        {"name": "left", "camera": {"address": "synthetic"}, "verdict": {"threshold": 0.9}},
        {"name": "right", "camera": {"address": "synthetic"}},
    ],
    "recipe": [
        {"name": "m8", "stream": [{"name": "left", "verdict": {"threshold": 0.2}}]},
        {"name": "m10", "bundle": "large", "paused": ["right"]},
    ],
}
GREY = np.full((32, 32, 3), 128, np.uint8)  # half of white


def settings_of(**more: Any) -> LineSettings:
    return line_settings({**TOML, **more}, "line.toml", Path("/line"))


def greys() -> Iterator[np.ndarray]:
    for number in range(10**9):
        picture = GREY.copy()
        picture[0, 0] = number % 100
        yield picture


class Site:
    """A line of two cameras with recipes; `large` thinks that grey is good."""

    def __init__(
        self, make_runner: Callable[..., Any], settings: LineSettings | None = None, infer_s: float = 0.005
    ) -> None:
        self.seen, self.events, self.reports = list[Prediction](), list[Event](), list[LineReport]()
        self.loaded: list[Path] = []
        self.runners = {"small": make_runner(infer_s), "large": make_runner(infer_s)}
        self.written = settings or settings_of()
        settings = self.written.under(self.written.recipe)

        def load(path: Path) -> Model:
            self.loaded.append(path)
            if path.name not in self.runners:
                raise BundleError(f"there is no bundle {path}")
            return Model(path.name, path, self.runners[path.name], {"small": 0.4, "large": 0.7}[path.name])

        assert settings.bundle is not None
        self.line = Line(load(settings.bundle), [CallbackSink(self.seen.append)], load, True, written=self.written)
        for plain, stream in zip(self.written.streams, settings.streams, strict=True):
            self.line.add_source(stream, SyntheticSource(greys(), 100), plain=plain)
        self.line.events.subscribe(self.events.append)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=lambda: self.reports.append(run_line(self.line, stop)))
        thread.start()
        try:
            until(lambda: self.seen)
            yield
        finally:
            stop.set()
            thread.join(10)
        assert self.reports[0].total.is_balanced


def until(is_so: Callable[[], object], limit_s: float = 10.0) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_no_frame_is_judged_by_the_wrong_recipe_under_load(make_runner: Callable[..., Any]) -> None:
    """Both cameras give more than the runners can do, and recipes change as fast as they can."""
    site, wanted = Site(make_runner), ["m10", "m8"] * 6
    switched_s = {}
    with site.running():
        for number, name in enumerate(wanted):
            site.line.use_recipe(name, "test")
            switched_s[number] = time.monotonic()
            count = len(site.seen)
            until(lambda count=count, name=name: any(one.frame.recipe == name for one in site.seen[count:]))  # type: ignore[misc]
    facts = {"m8": {"left": ("small", 0.2), "right": ("small", 0.4)}, "m10": {"left": ("large", 0.9)}}
    for one in site.seen:
        assert one.judged_by is not None
        assert one.frame.recipe is not None
        assert (one.judged_by.bundle, one.threshold) == facts[one.frame.recipe][one.frame.stream]
        assert one.is_anomalous is (one.threshold < 0.5)
    names = [one.frame.recipe for one in site.seen if one.frame.stream == "left"]
    runs = [name for name, before in zip(names, ["", *names], strict=False) if name != before]
    assert runs == ["m8", *wanted]
    dropped = {cause for report in site.reports[0].streams.values() for cause in report.counts.dropped}
    assert dropped <= {"recipe", "full", "paused", "stopped"}
    assert sum(report.counts.dropped.get("recipe", 0) for report in site.reports[0].streams.values()) > 0
    told = [event.facts for event in site.events if event.kind == "recipe.changed"]
    assert [(facts["old"], facts["recipe"], facts["by"]) for facts in told][:2] == [
        ("m8", "m10", "test"),
        ("m10", "m8", "test"),
    ]


def test_triggers_of_parts_before_the_change_are_rejects(make_runner: Callable[..., Any]) -> None:
    written = settings_of()
    trigger = TriggerSettings(by="camera", deadline_ms=5000)
    written = replace(written, streams=tuple(replace(one, trigger=trigger) for one in written.streams))
    site = Site(make_runner, written, infer_s=0.03)
    with site.running():
        for name in ("m10", "m8", "m10", "m8"):
            site.line.use_recipe(name)
            time.sleep(0.05)
    for report in site.reports[0].streams.values():
        assert report.triggers is not None
        assert report.triggers.is_balanced
        assert report.triggers.open == 0
    failed = [event.facts for event in site.events if event.kind == "trigger.failed"]
    assert any("another recipe" in str(facts["reason"]) for facts in failed)
    assert {facts["answer"] for facts in failed} == {"reject"}


def test_what_cannot_be_used_leaves_the_old_recipe(make_runner: Callable[..., Any]) -> None:
    masked = {
        "name": "masked",
        "stream": [{"name": "left", "verdict": {"regions_of_interest": [[[90, 90], [99, 90], [99, 99]]]}}],
    }
    site = Site(make_runner, settings_of(recipe=[*TOML["recipe"], masked, {"name": "gone", "bundle": "gone"}]))  # type: ignore[misc]
    with site.running():
        until(lambda: site.line.stream("left").newest)
        with pytest.raises(ConfigError, match="recipe masked cannot judge stream left: the regions leave nothing"):
            site.line.use_recipe("masked")
        with pytest.raises(BundleError, match="there is no bundle"):
            site.line.use_recipe("gone")
        with pytest.raises(ConfigError, match="recipe 'm9' is unknown: choose m8, m10, masked or gone"):
            site.line.ask_recipe("m9")
        site.line.ask_recipe("gone", "plc")
        until(lambda: any(event.kind == "recipe.refused" for event in site.events))
        assert site.line.recipe == "m8"
        count = len(site.seen)
        until(lambda: len(site.seen) > count + 5)
    assert {one.frame.recipe for one in site.seen} == {"m8"}
    (refused,) = [event.facts for event in site.events if event.kind == "recipe.refused"]
    assert (refused["recipe"], refused["by"]) == ("gone", "plc")


def test_a_recipe_brings_its_camera_and_lets_the_old_one_go(make_runner: Callable[..., Any], tmp_path: Path) -> None:
    other = CameraSettings.of("synthetic", rate_hz=50.0, seed=7)
    written = settings_of()
    m8, m10 = written.recipes
    m10 = replace(m10, streams=(replace(m10.stream("left"), camera=other),))
    site = Site(make_runner, replace(written, recipes=(m8, m10)))
    with site.running():
        before = site.line.stream("left").camera
        site.line.use_recipe("m10")
        until(lambda: any(one.frame.recipe == "m10" for one in site.seen))
        assert site.line.stream("left").camera is not before
        assert before.status().state == "ended"
        assert site.line.stream("right").camera is not before
    first = next(one for one in site.seen if one.frame.recipe == "m10")
    assert first.frame.image.shape != GREY.shape  # drawn parts
    assert {one.frame.image.shape == GREY.shape for one in site.seen if one.frame.recipe == "m8"} == {True}


def test_what_people_change_is_the_recipe_s_and_outlives_a_restart(
    make_runner: Callable[..., Any], tmp_path: Path
) -> None:
    file, state = tmp_path / "line.toml", tmp_path / "line.state.json"
    table: dict[str, Any] = {**TOML, "bundle": str(tmp_path / "small")}
    table["recipe"] = [TOML["recipe"][0], {**TOML["recipe"][1], "bundle": str(tmp_path / "large")}]  # type: ignore[index, dict-item]
    file.write_text("bundle = 'x'")
    kept = LineChanges(state, table, "line.toml", tmp_path)
    site = Site(make_runner, kept.settings)
    kept.follow(site.line)
    with site.running():
        site.line.set_threshold("left", 0.3)
        site.line.use_recipe("m10")
        site.line.set_threshold("left", 0.8)
        kept.keep("page")
        site.line.use_recipe("m8")
        assert site.line.stream("left").judge.threshold == 0.3  # as it was left
        site.line.use_recipe("m10")
    changes = {
        (one["recipe"], one["stream"], one["key"]): one["value"] for one in json.loads(state.read_text())["changes"]
    }
    assert changes == {
        ("m8", "left", "threshold"): 0.3,
        ("m10", "left", "threshold"): 0.8,
        ("", None, "first_recipe"): "m10",
    }
    again = LineChanges(state, table, "line.toml", tmp_path)
    assert again.settings.recipe == "m10"
    assert {name: again.settings.under(name).streams[0].verdict.threshold for name in ("m8", "m10")} == {
        "m8": 0.3,
        "m10": 0.8,
    }
    assert any("left, recipe m8: threshold 0.3 instead of 0.2" in line for line in again.lines())
    site = Site(make_runner, again.settings)
    again.follow(site.line)
    with site.running():
        assert site.line.recipe == "m10"
        again.forget("page")
        assert (site.line.recipe, site.line.stream("left").judge.threshold) == ("m8", 0.2)
    assert not state.exists()


def test_settings_that_contradict_each_other_are_refused() -> None:
    for recipe, reason in (
        ([{"name": "a"}, {"name": "a"}], "two recipes are called 'a'"),
        ([{"name": "a", "paused": ["middle"]}], "the recipe a names the stream 'middle': there are left, right"),
        ([{"name": "a", "stream": [{"name": "left"}, {"name": "left"}]}], "names the stream 'left' twice"),
    ):
        with pytest.raises(ConfigError, match=reason):
            settings_of(recipe=recipe)
    with pytest.raises(ConfigError, match="recipe 'b' is unknown: choose m8 or m10"):
        settings_of(first_recipe="b")
    assert settings_of().recipe == "m8"
    assert settings_of(first_recipe="m10").under("m10").bundle == Path("/line/large")
    assert settings_of().bundles == (Path("/line/small"), Path("/line/large"))
