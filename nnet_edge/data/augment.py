"""Augmented copies of good images: turned, shifted, zoomed, mirrored and brightened as the settings allow.

The copies are made once, before training, so that the teacher's features of each can be kept; every number is drawn from the
seed. Only what happens to a good part on the line may be switched on: a copy teaches that it is normal.
"""

from __future__ import annotations

import cv2
import numpy as np

from nnet_edge.settings.augmentation import Augmentation


def augmented_copies(images: np.ndarray, settings: Augmentation, seed: int) -> np.ndarray:
    """The images, uint8 (N, H, W, 3), followed by `settings.copies - 1` altered copies of all of them."""
    rng = np.random.default_rng([seed, 1])
    copies = [images]
    for _ in range(settings.copies - 1):
        copies.append(np.stack([augment(image, settings, rng) for image in images]))
    return np.concatenate(copies) if len(copies) > 1 else images


def augment(image: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """One altered copy of a uint8 image (H, W, 3); what leaves the picture is filled by its mirror image."""
    height, width = image.shape[:2]
    angle = rng.uniform(-settings.rotation_degrees, settings.rotation_degrees)
    zoom = 1 + rng.uniform(-settings.zoom, settings.zoom)
    turn: np.ndarray = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, zoom)
    turn[:, 2] += rng.uniform(-settings.shift, settings.shift, 2) * (width, height)
    moved = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if settings.flip_horizontal and rng.random() < 0.5:
        moved = moved[:, ::-1]
    if settings.flip_vertical and rng.random() < 0.5:
        moved = moved[::-1]
    contrast = 1 + rng.uniform(-settings.contrast, settings.contrast)
    brightness = 1 + rng.uniform(-settings.brightness, settings.brightness)
    mean = moved.mean()
    return np.rint(((moved - mean) * contrast + mean) * brightness).clip(0, 255).astype(np.uint8)
