"""Launches of the kernels: grid, threads and arguments of each; sizes are those of the headers."""

from __future__ import annotations

from nnet_edge.imaging import SIDE
from nnet_edge.runtime.runners.trt.device import CudaStream, Device
from nnet_edge.runtime.runners.trt.kernels.tables import STRIP_HEIGHT

TILE_WIDTH, TILE_HEIGHT = 32, 8  # output pixels of a block of `preprocess`
OVERLAY_THREADS = 256
ARGUMENTS = {"preprocess": "PP", "anomaly_map": "PPPPP", "overlay": "PPPffiiP"}  # P address, f float, i int


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


def launch_overlay(device: Device, panel: int, anomaly_map: int, colours: int, scale_end: float, heat_share: float,
                   size: tuple[int, int], picture: int, cuda_stream: CudaStream) -> None:  # fmt: skip
    """A panel uint8 BGR (height, width, 3) and a map -> the picture of the same size."""
    height, width = size
    grid = (-(-height * width // OVERLAY_THREADS), 1, 1)
    arguments = (panel, anomaly_map, colours, scale_end, heat_share, height, width, picture)
    device.launch("overlay", grid, OVERLAY_THREADS, arguments, cuda_stream)
