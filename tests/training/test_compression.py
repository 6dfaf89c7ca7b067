"""A training that ends in a smaller network: what is kept, what a stop leaves, and that it is the same every time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnet_edge.errors import TrainingError
from nnet_edge.geometry import Geometry
from nnet_edge.methods.network import Network
from nnet_edge.methods.nnet.settings import LEAN, Compression, TrainSettings
from nnet_edge.methods.teacher_weights import RANDOM
from nnet_edge.training import compression
from nnet_edge.training.checkpoint import Checkpoint, read_checkpoint
from nnet_edge.training.loop import Progress, Trained, TrainOptions, train

OPTIONS = TrainOptions("cpu", "fp32", teacher_weights=RANDOM)
SETTINGS = replace(
    LEAN, image_steps=0, epochs=2, look_every=0, augmentation_copies=0, batch=2, input=Geometry(64, 64),
    compression=Compression(images=8, batch=2, anomalous=0.5),
)  # fmt: skip
Stopping = Callable[[], AbstractContextManager[Callable[[], bool]]]


def never() -> AbstractContextManager[Callable[[], bool]]:
    return nullcontext(lambda: False)


def trained(
    images: np.ndarray, folder: Path, resume: Checkpoint | None = None, stopping: Stopping = never,
    told: list[Progress] | None = None, settings: TrainSettings = SETTINGS,
) -> Trained:  # fmt: skip
    """A training on all but the last two images."""
    told = [] if told is None else told
    return train(images[:-2], images[-2:], settings, folder, OPTIONS, {}, resume, told.append, stopping)


def stopping_after(steps: int) -> Stopping:
    """Say stop after so many steps."""
    asked = iter(range(1000))
    return lambda: nullcontext(lambda: next(asked) >= steps - 1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder).deployed


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_training_ends_in_the_small_network(small_washers: np.ndarray, tmp_path: Path) -> None:
    told: list[Progress] = []
    result = trained(small_washers, tmp_path, told=told)
    assert result.finished
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.is_finished
    model = checkpoint.settings.model
    assert (model.student_width, model.student_depths, model.shared_stem, model.residual_blocks) == (
        0.5,
        (1, 1, 1),
        True,
        2,
    )
    assert checkpoint.settings.compression == Compression()  # type: ignore[attr-defined]
    assert not checkpoint.build_network().training
    last = [one for one in told if one.afterwards]
    assert [set(one.losses) for one in last] == [{"loss", "reverse", "forward"}] * 4
    assert last[-1].seconds_left == 0
    assert checkpoint.facts["compression"] == {"images": 8} | last[-1].losses
    assert not any(one.afterwards for one in told[:-4])


def test_the_exponents_are_those_of_the_network_before(small_washers: np.ndarray, tmp_path: Path) -> None:
    images = np.concatenate([small_washers, small_washers[:2]])  # four to hold out are needed for a choice
    whole = replace(SETTINGS, compression=Compression(), place_powers=())
    for name, settings in (("whole", whole), ("small", replace(SETTINGS, place_powers=()))):
        train(images[:-4], images[-4:], settings, tmp_path / name, OPTIONS)
    one, other = (read_checkpoint(tmp_path / name).settings.model for name in ("whole", "small"))
    assert one.scale_exponents == other.scale_exponents != SETTINGS.model.scale_exponents


@pytest.mark.parametrize("steps", [3, 5, 6])
def test_a_stopped_training_goes_on_to_the_same_weights(small_washers: np.ndarray, tmp_path: Path, steps: int) -> None:
    """Four steps are the training's, the rest the compression's, which begins again."""
    settings = replace(SETTINGS, epochs=1)
    trained(small_washers, tmp_path / "whole", settings=settings)
    stopped = trained(small_washers, tmp_path / "parts", stopping=stopping_after(steps), settings=settings)
    assert not stopped.finished
    left = read_checkpoint(tmp_path / "parts")
    assert not left.is_finished
    assert left.settings.compression.images == 8  # type: ignore[attr-defined]
    assert trained(small_washers, tmp_path / "parts", left, settings=settings).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_the_same_seed_gives_the_same_weights_and_another_one_others(small_washers: np.ndarray, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        trained(small_washers, tmp_path / name, settings=replace(SETTINGS, seed=seed))
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert same(one, two)
    assert not same(one, three)


def test_all_images_are_shown_in_turn(
    small_washers: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[int]] = []
    steps: list[compression.Compression] = []
    before = compression.Compression.take_step

    def take(self: compression.Compression, step: int, rows: np.ndarray) -> dict[str, float]:
        shown.append(rows.tolist())
        steps.append(self)
        return before(self, step, rows)

    monkeypatch.setattr(compression.Compression, "take_step", take)
    trained(small_washers, tmp_path, settings=replace(SETTINGS, compression=Compression(images=2 * len(small_washers))))
    count = len(small_washers) - 2
    rows = [row for batch in shown for row in batch]
    assert len(rows) == 2 * len(small_washers)
    assert [set(rows[:count]), set(rows[count : 2 * count])] == [set(range(count))] * 2
    assert steps[0].compressor.anomalous == 1  # a quarter of two, rounded up


def test_a_good_image_s_features_are_the_caches_and_a_damaged_one_s_are_its_own(
    small_washers: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before = compression.Compression.batch_of

    def keep(self: compression.Compression, step: int, rows: np.ndarray):  # type: ignore[no-untyped-def]
        batch = before(self, step, rows)
        images = self.whole.normalise(torch.from_numpy(self.cache.images[rows]))
        seen.append((batch, images, self.whole.teacher_features(batch.images)))
        return batch

    monkeypatch.setattr(compression.Compression, "batch_of", keep)
    trained(small_washers, tmp_path)
    for batch, images, features in seen:
        assert not torch.equal(batch.images[0], images[0])
        assert torch.equal(batch.images[1], images[1])
        for value, expected in zip(batch.teacher, features, strict=True):
            torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


def test_without_anomalies_the_small_network_learns_from_good_images(small_washers: np.ndarray, tmp_path: Path) -> None:
    settings = replace(SETTINGS, compression=Compression(images=8, anomalous=0.0))
    assert trained(small_washers, tmp_path, settings=settings).finished


def test_a_loss_that_is_not_finite_ends_it_and_the_checkpoint_before_stays(
    small_washers: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: compression.Compression, step: int, rows: np.ndarray) -> dict[str, float]:
        with torch.no_grad():
            for value in self.small.forward_student.parameters():  # type: ignore[union-attr]
                value.fill_(float("nan"))
        return before(self, step, rows)

    before = compression.Compression.take_step
    monkeypatch.setattr(compression.Compression, "take_step", broken)
    with pytest.raises(TrainingError, match="step 1 of the compression: lower --learning-rate"):
        trained(small_washers, tmp_path)
    left = read_checkpoint(tmp_path)
    assert not left.is_finished
    assert isinstance(left.build_network(), Network)
