"""Copies among good images: pictures of equal pixels, and near copies, as frames of one video are.

A held-out image whose copy was learned says nothing of parts to come, so both belong on one side. Near copies are found by the
fine structure of the pictures (64 x 64, without what is coarse), which survives compression, noise and a change of light: the
likeness of a picture and its JPEG of quality 85 is 0.98 and more, that of two tires of MVTec 3D-AD or two parts of the demo at
most 0.93.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from nnet_edge.data.masks import THREADS

NEAR = 0.98  # likeness, a correlation
FINE_SIDE = 64
ROWS_AT_ONCE = 512


def equal_parts(images: np.ndarray) -> list[int]:
    """A number for each of `images`, uint8 (N, H, W, 3): the same for equal pixels, ascending by first appearance."""
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(lambda image: hashlib.blake2b(image).digest(), images))
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(found, len(numbers)) for found in hashes]


def near_parts(images: np.ndarray, equal: Sequence[int]) -> list[int]:
    """The numbers `equal` of `equal_parts`, with one also for images that are near copies, directly or through others."""
    numbers = np.array(equal, int)
    fine = _fine_structures(images)
    for start in range(0, len(images), ROWS_AT_ONCE):
        likeness = fine[start : start + ROWS_AT_ONCE] @ fine[: start + ROWS_AT_ONCE].T
        for row, is_near in enumerate(likeness > NEAR, start):
            found = np.unique(numbers[: row + 1][is_near[: row + 1]])
            if len(found) > 1:
                numbers[np.isin(numbers, found)] = found[0]
    ascending: dict[int, int] = {}
    return [ascending.setdefault(number, len(ascending)) for number in numbers.tolist()]


def fine_structure(image: np.ndarray) -> np.ndarray:
    """What is fine in an image, uint8 (H, W, 3), as a vector of length 1: float32 (4096,). Zero for one without structure."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (FINE_SIDE, FINE_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    fine = small - cv2.GaussianBlur(small, (0, 0), 3)
    fine -= fine.mean()
    return np.asarray(fine.ravel() / max(float(np.linalg.norm(fine)), 1.0))


def _fine_structures(images: np.ndarray) -> np.ndarray:
    """Those of images (N, H, W, 3): float32 (N, 4096)."""
    with ThreadPoolExecutor(THREADS) as pool:
        return np.array(list(pool.map(fine_structure, images)), np.float32).reshape(len(images), FINE_SIDE**2)
