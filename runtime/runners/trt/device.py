"""Device protocol of the TensorRT runner: memory, CUDA streams, events, copies, launches, graphs.

kernels/ implements it with pycuda. The tests implement it on the processor and run queued work in any order that streams and
events allow, so that a missing event shows without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from nnet_edge.errors import StreamError

CPU_RUNNER = "use a CPU runner (--runner openvino)"


class OutOfMemoryError(StreamError):
    """The GPU has no memory left for what was tried."""


def used_up(what: str) -> OutOfMemoryError:
    """The error for a GPU without free memory; `what` was tried."""
    advice = f"lower --runner-batch, close what else uses the GPU, or {CPU_RUNNER}"
    return OutOfMemoryError(f"the GPU's memory is used up ({what}): {advice}")


class Buffer(Protocol):
    """Device memory that the runner owns."""

    @property
    def address(self) -> int:
        """Of the first byte, on the device."""

    @property
    def size(self) -> int:
        """Bytes."""

    def free(self) -> None:
        """Give the memory back; the address is invalid afterwards."""


class CudaStream(Protocol):
    """A queue of work on the GPU, CUDA's stream."""

    @property
    def handle(self) -> int:
        """As CUDA and TensorRT know it."""

    def wait(self, event: CudaEvent) -> None:
        """What is queued from now on begins after what `event` has recorded."""

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""


class CudaEvent(Protocol):
    """A mark in a queue."""

    def record(self, cuda_stream: CudaStream) -> None:
        """Mark what is queued in `cuda_stream` so far."""

    def synchronize(self) -> None:
        """Wait until all that the mark stands for is done."""


class Device(Protocol):
    """A GPU. Every method raises StreamError, with the driver's message, when the driver refuses."""

    title: str  # as "NVIDIA L4"
    compute_capability: str  # "8.9"

    def current(self) -> AbstractContextManager[None]:
        """Within it, the calling thread works on this device."""

    def allocate(self, size: int) -> Buffer:
        """`size` bytes on the device, aligned to 256 bytes at least."""

    def pinned(self, size: int) -> np.ndarray:
        """`size` bytes of pinned host memory, uint8."""

    def stream(self) -> CudaStream:
        """A new queue."""

    def event(self) -> CudaEvent:
        """A new mark."""

    def upload(self, address: int, source: np.ndarray, cuda_stream: CudaStream) -> None:
        """Queue a copy of `source`, contiguous pinned memory that stays as it is until the copy is done."""

    def download(self, target: np.ndarray, address: int, cuda_stream: CudaStream) -> None:
        """Queue a copy into `target`, contiguous pinned memory."""

    def launch(self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[int | float],
               cuda_stream: CudaStream) -> None:  # fmt: skip
        """Queue a kernel of nvcc.KERNELS."""

    def capture(self, work: Callable[[], None], cuda_stream: CudaStream) -> Callable[[], None] | None:
        """What `work` queues in `cuda_stream`, as one CUDA graph; a call queues it, nothing runs before.

        None when the work cannot be captured.
        """

    def close(self) -> None:
        """Give everything back that was not freed."""
