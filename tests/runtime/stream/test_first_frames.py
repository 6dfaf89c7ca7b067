"""First frames of a stream: another image path is told once, and a threshold is chosen again on good parts, or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError
from nnet_edge.events import Event
from nnet_edge.frame import Frame, Prediction
from nnet_edge.image_path import ImagePath, columns_of, measure, measure_file, usual_of
from nnet_edge.imaging import resize
from nnet_edge.runtime.sinks import CallbackSink, to_fields
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.first_frames import MOST_TIMES, Others, far_out, require_enough
from nnet_edge.runtime.stream.kept import LineChanges
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.scoring import choose_threshold
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.line import line_settings
from nnet_edge.settings.stream import Adapted, LineStream, VerdictSettings
from tests.conftest import good_part

ID = "0123456789ab"
SCORES = np.linspace(0.55, 0.75, 12)  # of good parts of another camera; the bundle's threshold is 0.5


def grey(score: float) -> np.ndarray:
    """A picture that the runner of these tests gives about this score."""
    return np.full((32, 32, 3), round(255 * score), np.uint8)


def model_of(runner: Any, threshold: float = 0.5, bundle_id: str = ID, path: Path | None = None, **more: Any) -> Model:
    chosen = choose_threshold(np.linspace(0.1, threshold, 10)).as_dict()  # 1 of 11
    manifest = {"threshold": chosen, "files": {"nnet.onnx": bundle_id}, **more}
    return Model("parts", path, runner, threshold, manifest=manifest)


class Watched:
    """A line of one stream over pictures, what it told and what it judged."""

    def __init__(self, model: Model, pictures: Sequence[np.ndarray], **verdict: Any) -> None:
        self.events: list[Event] = []
        self.seen: list[Prediction] = []
        self.line = Line(model, [CallbackSink(self.seen.append)])
        self.line.events.subscribe(self.events.append)
        settings = LineStream("left", CameraSettings("synthetic"), verdict=VerdictSettings(**verdict))
        self.line.add_source(settings, SyntheticSource(list(pictures)))

    def run(self) -> Watched:
        self.report = run_line(self.line)
        return self

    def told(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


@pytest.fixture
def adapted(make_runner: Callable[..., Any]) -> Watched:
    """A line that adapted on 12 pictures and judged three more."""
    return Watched(model_of(make_runner()), [grey(score) for score in (*SCORES, 0.6, 0.74, 0.9)], adapt=12).run()


def test_the_threshold_is_chosen_again_as_export_chooses_it(adapted: Watched) -> None:
    scores = [one.image_score for one in adapted.seen[:12]]
    (done,) = adapted.told("adapt.done")
    wanted = choose_threshold(scores, 1 / 11).value
    assert done.facts["new"] == pytest.approx(wanted, rel=3e-4)
    assert done.facts["new"] > wanted  # the part that set it stays good
    assert done.facts["old"] == 0.5
    assert (done.facts["bundle_id"], done.facts["pictures"]) == (ID, 12)


def test_until_then_the_bundles_threshold_judges_and_lines_say_so(adapted: Watched) -> None:
    assert all(one.is_anomalous for one in adapted.seen[:12])
    fields = [to_fields(one) for one in adapted.seen]
    assert [one["threshold_from"] for one in fields] == ["adapting"] * 12 + ["adapted"] * 3
    assert {one["threshold"] for one in fields[:12]} == {0.5}
    assert [one["verdict"] for one in fields[12:]] == ["good", "good", "anomalous"]
    assert adapted.report.streams["left"].as_dict()["adapting"]["state"] == "done"  # type: ignore[index]
    assert "; adapted on 12 pictures to 1." in adapted.report.lines()[0]
    (status,) = adapted.line.streams()
    assert status.threshold_from == "adapted"
    assert status.bundle_threshold == 0.5


def test_a_source_that_ends_before_says_how_far_it_came(make_runner: Callable[..., Any]) -> None:
    found = Watched(model_of(make_runner()), [grey(score) for score in SCORES[:7]], adapt=12).run()
    assert "; adapting: 7 of 12 pictures, judged by the bundle's threshold" in found.report.lines()[0]
    assert not found.told("adapt.done")


def test_a_picture_that_stays_counts_once(make_runner: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    noisy = [np.clip(120 + random.normal(0, 4, (1080, 1920, 3)), 0, 255).astype(np.uint8) for _ in range(6)]
    found = Watched(model_of(make_runner()), noisy, adapt=12).run()
    assert "adapting: 1 of 12" in found.report.lines()[0]


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (
            [*np.linspace(0.55, 0.65, 11), 1.0],
            "frame 11 has a score of 2.00 times the bundle's threshold, far beyond the others",
        ),
        ([0.4, 0.41, 0.42, 0.44, 0.43, 0.4, 0.41, 0.43, 0.42, 0.44, 0.45, 0.6], "is it a defect"),
    ],
)
def test_a_defect_among_the_good_parts_is_refused(
    scores: list[float], why: str, make_runner: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [grey(score) for score in scores]
    found = Watched(model_of(make_runner()), [*pictures, grey(0.56)], adapt=12).run()
    (refused,) = found.told("adapt.refused")
    assert "is it a defect" in str(refused.facts["reason"])
    assert why in str(refused.facts["reason"])
    assert found.seen[-1].threshold == 0.5
    assert found.seen[-1].is_anomalous
    assert to_fields(found.seen[-1])["threshold_from"] == "bundle"
    assert "not adapted" in caplog.text


def test_a_threshold_that_could_pass_defects_is_refused(make_runner: Callable[..., Any]) -> None:
    found = Watched(model_of(make_runner(), 0.25), [grey(score) for score in SCORES], adapt=12).run()
    (refused,) = found.told("adapt.refused")
    assert f"more than {MOST_TIMES:g} times may pass defects" in str(refused.facts["reason"])
    assert found.line.streams()[0].threshold == 0.25


def test_a_score_that_is_not_finite_is_refused(make_runner: Callable[..., Any]) -> None:
    class Breaking(make_runner):  # type: ignore[misc]
        def infer(self, images: np.ndarray, layer_maps: bool = False) -> Any:
            outputs = super().infer(images, layer_maps)
            is_third = np.isclose(outputs.image_score, round(255 * SCORES[2]) / 255)
            return replace(outputs, image_score=np.where(is_third, np.float32(np.nan), outputs.image_score))

    found = Watched(model_of(Breaking()), [grey(score) for score in SCORES], adapt=12).run()
    (refused,) = found.told("adapt.refused")
    assert "nan" in str(refused.facts["reason"])


def test_too_few_pictures_for_the_bundles_rate_are_refused_before_the_line_runs(
    make_runner: Callable[..., Any],
) -> None:
    with pytest.raises(
        ConfigError, match=r"9 pictures is too few: .*1 of 11 good parts, which takes 10: give --adapt 10"
    ):
        Watched(model_of(make_runner()), [grey(0.1)], adapt=9)
    Watched(model_of(make_runner()), [grey(0.1)], adapt=10)
    with pytest.raises(ConfigError, match="adapt needs a bundle"):
        Watched(Model("parts", None, make_runner(), 0.5), [grey(0.1)], adapt=10)
    require_enough(199, 1 / 200)


def test_a_threshold_that_is_set_meanwhile_holds(make_runner: Callable[..., Any]) -> None:
    found = Watched(model_of(make_runner()), [grey(score) for score in SCORES], adapt=12)
    found.line.set_threshold("left", 0.95)
    found.run()
    assert "was set meanwhile" in str(found.told("adapt.refused")[0].facts["reason"])
    assert {to_fields(one)["threshold_from"] for one in found.seen} == {"settings"}
    assert found.line.streams()[0].threshold == 0.95


def test_the_bundles_threshold_can_be_asked_for_again(adapted: Watched) -> None:
    assert adapted.line.set_threshold("left", None) == 0.5
    assert adapted.line.streams()[0].settings.verdict.adapted is None


def test_another_bundle_drops_it_and_the_same_one_keeps_it(make_runner: Callable[..., Any]) -> None:
    own = Adapted(1.5, ID, 12)
    for bundle_id, threshold, dropped in ((ID, 1.5 * 0.8, 0), ("other0000000", 0.8, 1)):
        found = Watched(model_of(make_runner()), [grey(0.1)], adapted=own)
        assert found.line.streams()[0].threshold == 0.75
        new = model_of(make_runner(), 0.8, bundle_id)
        found.line.models._load = lambda path, new=new: new  # type: ignore[misc]
        found.line.swap(Path("new"))
        assert found.line.streams()[0].threshold == pytest.approx(threshold)
        assert len(found.told("adapt.dropped")) == dropped


def test_one_that_was_adapted_to_another_bundle_is_not_used(make_runner: Callable[..., Any]) -> None:
    found = Watched(
        model_of(make_runner()), [grey(score) for score in SCORES], adapted=Adapted(1.5, "other0000000", 12)
    )
    (dropped,) = found.told("adapt.dropped")
    assert "was another bundle's" in str(dropped.facts["reason"])
    assert found.line.streams()[0].threshold == 0.5


@pytest.fixture
def every_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last pictures are looked at without a pause between two looks."""
    monkeypatch.setattr("nnet_edge.runtime.stream.first_frames.RECENT_S", 0.0)


