"""Anomaly map: the reference, in NumPy, of the way from the six layer maps to the anomaly map and the image score.

Fusion (equation 8) at 64x64, enlargement to 256x256, Gaussian with sigma 4. Enlargement and Gaussian are linear and
separable, so each is one small matrix for the rows and one for the columns. The graph's tail and the CUDA kernels must
give what this module gives.

Where the paper is open (specification A-14, A-15): equal scales are paired, and sigma 4 acts at 256x256.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nnet_edge.errors import ConfigError

SCALES = (64, 32, 16)
LAYER_MAPS = tuple(f"{branch}_{scale}" for branch in ("forward", "reverse") for scale in SCALES)
FUSED_SIDE = 64  # height and width at which the scales are multiplied
SMALLEST_DISTANCE = 1e-6  # rounding can take a distance of 0 below it, where no power is defined
IMAGE_SIDE = 256  # height and width of the anomaly map
BLUR_SIGMA = 4.0  # pixels of the anomaly map
BLUR_RADIUS = 16  # int(4 * sigma + 0.5), where scipy cuts the Gaussian off


@dataclass(frozen=True)
class Fusion:
    """How the six layer maps become one: the product over the scales of (reverse + weight * forward) ** exponent.

    Both triples go with SCALES (64, 32, 16). All ones is equation 8. Smaller exponents for the shallow scales let the deep
    one outweigh them where a small teacher's shallow features say little.
    """

    align_corners: bool = True
    exponents: tuple[float, ...] = (1.0, 1.0, 1.0)
    forward_weights: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, values in (("exponents", self.exponents), ("forward_weights", self.forward_weights)):
            is_usable = len(values) == len(SCALES) and all(math.isfinite(value) and value >= 0 for value in values)
            if not is_usable or not any(values):
                raise ConfigError(
                    f"fusion {name} are {values}: give {len(SCALES)} numbers from 0 on, not all of them 0"
                )

    def weight(self, name: str) -> float:
        """What a layer map is multiplied with in its scale's sum."""
        branch, scale = name.split("_")
        return self.forward_weights[SCALES.index(int(scale))] if branch == "forward" else 1.0


PAPER_FUSION = Fusion()


def anomaly_map(
    layer_maps: Mapping[str, np.ndarray], side: int = IMAGE_SIDE, fusion: Fusion = PAPER_FUSION
) -> np.ndarray:
    """The anomaly maps, float32 (N, 1, side, side), of the layer maps; larger is stranger.

    Computes in float64 and rounds once, at the end. Raises ConfigError for layer maps that do not belong together.
    """
    fused = fuse_maps({name: np.asarray(maps, np.float64) for name, maps in layer_maps.items()}, fusion)
    return blur(enlarge(fused, side, fusion.align_corners)).astype(np.float32)


def image_score(anomaly_maps: np.ndarray) -> np.ndarray:
    """The image scores (N,): the largest value of each anomaly map (N, ...)."""
    return anomaly_maps.reshape(len(anomaly_maps), -1).max(axis=1)


def fuse_maps(layer_maps: Mapping[str, np.ndarray], fusion: Fusion = PAPER_FUSION) -> np.ndarray:
    """Product over the scales of forward + reverse map, each sum enlarged to (N, 1, 64, 64); equation 8, or as `fusion` says.

    A layer map that is missing is left out of its sum, a scale without any is left out of the product: that is how the
    subsets of Table 7 are scored. Keeps the maps' float type. Raises ConfigError for an unknown name, for no map at all, and
    for maps whose shapes do not fit each other.
    """
    check_layer_maps(layer_maps)
    fused = None
    for scale, exponent in zip(SCALES, fusion.exponents, strict=True):
        factor = scale_sum(layer_maps, scale, fusion) if exponent > 0 else None
        if factor is not None:
            factor = factor if exponent == 1 else np.maximum(factor, SMALLEST_DISTANCE) ** exponent
            fused = factor if fused is None else fused * factor
    if fused is None:
        raise ConfigError(f"{fusion} leaves none of {', '.join(layer_maps)}")
    return fused


def scale_sum(layer_maps: Mapping[str, np.ndarray], scale: int, fusion: Fusion) -> np.ndarray | None:
    """Weighted forward map + reverse map of one scale, enlarged to (N, 1, 64, 64); None for a scale without any map.

    Keeps the maps' float type.
    """
    branches = [
        layer_maps[name] * np.asarray(fusion.weight(name), layer_maps[name].dtype)
        for name in (f"forward_{scale}", f"reverse_{scale}")
        if name in layer_maps and fusion.weight(name) > 0
    ]
    if not branches:
        return None
    return enlarge(sum(branches[1:], start=branches[0]), FUSED_SIDE, fusion.align_corners)


