"""The teacher's feature maps of every training image, computed once: the teacher is frozen, so nothing is lost.

Without augmentation this is a plain cache. With it the bank holds a fixed number of augmented copies of every image, each
with its features, so that a training step never waits for the teacher. Beyond a limit the maps lie on disk, memory-mapped.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from nnet_edge.imaging import SIDE
from nnet_edge.methods.backbone import Features
from nnet_edge.methods.nnet.network import NNet

CHUNK = 16  # images in one pass of the teacher
MEMORY_LIMIT = 4 << 30  # bytes of features kept in memory; above it they go to disk
STATISTICS_IMAGES = 256  # images that the channels' means and deviations are measured on
SMALLEST_DEVIATION = 1e-3  # share of the mean deviation; a channel that never changes is not blown up


class FeatureBank:
    """Feature maps (M, C_i, h_i, w_i) of M uint8 RGB images (M, 256, 256, 3), filled once, read by row."""

    def __init__(self, images: np.ndarray, maps: Features, teacher_ms: float, folder: Path | None) -> None:
        self.images = images
        self.maps = maps
        self.teacher_ms = teacher_ms  # of one image: what every step saves
        self.folder = folder  # where the maps lie, None: in memory

    def features(self, rows: np.ndarray) -> Features:
        """The feature maps of the images in `rows`."""
        index = torch.from_numpy(rows)
        return cast(Features, tuple(values[index] for values in self.maps))

    @property
    def bytes(self) -> int:
        """Size of all maps."""
        return sum(values.numel() * values.element_size() for values in self.maps)


def measure_channels(
    network: NNet, images: np.ndarray, autocast: Callable[[], contextlib.AbstractContextManager]
) -> None:
    """Set the network's standardisation from the teacher's features of uint8 RGB `images` (N, 256, 256, 3)."""
    count = 0
    sums = [torch.zeros(channels, dtype=torch.float64) for channels in network.backbone.channels]
    squares = [torch.zeros(channels, dtype=torch.float64) for channels in network.backbone.channels]
    for chunk in chunks(images[:: math.ceil(len(images) / STATISTICS_IMAGES)]):
        with torch.no_grad(), autocast():
            maps = network.teacher(network.normalise(to_device(chunk, network)))
        count += len(chunk)
        for total, square, values in zip(sums, squares, maps, strict=True):
            values = values.double()
            total += values.mean(dim=(2, 3)).sum(dim=0).cpu()
            square += values.square().mean(dim=(2, 3)).sum(dim=0).cpu()
    for scale, (total, square) in enumerate(zip(sums, squares, strict=True)):
        mean = total / count
        deviation = (square / count - mean.square()).clamp_min(0).sqrt()
        floor = SMALLEST_DEVIATION * float(deviation.mean()) + 1e-12
        getattr(network, f"feature_mean_{scale}").copy_(mean.float().reshape(1, -1, 1, 1))
        getattr(network, f"feature_scale_{scale}").copy_((1 / deviation.clamp_min(floor)).float().reshape(1, -1, 1, 1))


def fill_bank(
    network: NNet,
    images: np.ndarray,
    dtype: torch.dtype,
    autocast: Callable[[], contextlib.AbstractContextManager],
    folder: Path,
    memory_limit: int = MEMORY_LIMIT,
) -> FeatureBank:
    """The bank of `images`, uint8 RGB (M, 256, 256, 3), in `dtype`; in memory, or in `folder` above `memory_limit` bytes."""
    shapes = [
        (len(images), channels, SIDE // stride, SIDE // stride)
        for channels, stride in zip(network.backbone.channels, (4, 8, 16), strict=True)
    ]
    size = sum(int(np.prod(shape)) for shape in shapes) * dtype.itemsize
    on_disk = size > memory_limit
    maps = [
        _empty(shape, dtype, folder / f"features_{scale}.bin" if on_disk else None)
        for scale, shape in enumerate(shapes)
    ]
    started = time.perf_counter()
    row = 0
    for chunk in chunks(images):
        with torch.no_grad(), autocast():
            found = network.teacher_features(network.normalise(to_device(chunk, network)))
        for target, values in zip(maps, found, strict=True):
            target[row : row + len(chunk)] = values.to(dtype).cpu()
        row += len(chunk)
    teacher_ms = 1000 * (time.perf_counter() - started) / len(images)
    return FeatureBank(images, cast(Features, tuple(maps)), teacher_ms, folder if on_disk else None)


@contextlib.contextmanager
def removing_bank(folder: Path) -> Iterator[None]:
    """Remove the bank's files from `folder` when the training ends, however it ends."""
    try:
        yield
    finally:
        for file in folder.glob("features_*.bin"):
            file.unlink(missing_ok=True)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, file: Path | None) -> Tensor:
    if file is None:
        return torch.empty(shape, dtype=dtype).to(memory_format=torch.channels_last)
    file.unlink(missing_ok=True)
    count = int(np.prod(shape))
    batch, channels, height, width = shape
    _reserve(file, count * dtype.itemsize)
    flat = torch.from_file(str(file), shared=True, size=count, dtype=dtype)
    return flat.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _reserve(file: Path, size: int) -> None:
    """Take `size` bytes of the disk now: on a full one this is an OSError, later in the mapped file a killed process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with file.open("wb") as opened:
            try:
                os.posix_fallocate(opened.fileno(), 0, size)
            except OSError as error:
                raise OSError(
                    error.errno, f"no room for {size >> 20} MiB of features ({error.strerror})", file
                ) from error


def chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """The images in pieces that the teacher takes at once."""
    return (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))


def to_device(images: np.ndarray, network: NNet) -> Tensor:
    """The images as a tensor where the network is."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(network.mean.device)
