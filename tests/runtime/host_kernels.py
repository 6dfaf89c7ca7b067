"""The kernels' arithmetic in a library of the processor, made by the C++ compiler at hand, and calls with NumPy arrays."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import nnet_edge.runtime.runners.trt.kernels
from nnet_edge.anomaly_map import Fusion
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.runtime.runners.trt.kernels.nvcc import defines_for
from nnet_edge.runtime.runners.trt.kernels.tables import (
    NV12,
    VIEW,
    enlarging_table,
    fill_maps,
    filter_table,
    resize_axis,
    strips_of,
)

SOURCES = Path(nnet_edge.runtime.runners.trt.kernels.__file__).parent
FLAGS = ("-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC")


class HostKernels:
    """The kernels on the processor, called as the GPU's are: with addresses and the same tables."""

    def __init__(self, library: Path, geometry: Geometry = DEFAULT) -> None:
        self.library, self.geometry = ctypes.CDLL(str(library)), geometry

    def preprocess(self, frames: list[np.ndarray], formats: list[int], kernel: str = "preprocess") -> np.ndarray:
        """uint8 RGB (N, height, width, 3) of frames with any strides between rows; NV12 as (H * 3 / 2, W)."""
        views = np.zeros(len(frames), VIEW)
        size, window = self.geometry.size, self.geometry.window
        tables = [
            (
                resize_axis(height_of(f, kind), size[0], window.top, window.height),
                resize_axis(f.shape[1], size[1], window.left, window.width),
            )
            for f, kind in zip(frames, formats, strict=True)
        ]
        for view, frame, kind, (rows, columns) in zip(views, frames, formats, tables, strict=True):
            height = height_of(frame, kind)
            view["pixels"], view["row_bytes"] = frame.ctypes.data, frame.strides[0]
            if kind == NV12:
                view["chroma"], view["chroma_row_bytes"] = frame[height:].ctypes.data, frame.strides[0]
            view["rows"], view["columns"] = rows.ctypes.data, columns.ctypes.data
            view["height"], view["width"], view["format"] = height, frame.shape[1], kind
        images = np.full((len(frames), *self.geometry.shape), 77, np.uint8)
        getattr(self.library, kernel)(pointer(views), pointer(images), len(frames))
        self.was_staged = bool(self.library.is_staged(pointer(views)))  # the first frame
        return images

    def anomaly_map(
        self, maps: Mapping[str, np.ndarray], fusion: Fusion, kernel: str = "anomaly_map"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Anomaly maps float32 (N, height, width) and the peaks of their strips."""
        batch = len(next(iter(maps.values())))
        out = np.full((batch, *self.geometry.size), np.nan, np.float32)
        peaks = np.full((batch, strips_of(self.geometry)), np.nan, np.float32)
        described = describe(maps, fusion)
        tables = enlarging_table(fusion, self.geometry), filter_table(fusion, self.geometry)
        launch = getattr(self.library, kernel)
        launch(pointer(described), *map(pointer, tables), pointer(out), pointer(peaks), batch)
        return out, peaks

    def fuse(self, maps: Mapping[str, np.ndarray], fusion: Fusion) -> np.ndarray:
        """The fused maps float32 (N, height / 4, width / 4)."""
        batch = len(next(iter(maps.values())))
        height, width = (side // 4 for side in self.geometry.size)
        fused = np.full((batch, height, width), np.nan, np.float32)
        described, table = describe(maps, fusion), enlarging_table(fusion, self.geometry)
        self.library.fuse(pointer(described), pointer(table), pointer(fused), batch)
        return fused


def height_of(frame: np.ndarray, kind: int) -> int:
    return frame.shape[0] * 2 // 3 if kind == NV12 else frame.shape[0]


def describe(maps: Mapping[str, np.ndarray], fusion: Fusion) -> np.ndarray:
    halves = frozenset(name for name, values in maps.items() if values.dtype == np.float16)
    return fill_maps(fusion, {name: values.ctypes.data for name, values in maps.items()}, halves)


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def compile_host_kernels(folder: Path, geometry: Geometry = DEFAULT) -> HostKernels:
    """The kernels' arithmetic, compiled into `folder` for this processor."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("NO C++ COMPILER: the kernels' arithmetic was NOT tested; install g++ or clang++")
    library = folder / "kernels.so"
    source = Path(__file__).with_name("host.cpp")
    subprocess.run([compiler, *FLAGS, *defines_for(geometry.size), "-I", SOURCES, source, "-o", library], check=True)
    return HostKernels(library, geometry)
