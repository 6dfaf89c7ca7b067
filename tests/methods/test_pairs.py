"""Masks at the size of a layer map, against plain loops."""

from __future__ import annotations

import numpy as np
import torch

from nnet_edge.data.synthetic import perlin_mask
from nnet_edge.methods.pairs import masks_like


def test_masks_at_every_stride_are_bilinear_with_corners_aligned() -> None:
    masks = np.stack([perlin_mask(np.random.default_rng(seed), (256, 256)) for seed in (1, 2, 3)])
    assert masks.any()
    for side in (64, 32, 16):
        found = masks_like(torch.from_numpy(masks[:, None]), torch.zeros(3, 1, side, side))
        for number, y, x in np.ndindex(3, side, side):
            v, u = (place * 255 / (side - 1) for place in (y, x))
            i, j = int(v), int(u)
            a, b = v - i, u - j
            value = sum(
                weight * masks[number, min(i + down, 255), min(j + right, 255)]
                for down, right, weight in (
                    (0, 0, (1 - a) * (1 - b)), (0, 1, (1 - a) * b), (1, 0, a * (1 - b)), (1, 1, a * b)
                )
            )  # fmt: skip
            if abs(value - 0.5) > 1e-5:
                assert found[number, 0, y, x] == (value >= 0.5)


def test_one_half_counts_as_anomaly() -> None:
    half = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    half[..., :2, :] = True  # of the three rows wanted the middle one lies between the second and the third
    assert masks_like(half, torch.zeros(1, 1, 3, 3))[0, 0].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