@pytest.mark.usefixtures("every_picture")
def test_the_last_pictures_choose_the_threshold_as_the_first_ones_do(
    adapted: Watched, make_runner: Callable[..., Any]
) -> None:
    watched = Watched(model_of(make_runner()), [grey(score) for score in (0.99, 0.98, *SCORES)], threshold=0.9).run()
    new = watched.line.adapt("left", 12, "page at 127.0.0.1")
    (told,), (first,) = watched.told("adapt.done"), adapted.told("adapt.done")
    assert new == told.facts["new"] == pytest.approx(first.facts["new"])
    assert (told.facts["old"], told.facts["by"], first.facts["by"]) == (0.9, "page at 127.0.0.1", "--adapt")
    assert watched.line.streams()[0].threshold_from == "adapted"  # not by the one that was set


@pytest.mark.usefixtures("every_picture")
def test_a_defect_among_the_last_pictures_is_refused(make_runner: Callable[..., Any]) -> None:
    watched = Watched(model_of(make_runner()), [grey(score) for score in (0.9, *np.linspace(0.3, 0.4, 12))]).run()
    with pytest.raises(ConfigError, match=r"0 has a score of 1.80 times .* is it a defect\?"):
        watched.line.adapt("left", 13)
    assert watched.line.streams()[0].threshold_from == "bundle"
    assert watched.line.adapt("left", 12) < 0.41  # without it


