"""The pictures that everything in this folder was made of: washers on a belt, drawn by NumPy alone from a seed."""

from __future__ import annotations

import numpy as np


def washer(seed: int, is_scratched: bool = False, height: int = 96, width: int = 128) -> np.ndarray:
    """A grey washer with soft edges on a dark belt, uint8 BGR (height, width, 3), the same for the same arguments.

    A scratched one has a coarse pattern of random colours on its ring. Values are multiples of 8, so that PNG packs them.
    """
    random = np.random.default_rng(seed)
    row, column = 0.5 + random.uniform(-0.03, 0.03), 0.5 + random.uniform(-0.03, 0.03)
    grey, belt = 150 + random.uniform(-8, 8), 40 + random.uniform(-3, 3)
    angle, size = random.uniform(0, 2 * np.pi), random.uniform(0.09, 0.12)
    colours = random.random((32, 32, 3))
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    down, right = rows / height - row, columns / width - column
    ring = 1 / (1 + np.exp((np.abs(np.hypot(down, right) - 0.26) - 0.13) / 0.02))  # 1 on the ring, 0 elsewhere
    picture = np.repeat((belt + (grey - belt) * ring)[..., None], 3, axis=2)
    if is_scratched:
        is_here = np.hypot(down - 0.26 * np.sin(angle), right - 0.26 * np.cos(angle)) < size
        places = (32 * rows / height).astype(int)[is_here], (32 * columns / width).astype(int)[is_here]
        picture[is_here] = 255 * colours[places]
    return (picture.astype(np.uint8) // 8) * 8
