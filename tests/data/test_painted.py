"""Painted damage: seen where its mask says, nothing changed far from it, the same from the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from nnet_edge.data.painted import VISIBLE, anomalous_copies


@pytest.fixture(scope="module")
def good() -> np.ndarray:
    """A disc on a belt, four times with other noise, uint8 (4, 256, 256, 3)."""
    rng = np.random.default_rng(0)
    pictures = np.full((4, 256, 256, 3), 60.0)
    for picture in pictures:
        cv2.circle(picture, (128, 128), 90, (170, 160, 150), -1)
    return (pictures + rng.normal(0, 3, pictures.shape)).clip(0, 255).astype(np.uint8)


def test_marks_are_seen_where_the_mask_says(good: np.ndarray) -> None:
    images, masks = anomalous_copies(good, 40, seed=1)
    assert (images.shape, images.dtype, masks.shape, masks.dtype) == ((40, 256, 256, 3), np.uint8, (40, 256, 256), bool)
    originals = good[np.arange(40) * 4 // 40]
    change = np.abs(images.astype(float) - originals).mean(axis=3)
    for image_change, mask in zip(change, masks, strict=True):
        assert 16 <= mask.sum() < 0.25 * mask.size
        assert np.median(image_change[mask]) > VISIBLE / 2
        far = cv2.dilate(mask.astype(np.uint8), np.ones((61, 61))) == 0
        assert image_change[far].mean() < 1, "something far from the mark changed"
    assert len({mask.tobytes() for mask in masks}) == 40


def test_the_seed_says_it_all(good: np.ndarray) -> None:
    first, again, other = (anomalous_copies(good, 6, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize("grey", [0, 30, 255])
def test_a_featureless_image_is_damaged_too(grey: int) -> None:
    images, masks = anomalous_copies(np.full((1, 256, 256, 3), grey, np.uint8), 12, seed=0)
    assert masks.any(axis=(1, 2)).all()
    assert ((images != grey).any(axis=3) & masks).any(axis=(1, 2)).all()