@pytest.mark.usefixtures("every_picture")
def test_the_last_pictures_must_be_enough_and_of_these_regions(make_runner: Callable[..., Any]) -> None:
    watched = Watched(model_of(make_runner()), [grey(score) for score in SCORES]).run()
    line = watched.line
    with pytest.raises(ConfigError, match="13 pictures were asked for, and 12 that differ"):
        line.adapt("left", 13)
    with pytest.raises(ConfigError, match=r"9 pictures is too few: .* give --adapt 10 or more"):
        line.adapt("left", 9)
    for count in (0, -1, 1001):
        with pytest.raises(ConfigError, match="adapt, good pictures,"):
            line.adapt("left", count)
    line.set_ignored("left", [((0, 0), (8, 0), (8, 8))])
    with pytest.raises(ConfigError, match=r"and 0 that differ .* its regions changed: wait"):
        line.adapt("left", 12)
    assert not watched.told("adapt.done")


def test_the_last_pictures_cost_no_more_than_ten_looks_a_second(make_runner: Callable[..., Any]) -> None:
    watched = Watched(model_of(make_runner()), [grey(score) for score in np.linspace(0.2, 0.9, 60)]).run()
    seconds = max(1.0, watched.report.seconds)
    with pytest.raises(ConfigError, match="that differ"):
        watched.line.adapt("left", min(60, round(12 * seconds)))


