"""Loading engines where there is no GPU: what is refused, by whom, and with which words; TensorRT-RTX is the real one."""

from __future__ import annotations

import hashlib
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnet_edge.bundle import Bundle, add_artefact, read_bundle
from nnet_edge.errors import BundleError, ConfigError, MissingExtraError, StreamError
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.runners.trt import kernels, trt_runner
from nnet_edge.runtime.runners.trt.engine import TrtEngine
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary, load_tensorrt
from nnet_edge.runtime.runners.trt.record import read_engine
from nnet_edge.settings.runner import RunnerSettings

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="NO TENSORRT-RTX: engines were NOT built; pip install 'nnet-edge[test]'"
)
without_gpu = pytest.mark.skipif(not isinstance(find_gpu(), NoGpu), reason="this machine has a GPU and loads engines")


@pytest.fixture
def with_engine(bundle: Bundle, tmp_path: Path) -> Path:
    """An engine for SM 8.6 in a copy of the bundle."""
    from nnet_edge.export.engine import build_engine
    from nnet_edge.export.engine_settings import EngineSettings, Profile, parse_target

    copied = read_bundle(Path(shutil.copytree(bundle.path, tmp_path / "bundle")))
    built = build_engine(copied.graph, EngineSettings(parse_target("rtx:sm86"), Profile(1, 4, 4)))
    source = copied.manifest["files"]["nnet.onnx"]
    record = {"kind": "engine", "precision": "fp32", "source": source, "made": built.record.as_dict(), "gates": {}}
    add_artefact(copied, "nnet.fp32.rtx-sm86.engine", built.content, record)
    return copied.path / "nnet.fp32.rtx-sm86.engine"


@needs_rtx
@without_gpu
def test_without_a_gpu_an_engine_names_the_cpu_runner(with_engine: Path) -> None:
    with pytest.raises(StreamError, match=r"NVIDIA .*: use a CPU runner \(--runner openvino\)"):
        load_runner(with_engine, RunnerSettings(kind="tensorrt"))


class OtherGpu:
    """Just enough of a device to be asked what it is."""

    def __init__(self, compute_capability: str) -> None:
        self.compute_capability, self.is_closed = compute_capability, False

    def close(self) -> None:
        self.is_closed = True


