"""The GPU through pycuda, with its kernels loaded. The only file that imports pycuda, when a GPU is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.errors import MissingExtraError, StreamError
from nnet_edge.geometry import DEFAULT
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.runtime.runners.trt.device import CPU_RUNNER, Buffer, CudaEvent, CudaStream, used_up
from nnet_edge.runtime.runners.trt.kernels.cuda_graph import CudaGraph, capture_graph, load_driver
from nnet_edge.runtime.runners.trt.kernels.nvcc import KERNELS, cubin_for
from nnet_edge.runtime.runners.trt.kernels.tables import ARGUMENTS


def open_gpu(
    cache: Path | None = None, size: tuple[int, int] = DEFAULT.size, index: int = 0, kernels: Sequence[str] = KERNELS
) -> PycudaDevice:
    """The GPU of that index with its `kernels` compiled for inputs of `size` (kept in `cache`) and loaded; close it after use.

    Raises StreamError where there is no driver or no GPU, MissingExtraError without pycuda or nvcc.
    """
    found = find_gpu(index)
    if isinstance(found, NoGpu):
        raise StreamError(f"{found.reason}: {CPU_RUNNER}")
    return PycudaDevice(load_pycuda(), cache, size, index, kernels)


def load_pycuda() -> Any:
    """`pycuda.driver`, initialised. Raises MissingExtraError, or StreamError when the driver refuses."""
    try:
        import pycuda.driver
    except ImportError as error:
        reason = " ".join(str(error).split())
        advice = f"pip install 'nnet-edge[gpu]', or {CPU_RUNNER}"
        raise MissingExtraError(f"pycuda cannot be imported ({reason}): {advice}") from error
    with translating(pycuda.driver, "start CUDA"):
        pycuda.driver.init()
    return pycuda.driver


@contextmanager
def translating(cuda: Any, what: str) -> Iterator[None]:
    """Raise pycuda's errors in the block as StreamError that says what was tried and what to do."""
    try:
        yield
    except cuda.MemoryError as error:
        raise used_up(what) from error
    except cuda.Error as error:
        reason = " ".join(str(error).split())
        raise StreamError(f"CUDA could not {what}: {reason}; start again, or {CPU_RUNNER}") from error