def test_a_swap_ends_an_adaptation(make_runner: Callable[..., Any]) -> None:
    found = Watched(model_of(make_runner()), [grey(score) for score in SCORES], adapt=12)
    new = model_of(make_runner(), 0.8, "other0000000")
    found.line.models._load = lambda path: new
    found.line.swap(Path("new"))
    assert "before it had adapted" in str(found.told("adapt.dropped")[0].facts["reason"])
    found.run()
    assert not found.told("adapt.done")
    assert {one.threshold for one in found.seen} == {0.8}


def test_it_is_kept_in_the_state_file_and_not_chosen_again(tmp_path: Path, make_runner: Callable[..., Any]) -> None:
    table = {
        "bundle": "parts",
        "stream": [{"name": "left", "camera": {"address": "synthetic"}, "verdict": {"adapt": 12}}],
    }
    state = tmp_path / "state.json"

    def start(bundle_id: str) -> tuple[LineChanges, Watched]:
        kept = LineChanges(state, table, "line.toml", tmp_path)
        verdict = vars(kept.settings.streams[0].verdict)
        model = model_of(make_runner(), bundle_id=bundle_id, path=kept.settings.bundle)
        found = Watched(model, [grey(score) for score in SCORES], **verdict)
        kept.follow(found.line)
        return kept, found.run()

    _, first = start(ID)
    assert first.told("adapt.done")
    (change,) = json.loads(state.read_text())["changes"]
    assert (change["stream"], change["key"], change["by"]) == ("left", "adapted", "--adapt")
    assert change["value"]["bundle_id"] == ID
    kept, second = start(ID)
    assert not second.told("adapt.done")
    assert {to_fields(one)["threshold_from"] for one in second.seen} == {"adapted"}
    assert "left: adapted on 12 pictures to 1.4" in kept.lines()[0]
    assert "adapted on 12 pictures" in str(kept.as_dict()["rows"])
    _, third = start("other0000000")
    assert third.told("adapt.dropped")
    assert third.told("adapt.done")  # on this bundle's word, anew
    assert json.loads(state.read_text())["changes"][0]["value"]["bundle_id"] == "other0000000"


def test_a_flag_and_a_key_make_the_same_settings(tmp_path: Path) -> None:
    camera = {"name": "left", "camera": {"address": "synthetic"}}
    by_key = line_settings({"bundle": "b", "stream": [{**camera, "verdict": {"adapt": 40}}]}, "file", tmp_path)
    assert line_settings({"bundle": "b", "stream": [camera]}, "file", tmp_path, {"adapt": 40}) == by_key
    with pytest.raises(ConfigError, match="adapt"):
        line_settings({"bundle": "b", "stream": [{**camera, "verdict": {"adapt": 0}}]}, "file", tmp_path)


