"""When a training ends: on a plateau of its validation scores, with the earliest weights on it, resumable bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnet_edge.geometry import Geometry
from nnet_edge.methods.base import METHODS
from nnet_edge.methods.nnet.settings import PAPER
from nnet_edge.training import early_stopping as stopping
from nnet_edge.training.checkpoint import read_checkpoint
from nnet_edge.training.early_stopping import EarlyStopping, ValidationScores
from nnet_edge.training.loop import Trained, TrainOptions, train

SETTINGS = replace(
    PAPER, epochs=6, batch=2, align_epochs=1, ema_decay=0.9, look_every=4, patience=2,
    model=replace(PAPER.model, memory_slots=32), input=Geometry(64, 64),
)  # fmt: skip
FP32 = TrainOptions(device="cpu", precision="fp32", checkpoint_every=100)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(small_washers: np.ndarray) -> np.ndarray:
    """Four to learn from and two held out."""
    return small_washers


@pytest.fixture(autouse=True)
def _early_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "FIRST_CHECK", 4)
    monkeypatch.setattr(stopping, "COPIES", 3)


def test_the_latest_weights_are_kept_that_are_not_clearly_worse() -> None:
    scores = ValidationScores()
    checks = [(400, 0.40), (600, 0.50), (800, 0.48), (1000, 0.46), (1200, 0.44), (1400, 0.51)]
    assert [scores.add(shown, score) for shown, score in checks] == [True, True, True, True, False, True]
    assert (scores.best, scores.kept, scores.kept_at, scores.worse_in_a_row) == (0.51, 0.51, 1400, 0)
    assert ValidationScores.from_dict(json.loads(json.dumps(scores.as_dict()))) == scores


def test_a_slow_decline_is_measured_against_the_best_of_all() -> None:
    scores = ValidationScores()
    assert [scores.add(shown, 0.5 * 0.96**shown) for shown in range(6)] == [True, True, True, False, False, False]
    assert scores.worse_in_a_row == 3


def test_checks_are_due_once_every_so_many_images(images: np.ndarray) -> None:
    settings = replace(SETTINGS, look_every=10, patience=1, seed=0)
    stopper = EarlyStopping(METHODS.find("nnet"), images[4:], settings)
    due = [shown for shown in range(2, 60, 2) if stopper.is_due(shown - 2, shown)]
    assert due == [10, 20, 30, 40, 50]
    uneven = [
        shown for before, shown in ((0, 7), (7, 14), (14, 19), (19, 26), (26, 33)) if stopper.is_due(before, shown)
    ]
    assert uneven == [14, 26, 33]


@pytest.fixture
def given_scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The next validation scores; the network is not asked."""
    scores: list[float] = []
    monkeypatch.setattr(EarlyStopping, "validation_score", lambda self, network, compute: scores.pop(0))
    return scores


def training(images: np.ndarray, folder: Path, **more: object) -> Trained:
    return train(images[:4], images[4:], more.pop("settings", SETTINGS), folder, FP32, **more)  # type: ignore[arg-type]


def test_it_ends_when_damage_is_found_worse_and_deploys_what_was_better(
    images: np.ndarray, tmp_path: Path, given_scores: list[float]
) -> None:
    given_scores += [0.1, 0.3, 0.2, 0.2, 0.9, 0.9]
    trained = training(images, tmp_path)
    assert (trained.finished, trained.epochs) == (True, 4)
    assert trained.validation is not None
    assert (trained.validation.kept, trained.validation.kept_at, len(trained.validation.checks)) == (0.3, 8, 4)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.is_finished
    after_two = read_checkpoint(
        training(images, tmp_path / "two", settings=replace(SETTINGS, epochs=2, look_every=0)).folder
    )
    deployed = checkpoint.build_network().state_dict()
    for name, value in after_two.averaged.items():
        assert torch.equal(deployed[name], value), name
    again = training(images, tmp_path, resume=checkpoint)
    assert (again.finished, again.epochs, again.step_ms) == (True, 4, 0.0)


def test_without_an_early_end_the_best_weights_are_deployed_too(
    images: np.ndarray, tmp_path: Path, given_scores: list[float]
) -> None:
    given_scores += [0.5, 0.4, 0.5]
    trained = training(images, tmp_path, settings=replace(SETTINGS, epochs=3))
    checkpoint = read_checkpoint(trained.folder)
    assert trained.epochs == 3
    assert all(torch.equal(checkpoint.deployed[name], value) for name, value in checkpoint.averaged.items())


def test_going_on_between_checks_is_bit_for_bit(images: np.ndarray, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=3, patience=9)
    straight = read_checkpoint(training(images, tmp_path / "straight", settings=settings).folder)
    asked: Iterator[int] = iter(range(1, 99))
    stopped = training(
        images, tmp_path / "cut", settings=settings, stopping=lambda: nullcontext(lambda: next(asked) >= 3)
    )
    assert not stopped.finished
    ended = read_checkpoint(training(images, tmp_path / "cut", resume=read_checkpoint(tmp_path / "cut")).folder)
    assert ended.facts["marks"] == straight.facts["marks"]
    assert len(ended.facts["marks"]["looks"]) == 3
    for part in ("network", "averaged", "best", "optimiser"):
        one, other = getattr(ended, part), getattr(straight, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), part
