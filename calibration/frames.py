"""Calibration frames: good ones, spread over what good parts look like, chosen by a seed.

Never random data: noise has other ranges than photographs, and INT8 calibrated on it fails silently.
"""

from __future__ import annotations

import numpy as np

from nnet_edge.errors import CalibrationError, ConfigError
from nnet_edge.imaging import resize
from nnet_edge.kept_frames import frame_hash, require_frames

LEAST = 8  # below it one odd frame decides every range
THUMBNAIL = 16  # pixels a side; enough to see where parts differ


def choose_frames(images: np.ndarray, count: int = 64, seed: int = 0, besides: tuple[str, ...] = ()) -> np.ndarray:
    """At most `count` frames of `images`, uint8 RGB (N, 256, 256, 3), as unlike each other as `images` allow.

    The first is drawn by `seed`, each further one is the farthest from those before it (as thumbnails). `besides` are
    hashes of frames that must not be taken, the held-out ones; equal frames are taken once. Raises CalibrationError when
    fewer than 8 are left, ConfigError for images of another size or an invalid count.
    """
    require_frames(images)
    if count < LEAST:
        raise ConfigError(f"{count} calibration frames are too few: ask for {LEAST} or more (64 is usual)")
    hashes = [frame_hash(image) for image in images]
    first_seen = {name: row for row, name in reversed(list(enumerate(hashes)))}
    free = sorted(row for name, row in first_seen.items() if name not in set(besides))
    if len(free) < LEAST:
        raise CalibrationError(
            f"{len(free)} of {len(images)} good images can be calibrated on (the held-out ones and repetitions cannot): "
            f"at least {LEAST} are needed; add good images, INT8 without real frames would be a guess"
        )
    return images[[free[row] for row in spread(images[free], min(count, len(free)), seed)]]


def spread(images: np.ndarray, count: int, seed: int) -> list[int]:
    """Rows of `count` images, in the order of their choice: one by `seed`, then always the farthest from the chosen."""
    thumbnails = np.stack([resize(image, THUMBNAIL).ravel() for image in images]).astype(np.float32)
    chosen = [int(np.random.default_rng(seed).integers(len(images)))]
    distance = np.full(len(images), np.inf, np.float32)
    while len(chosen) < count:
        distance = np.minimum(distance, ((thumbnails - thumbnails[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen[-1]] = -1  # taken
        chosen.append(int(distance.argmax()))
    return chosen