@pytest.mark.parametrize(
    "fields", [{"times": -1.0}, {"times": 1.5}, {"times": 1.5, "bundle_id": "x", "pictures": 0}, 3]
)
def test_a_state_that_cannot_be_is_refused(fields: Any, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    change = {"stream": "left", "key": "adapted", "value": fields, "was": None, "at": "", "by": ""}
    state.write_text(json.dumps({"schema": 1, "changes": [change]}))
    table = {"bundle": "b", "stream": [{"name": "left", "camera": {"address": "synthetic"}}]}
    with pytest.raises(ConfigError, match="cannot be used"):
        LineChanges(state, table, "line.toml", tmp_path)


def test_threshold_and_adapt_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stream", "synthetic", "--bundle", "b", "--adapt", "20", "--threshold", "3"]) == 2
    assert "contradict" in capsys.readouterr().err


def test_scores_far_out_are_told_from_a_spread() -> None:
    random = np.random.default_rng(3)
    for deviation in (0.02, 0.1, 0.3):
        scores = np.exp(random.normal(0, deviation, 200))
        assert scores.max() < far_out(scores)
        assert far_out(scores) < np.exp(8 * max(deviation, 0.05))


# ---- another image path


def parts(first: int, count: int) -> list[np.ndarray]:
    """Photographs of washers, uint8 BGR, each in another light so that they differ."""
    return [good_part(seed, 192) for seed in range(first, first + count)]


@pytest.fixture(scope="module")
def learned() -> dict[str, Any]:
    rows = [measure(resize(one[..., ::-1].copy())) | measure_file(one) for one in parts(0, 20)]
    return ImagePath(20, usual_of(columns_of(rows))).as_dict()


def blurred(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [cv2.GaussianBlur(one, (0, 0), 2) for one in pictures]


def test_another_image_path_is_told_once(
    learned: dict[str, Any], make_runner: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(make_runner(), 0.9, image_path=learned)
    found = Watched(model, blurred(parts(20, 35))).run()
    (event,) = found.told("camera.differs")
    assert event.stream == "left"
    assert "less grain (-" in str(event.facts["reason"])
    assert "--adapt N" in str(event.facts["reason"])
    assert event.facts["pictures"] == 10
    assert json.dumps(event.as_dict())
    assert caplog.text.count("made otherwise") == 1


def test_the_same_image_path_and_defects_in_it_are_not_told(
    learned: dict[str, Any], make_runner: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    pictures = parts(20, 35)
    for one in pictures[::3]:
        one[60:100, 60:100] = 255
    with caplog.at_level(logging.WARNING):
        found = Watched(model_of(make_runner(), 0.9, image_path=learned), pictures).run()
    assert not found.told("camera.differs")
    assert not caplog.records


def test_a_bundle_of_before_says_nothing(make_runner: Callable[..., Any]) -> None:
    found = Watched(model_of(make_runner(), 0.9), blurred(parts(20, 35))).run()
    assert not found.told("camera.differs")
    assert found.line.stream("left").first.is_over


def test_pictures_of_any_kind_can_be_looked_at(learned: dict[str, Any], make_runner: Callable[..., Any]) -> None:
    pictures = [
        one[..., 0] if number % 2 else np.dstack([one, one[..., 0]]) for number, one in enumerate(parts(20, 12))
    ]
    found = Watched(model_of(make_runner(), 0.9, image_path=learned), pictures).run()
    assert len(found.seen) == 12


def test_crops_are_told_apart_for_themselves(make_frame: Callable[..., Any]) -> None:
    others = Others()
    frame = make_frame()
    assert others.is_other(frame)
    assert not others.is_other(frame)
    assert others.is_other(make_frame(is_good=True))


@pytest.mark.parametrize("size", [(480, 640), (481, 643), (90, 70), (1080, 1920)])
def test_a_camera_s_noise_makes_no_other_picture_and_a_part_that_moved_does(
    make_frame: Callable[..., Frame], size: tuple[int, int]
) -> None:
    random, others = np.random.default_rng(0), Others()
    scene = np.full((*size, 3), 60, np.int16)
    scene[: size[0] // 2, : size[1] // 2] = 160

    def shot(scene: np.ndarray) -> Frame:
        noise = random.normal(0, 1, scene.shape)
        return replace(make_frame(), image=np.clip(scene + noise, 0, 255).astype(np.uint8))

    assert others.is_other(shot(scene))
    assert not any(others.is_other(shot(scene)) for _ in range(3))
    assert others.is_other(shot(np.roll(scene, size[1] // 50, 1)))
