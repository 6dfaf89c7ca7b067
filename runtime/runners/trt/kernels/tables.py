"""Constant tables of the kernels, computed by the references, the layouts of what they read, and their launches.

The structures here and in the headers have the same bytes; a test compares sizes and offsets with the compiler's.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nnet_edge.anomaly_map import FUSED_SIDE, IMAGE_SIDE, SCALES, Fusion, blurring_matrix, enlarging_matrix, read_only
from nnet_edge.errors import ConfigError
from nnet_edge.imaging import SIDE
from nnet_edge.runtime.runners.trt.device import CudaStream, Device

BGR8, RGB8, GRAY8, NV12 = range(4)  # formats of a frame; `Format` in resize.h
COEFFICIENT_BITS = 22  # Pillow's fixed point for 8-bit channels
BAND = 10  # numbers in a row of the filter that are not 0, at most
STRIP_HEIGHT, STRIP_ROWS = 32, 20  # rows of the anomaly map that a block makes, of the fused map that it may need
STRIPS = IMAGE_SIDE // STRIP_HEIGHT

VIEW = np.dtype(  # FrameView: where one frame lies on the device; a height of 0 means that the place is empty
    [("pixels", np.uint64), ("chroma", np.uint64), ("rows", np.uint64), ("columns", np.uint64), ("row_bytes", np.int64),
     ("height", np.int32), ("width", np.int32), ("chroma_row_bytes", np.int32), ("format", np.int32)]
)  # fmt: skip
MAPS = np.dtype(  # LayerMaps: addresses, weights and exponents in the order of SCALES; bit i of a half: FP16
    [("first", np.uint64, 3), ("second", np.uint64, 3), ("weights", np.float32, 3), ("exponents", np.float32, 3),
     ("half_first", np.int32), ("half_second", np.int32), ("is_sum", np.int32), ("unused", np.int32)]
)  # fmt: skip
ENLARGING = np.dtype([("left", np.int32, (3, FUSED_SIDE)), ("share", np.float32, (3, FUSED_SIDE))])
FILTER = np.dtype([("first", np.int32, IMAGE_SIDE), ("values", np.float32, (IMAGE_SIDE, BAND))])
TILE_WIDTH, TILE_HEIGHT = 32, 8  # output pixels of a block of `preprocess`
ARGUMENTS = {"preprocess": "PP", "anomaly_map": "PPPPP"}  # P address


@lru_cache(maxsize=64)
def resize_axis(size: int) -> np.ndarray:
    """Pillow's bilinear coefficients from `size` values to 256, int32, read-only; the layout is `Axis` in resize.h.

    The filter is a triangle, 1 output pixel to each side (or 1 input pixel where the picture grows), normalised and
    rounded to 22 bits after the point.
    """
    if size < 1:
        raise ConfigError(f"an image with a side of {size} pixels cannot be resized: give one of at least 1x1")
    scale = size / SIDE
    support = max(scale, 1.0)
    centre = (np.arange(SIDE) + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5), 0).astype(np.int64)
    end = np.minimum(np.trunc(centre + support + 0.5), size).astype(np.int64)
    taps = int((end - first).max())
    place = first[:, None] + np.arange(taps)
    distance = (place - centre[:, None] + 0.5) * (1.0 / support)
    weights = np.where(place < end[:, None], np.maximum(1.0 - np.abs(distance), 0.0), 0.0)
    sums = np.zeros(SIDE)
    for column in weights.T:  # in Pillow's order: the last bit decides where the rounding falls
        sums += column
    fixed = np.trunc(0.5 + weights / sums[:, None] * (1 << COEFFICIENT_BITS)).astype(np.int32)
    bounds = np.stack([first, end - first], axis=1).astype(np.int32)
    return read_only(np.concatenate([np.array([taps], np.int32), bounds.ravel(), fixed.ravel()]))


def enlarging_table(fusion: Fusion) -> np.ndarray:
    """How 32 and 16 values become 64 (scale 0 needs nothing), one ENLARGING, from `enlarging_matrix`."""
    table = np.zeros((), ENLARGING)
    for number, size in enumerate(SCALES):
        matrix = enlarging_matrix(size, FUSED_SIDE, fusion.align_corners)
        left = (matrix != 0).argmax(axis=1)
        table["left"][number] = left
        table["share"][number] = 1 - matrix[np.arange(FUSED_SIDE), left]
    return table


def filter_table(fusion: Fusion) -> np.ndarray:
    """Enlargement from 64 to 256 and Gaussian as one banded matrix, one FILTER, from `anomaly_map.py`'s own matrices."""
    matrix = blurring_matrix(IMAGE_SIDE) @ enlarging_matrix(FUSED_SIDE, IMAGE_SIDE, fusion.align_corners)
    first = np.minimum((matrix != 0).argmax(axis=1), FUSED_SIDE - BAND)
    band = np.take_along_axis(matrix, first[:, None] + np.arange(BAND), axis=1)
    rows = first[STRIP_HEIGHT - 1 :: STRIP_HEIGHT] + BAND - first[::STRIP_HEIGHT]
    is_complete = np.allclose(band.sum(axis=1), 1, rtol=0, atol=1e-12)
    if not is_complete or (np.diff(first) < 0).any() or rows.max() > STRIP_ROWS:
        raise AssertionError("the filter no longer fits BAND and STRIP_ROWS of blur.h: enlarge them there and here")
    table = np.zeros((), FILTER)
    table["first"], table["values"] = first, band
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


def launch_preprocess(device: Device, views: int, images: int, batch: int, cuda_stream: CudaStream) -> None:
    """Frames that VIEW structures at `views` describe -> uint8 RGB (batch, 256, 256, 3) at `images`."""
    grid = (SIDE // TILE_WIDTH, SIDE // TILE_HEIGHT, batch)
    device.launch("preprocess", grid, TILE_WIDTH * TILE_HEIGHT, (views, images), cuda_stream)


def launch_anomaly_map(
    device: Device, maps: int, enlarging: int, filter_: int, out: int, peaks: int, batch: int, cuda_stream: CudaStream
) -> None:
    """Layer maps that MAPS at `maps` names -> float32 (batch, 256, 256) at `out` and (batch, 8) at `peaks`."""
    grid = (SIDE // STRIP_HEIGHT, batch, 1)
    device.launch("anomaly_map", grid, SIDE, (maps, enlarging, filter_, out, peaks), cuda_stream)
