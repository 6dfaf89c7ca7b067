"""A GPU made of the processor: the kernels' own arithmetic, and queues that run in any order that CUDA allows.

What is queued runs only when somebody waits, and then a random queue goes first each time. A copy or a launch that an event
should hold back and does not is soon done too early, on memory full of rubbish.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnet_edge.errors import StreamError
from nnet_edge.runtime.runners.trt.device import used_up
from nnet_edge.runtime.runners.trt.kernels import tables


class HostBuffer:
    """Memory that plays the device's."""

    def __init__(self, size: int, forget: Callable[[HostBuffer], None]) -> None:
        self._memory = np.full(size + 256, 0xEE, np.uint8)
        self.size, self._forget = size, forget
        self.address = -(-self._memory.ctypes.data // 256) * 256

    def free(self) -> None:
        self._forget(self)


@dataclass(eq=False)
class HostStream:
    device: HostDevice
    handle: int
    queue: deque[Callable[[], bool]] = field(default_factory=deque)  # each answers whether it could run

    def put(self, work: Callable[[], object]) -> None:
        self.device.record(self, lambda: (work(), True)[1])

    def wait(self, event: HostEvent) -> None:
        mark = event.mark
        self.device.record(self, lambda: mark in self.device.passed)

    def synchronize(self) -> None:
        self.device.run_until(lambda: not self.queue)


@dataclass(eq=False)
class HostEvent:
    device: HostDevice
    mark: int = 0

    def record(self, cuda_stream: HostStream) -> None:
        mark = self.mark = next(self.device.marks)
        cuda_stream.put(lambda: self.device.passed.add(mark))

    def synchronize(self) -> None:
        self.device.run_until(lambda: self.mark in self.device.passed)


class HostDevice:
    """Obeys Device. `fails` names a method that raises as a GPU's driver would; `launches` counts kernels by name.

    `memory_bytes` is all that its buffers may have together; `in_use` counts pinned arrays and events that somebody holds.
    """

    title, compute_capability = "the processor", "0.0"

    def __init__(self, kernels: Any, seed: int = 0) -> None:
        self.library, self.geometry = kernels.library, kernels.geometry
        self.random = random.Random(seed)
        self.marks, self.passed = itertools.count(1), {0}
        self.streams: list[HostStream] = []
        self.buffers: set[HostBuffer] = set()
        self.launches: dict[str, int] = {}
        self.downloaded_bytes = 0
        self.graphs = self.graph_launches = 0
        self.capturing: tuple[HostStream, list[Callable[[], bool]]] | None = None
        self.fails: str | None = None
        self.memory_bytes = float("inf")
        self.given: list[weakref.ref[Any]] = []
        self.is_current = self.is_closed = False

    @contextmanager
    def current(self) -> Iterator[None]:
        before, self.is_current = self.is_current, True
        try:
            yield
        finally:
            self.is_current = before

    def require(self, call: str) -> None:
        assert self.is_current, f"{call} without a current context"
        assert not self.is_closed, f"{call} on a closed device"
        if self.fails == call:
            raise StreamError(f"CUDA could not {call}: out of luck; start again")

    def allocate(self, size: int) -> HostBuffer:
        self.require("allocate")
        if sum(buffer.size for buffer in self.buffers) + size > self.memory_bytes:
            raise used_up(f"allocate {size} bytes")
        buffer = HostBuffer(size, self.buffers.discard)
        self.buffers.add(buffer)
        return buffer

    def pinned(self, size: int) -> np.ndarray:
        return self.remember(np.full(size, 0xDD, np.uint8))

    def stream(self) -> HostStream:
        self.streams.append(HostStream(self, len(self.streams) + 1))
        return self.streams[-1]

    def event(self) -> HostEvent:
        return self.remember(HostEvent(self))

    def remember(self, given: Any) -> Any:
        """The same, which is counted from now on."""
        self.given.append(weakref.ref(given))
        return given

    @property
    def in_use(self) -> int:
        return sum(reference() is not None for reference in self.given)

    def record(self, cuda_stream: HostStream, work: Callable[[], bool]) -> None:
        """Queue `work`, or keep it for the graph that is being captured."""
        if self.capturing is not None:
            assert cuda_stream is self.capturing[0], "work for another stream while capturing"
            self.capturing[1].append(work)
        else:
            cuda_stream.queue.append(work)

    def upload(self, address: int, source: np.ndarray, cuda_stream: HostStream) -> None:
        self.require("upload")
        assert source.flags.c_contiguous
        self.within(address, source.nbytes)
        cuda_stream.put(lambda: ctypes.memmove(address, source.ctypes.data, source.nbytes))

    def download(self, target: np.ndarray, address: int, cuda_stream: HostStream) -> None:
        self.require("download")
        assert target.flags.c_contiguous
        self.within(address, target.nbytes)
        self.downloaded_bytes += target.nbytes
        cuda_stream.put(lambda: ctypes.memmove(target.ctypes.data, address, target.nbytes))

    def within(self, address: int, size: int) -> None:
        """Every address lies in memory that was allocated and not freed."""
        assert any(b.address <= address and address + size <= b.address + b.size for b in self.buffers)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Sequence[int | float],
        cuda_stream: HostStream,
    ) -> None:
        self.require("launch")
        self.launches[kernel] = self.launches.get(kernel, 0) + 1
        height, width = self.geometry.size
        strips = tables.strips_of(self.geometry)
        is_resize = kernel.startswith("preprocess")
        expected = (width // 32, height // 8, grid[2]) if is_resize else (strips, grid[1], 1)
        assert (grid, threads) == (expected, 1024 if kernel == "anomaly_map_wide" else 256)
        batch = grid[2] if is_resize else grid[1]
        pointers = [ctypes.c_void_p(value) for value in arguments]
        cuda_stream.put(lambda: getattr(self.library, kernel)(*pointers, batch))

    def capture(self, work: Callable[[], None], cuda_stream: HostStream) -> Callable[[], None] | None:
        assert self.capturing is None
        held: list[Callable[[], bool]] = []
        self.capturing = cuda_stream, held
        work()
        self.capturing = None
        self.graphs += 1

        def launch_graph() -> None:
            self.graph_launches += 1
            cuda_stream.queue.extend(held)

        return launch_graph

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Run queues in a random order until `is_done`."""
        self.require("wait")
        while not is_done():
            ready = [stream for stream in self.streams if stream.queue]
            self.random.shuffle(ready)
            for stream in ready:
                if stream.queue[0]():
                    stream.queue.popleft()
                    break
            else:
                raise AssertionError("all queues wait for events that nobody records: a deadlock on a GPU")

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True
        if self.fails == "wait":
            raise StreamError("CUDA could not give the GPU's memory back: out of luck")


class BlockEngine:
    """Obeys Engine: each layer map is the mean of a block of the image over 255, forward of red, reverse of green."""

    can_capture = True

    def __init__(self, device: HostDevice, kind: type = np.float32, smallest: int = 1, largest: int = 8) -> None:
        self.device, self.smallest, self.largest, self.is_closed = device, smallest, largest, False
        names = [f"{branch}_{side}" for branch in ("forward", "reverse") for side in (64, 32, 16)]
        self.layer_maps = {name: np.dtype(kind) for name in names}
        self.bound: list[int] = []

    def bind(self, batch: int, addresses: dict[str, int], cuda_stream: HostStream) -> Callable[[], None]:
        self.bound.append(batch)

        def infer() -> None:
            images = at(addresses["images"], (batch, *self.device.geometry.shape), np.uint8)
            for name, kind in self.layer_maps.items():
                found = block_map(images, name)
                at(addresses[name], found.shape, kind)[:] = found

        return lambda: cuda_stream.put(infer)

    def close(self) -> None:
        self.is_closed = True


def block_map(images: np.ndarray, name: str) -> np.ndarray:
    """What BlockEngine computes, float32 (N, 1, height / stride, width / stride)."""
    channel, block = 0 if name.startswith("forward") else 1, 256 // int(name[-2:])
    height, width = (side // block for side in images.shape[1:3])
    blocks = images[..., channel].reshape(len(images), height, block, width, block)
    return (blocks.mean(axis=(2, 4), dtype=np.float32) / 255)[:, None]


def at(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """An array over memory that is there already."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind).reshape(shape)
