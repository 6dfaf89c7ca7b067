"""Calibration frames: real, spread, the same for the same seed, never the held-out ones, never too few."""

from __future__ import annotations

import numpy as np
import pytest

from nnet_edge.calibration.quantize import LEAST_FRAMES, choose_frames, spread
from nnet_edge.errors import CalibrationError, ConfigError
from nnet_edge.kept_frames import frame_hash


def flat(*levels: int) -> np.ndarray:
    """Frames of one grey level each."""
    return np.stack([np.full((256, 256, 3), level, np.uint8) for level in levels])


def levels_of(frames: np.ndarray) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]


def test_the_choice_is_spread_over_the_images() -> None:
    crowd = [100, 101, 102, 103, 104, 105, 106, 107, 108, 109]
    chosen = levels_of(choose_frames(flat(*crowd, 0, 255, 50, 200, 30), 8, seed=0))
    assert {0, 255, 50, 200} <= set(chosen), "the rare ones are in it, whatever the first one was"


def test_the_same_seed_gives_the_same_frames_and_another_one_others() -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, 256, 256, 3), np.uint8)
    first, again, other = (choose_frames(images, 10, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({frame_hash(frame) for frame in first}) == 10


def test_held_out_and_equal_frames_are_not_taken() -> None:
    images = flat(*range(0, 200, 10), 0, 10)
    held_out = tuple(frame_hash(frame) for frame in images[:5])
    chosen = choose_frames(images, 64, besides=held_out)
    assert sorted(levels_of(chosen)) == list(range(50, 200, 10))


def test_too_few_frames_end_it() -> None:
    images = flat(*range(0, 12 * 10, 10))
    besides = tuple(frame_hash(frame) for frame in images[: 12 - LEAST_FRAMES + 1])
    with pytest.raises(CalibrationError, match=r"7 of 12 good images .* at least 8 are needed"):
        choose_frames(images, 64, besides=besides)
    with pytest.raises(ConfigError, match="4 calibration frames are too few"):
        choose_frames(images, 4)


@pytest.mark.parametrize("shape", [(9, 100, 128, 3), (9, 128, 128), (9, 128, 128, 1)])
def test_frames_that_no_input_may_have_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="not uint8"):
        choose_frames(np.zeros(shape, np.uint8))


def test_spread_takes_every_image_once() -> None:
    assert sorted(spread(flat(1, 1, 1, 9, 9), 5, seed=0)) == [0, 1, 2, 3, 4]
