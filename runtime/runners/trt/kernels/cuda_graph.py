"""CUDA graphs through the driver itself: pycuda 2026.1 has none. The handles of streams are pycuda's."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable

from nnet_edge.errors import StreamError
from nnet_edge.gpu import DRIVER_LIBRARY
from nnet_edge.runtime.runners.trt.device import CPU_RUNNER

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on calling CUDA meanwhile

log = logging.getLogger(__name__)


class CudaGraph:
    """Captured work that a call queues again. It owns `graph`; `close` it before the memory is freed."""

    def __init__(self, driver: ctypes.CDLL, graph: ctypes.c_void_p, handle: int) -> None:
        self._driver, self._graph, self._stream = driver, graph, ctypes.c_void_p(handle)
        self._executable = ctypes.c_void_p()
        check(driver, "cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))

    def __call__(self) -> None:
        check(self._driver, "cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Give the graph back."""
        check(self._driver, "cuGraphExecDestroy", self._executable)
        check(self._driver, "cuGraphDestroy", self._graph)


def load_driver(library: str = DRIVER_LIBRARY) -> ctypes.CDLL:
    """The CUDA driver. Raises StreamError where there is none."""
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise StreamError(f"there is no NVIDIA driver here ({error}): install it, or {CPU_RUNNER}") from error


def capture_graph(driver: ctypes.CDLL, work: Callable[[], None], handle: int) -> CudaGraph | None:
    """What `work` queues in the stream, as a graph; None, with a warning in the log, when it cannot be captured, for example
    because TensorRT refuses to compute meanwhile. The stream leaves capture mode in any case.
    """
    stream, graph = ctypes.c_void_p(handle), ctypes.c_void_p()
    check(driver, "cuStreamBeginCapture_v2", stream, ctypes.c_int(THREAD_LOCAL))
    try:
        try:
            work()
        finally:
            status = driver.cuStreamEndCapture(stream, ctypes.byref(graph))
        if status != 0 or not graph.value:
            raise StreamError(error_name(driver, status))
        return CudaGraph(driver, graph, handle)
    except BaseException as error:
        if graph.value:
            driver.cuGraphDestroy(graph)
        if not isinstance(error, StreamError):
            raise
        log.warning("no CUDA graph for this engine: it cannot be captured (%s)", error)
        return None


def check(driver: ctypes.CDLL, call: str, *arguments: object) -> None:
    """Call the driver. Raises StreamError with the name of its error when it refuses."""
    status = getattr(driver, call)(*arguments)
    if status != 0:
        raise StreamError(f"the CUDA driver refused {call}: {error_name(driver, status)}; start again")


def error_name(driver: ctypes.CDLL, status: int) -> str:
    """The name of a status, as CUDA_ERROR_OUT_OF_MEMORY."""
    name = ctypes.c_char_p()
    driver.cuGetErrorName(ctypes.c_int(status), ctypes.byref(name))
    return name.value.decode() if name.value else f"error {status}"
