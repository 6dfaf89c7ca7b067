"""Painted anomalies on good images, with their masks: what early stopping measures; `synthetic.py` has what is learned from.

An anomaly is a scar (a thin bent line) or a blotch (a ragged spot); it shows a foreign colour, the part darker or lighter, a
piece of another image, or the part smeared. Sizes and places are drawn, so no kind of real defect is aimed at.
"""

from __future__ import annotations

import cv2
import numpy as np

from nnet_edge.geometry import Box

TRIES = 20  # an anomaly that cannot be seen where it fell is drawn again
VISIBLE = 10  # grey levels of mean change from which a pixel counts as anomalous
LEAST_PIXELS = 16
SCAR_LENGTH, SCAR_WIDTH = (20, 90), (2, 6)  # pixels of 256
BLOTCH_RADIUS = (4, 28)
EXPOSURES = (0.45, 0.6, 1.5, 1.8)


def anomalous_copies(
    images: np.ndarray, count: int, seed: int, *draw: int, window: Box | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`count` copies of good `images`, uint8 RGB (N, H, W, 3), with an anomaly each, and its mask, bool (count, H, W).

    It lies in the `window`, where there is a letterbox.

    The images take turns, and (seed, *draw) decides everything else; every mask holds at least one pixel.
    """
    rng = np.random.default_rng([seed, 3, *draw])
    rows = np.linspace(0, len(images), count, endpoint=False).astype(int)
    height, width = images.shape[1:3]
    down, across = (window or Box(0, 0, height, width)).inside
    inner = images[:, down, across]
    copies, masks = images[rows], np.zeros((count, height, width), bool)
    for place, row in enumerate(rows):
        copies[place, down, across], masks[place, down, across] = with_anomaly(inner[row], inner, rng)
    return copies, masks


def with_anomaly(image: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A copy of a uint8 image (H, W, 3) with an anomaly, and its mask, bool (H, W)."""
    for _ in range(TRIES):
        marked = scar(image.shape[:2], rng) if rng.random() < 0.3 else blotch(image.shape[:2], rng)
        shown = image + marked[..., None] * (filling(image, others, rng) - image)
        copy = np.rint(shown.clip(0, 255)).astype(np.uint8)
        change = np.abs(copy.astype(np.float32) - image).mean(axis=2)
        mask = (marked > 0.5) & (cv2.GaussianBlur(change, (0, 0), 1) > VISIBLE)
        if mask.sum() >= max(LEAST_PIXELS, (marked > 0.5).sum() / 2):
            return copy, mask
    inverted = np.where((marked > 0.5)[..., None], 255 - image, image).astype(np.uint8)  # seen on anything but mid grey
    return inverted, marked > 0.5


def scar(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A thin bent line, float32 (H, W), 0 to 1."""
    height, width = shape
    plane = np.zeros(shape, np.float32)
    length, angle = rng.uniform(*SCAR_LENGTH) * min(shape) / 256, rng.uniform(0, np.pi)
    half = length / 2 * np.array((np.cos(angle), np.sin(angle)))
    middle = rng.uniform(0.15, 0.85, 2) * (width, height)
    points = np.stack((middle - half, middle + rng.normal(0, length / 12, 2), middle + half))
    cv2.polylines(plane, [np.rint(points).astype(np.int32)], False, 1.0, int(rng.integers(*SCAR_WIDTH)))
    return cv2.GaussianBlur(plane, (0, 0), 0.7)


def blotch(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A ragged spot, float32 (H, W), 0 to 1."""
    height, width = shape
    radius = np.exp(rng.uniform(*np.log(BLOTCH_RADIUS))) * min(shape) / 256
    x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
    rows, columns = np.mgrid[:height, :width]
    inside = 1 - np.hypot(rows - y, columns - x) / radius
    return ((inside + 0.35 * waves(shape, int(min(shape) / radius) + 4, rng)) * 4).clip(0, 1).astype(np.float32)


def filling(image: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What an anomaly shows instead of the part: float32 (H, W, 3), grey levels."""
    height, width = shape = image.shape[:2]
    kind = rng.integers(4)
    if kind == 0:
        colour = rng.uniform(0, 255) + rng.normal(0, 15, 3)
        return (colour + 6 * waves(shape, min(shape) // 2, rng)[..., None]).astype(np.float32)
    if kind == 1:
        return image * np.float32(rng.choice(EXPOSURES))
    if kind == 2:
        turn: np.ndarray = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(0, 360), rng.uniform(0.8, 1.3))
        turn[:, 2] += rng.uniform(-0.35, 0.35, 2) * (width, height)
        other = others[rng.integers(len(others))]
        return cv2.warpAffine(other, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101).astype(np.float32)
    smeared = cv2.GaussianBlur(image, (0, 0), rng.uniform(2, 5)).astype(np.float32)
    return smeared + np.float32(rng.uniform(0, 20)) * waves(shape, 20, rng)[..., None]


def waves(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean 0 and deviation about 1 at its `cells` x `cells` points, float32 (H, W)."""
    points = rng.normal(size=(cells, cells)).astype(np.float32)
    return cv2.resize(points, shape[::-1], interpolation=cv2.INTER_CUBIC)
