"""No driver, no GPU, no pycuda, no memory: each is one clear error that names the way out."""

from __future__ import annotations

import builtins
import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnet_edge.errors import MissingExtraError, StreamError
from nnet_edge.gpu import GpuFacts, NoGpu
from nnet_edge.runtime.runners.trt import kernels
from nnet_edge.runtime.runners.trt.kernels import load_pycuda, open_gpu, translating
from nnet_edge.runtime.runners.trt.kernels.cuda_graph import CudaGraph, capture_graph, load_driver

CUDA = SimpleNamespace(  # pycuda's errors, as its module names them: MemoryError below Error
    Error=type("Error", (Exception,), {}),
)
CUDA.MemoryError = type("MemoryError", (CUDA.Error,), {})


def test_no_gpu_names_the_cpu_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_gpu", lambda index: NoGpu("there is no NVIDIA driver here"))
    with pytest.raises(StreamError, match=r"there is no NVIDIA driver here: use a CPU runner \(--runner openvino\)"):
        open_gpu()


def test_no_pycuda_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without_pycuda(name: str, *rest: Any) -> Any:
        if name.startswith("pycuda"):
            raise ImportError("No module named 'pycuda'")
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pycuda)
    monkeypatch.setattr(kernels, "find_gpu", lambda index: GpuFacts("L4", "8.9", "580.1", "13.0", 24000))
    with pytest.raises(
        MissingExtraError, match=r"pycuda cannot be imported .* pip install 'nnet-edge\[gpu\]', or use a CPU"
    ):
        open_gpu()
    with pytest.raises(MissingExtraError):
        load_pycuda()


def test_cuda_errors_say_what_was_tried() -> None:
    says = r"CUDA could not launch preprocess: cuLaunchKernel failed; start again, or use"
    with pytest.raises(StreamError, match=says), translating(CUDA, "launch preprocess"):
        raise CUDA.Error("cuLaunchKernel failed")
    says = r"memory is used up \(allocate 9.0 MiB\): lower --runner-batch"
    with pytest.raises(StreamError, match=says), translating(CUDA, "allocate 9.0 MiB"):
        raise CUDA.MemoryError("cuMemAlloc failed")


def test_no_driver_library() -> None:
    with pytest.raises(StreamError, match=r"there is no NVIDIA driver here .*--runner openvino"):
        load_driver("libcuda-that-is-not-there.so.1")


class Driver:
    """The driver's calls for graphs, by the order they come in; those named in `refused` answer 900."""

    def __init__(self, *refused: str) -> None:
        self.calls: list[str] = []
        self.refused = refused

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuStreamEndCapture" and name not in self.refused:
                arguments[1]._obj.value = 7
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
            return 900 if name in self.refused else 0

        return call


def test_a_graph_is_captured_launched_and_given_back() -> None:
    driver, work = Driver(), []
    graph = capture_graph(driver, lambda: work.append(len(driver.calls)), 5)
    assert isinstance(graph, CudaGraph)
    graph()
    graph()
    graph.close()
    assert driver.calls == [
        "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch", "cuGraphLaunch",
        "cuGraphExecDestroy", "cuGraphDestroy",
    ]  # fmt: skip
    assert work == [1]


def test_work_that_cannot_be_captured_is_a_warning_and_no_graph(caplog: pytest.LogCaptureFixture) -> None:
    assert capture_graph(Driver("cuStreamEndCapture"), lambda: None, 5) is None
    assert "no CUDA graph for this engine" in caplog.text
    assert "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in caplog.text


def test_work_that_is_refused_while_capturing_is_no_graph_either(caplog: pytest.LogCaptureFixture) -> None:
    """TensorRT answers False: the stream leaves capture mode, what was captured so far is given back, the runner goes on."""
    driver = Driver()

    def fail() -> None:
        raise StreamError("TensorRT could not compute a batch of 4")

    assert capture_graph(driver, fail, 5) is None
    assert driver.calls == ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphDestroy"]
    assert "it cannot be captured (TensorRT could not compute a batch of 4)" in caplog.text


def test_a_stream_leaves_capture_when_the_user_stops() -> None:
    driver = Driver()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_graph(driver, stop, 5)
    assert driver.calls == ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphDestroy"]


def test_a_graph_that_is_not_instantiated_is_given_back(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver("cuGraphInstantiateWithFlags")
    assert capture_graph(driver, lambda: None, 5) is None
    assert driver.calls[-1] == "cuGraphDestroy"
    assert "the CUDA driver refused cuGraphInstantiateWithFlags" in caplog.text


class Pycuda:
    """pycuda.driver's errors and a context that counts its holders; `broken` refuses to be waited for."""

    Error, MemoryError = CUDA.Error, CUDA.MemoryError

    def __init__(self) -> None:
        self.detached = 0
        self.pushed = 0

    def push(self) -> None:
        self.pushed += 1

    def pop(self) -> None:
        self.pushed -= 1

    def synchronize(self) -> None:
        raise CUDA.Error("an illegal memory access was encountered")

    def detach(self) -> None:
        self.detached += 1


def test_a_broken_gpu_is_given_back_all_the_same() -> None:
    device, cuda = object.__new__(kernels.PycudaDevice), Pycuda()
    device._cuda = device._context = cuda
    device._graphs, device._buffers = [], set()
    with pytest.raises(StreamError, match="could not give the GPU's memory back: an illegal memory access"):
        device.close()
    assert (cuda.detached, cuda.pushed) == (1, 0)


def test_a_refused_launch_names_the_call() -> None:
    driver = Driver("cuGraphLaunch")
    graph = CudaGraph(driver, ctypes.c_void_p(7), 5)
    with pytest.raises(
        StreamError, match="the CUDA driver refused cuGraphLaunch: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    ):
        graph()


def test_the_cache_lies_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kernels.nvcc.default_cache() == tmp_path / ".cache" / "nnet-edge" / "kernels"
