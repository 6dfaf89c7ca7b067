"""Each CUDA kernel's time, the bytes that it must move, and how near it comes to the measured copy bandwidth.

Bytes are counted, not measured: what has to be read once and written once. A small batch repeats on data that the L2 holds,
so its share can exceed 1; the large batches do not fit there.

    python -m nnet_edge.benchmarks.gpu.kernels --variant staged --variant wide --json kernels.json

The variants are other kernels for the same result, bit by bit, that no runner uses: here it is measured which is faster.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

from nnet_edge.anomaly_map import LAYER_MAPS, PAPER_FUSION
from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say
from nnet_edge.benchmarks.harness.machine import describe_machine
from nnet_edge.benchmarks.harness.report import write_json
from nnet_edge.benchmarks.harness.rounds import repeated
from nnet_edge.bundle import now
from nnet_edge.errors import StreamError
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.runtime.runners.trt.device import CudaStream
from nnet_edge.runtime.runners.trt.kernels import PycudaDevice, open_gpu
from nnet_edge.runtime.runners.trt.kernels.nvcc import KERNELS, VARIANTS
from nnet_edge.runtime.runners.trt.kernels.tables import (
    BGR8,
    NV12,
    RGB8,
    launch_anomaly_map,
    launch_preprocess,
    strips_of,
)
from nnet_edge.runtime.runners.trt.ring import Picture, Slot, Tables

BATCHES = (1, 8, 32)
LAUNCHES, ROUNDS, WARM_UPS = 20, 15, 3  # a round is one time of that many launches in a row
COPY_BYTES = 1 << 30  # more than any L2 holds
GIGA, MS_PER_S, US_PER_MS = 1e9, 1e3, 1e3


@dataclass(frozen=True)
class Ceilings:
    """What the memory of this machine can do, GB/s; measured in the same run."""

    copy: float  # device to device, bytes read plus bytes written
    upload: float  # pinned host memory to device
    download: float


@dataclass(frozen=True)
class KernelTime:
    """One kernel at one size."""

    kernel: str
    shape: str
    batch: int
    bytes_moved: int
    p50_us: float
    floor_us: float  # bytes over the measured copy bandwidth
    share_of_copy: float  # floor over p50


def measure_ceilings(device: PycudaDevice, size: int = COPY_BYTES) -> Ceilings:
    """Copy bandwidths, each the median of ROUNDS copies of `size` bytes (uploads and downloads of a quarter)."""
    queue = device.stream()
    source, target, host = device.allocate(size), device.allocate(size), device.pinned(size // 4)
    host[:] = 1

    def rate(work: Callable[[], None], moved: int) -> float:
        return moved / (median_ms(device, work, queue, 1) / MS_PER_S) / GIGA

    ceilings = Ceilings(
        rate(lambda: device.copy(target.address, source.address, size, queue), 2 * size),
        rate(lambda: device.upload(target.address, host, queue), host.nbytes),
        rate(lambda: device.download(host, source.address, queue), host.nbytes),
    )
    source.free()
    target.free()
    return ceilings


def measure_kernels(
    device: PycudaDevice, copy: float, batches: tuple[int, ...] = BATCHES, geometry: Geometry = DEFAULT,
    preprocess: Sequence[str] = ("preprocess",), anomaly_map: Sequence[str] = ("anomaly_map",),
) -> Iterator[KernelTime]:  # fmt: skip
    """Every kernel at every batch; `copy` is the measured bandwidth, GB/s; the device's kernels are of the geometry.

    `preprocess` and `anomaly_map` name the kernels of that work, which take turns.
    """
    places = geometry.height * geometry.width

    def result(kernel: str, shape: str, batch: int, moved: int, ms: float) -> KernelTime:
        floor_us = moved / GIGA / copy * MS_PER_S * US_PER_MS
        return KernelTime(kernel, shape, batch, moved, ms * US_PER_MS, floor_us, floor_us / (ms * US_PER_MS))

    queue = device.stream()
    for shape, picture in pictures().items():
        for batch in batches:
            slot = filled_slot(device, [picture] * batch, np.float32, queue, geometry)
            arguments = (device, slot.views.address, slot.images.address, batch, geometry, queue)
            for kernel in preprocess:
                ms = median_ms(device, partial(launch_preprocess, *arguments, kernel=kernel), queue)
                yield result(kernel, shape, batch, batch * (picture.pixels.nbytes + 3 * places), ms)
    tables = Tables(device, PAPER_FUSION, geometry)
    for kind in (np.float32, np.float16):
        for batch in batches:
            slot = filled_slot(device, [Picture(np.zeros((8, 8, 3), np.uint8), BGR8)] * batch, kind, queue, geometry)
            launch = partial(
                launch_anomaly_map, device, slot.layer_maps.address, tables.enlarging, tables.filter,
                slot.anomaly_maps.address, slot.peaks.address, batch, geometry, queue,
            )  # fmt: skip
            read = sum(slot.map_bytes(name, batch) for name in LAYER_MAPS)
            written = batch * 4 * (places + strips_of(geometry))
            for kernel in anomaly_map:
                ms = median_ms(device, partial(launch, kernel=kernel), queue)
                yield result(kernel, np.dtype(kind).name, batch, read + written, ms)


def pictures() -> dict[str, Picture]:
    """Frames of common cameras, noise at full contrast."""
    rng = np.random.default_rng(0)
    return {
        "1920x1080 BGR8": Picture(rng.integers(0, 256, (1080, 1920, 3), np.uint8), BGR8),
        "1920x1080 NV12": Picture(rng.integers(0, 256, (1080 * 3 // 2, 1920), np.uint8), NV12),
        "640x480 BGR8": Picture(rng.integers(0, 256, (480, 640, 3), np.uint8), BGR8),
        "256x256 RGB8": Picture(rng.integers(0, 256, (256, 256, 3), np.uint8), RGB8),
    }


def filled_slot(device: PycudaDevice, frames: list[Picture], kind: type, queue: CudaStream, geometry: Geometry) -> Slot:
    """A slot whose frames are on the device and whose layer maps hold noise."""
    slot = Slot(device, len(frames), {name: np.dtype(kind) for name in LAYER_MAPS}, PAPER_FUSION, geometry)
    views, bulk = slot.fill(frames)
    device.upload(slot.views.address, views, queue)
    device.upload(slot.bulk_address, bulk, queue)
    rng = np.random.default_rng(1)
    for name in LAYER_MAPS:
        noise: np.ndarray = rng.random(slot.map_bytes(name, len(frames)) // np.dtype(kind).itemsize).astype(kind)
        memory = device.pinned(noise.nbytes)
        memory[:] = noise.view(np.uint8)
        device.upload(slot.addresses[name], memory, queue)
        queue.synchronize()
    return slot


def median_ms(
    device: PycudaDevice, work: Callable[[], None], queue: CudaStream, launches: int = LAUNCHES, rounds: int = ROUNDS
) -> float:
    """The median over rounds of the milliseconds of one `work`, `launches` of them in a row, after warm-ups."""

    def row() -> None:
        for _ in range(launches):
            work()

    return repeated(lambda: device.time_ms(row, queue), rounds, WARM_UPS).median / launches


def require_equal(
    device: PycudaDevice, preprocess: Sequence[str] = ("preprocess",), anomaly_map: Sequence[str] = ("anomaly_map",),
    geometry: Geometry = DEFAULT,
) -> None:  # fmt: skip
    """Raise StreamError unless the kernels of either work make the same, bit by bit: images of every picture, anomaly maps."""
    queue = device.stream()

    def made(address: int, size: int) -> np.ndarray:
        found = device.pinned(size)
        device.download(found, address, queue)
        queue.synchronize()
        return found.copy()

    places = geometry.height * geometry.width
    for shape, picture in pictures().items():
        slot = filled_slot(device, [picture], np.float32, queue, geometry)
        images = {}
        for kernel in preprocess:
            launch_preprocess(device, slot.views.address, slot.images.address, 1, geometry, queue, kernel)
            images[kernel] = made(slot.images.address, 3 * places)
        require_same(images, f"image of {shape}")
    tables = Tables(device, PAPER_FUSION, geometry)
    slot = filled_slot(device, [Picture(np.zeros((8, 8, 3), np.uint8), BGR8)] * 2, np.float32, queue, geometry)
    maps, addresses = {}, (slot.layer_maps.address, tables.enlarging, tables.filter)
    for kernel in anomaly_map:
        out, peaks = slot.anomaly_maps.address, slot.peaks.address
        launch_anomaly_map(device, *addresses, out, peaks, 2, geometry, queue, kernel)
        maps[kernel] = np.concatenate((made(out, 8 * places), made(peaks, 8 * strips_of(geometry))))
    require_same(maps, "anomaly map")


def require_same(made: Mapping[str, np.ndarray], what: str) -> None:
    """Raise StreamError unless all kernels made what the first did."""
    first, *others = made
    for kernel in others:
        if not np.array_equal(made[kernel], made[first]):
            raise StreamError(f"{kernel} makes another {what} than {first}: it must not be used")


@click.command()
@click.option(
    "--variant",
    "variants",
    type=click.Choice([name.rpartition("_")[2] for name in VARIANTS]),
    multiple=True,
    help="Compare with the one in use; may be repeated.",
)
@click.option("--batch", "batches", type=int, multiple=True, default=BATCHES, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the report here.")
def command(variants: tuple[str, ...], batches: tuple[int, ...], json_path: Path | None) -> None:
    """Measure the CUDA kernels on this machine's GPU, and compare those that are not used yet: JSON on standard output."""
    names = [*KERNELS, *(name for name in VARIANTS if name.rpartition("_")[2] in variants)]
    preprocess, anomaly_map = ([name for name in names if name.startswith(work)] for work in KERNELS)
    device = open_gpu(kernels=names)
    try:
        with device.current():
            require_equal(device, preprocess, anomaly_map)
            ceilings = measure_ceilings(device)
            kernels = []
            for kernel in measure_kernels(
                device, ceilings.copy, batches, preprocess=preprocess, anomaly_map=anomaly_map
            ):
                say(
                    f"{kernel.kernel} {kernel.shape} x{kernel.batch}: {kernel.p50_us:.1f} us, floor {kernel.floor_us:.1f} us"
                )
                kernels.append(asdict(kernel))
    finally:
        device.close()
    report = {"command": command_text("nnet_edge.benchmarks.gpu.kernels"), "when": now(), "machine": describe_machine(None),
              "ceilings_gb_per_s": asdict(ceilings), "kernels": kernels}  # fmt: skip
    click.echo(json.dumps(report, indent=2, allow_nan=False))
    if json_path is not None:
        write_json(json_path, report)


if __name__ == "__main__":
    sys.exit(run_command(command))
