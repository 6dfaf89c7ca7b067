"""A trained network that learns on from more good parts: it keeps what it does where a defect is, whatever its size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnet_edge.errors import ConfigError
from nnet_edge.geometry import Geometry
from nnet_edge.methods.base import METHODS
from nnet_edge.methods.nnet.settings import LEAN, LEARN_ON, TUNED, Compression, TrainSettings
from nnet_edge.methods.teacher_weights import RANDOM
from nnet_edge.training.checkpoint import Checkpoint, read_checkpoint
from nnet_edge.training.log import PICTURE
from nnet_edge.training.loop import Progress, Trained, TrainOptions, train
from nnet_edge.training.start import Learned

OPTIONS = TrainOptions("cpu", "fp32", teacher_weights=RANDOM)
SHORT = replace(
    TUNED,
    image_steps=0,
    epochs=1,
    look_every=0,
    augmentation_copies=0,
    batch=2,
    place_powers=(),
    input=Geometry(64, 64),
)
SETTINGS = {"tuned": SHORT, "lean": replace(SHORT, compression=Compression(images=4, batch=2))}
Stopping = Callable[[], AbstractContextManager[Callable[[], bool]]]


def never() -> AbstractContextManager[Callable[[], bool]]:
    return nullcontext(lambda: False)


@pytest.fixture(scope="module", params=["tuned", "lean"])
def before(
    request: pytest.FixtureRequest, small_washers: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """A finished training on half of the images."""
    folder = tmp_path_factory.mktemp("before")
    train(small_washers[:4], small_washers[4:6], SETTINGS[request.param], folder, OPTIONS)
    return read_checkpoint(folder)


def gone_on(
    before: Checkpoint, images: np.ndarray, folder: Path, passes: int | None = 2, stopping: Stopping = never,
    told: list[Progress] | None = None, resume: Checkpoint | None = None,
) -> Trained:  # fmt: skip
    """A training that goes on from `before` with all images but the last two."""
    learned = None if resume is not None else Learned(before.deployed, before.facts["teacher"], passes, 2)
    settings = before.settings if resume is None else resume.settings
    told = [] if told is None else told
    return train(
        images[:-2], images[-2:], settings, folder, OPTIONS, {}, resume, told.append, stopping, learned=learned
    )


def test_the_students_learn_on_and_all_else_stays(
    before: Checkpoint, small_washers: np.ndarray, tmp_path: Path
) -> None:
    told: list[Progress] = []
    result = gone_on(before, small_washers, tmp_path, told=told)
    count = len(small_washers) - 2
    assert result.finished
    assert result.learned_on == 2 * count // 2 * 2
    assert {one.afterwards for one in told} == {"learning on"}
    assert len(told) == count
    after = read_checkpoint(tmp_path)
    assert after.is_finished
    assert after.settings == before.settings
    assert after.facts["learning_on"]["images"] == result.learned_on
    assert "compression" not in after.facts
    old, new = before.deployed, after.deployed
    assert old.keys() == new.keys()
    changed = {name.partition(".")[0] for name in new if not torch.equal(old[name], new[name])}
    assert {"forward_student", "reverse_student", "student_projections", "fusion"} == changed
    assert (tmp_path / PICTURE).exists()


def test_a_stop_meanwhile_is_gone_on_from_to_the_same_weights(
    before: Checkpoint, small_washers: np.ndarray, tmp_path: Path
) -> None:
    gone_on(before, small_washers, tmp_path / "whole")
    asked = iter(range(100))
    stopped = gone_on(before, small_washers, tmp_path / "parts", stopping=lambda: nullcontext(lambda: next(asked) >= 1))
    assert not stopped.finished
    left = read_checkpoint(tmp_path / "parts")
    assert not left.is_finished
    assert gone_on(before, small_washers, tmp_path / "parts", resume=left).finished
    one, other = (read_checkpoint(tmp_path / name).deployed for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("settings", [TUNED, LEAN.as_deployed()])
def test_every_image_is_shown_once_at_least(settings: TrainSettings) -> None:
    method = METHODS.find("nnet")
    few, many, asked = (
        method.learning_on(settings, *given) for given in ((30, None, None), (1000, None, None), (50, 3, 7))
    )
    assert (few.compression.images, many.compression.images, asked.compression.images) == (LEARN_ON, 1000, 150)
    assert (few.compression.batch, asked.compression.batch) == (4, 7)
    assert few.as_deployed() == settings
    with pytest.raises(ConfigError, match=r"^batch is 1"):
        method.learning_on(settings, 50, None, 1)
    with pytest.raises(ConfigError, match=r"epochs is 0"):
        method.learning_on(settings, 50, 0, None)


def test_a_trained_network_is_made_small(small_washers: np.ndarray, tmp_path: Path) -> None:
    train(small_washers[:4], small_washers[4:6], SHORT, tmp_path / "before", OPTIONS)
    before = read_checkpoint(tmp_path / "before")
    learned = Learned(before.deployed, before.facts["teacher"], 1, 2, "lean")
    result = train(
        small_washers[:-2], small_washers[-2:], before.settings, tmp_path / "small", OPTIONS, learned=learned
    )
    after = read_checkpoint(tmp_path / "small")
    assert result.finished
    assert result.learned_on == after.facts["compression"]["images"]
    assert after.settings.model == LEAN.compression.of(before.settings.model)  # type: ignore[attr-defined]
    assert "learning_on" not in after.facts
    assert after.deployed.keys() == after.build_network().state_dict().keys()


@pytest.mark.parametrize("protocol", ["tuned", "paper", "none"])
def test_no_other_protocol_makes_it_small(protocol: str) -> None:
    with pytest.raises(ConfigError, match=r"--protocol lean makes it small|protocol 'none'"):
        METHODS.find("nnet").learning_on(TUNED, 50, None, None, protocol)


def test_a_small_network_becomes_no_smaller() -> None:
    learning_on = METHODS.find("nnet").learning_on
    lean = learning_on(LEAN.as_deployed(), 50, None, None, "lean")
    assert lean.compression == replace(LEAN.compression, images=LEARN_ON)
    assert lean.as_deployed() == LEAN.as_deployed()
    deeper = replace(LEAN.as_deployed(), model=replace(LEAN.as_deployed().model, student_depths=(2, 2, 2)))
    with pytest.raises(ConfigError, match=r"begins with a forward student of full size"):
        learning_on(deeper, 50, None, None, "lean")
    with pytest.raises(ConfigError, match=r"begins with a forward student of full size"):
        replace(LEAN.as_deployed(), compression=Compression(images=8, student_width=0.25))


@pytest.mark.parametrize("name", ["dmdd", "bikd", "rbd"])
def test_the_siblings_are_trained_as_if_new(name: str) -> None:
    method = METHODS.find(name)
    assert method.learning_on(method.protocols["tuned"], 30, None, None) is None
