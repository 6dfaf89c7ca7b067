"""Folds: a real training in folds, stopped and gone on with; its threshold; what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.data.holding_out import Folds
from nnet_edge.data.training_data import TrainingData
from nnet_edge.errors import BundleError, TrainingError
from nnet_edge.evaluation.artefact import open_artifact
from nnet_edge.geometry import Geometry
from nnet_edge.methods.nnet.settings import PAPER
from nnet_edge.runtime.runners.base import infer_all
from nnet_edge.scoring import MARGIN, ThresholdRule
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.training.checkpoint import Checkpoint, read_checkpoint, read_held_out
from nnet_edge.training.folds import FoldTrainings, scale_between
from nnet_edge.training.loop import Trained, TrainOptions

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = replace(PAPER.model, memory_slots=16)
SETTINGS = replace(
    PAPER, epochs=1, place_powers=(0.5, 1.0), batch=2, ema_decay=0.5, model=MODEL, input=Geometry(64, 64)
)
OPTIONS = TrainOptions("cpu", "fp32", teacher_weights="random")
GROUPS = ["a", "a", "b", "b", "c", "c"]


@pytest.fixture(scope="module")
def data(small_washers: np.ndarray) -> TrainingData:
    """Six washers of three groups in two folds."""
    folds = Folds(2, np.array([0, 0, 1, 1, 1, 1]), np.arange(6))
    facts = {"held_out_groups": GROUPS, "folds": 2, "name": "washers"}
    return TrainingData(small_washers, small_washers, (), (), facts, folds=folds)


def run(data: TrainingData, out: Path, steps: int = 1 << 30, resume: bool = False) -> tuple[Trained, list[str]]:
    asked = iter(range(1, 1 << 31))
    said: list[str] = []
    stopping: Any = lambda: nullcontext(lambda: next(asked) >= steps)  # noqa: E731
    trainings = FoldTrainings(data, SETTINGS, out / "folds", OPTIONS, lambda progress: None, stopping, said.append)
    return trainings.run(out / "training", data.facts, resume), said


@pytest.fixture(scope="module", autouse=True)
def place_level() -> Iterator[None]:
    """What a fold says of its place level is replaced by "power 1"."""

    def chosen(folder: Path) -> Checkpoint:
        found = read_checkpoint(folder)
        is_fold = folder.parent.name == "folds"
        return replace(found, facts=found.facts | {"place_level": {"power": 1.0}}) if is_fold else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnet_edge.training.folds.read_checkpoint", chosen)
        yield


@pytest.fixture(scope="module")
def straight(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A training in folds that was never interrupted: its folder, and what it said."""
    out = tmp_path_factory.mktemp("folds")
    trained, said = run(data, out)
    assert trained.finished
    return out, said


def test_all_are_learned_and_the_threshold_is_of_what_was_not(straight: tuple[Path, list[str]]) -> None:
    out, said = straight
    assert said[0] == "2 folds: 3 trainings instead of one, so about 3 times its time"
    assert "fold 1 of 2: 4 images to learn from, 2 to judge" in said
    assert not (out / "folds").exists()
    checkpoint = read_checkpoint(out / "training")
    factors = checkpoint.facts["data"]["factors"]
    assert len(factors) == len(read_held_out(out / "training")) == 6
    artifact = open_artifact(out / "training", RunnerSettings(), in_torch=True)
    with artifact.runner as runner:
        scores = infer_all(runner, read_held_out(out / "training")).image_score
    threshold = ThresholdRule.of(checkpoint.facts["data"]).choose(scores)
    assert threshold.value == pytest.approx(artifact.threshold)
    assert threshold.value == pytest.approx(max(scores * factors) * (1 + MARGIN))
    assert (threshold.groups, threshold.folds, threshold.interval_90[0]) == (3, 2, 0.0)
    assert "6 held-out images of 3 groups, each judged by the one of 2 models" in threshold.sentence()


def test_a_place_level_that_the_folds_chose_is_the_deployed_models_too(straight: tuple[Path, list[str]]) -> None:
    checkpoint = read_checkpoint(straight[0] / "training")
    assert checkpoint.facts["place_level"] == {"power": 1.0, "of_folds": [1.0, 1.0]}
    network = checkpoint.build_network()
    assert network.place_factors is not None
    assert float(network.place_factors.std()) > 0
    assert 0.2 < np.median(checkpoint.facts["data"]["factors"]) < 5  # levels of both kinds on one scale


def test_what_was_stopped_in_a_fold_or_in_the_last_training_goes_on(
    data: TrainingData, straight: tuple[Path, list[str]], tmp_path: Path
) -> None:
    for steps in (1, 3):  # stops in the first fold, then in the second: two steps and one, and three of all images
        trained, _ = run(data, tmp_path, steps, resume=steps > 1)
        assert not trained.finished
    result = tmp_path / "folds/1.safetensors"
    kept = result.read_bytes()
    result.write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"1.safetensors cannot be read .* go on with --resume"):
        run(data, tmp_path, resume=True)
    result.write_bytes(kept)
    trained, _ = run(data, tmp_path, 2, resume=True)  # stops in the last training
    assert not trained.finished
    assert (tmp_path / "training/checkpoint.safetensors").exists()
    trained, _ = run(data, tmp_path, resume=True)
    assert trained.finished
    one, other = (read_checkpoint(out / "training") for out in (straight[0], tmp_path))
    assert one.facts["data"] == other.facts["data"]  # bit for bit, the factors too


def test_a_last_training_without_its_factors_makes_no_threshold(straight: tuple[Path, list[str]]) -> None:
    facts = dict(read_checkpoint(straight[0] / "training").facts["data"])
    factors = facts.pop("factors")
    with pytest.raises(TrainingError, match="go on with train --resume"):
        ThresholdRule.of(facts)
    for odd in ([float("nan")] * 6, ["x"], [0.0] * 6, 7):
        with pytest.raises(BundleError, match="cannot be read"):
            ThresholdRule.of(facts | {"factors": odd})
    with pytest.raises(BundleError, match="not of the held-out frames"):
        ThresholdRule.of(facts | {"factors": factors}).choose(np.ones(5))


def test_scale_is_the_middle_ratio_of_what_both_learned() -> None:
    scores = np.array([1.0, 2.0, 4.0, 5.0, 1.0])
    assert scale_between(scores, 3 * scores) == 3
    assert scale_between(scores, np.array([3.0, 6.0, 12.0, 15.0, 900.0])) == 3
