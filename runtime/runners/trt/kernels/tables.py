"""Constant tables of the kernels, computed by the references, the layouts of what they read, and their launches.

The structures here and in the headers have the same bytes; a test compares sizes and offsets with the compiler's.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nnet_edge.anomaly_map import FUSED_STRIDE, SCALES, STRIDES, Fusion, blurring_matrix, enlarging_matrix, read_only
from nnet_edge.errors import ConfigError
from nnet_edge.geometry import SIDE, Geometry
from nnet_edge.runtime.runners.trt.device import CudaStream, Device

BGR8, RGB8, GRAY8, NV12 = range(4)  # formats of a frame; `Format` in resize.h
COEFFICIENT_BITS = 22  # Pillow's fixed point for 8-bit channels
BAND = 10  # numbers in a row of the filter that are not 0, at most
STRIP_ROWS = {32: 20, 16: 16, 8: 14}  # rows of the anomaly map that a block makes -> of the fused map that it may need
STRIP_THREADS = {"anomaly_map": 256, "anomaly_map_wide": 1024}  # of a block

VIEW = np.dtype(  # FrameView: where one frame lies on the device; a height of 0 means that the place is empty
    [("pixels", np.uint64), ("chroma", np.uint64), ("rows", np.uint64), ("columns", np.uint64), ("row_bytes", np.int64),
     ("height", np.int32), ("width", np.int32), ("chroma_row_bytes", np.int32), ("format", np.int32)]
)  # fmt: skip
MAPS = np.dtype(  # LayerMaps: addresses, weights and exponents in the order of SCALES; bit i of a half: FP16
    [("first", np.uint64, 3), ("second", np.uint64, 3), ("weights", np.float32, 3), ("exponents", np.float32, 3),
     ("half_first", np.int32), ("half_second", np.int32), ("is_sum", np.int32), ("unused", np.int32)]
)  # fmt: skip
TILE_WIDTH, TILE_HEIGHT = 32, 8  # output pixels of a block of `preprocess`
ARGUMENTS = {  # P address
    "preprocess": "PP", "preprocess_staged": "PP", "anomaly_map": "PPPPP", "anomaly_map_wide": "PPPPP"
}  # fmt: skip


def strip_height(geometry: Geometry) -> int:
    """Rows of the anomaly map that a block makes; as in blur.h."""
    return 32 if geometry.width <= 896 else 16 if geometry.width <= 1472 else 8


def strips_of(geometry: Geometry) -> int:
    """Strips of an anomaly map, each with a peak."""
    return geometry.height // strip_height(geometry)


def enlarging_type(geometry: Geometry) -> np.dtype[np.void]:
    """`Enlarging` of fuse.h."""
    height, width = (side // FUSED_STRIDE for side in geometry.size)
    return np.dtype([("top", np.int32, (3, height)), ("down", np.float32, (3, height)),
                     ("left", np.int32, (3, width)), ("across", np.float32, (3, width))])  # fmt: skip


def filter_type(geometry: Geometry) -> np.dtype[np.void]:
    """`Filter` of blur.h."""
    height, width = geometry.size
    return np.dtype([("first_row", np.int32, height), ("rows", np.float32, (height, BAND)),
                     ("first_column", np.int32, width), ("columns", np.float32, (width, BAND))])  # fmt: skip


@lru_cache(maxsize=64)
def resize_axis(size: int, side: int = SIDE, start: int = 0, inner: int | None = None) -> np.ndarray:
    """Pillow's bilinear coefficients from `size` values to `inner` of the `side` outputs (None: all), from `start` on.

    int32, read-only; the layout is `Axis` in resize.h.

    The filter is a triangle, 1 output pixel to each side (or 1 input pixel where the picture grows), normalised and
    rounded to 22 bits after the point.
    """
    if size < 1:
        raise ConfigError(f"an image with a side of {size} pixels cannot be resized: give one of at least 1x1")
    inner = side if inner is None else inner
    scale = size / inner
    support = max(scale, 1.0)
    centre = (np.arange(inner) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int64)
    end = np.minimum(np.trunc(centre + support + 0.5), size).astype(np.int64)
    taps = int((end - first).max())
    place = first[:, None] + np.arange(taps)
    distance = (place - centre[:, None] + 0.5) * (1.0 / support)
    weights = np.where(place < end[:, None], np.maximum(1.0 - np.abs(distance), 0.0), 0.0)
    sums = np.zeros(inner)
    for column in weights.T:  # in Pillow's order: the last bit decides where the rounding falls
        sums += column
    fixed = np.trunc(0.5 + weights / sums[:, None] * (1 << COEFFICIENT_BITS)).astype(np.int32)
    bounds = np.stack([first, end - first], axis=1).astype(np.int32)
    before, behind = (start, side - start - inner)
    outside = [
        np.tile(np.array([[0, 0]], np.int32), (before, 1)),
        np.tile(np.array([[size, 0]], np.int32), (behind, 1)),
    ]
    bounds = np.concatenate([outside[0], bounds, outside[1]])
    fixed = np.pad(fixed, ((before, behind), (0, 0)))
    return read_only(np.concatenate([np.array([taps], np.int32), bounds.ravel(), fixed.ravel()]))


def enlarging_table(fusion: Fusion, geometry: Geometry) -> np.ndarray:
    """How maps of strides 8 and 16 come to stride 4 (scale 0 needs nothing), from `enlarging_matrix`."""
    table = np.zeros((), enlarging_type(geometry))
    for number, stride in enumerate(STRIDES):
        for side, places, shares in ((geometry.height, "top", "down"), (geometry.width, "left", "across")):
            matrix = enlarging_matrix(side // stride, side // FUSED_STRIDE, fusion.align_corners)
            first = (matrix != 0).argmax(axis=1)
            table[places][number] = first
            table[shares][number] = 1 - matrix[np.arange(len(matrix)), first]
    return table


def filter_table(fusion: Fusion, geometry: Geometry) -> np.ndarray:
    """Enlargement from stride 4 and Gaussian as banded matrices, from `anomaly_map.py`'s own; 0 beside the letterbox."""
    table = np.zeros((), filter_type(geometry))
    names = (("first_row", "rows"), ("first_column", "columns"))
    for side, window, (first_name, name) in zip(geometry.size, geometry.window.inside, names, strict=True):
        matrix = blurring_matrix(side) @ enlarging_matrix(side // FUSED_STRIDE, side, fusion.align_corners)
        first = np.minimum((matrix != 0).argmax(axis=1), side // FUSED_STRIDE - BAND)
        band = np.take_along_axis(matrix, first[:, None] + np.arange(BAND), axis=1)
        step = strip_height(geometry)
        rows = first[step - 1 :: step] + BAND - first[::step]
        is_complete = np.allclose(band.sum(axis=1), 1, rtol=0, atol=1e-12)
        is_narrow = name == "columns" or rows.max() <= STRIP_ROWS[step]
        if not is_complete or (np.diff(first) < 0).any() or not is_narrow:
            raise AssertionError("the filter no longer fits BAND and STRIP_ROWS of blur.h: enlarge them there and here")
        band[: window.start] = band[window.stop :] = 0
        table[first_name], table[name] = first, band
    return table


def fill_maps(fusion: Fusion, addresses: dict[str, int], halves: frozenset[str] = frozenset()) -> np.ndarray:
    """One MAPS for layer maps at these device addresses; those named in `halves` are FP16.

    Raises ConfigError when `fusion` leaves none of them, as the reference does.
    """
    fusion.require_some(addresses)
    maps = np.zeros((), MAPS)
    maps["weights"], maps["exponents"], maps["is_sum"] = fusion.weights, fusion.exponents, fusion.rule == "sum"
    if len(fusion.branches) == 1:  # the second is the one without weights
        places = {fusion.branches[0]: "second"}
    else:
        places = dict(zip(fusion.branches, ("first", "second"), strict=True))
    for number, scale in enumerate(SCALES):
        for branch, place in places.items():
            name = f"{branch}_{scale}"
            maps[place][number] = addresses.get(name, 0)
            if name in halves:
                maps[f"half_{place}"] |= 1 << number
    return maps


def launch_preprocess(
    device: Device, views: int, images: int, batch: int, geometry: Geometry, cuda_stream: CudaStream,
    kernel: str = "preprocess",
) -> None:  # fmt: skip
    """Frames that VIEW structures at `views` describe -> uint8 RGB (batch, height, width, 3) at `images`."""
    grid = (geometry.width // TILE_WIDTH, geometry.height // TILE_HEIGHT, batch)
    device.launch(kernel, grid, TILE_WIDTH * TILE_HEIGHT, (views, images), cuda_stream)


def launch_anomaly_map(
    device: Device, maps: int, enlarging: int, filter_: int, out: int, peaks: int, batch: int, geometry: Geometry,
    cuda_stream: CudaStream, kernel: str = "anomaly_map",
) -> None:  # fmt: skip
    """Layer maps that MAPS at `maps` names -> float32 (batch, height, width) at `out` and (batch, strips) at `peaks`."""
    grid = (strips_of(geometry), batch, 1)
    device.launch(kernel, grid, STRIP_THREADS[kernel], (maps, enlarging, filter_, out, peaks), cuda_stream)