class PycudaDevice:
    """A Device: a GPU through pycuda, in its primary context, which TensorRT and ONNX Runtime use too."""

    def __init__(
        self, cuda: Any, cache: Path | None = None, size: tuple[int, int] = DEFAULT.size, index: int = 0,
        kernels: Sequence[str] = KERNELS,
    ) -> None:  # fmt: skip
        self._cuda = cuda
        self._graphs: list[CudaGraph] = []
        self._buffers: set[PycudaBuffer] = set()
        with translating(cuda, f"open GPU {index}"):
            device = cuda.Device(index)
            self.title = str(device.name())
            self.compute_capability = ".".join(str(number) for number in device.compute_capability())
            self._context = device.retain_primary_context()
        self._functions = {}
        cubins = {name: cubin_for(name, self.compute_capability, cache, size) for name in kernels}
        with self.current(), translating(cuda, "load the kernels"):
            self._driver = load_driver()
            for name, cubin in cubins.items():
                module = cuda.module_from_buffer(cubin)
                self._functions[name] = module.get_function(name).prepare(ARGUMENTS[name])

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def allocate(self, size: int) -> Buffer:
        with translating(self._cuda, f"allocate {size / 2**20:.1f} MiB"):
            buffer = PycudaBuffer(self._cuda.mem_alloc(size), size, self._buffers.discard)
        self._buffers.add(buffer)
        return buffer

    def pinned(self, size: int) -> np.ndarray:
        with translating(self._cuda, f"pin {size / 2**20:.1f} MiB of host memory"):
            memory: np.ndarray = self._cuda.pagelocked_empty(size, np.uint8)
        return memory

    def stream(self) -> CudaStream:
        with translating(self._cuda, "make a stream"):
            return PycudaStream(self._cuda, self._cuda.Stream())

    def event(self) -> CudaEvent:
        with translating(self._cuda, "make an event"):  # without times, which would slow it down
            return PycudaEvent(self._cuda, self._cuda.Event(self._cuda.event_flags.DISABLE_TIMING))

    def upload(self, address: int, source: np.ndarray, cuda_stream: CudaStream) -> None:
        with translating(self._cuda, f"upload {source.nbytes} bytes"):
            self._cuda.memcpy_htod_async(address, source, native(cuda_stream))

    def download(self, target: np.ndarray, address: int, cuda_stream: CudaStream) -> None:
        with translating(self._cuda, f"download {target.nbytes} bytes"):
            self._cuda.memcpy_dtoh_async(target, address, native(cuda_stream))

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[int | float],
               cuda_stream: CudaStream) -> None:  # fmt: skip
        with translating(self._cuda, f"launch {kernel}"):
            function = self._functions[kernel]
            function.prepared_async_call(grid, (threads, 1, 1), native(cuda_stream), *arguments)

    def capture(self, work: Callable[[], None], cuda_stream: CudaStream) -> Callable[[], None] | None:
        graph = capture_graph(self._driver, work, cuda_stream.handle)
        if graph is not None:
            self._graphs.append(graph)
        return graph

    def copy(self, target: int, source: int, size: int, cuda_stream: CudaStream) -> None:
        """Queue a copy within the device."""
        with translating(self._cuda, f"copy {size} bytes"):
            self._cuda.memcpy_dtod_async(target, source, size, native(cuda_stream))

    def time_ms(self, work: Callable[[], None], cuda_stream: CudaStream) -> float:
        """Milliseconds that the GPU takes for what `work` queues in `cuda_stream`; waits for it."""
        queue = native(cuda_stream)
        with translating(self._cuda, "measure a time"):
            began, ended = self._cuda.Event(), self._cuda.Event()
            began.record(queue)
            work()
            ended.record(queue)
            ended.synchronize()
            return float(ended.time_since(began))

    def close(self) -> None:
        """Wait for the GPU and give everything back; the context even where the GPU is broken."""
        try:
            with self.current(), translating(self._cuda, "give the GPU's memory back"):
                self._context.synchronize()
                for graph in self._graphs:
                    graph.close()
                for buffer in tuple(self._buffers):
                    buffer.free()
                self._graphs, self._functions = [], {}
        finally:
            self._context.detach()


@dataclass(eq=False)
class PycudaBuffer:
    """A Buffer: memory on the GPU."""

    allocation: Any  # pycuda.driver.DeviceAllocation
    size: int
    forget: Callable[[PycudaBuffer], None]

    @property
    def address(self) -> int:
        return int(self.allocation)

    def free(self) -> None:
        self.allocation.free()
        self.forget(self)


@dataclass(frozen=True)
class Native:
    """What pycuda makes and can wait for."""

    cuda: Any
    native: Any  # pycuda.driver.Stream or Event

    def synchronize(self) -> None:
        with translating(self.cuda, "finish what was queued"):
            self.native.synchronize()


class PycudaStream(Native):
    """A CudaStream: a queue of the GPU."""

    @property
    def handle(self) -> int:
        return int(self.native.handle)

    def wait(self, event: CudaEvent) -> None:
        with translating(self.cuda, "wait for an event"):
            self.native.wait_for_event(native(event))


class PycudaEvent(Native):
    """A CudaEvent: a mark in a queue of the GPU."""

    def record(self, cuda_stream: CudaStream) -> None:
        with translating(self.cuda, "record an event"):
            self.native.record(native(cuda_stream))


def native(wrapped: CudaStream | CudaEvent) -> Any:
    """pycuda's own object."""
    assert isinstance(wrapped, Native)
    return wrapped.native
