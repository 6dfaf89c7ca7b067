"""Augmented copies: only what the settings allow, drawn from the seed."""

from __future__ import annotations

import numpy as np
import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.settings.augmentation import Augmentation
from nnet_edge.training.augmentation import augmented_copies


@pytest.fixture
def images() -> np.ndarray:
    small = np.random.default_rng(0).integers(60, 180, (3, 8, 8, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


EVERYTHING = Augmentation(4, 20.0, 0.1, 0.1, 0.1, 0.1, True, True)


def test_one_copy_is_the_images_themselves(images: np.ndarray) -> None:
    assert augmented_copies(images, Augmentation(), seed=1) is images


def test_originals_come_first_and_copies_follow(images: np.ndarray) -> None:
    before = images.copy()
    copies = augmented_copies(images, EVERYTHING, seed=1)
    assert copies.shape == (12, 64, 64, 3)
    assert copies.dtype == np.uint8
    np.testing.assert_array_equal(copies[:3], images)
    np.testing.assert_array_equal(images, before)
    assert all(not np.array_equal(copies[n], images[n % 3]) for n in range(3, 12))


def test_same_seed_same_copies_other_seed_others(images: np.ndarray) -> None:
    one, same, other = (augmented_copies(images, EVERYTHING, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[3:], other[3:])


def test_copies_without_a_change_allowed_are_the_images(images: np.ndarray) -> None:
    copies = augmented_copies(images, Augmentation(copies=3), seed=1)
    np.testing.assert_array_equal(copies, np.concatenate([images] * 3))


@pytest.mark.parametrize(("flag", "axis"), [("flip_horizontal", 1), ("flip_vertical", 0)])
def test_flips_mirror_some_copies_along_their_own_axis(images: np.ndarray, flag: str, axis: int) -> None:
    copies = augmented_copies(images, Augmentation(copies=6, **{flag: True}), seed=1)[3:]
    mirrored = [np.array_equal(copy, np.flip(images[n % 3], axis)) for n, copy in enumerate(copies)]
    kept = [np.array_equal(copy, images[n % 3]) for n, copy in enumerate(copies)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert any(mirrored)
    assert any(kept)


def test_shift_stays_within_its_share() -> None:
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, 32, 32] = 255
    copies = augmented_copies(image, Augmentation(copies=40, shift=0.1), seed=2)[1:]
    places = np.array([np.unravel_index(copy[:, :, 0].argmax(), (64, 64)) for copy in copies])
    assert np.abs(places - 32).max() <= 0.1 * 64 + 0.5
    assert places.std(axis=0).min() > 1, "both axes move"


def test_zoom_and_turn_stay_within_their_bounds() -> None:
    image = np.zeros((1, 101, 101, 3), np.uint8)
    image[0, 49:52, 89:92] = 255  # 40 right of the centre
    copies = augmented_copies(image, Augmentation(copies=40, rotation_degrees=10.0, zoom=0.1), seed=3)[1:]
    for copy in copies:
        rows, columns = np.nonzero(copy[:, :, 0] > 100)
        x, y = columns.mean() - 50, rows.mean() - 50
        assert 0.9 * 40 - 0.7 < np.hypot(x, y) < 1.1 * 40 + 0.7
        assert abs(np.degrees(np.arctan2(y, x))) < 10 + 1


def test_no_black_corners() -> None:
    grey = np.full((1, 64, 64, 3), 90, np.uint8)
    copies = augmented_copies(grey, Augmentation(copies=10, rotation_degrees=45.0, zoom=0.3, shift=0.3), seed=4)
    assert set(np.unique(copies)) == {90}


def test_brightness_scales_within_its_share() -> None:
    grey = np.full((1, 16, 16, 3), 100, np.uint8)
    means = augmented_copies(grey, Augmentation(copies=60, brightness=0.2), seed=5)[1:].mean(axis=(1, 2, 3))
    assert 80 <= means.min() < 90
    assert 110 < means.max() <= 120


def test_contrast_keeps_the_mean_and_saturates_instead_of_wrapping() -> None:
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, :, 8:] = 250
    copies = augmented_copies(image, Augmentation(copies=30, contrast=0.5), seed=6)[1:]
    dark, bright = copies[:, :, :8].astype(int), copies[:, :, 8:].astype(int)
    assert (dark < bright).all()
    assert dark.max() > 20, "some copies are flatter"
    assert bright.max() == 255
    assert dark.min() == 0


@pytest.mark.parametrize("name", ["zoom", "shift", "brightness", "contrast"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_impossible_shares_are_wrong_use(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Augmentation(copies=2, **{name: value})


def test_no_copies_are_wrong_use() -> None:
    with pytest.raises(ConfigError, match="copies"):
        Augmentation(copies=0)