@needs_rtx
def test_an_engine_of_another_gpu_is_refused_before_it_is_loaded(
    with_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = OtherGpu("8.9")
    monkeypatch.setattr(kernels, "open_gpu", lambda cache, size, index: device)
    with pytest.raises(BundleError, match=r"built for compute capability 8\.6 and this GPU has 8\.9.*build-engine"):
        load_runner(with_engine)
    assert device.is_closed


@needs_rtx
def test_a_truncated_engine_is_refused_before_it_is_loaded(with_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "open_gpu", lambda cache, size, index: OtherGpu("8.6"))
    with_engine.write_bytes(with_engine.read_bytes()[:-1000])
    with pytest.raises(BundleError, match=r"has \d+ bytes and had \d+ when it was built"):
        load_runner(with_engine)


@needs_rtx
@without_gpu
def test_what_tensorrt_cannot_load_is_one_line_with_the_command(
    with_engine: Path, host_kernels: Any, gpu_parts: Any
) -> None:
    """Its own runtime says no here, as it does for a GPU that it does not know."""
    _, record = read_engine(with_engine)
    with pytest.raises(
        BundleError, match=r"TensorRT-RTX 1\.7.* cannot load .*; build it again here with nnet-edge"
    ) as caught:
        TrtEngine(with_engine, record, load_tensorrt("tensorrt_rtx"), gpu_parts.HostDevice(host_kernels))
    assert "\n" not in str(caught.value)


def test_a_tensorrt_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(flavour: str) -> Any:
        raise MissingExtraError(f"{flavour} is not installed: pip install 'nnet-edge[tensorrt]'")

    monkeypatch.setattr(trt_runner, "load_tensorrt", absent)
    record = type("Record", (), {"tool": "tensorrt"})
    monkeypatch.setattr(trt_runner, "read_engine", lambda path: (None, record))
    with pytest.raises(MissingExtraError, match=r"nnet-edge\[tensorrt\]"):
        load_runner(tmp_path / "nnet.engine")


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("nnet.engine", RunnerSettings(kind="openvino"), "an engine of TensorRT, which openvino cannot run"),
        ("nnet.engine", RunnerSettings(precision="bf16"), "computes in the precision that it was built with"),
        ("nnet.onnx", RunnerSettings(kind="tensorrt"), "is a graph and TensorRT runs engines: build one with"),
    ],
)
def test_settings_of_another_runner_are_refused(tmp_path: Path, name: str, settings: RunnerSettings, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_runner(tmp_path / name, settings)


class Recorder:
    """Stands for one object of TensorRT: notes each call in `calls`; what `answers` does not name answers True."""

    def __init__(self, calls: list[tuple[Any, ...]], **answers: Any) -> None:
        self.__dict__.update(calls=calls, answers=answers)

    def __getattr__(self, name: str) -> Any:
        answer = self.answers.get(name, True)
        if not callable(answer) and name in ("device_memory_size_v2", "num_io_tensors"):
            return answer

        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return answer(*arguments) if callable(answer) else answer

        return call

    def __setattr__(self, name: str, value: object) -> None:
        self.calls.append((name, value))


LAYERS = ("forward_64", "forward_32", "forward_16", "reverse_64", "reverse_32", "reverse_16")


def library(flavour: str, calls: list[tuple[Any, ...]], *, outputs: tuple[str, ...] = LAYERS, **answers: Any) -> Any:
    """A TensorrtLibrary whose engine has these outputs; no GPU can load a true one here, so its calls are noted."""
    context = Recorder(calls, infer_shapes=[], **answers)
    engine = Recorder(
        calls,
        num_io_tensors=1 + len(outputs),
        get_tensor_name=lambda index: ("images", *outputs)[index],
        get_tensor_mode=lambda name: "in" if name == "images" else "out",
        get_tensor_dtype=lambda name: "uint8" if name == "images" else "half" if name.endswith("16") else "float",
        get_tensor_shape=lambda name: (-1, 256, 256, 3),
        get_tensor_profile_shape=lambda name, index: [(2, 256, 256, 3), (4, 256, 256, 3), (6, 256, 256, 3)],
        device_memory_size_v2=4096,
        create_execution_context=lambda argument: context,
        create_runtime_config=lambda: Recorder(calls, create_runtime_cache="cache"),
    )
    trt = SimpleNamespace(
        ILogger=type(
            "ILogger", (), {"Severity": SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)}
        ),
        Runtime=lambda log: Recorder(calls, deserialize_cuda_engine=lambda content: engine),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        DataType=SimpleNamespace(UINT8="uint8", FLOAT="float", HALF="half"),
        nptype=lambda kind: {"float": np.float32, "half": np.float16}[kind],
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
    return TensorrtLibrary(flavour, "10.3.0", trt)


@pytest.fixture
def load(tmp_path: Path, host_kernels: Any, gpu_parts: Any) -> Any:
    """A function that loads an engine of `library`."""
    path = tmp_path / "nnet.engine"
    path.write_bytes(b"engine")
    device = gpu_parts.HostDevice(host_kernels)

    def load_engine(found: Any, version_compatible: bool = False) -> tuple[TrtEngine, Any]:
        record = SimpleNamespace(
            layer_maps=LAYERS, version_compatible=version_compatible, sha256=hashlib.sha256(b"engine").hexdigest()
        )
        with device.current():
            return TrtEngine(path, record, found, device), device

    return load_engine


def test_a_context_is_told_shape_memory_and_addresses(load: Any) -> None:
    calls: list[tuple[Any, ...]] = []
    engine, device = load(library("tensorrt", calls))
    assert (engine.smallest, engine.largest, engine.can_capture) == (2, 6, True)
    assert engine.layer_maps["forward_16"] == np.float16
    assert engine.layer_maps["reverse_64"] == np.float32
    addresses = {name: 1000 + number for number, name in enumerate(("images", *LAYERS))}
    calls.clear()
    stream = device.stream()
    queue = engine.bind(4, addresses, stream)
    (memory,) = device.buffers
    assert calls[:4] == [
        ("create_execution_context", "ours"),
        ("set_optimization_profile_async", 0, stream.handle),
        ("set_device_memory", memory.address, 4096),
        ("set_input_shape", "images", (4, 256, 256, 3)),
    ]
    assert set(calls[4:-1]) == {("set_tensor_address", name, address) for name, address in addresses.items()}
    calls.clear()
    queue()
    assert calls == [("execute_async_v3", stream.handle)]


def test_tensorrt_rtx_captures_and_specialises_by_itself(load: Any) -> None:
    calls: list[tuple[Any, ...]] = []
    engine, device = load(library("tensorrt_rtx", calls))
    assert not engine.can_capture
    calls.clear()
    for _ in range(2):
        engine.bind(4, dict.fromkeys(("images", *LAYERS), 1), device.stream())
    assert ("cuda_graph_strategy", "whole") in calls
    assert ("dynamic_shapes_kernel_specialization_strategy", "eager") in calls
    assert [call for call in calls if call[0] == "create_runtime_cache"] == [("create_runtime_cache",)]
    assert calls.count(("set_runtime_cache", "cache")) == 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("set_optimization_profile_async", "could not choose the profile"),
        ("set_input_shape", "could not take a batch of 4"),
        ("set_tensor_address", "could not use the memory of images"),
        ("execute_async_v3", "could not compute a batch of 4"),
    ],
)
def test_every_call_is_asked_whether_it_worked(load: Any, call: str, says: str) -> None:
    engine, device = load(library("tensorrt", [], **{call: False}))
    with pytest.raises(StreamError, match=rf"TensorRT 10\.3\.0 {says} with .*nnet\.engine.*--runner openvino"):
        engine.bind(4, dict.fromkeys(("images", *LAYERS), 1), device.stream())()