def enlarge(maps: np.ndarray, side: int, align_corners: bool = True) -> np.ndarray:
    """The maps (N, 1, h, w) brought bilinearly to (N, 1, side, side), in their own float type."""
    rows = enlarging_matrix(maps.shape[-2], side, align_corners).astype(maps.dtype)
    columns = enlarging_matrix(maps.shape[-1], side, align_corners).astype(maps.dtype)
    return rows @ maps @ columns.T


def blur(maps: np.ndarray, sigma: float = BLUR_SIGMA, radius: int = BLUR_RADIUS) -> np.ndarray:
    """The maps (..., H, W) after a Gaussian of `sigma` pixels, as scipy.ndimage.gaussian_filter; same float type."""
    rows = blurring_matrix(maps.shape[-2], sigma, radius).astype(maps.dtype)
    columns = blurring_matrix(maps.shape[-1], sigma, radius).astype(maps.dtype)
    return rows @ maps @ columns.T


@lru_cache(maxsize=32)
def enlarging_matrix(size: int, side: int, align_corners: bool = True) -> np.ndarray:
    """The matrix float64 (side, size), read-only, that interpolates `side` values linearly between `size` ones."""
    if align_corners:
        position = np.arange(side) * ((size - 1) / max(side - 1, 1))
    else:
        position = ((np.arange(side) + 0.5) * (size / side) - 0.5).clip(0, size - 1)
    left = np.floor(position).astype(np.intp).clip(0, size - 1)
    share = position - left
    matrix = np.zeros((side, size))
    np.add.at(matrix, (np.arange(side), left), 1 - share)
    np.add.at(matrix, (np.arange(side), np.minimum(left + 1, size - 1)), share)
    return read_only(matrix)


@lru_cache(maxsize=32)
def blurring_matrix(size: int, sigma: float = BLUR_SIGMA, radius: int = BLUR_RADIUS) -> np.ndarray:
    """The matrix float64 (size, size), read-only, of the Gaussian with scipy's border (d c b a | a b c d | d c b a).

    NumPy calls that border "symmetric"; the "reflect" of NumPy, torch and ONNX does not repeat the edge: wrong here.
    """
    taps = gaussian_taps(sigma, radius)
    neighbours = np.pad(np.arange(size), radius, mode="symmetric")
    matrix = np.zeros((size, size))
    for shift, tap in enumerate(taps):
        np.add.at(matrix, (np.arange(size), neighbours[shift : shift + size]), tap)
    return read_only(matrix)


def gaussian_taps(sigma: float = BLUR_SIGMA, radius: int = BLUR_RADIUS) -> np.ndarray:
    """The weights float64 (2 * radius + 1,) of a Gaussian of `sigma` pixels; they sum to 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def check_layer_maps(layer_maps: Mapping[str, np.ndarray]) -> None:
    """Raise ConfigError unless every name is known and all shapes are (N, 1, h, w) that fit each other."""
    unknown = sorted(set(layer_maps) - set(LAYER_MAPS))
    if unknown:
        raise ConfigError(f"unknown layer map {unknown[0]!r}: known are {', '.join(LAYER_MAPS)}")
    if not layer_maps:
        raise ConfigError(f"no layer map to fuse: give at least one of {', '.join(LAYER_MAPS)}")
    shapes = {name: maps.shape for name, maps in layer_maps.items()}
    for name, shape in shapes.items():
        if len(shape) != 4 or shape[1] != 1 or 0 in shape:
            raise ConfigError(f"layer map {name} has shape {shape}: it must be (N, 1, h, w)")
        first = next(iter(shapes))
        if shape[0] != shapes[first][0]:
            raise ConfigError(
                f"layer maps {first} and {name} hold {shapes[first][0]} and {shape[0]} images: give one batch"
            )
    for scale in SCALES:
        forward, reverse = shapes.get(f"forward_{scale}"), shapes.get(f"reverse_{scale}")
        if forward and reverse and forward != reverse:
            raise ConfigError(f"layer maps of scale {scale} have shapes {forward} and {reverse}: they must be equal")


def read_only(matrix: np.ndarray) -> np.ndarray:
    """The same matrix, which nobody can change any more: it is cached and shared."""
    matrix.setflags(write=False)
    return matrix
