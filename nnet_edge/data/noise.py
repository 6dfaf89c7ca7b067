"""Perlin noise of two dimensions and simplex noise of three, vectorised.

Every value is computed by itself, without sums whose order depends on threads: the same numbers give the same bits everywhere
on a processor.
"""

from __future__ import annotations

import functools

import numpy as np

OCTAVES, PERSISTENCE, FIRST_PERIOD = 6, 0.6, 32.0  # of RD++; pixels to a cell of the first octave
SKEW, UNSKEW = np.float32(1 / 3), np.float32(1 / 6)
EDGES = np.array(  # from a cube's middle to those of its edges
    [(1, 1, 0), (-1, 1, 0), (1, -1, 0), (-1, -1, 0), (1, 0, 1), (-1, 0, 1), (1, 0, -1), (-1, 0, -1), (0, 1, 1), (0, -1, 1),
     (0, 1, -1), (0, -1, -1)], np.float32,
)  # fmt: skip


def fade(t: np.ndarray) -> np.ndarray:
    """6t^5 - 15t^4 + 10t^3, Perlin's step from 0 to 1."""
    return t * t * t * (t * (6 * t - 15) + 10)


@functools.cache
def lattice(side: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of `side` pixels: its cell, (2, side) weights of the cell's two ends, (2, side) those times the way from them."""
    place = np.arange(side, dtype=np.float64) * cells / side
    cell = place.astype(int)
    way = place - cell
    weights = np.stack((1 - fade(way), fade(way)))
    away = weights * np.stack((way, way - 1))
    return cell, weights.astype(np.float32), away.astype(np.float32)


def perlin(size: tuple[int, int], rows: int, columns: int, angles: np.ndarray) -> np.ndarray:
    """Perlin noise times sqrt(2), float32 of that size (height, width), of rows x columns cells.

    `angles` (rows + 1, columns + 1), in radians, are the directions of the gradients at the corners: the cosine counts down
    the rows, the sine along the columns.
    """
    cell, weight, away = lattice(size[0], rows)
    down, along = (values.astype(np.float32) for values in (np.cos(angles), np.sin(angles)))
    slopes_down = away[0][:, None] * down[cell] + away[1][:, None] * down[cell + 1]  # (height, columns + 1)
    slopes_along = weight[0][:, None] * along[cell] + weight[1][:, None] * along[cell + 1]
    cell, weight, away = lattice(size[1], columns)
    noise = slopes_down[:, cell] * weight[0]
    noise += slopes_down[:, cell + 1] * weight[1]
    noise += slopes_along[:, cell] * away[0]
    noise += slopes_along[:, cell + 1] * away[1]
    noise *= np.float32(np.sqrt(2))
    return noise


def simplex_octaves(shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Simplex noise, float32 (channels, height, width), as RD++ adds it: octaves of half the period and 0.6 of the height."""
    permutation = rng.permutation(256)
    places = [values.astype(np.float32) for values in np.indices(shape)[::-1]]  # x, y, channel
    noise = np.zeros(shape, np.float32)
    for octave in range(OCTAVES):
        period = np.float32(FIRST_PERIOD / 2**octave)
        noise += np.float32(PERSISTENCE**octave) * simplex(
            np.stack([values / period for values in places]), permutation
        )
    return noise


def simplex(points: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """Simplex noise (Gustavson's) at float32 `points` (3, ...), about -1 to 1; `permutation` of 0 to 255 decides it."""
    cell = np.floor(points + points.sum(axis=0) * SKEW)
    first = points - cell + cell.sum(axis=0) * UNSKEW  # from the cell's own corner
    rank = (np.argsort(np.argsort(-first, axis=0, kind="stable"), axis=0)).astype(np.float32)  # 0: the longest way
    total = np.zeros(points.shape[1:], np.float32)
    for corner in range(4):
        step = (rank < corner).astype(np.float32)
        way = first - step + corner * UNSKEW
        x, y, z = ((cell + step).astype(int)) & 255
        chosen = permutation[(x + permutation[(y + permutation[z]) & 255]) & 255] % 12
        reach = np.maximum(np.float32(0.6) - (way * way).sum(axis=0), 0) ** 4
        total += reach * (EDGES[chosen] * np.moveaxis(way, 0, -1)).sum(axis=-1)
    return np.float32(32) * total
