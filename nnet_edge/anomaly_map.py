"""Anomaly map: the reference, in NumPy, of the way from a network's layer maps to the anomaly map and the image score.

Fusion (equation 8, or a sum) at a quarter of the input's size, enlargement to the input's size, Gaussian with sigma 4.
Enlargement and Gaussian are linear and separable, so each is one small matrix for the rows and one for the columns. The graph's
tail and the CUDA kernels must give what this module gives. Beside a letterbox the map is 0: those rows and columns are 0.

Where the paper is open (specification A-14, A-15): equal scales are paired, and sigma 4 acts at the size of the map, 256x256 in
the paper. It is 4 pixels of the map at every size: the noise of the maps that it removes comes from the grid of stride 4, and a
larger input is chosen for smaller defects, which a wider Gaussian would wipe out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nnet_edge.errors import ConfigError
from nnet_edge.geometry import DEFAULT, Box, Geometry

SCALES = (64, 32, 16)  # sides of the layer maps at 256x256, by which they are called at every size
STRIDES = (4, 8, 16)  # of each of SCALES: pixels of the input to one of the map
FUSED_STRIDE = 4  # of the maps at which the scales are multiplied
MAP_NAME = re.compile(f"[a-z]+_({'|'.join(map(str, SCALES))})")
SMALLEST_DISTANCE = 1e-6  # rounding can take a distance of 0 below it, where no power is defined
BLUR_SIGMA = 4.0  # pixels of the anomaly map
BLUR_RADIUS = 16  # int(4 * sigma + 0.5), where scipy cuts the Gaussian off


@dataclass(frozen=True)
class Fusion:
    """How layer maps become one: of each scale the sum second + weight * first, of all scales the product or the sum.

    A layer map is called BRANCH_SIDE, as reverse_64; a scale has at most two, one of each branch. All three tuples of numbers
    go with SCALES (64, 32, 16). As it is by default it is equation 8. Smaller exponents for the shallow scales let the deep
    one outweigh them where a small teacher's shallow features say little; in a sum they are factors. A method whose learned
    head gives one map has one branch.
    """

    align_corners: bool = True
    exponents: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the scales
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the first branch's maps, where there are two branches
    rule: str = "product"  # product | sum: of the scales
    branches: tuple[str, ...] = ("forward", "reverse")

    def __post_init__(self) -> None:
        for name, values in (("exponents", self.exponents), ("weights", self.weights)):
            is_usable = len(values) == len(SCALES) and all(math.isfinite(value) and value >= 0 for value in values)
            if not is_usable or not any(values):
                raise ConfigError(
                    f"fusion {name} are {values}: give {len(SCALES)} numbers from 0 on, not all of them 0"
                )
        if self.rule not in ("product", "sum"):
            raise ConfigError(f"fusion rule {self.rule!r} is unknown: choose product or sum")
        if not 1 <= len(self.branches) <= 2 or not all(MAP_NAME.fullmatch(f"{name}_64") for name in self.branches):
            raise ConfigError(f"fusion branches are {self.branches}: give one or two names of letters")

    @property
    def layer_maps(self) -> tuple[str, ...]:
        """The names of all layer maps that it can fuse, branch by branch."""
        return tuple(f"{branch}_{scale}" for branch in self.branches for scale in SCALES)

    def weight(self, name: str) -> float:
        """What a layer map is multiplied with in its scale's sum."""
        branch, scale = split_name(name)
        is_weighted = len(self.branches) == 2 and branch == self.branches[0]
        return self.weights[SCALES.index(scale)] if is_weighted else 1.0

    def exponent(self, name: str) -> float:
        """The exponent of a layer map's scale."""
        return self.exponents[SCALES.index(split_name(name)[1])]

    def require_some(self, names: Iterable[str]) -> None:
        """Raise ConfigError unless a layer map among `names` counts."""
        given = list(names)
        if not any(self.weight(name) > 0 and self.exponent(name) > 0 for name in given):
            raise ConfigError(f"{self} leaves none of {', '.join(given) or 'no layer maps'}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fusion:
        """The fusion that `asdict` gave, of this version or an earlier one. Raises ConfigError."""
        named: dict[str, Any] = {
            "weights" if name == "forward_weights" else name: value for name, value in values.items()
        }
        listed = {name: tuple(value) for name, value in named.items() if isinstance(value, list)}
        try:
            return cls(**named | listed)
        except TypeError as error:
            raise ConfigError(f"a fusion of another version of nnet-edge: {error}") from error


PAPER_FUSION = Fusion()
LAYER_MAPS = PAPER_FUSION.layer_maps  # of equation 8


def split_name(name: str) -> tuple[str, int]:
    """Branch and scale of a layer map. Raises ConfigError for a name that is none."""
    if not is_layer_map(name):
        raise ConfigError(f"unknown layer map {name!r}: a name is BRANCH_SIDE, the side one of {SCALES}")
    branch, _, scale = name.rpartition("_")
    return branch, int(scale)


def is_layer_map(name: str) -> bool:
    """Whether that is what a layer map may be called."""
    return bool(MAP_NAME.fullmatch(name))


def anomaly_map(
    layer_maps: Mapping[str, np.ndarray], fusion: Fusion = PAPER_FUSION, window: Box | None = None
) -> np.ndarray:
    """The anomaly maps, float32 (N, 1, height, width), of the layer maps; larger is stranger; 0 beside the `window`.

    Computes in float64 and rounds once, at the end. Raises ConfigError for layer maps that do not belong together.
    """
    fused = fuse_maps({name: np.asarray(maps, np.float64) for name, maps in layer_maps.items()}, fusion)
    height, width = (FUSED_STRIDE * side for side in fused.shape[-2:])
    inside = (slice(0, height), slice(0, width)) if window is None else window.inside
    rows, columns = (
        _last_matrix(side, part.start, part.stop, fusion.align_corners)
        for side, part in zip((height, width), inside, strict=True)
    )
    return (rows @ fused @ columns.T).astype(np.float32)


def last_matrices(geometry: Geometry = DEFAULT, align_corners: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Enlargement and Gaussian of the rows and of the columns, float64 (height, height / 4) and (width, width / 4), read-only.

    Rows and columns beside the letterbox are 0.
    """
    ends = zip(geometry.size, geometry.window.inside, strict=True)
    rows, columns = (_last_matrix(side, part.start, part.stop, align_corners) for side, part in ends)
    return rows, columns


@lru_cache(maxsize=32)
def _last_matrix(side: int, start: int, stop: int, align_corners: bool) -> np.ndarray:
    matrix = blurring_matrix(side) @ enlarging_matrix(side // FUSED_STRIDE, side, align_corners)
    matrix[:start] = matrix[stop:] = 0
    return read_only(matrix)


def image_score(anomaly_maps: np.ndarray) -> np.ndarray:
    """The image scores (N,): the largest value of each anomaly map (N, ...)."""
    return anomaly_maps.reshape(len(anomaly_maps), -1).max(axis=1)


def fuse_maps(layer_maps: Mapping[str, np.ndarray], fusion: Fusion = PAPER_FUSION) -> np.ndarray:
    """Product (or sum) over the scales of first + second branch, each enlarged to stride 4; equation 8 or `fusion`.

    A layer map that is missing is left out of its sum, a scale without any out of the fusion: that is how the subsets of
    Table 7 are scored. Keeps the maps' float type. Raises ConfigError for an unknown name, for no map at all, and for maps
    whose shapes do not fit each other.
    """
    check_layer_maps(layer_maps, fusion)
    fusion.require_some(layer_maps)
    fused = None
    for scale, exponent in zip(SCALES, fusion.exponents, strict=True):
        summed = scale_sum(layer_maps, scale, fusion) if exponent > 0 else None
        if summed is None:
            continue
        if fusion.rule == "sum":
            factor = summed * np.asarray(exponent, summed.dtype)
            fused = factor if fused is None else fused + factor
        else:
            factor = summed if exponent == 1 else np.maximum(summed, SMALLEST_DISTANCE) ** exponent
            fused = factor if fused is None else fused * factor
    assert fused is not None  # one of them counts
    return fused


def scale_sum(layer_maps: Mapping[str, np.ndarray], scale: int, fusion: Fusion) -> np.ndarray | None:
    """Weighted first + second map of one scale, enlarged to stride 4; None for a scale without any map.

    Keeps the maps' float type.
    """
    branches = [
        layer_maps[name] * np.asarray(fusion.weight(name), layer_maps[name].dtype)
        for name in (f"{branch}_{scale}" for branch in fusion.branches)
        if name in layer_maps and fusion.weight(name) > 0
    ]
    if not branches:
        return None
    summed = sum(branches[1:], start=branches[0])
    return enlarge(summed, fused_size(scale, summed.shape), fusion.align_corners)


def fused_size(scale: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) at which the scales are multiplied, by the shape (..., h, w) of a map of one of them."""
    times = STRIDES[SCALES.index(scale)] // FUSED_STRIDE
    return times * shape[-2], times * shape[-1]


def enlarge(maps: np.ndarray, size: tuple[int, int], align_corners: bool = True) -> np.ndarray:
    """The maps (N, 1, h, w) brought bilinearly to `size` (height, width), in their own float type."""
    rows = enlarging_matrix(maps.shape[-2], size[0], align_corners).astype(maps.dtype)
    columns = enlarging_matrix(maps.shape[-1], size[1], align_corners).astype(maps.dtype)
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


def check_layer_maps(layer_maps: Mapping[str, np.ndarray], fusion: Fusion = PAPER_FUSION) -> None:
    """Raise ConfigError unless every name is one that `fusion` knows and all shapes are (N, 1, h, w) that fit each other."""
    unknown = sorted(set(layer_maps) - set(fusion.layer_maps))
    if unknown:
        raise ConfigError(f"unknown layer map {unknown[0]!r}: known are {', '.join(fusion.layer_maps)}")
    if not layer_maps:
        raise ConfigError(f"no layer map to fuse: give at least one of {', '.join(fusion.layer_maps)}")
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
        found = [shapes[name] for branch in fusion.branches if (name := f"{branch}_{scale}") in shapes]
        if len(set(found)) > 1:
            raise ConfigError(f"layer maps of scale {scale} have shapes {found[0]} and {found[1]}: they must be equal")
    sizes = {fused_size(split_name(name)[1], shape): name for name, shape in shapes.items()}
    if len(sizes) > 1:
        first, other = list(sizes.values())[:2]
        raise ConfigError(
            f"layer maps {first} and {other} are of inputs of two sizes: {shapes[first]} and {shapes[other]}"
        )


def read_only(matrix: np.ndarray) -> np.ndarray:
    """The same matrix, which nobody can change any more: it is cached and shared."""
    matrix.setflags(write=False)
    return matrix
