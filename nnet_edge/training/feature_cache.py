"""Feature cache: the teacher's feature maps of every training image, computed once, as the teacher is frozen.

With augmentation it holds a fixed number of augmented copies of every image, each with its features, so that a training step
never waits for the teacher. Beyond a limit the maps lie on disk, memory-mapped.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from nnet_edge.methods.backbone import STRIDES, Features
from nnet_edge.methods.compute import Compute, chunks, to_device
from nnet_edge.methods.network import Network

MEMORY_LIMIT = 4 << 30  # bytes of features kept in memory; above it they go to disk


class FeatureCache:
    """Feature maps (M, C_i, h_i, w_i) of M uint8 RGB images (M, H, W, 3), filled once, read by row."""

    def __init__(self, images: np.ndarray, maps: Features, teacher_ms: float, folder: Path | None) -> None:
        self.images = images
        self.maps = maps
        self.teacher_ms = teacher_ms  # of one image: what every step saves
        self.folder = folder  # where the maps lie, None: in memory

    def features(self, rows: np.ndarray, device: str = "cpu") -> Features:
        """The feature maps of the images in `rows`, on `device`."""
        index = torch.from_numpy(rows)
        return cast(Features, tuple(values[index].to(device, non_blocking=True) for values in self.maps))

    @property
    def bytes(self) -> int:
        """Size of all maps."""
        return sum(values.numel() * values.element_size() for values in self.maps)


def fill_cache(
    network: Network, images: np.ndarray, compute: Compute, folder: Path, memory_limit: int = MEMORY_LIMIT
) -> FeatureCache:
    """The cache of `images`, uint8 RGB (M, H, W, 3); in memory, or in `folder` above `memory_limit` bytes."""
    shapes = [
        (len(images), channels, images.shape[1] // stride, images.shape[2] // stride)
        for channels, stride in zip(network.backbone.channels, STRIDES, strict=True)
    ]
    dtype = compute.dtype
    size = sum(int(np.prod(shape)) for shape in shapes) * dtype.itemsize
    on_disk = size > memory_limit
    maps = [
        _empty(shape, dtype, folder / f"features_{scale}.bin" if on_disk else None)
        for scale, shape in enumerate(shapes)
    ]
    started = time.perf_counter()
    row = 0
    for chunk in chunks(images):
        with torch.no_grad(), compute.autocast():
            found = network.teacher_features(network.normalise(to_device(chunk, network.mean.device)))
        for target, values in zip(maps, found, strict=True):
            target[row : row + len(chunk)] = values.to(dtype).cpu()
        row += len(chunk)
    teacher_ms = 1000 * (time.perf_counter() - started) / len(images)
    return FeatureCache(images, cast(Features, tuple(maps)), teacher_ms, folder if on_disk else None)


@contextlib.contextmanager
def removing_cache(folder: Path) -> Iterator[None]:
    """Remove the cache's files from `folder` when the training ends, however it ends."""
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
        with file.open("xb") as opened:  # never through a link
            try:
                os.posix_fallocate(opened.fileno(), 0, size)
            except OSError as error:
                raise OSError(
                    error.errno, f"no room for {size >> 20} MiB of features ({error.strerror})", file
                ) from error