@pytest.mark.parametrize("version_compatible", [True, False])
def test_only_a_version_compatible_engine_may_bring_code_along(load: Any, version_compatible: bool) -> None:
    calls: list[tuple[Any, ...]] = []
    load(library("tensorrt", calls), version_compatible)
    names = [call[0] for call in calls]
    assert (("engine_host_code_allowed", True) in calls) is version_compatible
    if version_compatible:
        assert names.index("engine_host_code_allowed") < names.index("deserialize_cuda_engine")


NO_MEMORY = (
    "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
    "[engine.cpp::read::1] Error Code 2: OutOfMemory (Requested size was 5 bytes.)",
    "Requested amount of GPU memory (5 bytes) could not be allocated. There may not be enough free memory.",
)


@pytest.mark.parametrize("message", NO_MEMORY)
@pytest.mark.parametrize("fails", ["load", "context", "compute"])
def test_a_gpu_without_memory_left_says_so(load: Any, message: str, fails: str) -> None:
    """TensorRT answers None or False and says why in its log, and then what followed from it."""
    found = library("tensorrt", [])
    make_runtime = found.trt.Runtime

    def complain(log: Any, answer: Any) -> Any:
        log.log(found.trt.ILogger.Severity.ERROR, message)
        log.log(found.trt.ILogger.Severity.ERROR, "[x.cpp::y::1] Error Code 4: Internal Error (it did not work)")
        return answer

    def runtime(log: Any) -> Any:
        made = make_runtime(log)
        engine = made.deserialize_cuda_engine(b"")
        if fails == "load":
            return Recorder([], deserialize_cuda_engine=lambda content: complain(log, None))
        if fails == "context":
            engine.answers["create_execution_context"] = lambda argument: complain(log, None)
        else:
            context = engine.create_execution_context("")
            context.answers["execute_async_v3"] = lambda handle: complain(log, False)
        return made

    found.trt.Runtime = runtime

    def use() -> None:
        engine, device = load(found)
        engine.bind(4, dict.fromkeys(("images", *LAYERS), 1), device.stream())()

    with pytest.raises(
        StreamError, match=r"the GPU's memory is used up \(.*nnet\.engine\): lower --runner-batch, close"
    ):
        use()


def test_an_error_does_not_name_the_reason_of_an_earlier_one(load: Any) -> None:
    answers = iter([False, False])
    found = library("tensorrt", [], execute_async_v3=lambda handle: next(answers))
    logs: list[Any] = []
    make_runtime = found.trt.Runtime
    found.trt.Runtime = lambda log: (logs.append(log), make_runtime(log))[1]
    engine, device = load(found)
    queue = engine.bind(4, dict.fromkeys(("images", *LAYERS), 1), device.stream())
    logs[0].log(found.trt.ILogger.Severity.ERROR, "[x.cpp::y::1] Error Code 9: not while capturing")
    with pytest.raises(StreamError, match="not while capturing"):
        queue()
    with pytest.raises(StreamError, match="it gave no reason"):
        queue()


def test_an_engine_that_is_not_taken_lets_go_of_tensorrt(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[TrtEngine] = []
    close = TrtEngine.close
    monkeypatch.setattr(TrtEngine, "close", lambda engine: (closed.append(engine), close(engine))[1])
    with pytest.raises(BundleError):
        load(library("tensorrt", [], outputs=("logits",)))
    assert closed[0]._engine is closed[0]._runtime is None


def test_an_engine_with_other_outputs_is_not_ours(load: Any) -> None:
    with pytest.raises(
        BundleError, match="is no engine of nnet-edge: it takes images and gives logits, its manifest says"
    ):
        load(library("tensorrt", [], outputs=("logits",)))
