"""A graph in ONNX Runtime's CUDA provider, between the same kernels as an engine of TensorRT: what any NVIDIA GPU can run.

Its tensors lie in the runner's own device memory (I/O binding) and its work goes into the runner's own CUDA stream, so nothing
is copied to the host in between. ONNX Runtime captures a CUDA graph of its own for each slot and batch size.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnet_edge.anomaly_map import SCALES, STRIDES, split_name
from nnet_edge.bundle import precision_named
from nnet_edge.errors import BundleError, ConfigError, MissingExtraError, StreamError, loading_fault, missing_library
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners.cut import cut_graph
from nnet_edge.runtime.runners.graph import (
    INPUT,
    TAIL,
    Contract,
    geometry_beside,
    input_shape_of,
    read_graph_bytes,
    require_contract,
)
from nnet_edge.runtime.runners.graph_facts import fusion_of, read_facts
from nnet_edge.runtime.runners.structure import Message, declared_shape, fields_of, messages, text, view
from nnet_edge.runtime.runners.trt.device import CPU_RUNNER, CudaStream, used_up
from nnet_edge.runtime.runners.trt.kernels import open_gpu
from nnet_edge.runtime.runners.trt.library import parse_version
from nnet_edge.runtime.runners.trt.trt_runner import TrtRunner, closed_on_failure
from nnet_edge.settings.runner import CUDA_RUNNER, RunnerSettings

try:
    import onnxruntime
except ImportError as error:
    raise missing_library("onnxruntime", "cuda", error) from error

INSTALL = "pip uninstall onnxruntime, then pip install 'nnet-edge[cuda]'"
FATAL_ONLY = 4  # ONNX Runtime's severity
NO_MEMORY = r"out of memory|failed to allocate|BFCArena|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"

AnyTrtRunner = TypeVar("AnyTrtRunner", bound=TrtRunner)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provider:
    """Where ONNX Runtime computes; the tests name the processor."""

    name: str = "CUDAExecutionProvider"
    memory: str = "cuda"  # what I/O binding calls it
    options: Mapping[str, str] = field(default_factory=dict)  # beside the stream's


CUDA = Provider(options={"use_tf32": "0", "enable_cuda_graph": "1"})  # TF32's 10 bits are too few for cosines


class CudaEngine:
    """A session of ONNX Runtime for the graph's layer maps. Obeys Engine; batches up to `largest` fit.

    It computes in `cuda_stream`, on the GPU of that index.
    """

    smallest = 1
    can_capture = False  # ONNX Runtime captures by itself

    def __init__(
        self, graph: Path, cuda_stream: CudaStream, geometry: Geometry = DEFAULT, largest: int = 8, index: int = 0,
        provider: Provider = CUDA,
    ) -> None:  # fmt: skip
        """Raises BundleError for a graph that ONNX Runtime cannot read, StreamError when it does not take the GPU."""
        self._graph, self._geometry, self.largest = graph, geometry, largest
        self._index, self._provider = index, provider
        content = read_graph_bytes(graph)
        given = [text(item[1]) for item in messages(graph_in(content)[12])]
        content = cut_graph(content, [name for name in given if name not in TAIL])
        self._session: Any = self._open(content, cuda_stream)
        from nnet_edge.runtime.runners.onnx_runner import port_types

        inputs, outputs = port_types(self._session.get_inputs()), port_types(self._session.get_outputs())
        require_contract(graph, inputs, outputs, Contract(tail=()))
        self.layer_maps: Mapping[str, np.dtype] = {name: np.dtype(kind) for name, kind in outputs.items()}
        self._bindings: list[Any] = []  # each with its own CUDA graph, whose addresses it must keep

    def _open(self, content: bytes, cuda_stream: CudaStream) -> Any:
        """A session of the provider; one without CUDA graphs, said in the log, where a node stays on the processor."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY  # what fails is raised, or found by get_providers
        own = {"device_id": str(self._index), "user_compute_stream": str(cuda_stream.handle)}
        chosen = dict(self._provider.options) | (own if self._provider.memory == "cuda" else {})
        while True:
            try:
                session = onnxruntime.InferenceSession(content, options, providers=[(self._provider.name, chosen)])
            except Exception as error:  # ONNX Runtime's errors have no common base below Exception
                reason = " ".join(str(error).split())
                if chosen.pop("enable_cuda_graph", None) and "graph" in reason.lower():
                    log.warning("no CUDA graph of %s: ONNX Runtime does not capture it (%s)", self._graph, reason)
                    continue
                raise self._fault("read", error) from error
            if self._provider.name not in session.get_providers():  # it falls back to the processor in silence
                raise StreamError(f"ONNX Runtime does not compute on GPU {self._index}: {why_not()}; or {CPU_RUNNER}")
            return session

    def bind(self, batch: int, addresses: Mapping[str, int], cuda_stream: CudaStream) -> Callable[[], None]:
        """A function that queues one inference of `batch` images, its tensors at these device addresses.

        Computes twice before: the first allocates and chooses convolutions, the second is captured as a CUDA graph. Raises
        StreamError when ONNX Runtime refuses.
        """
        memory, index = self._provider.memory, self._index if self._provider.memory == "cuda" else 0
        binding = self._session.io_binding()
        binding.bind_input(INPUT, memory, index, np.uint8, (batch, *self._geometry.shape), addresses[INPUT])
        for name, kind in self.layer_maps.items():
            stride = STRIDES[SCALES.index(split_name(name)[1])]
            shape = (batch, 1, self._geometry.height // stride, self._geometry.width // stride)
            binding.bind_output(name, memory, index, kind, shape, addresses[name])
        self._bindings.append(binding)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(len(self._bindings)))
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the runner's events order it

        def queue() -> None:
            try:
                self._session.run_with_iobinding(binding, options)
            except Exception as error:  # as in _open
                raise self._fault(f"compute a batch of {batch} with", error) from error

        for _ in range(2):
            queue()
        return queue

    def close(self) -> None:
        """Release the session, its CUDA graphs first."""
        self._bindings.clear()
        self._session = None

    def _fault(self, what: str, error: Exception) -> StreamError | BundleError:
        reason = " ".join(str(error).split())
        if re.search(NO_MEMORY, reason, re.IGNORECASE):
            return used_up(f"{what} {self._graph}")
        said = f"ONNX Runtime could not {what} {self._graph} on {self._provider.name}: {reason[:400]}"
        return StreamError(f"{said}; start again, or {CPU_RUNNER}")


def graph_in(content: bytes) -> Message:
    """The fields of the graph of a model whose bytes are sound."""
    return fields_of(view(fields_of(memoryview(content))[7][0]))


def geometry_of(graph: Path) -> Geometry:
    """That of the bundle that the graph lies in; of a graph in none, the size of its input."""
    if (found := geometry_beside(graph)) is not None:
        return found
    inputs = messages(graph_in(read_graph_bytes(graph))[11])
    (shape, *_) = [*(declared_shape(item) for item in inputs if text(item[1]) == INPUT), None]
    height, width, _ = input_shape_of(graph, ("N", *(shape or ())[1:]))
    return Geometry(height, width)


def require_cuda(index: int = 0) -> GpuFacts:
    """The GPU of that index, with an ONNX Runtime and a driver that can compute on it; CUDA's libraries are loaded.

    Raises StreamError without a GPU or with an old driver, MissingExtraError for an ONNX Runtime without CUDA.
    """
    gpu = find_gpu(index)
    if isinstance(gpu, NoGpu):
        raise StreamError(f"{gpu.reason}: {CPU_RUNNER}")
    if CUDA.name not in onnxruntime.get_available_providers():
        version = onnxruntime.__version__
        raise MissingExtraError(f"the installed ONNX Runtime {version} computes on the processor alone: {INSTALL}")
    needs = parse_version(str(getattr(onnxruntime, "cuda_version", "") or ""))[:1]
    if needs and parse_version(gpu.cuda)[:1] < needs:
        raise StreamError(
            f"ONNX Runtime {onnxruntime.__version__} needs CUDA {needs[0]} and the driver {gpu.driver or ''} knows CUDA "
            f"{gpu.cuda}: update the driver, or {CPU_RUNNER}"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; `why_not` says what is missing
        getattr(onnxruntime, "preload_dlls", lambda: None)()
    return gpu


def why_not() -> str:
    """Which library keeps the CUDA provider from being loaded, and what to install; where none does, that the GPU may not."""
    for library in ("libonnxruntime_providers_cuda.so", "libcudnn.so.9"):
        place = Path(onnxruntime.__file__).parent / "capi" / library
        try:
            ctypes.CDLL(str(place) if place.exists() else library)
        except OSError as error:
            if "undefined symbol" not in str(error):  # which only ONNX Runtime itself gives it
                return f"{loading_fault(str(error))}; pip install 'nnet-edge[cuda]' brings CUDA and cuDNN"
    return "its CUDA libraries load, so this GPU or its driver is none that it knows"


def load_cuda_runner(graph: Path, settings: RunnerSettings, kind: type[AnyTrtRunner] = TrtRunner) -> AnyTrtRunner:  # type: ignore[assignment]
    """A runner of that kind of the graph on the GPU, by ONNX Runtime.

    Raises ConfigError for an INT8 graph, and what `require_cuda`, `open_gpu` and `CudaEngine` raise.
    """
    if (precision := precision_named(graph) or "fp32") == "int8":
        raise ConfigError(
            f"{graph} is INT8, and ONNX Runtime on CUDA computes its Q/DQ nodes in float, each as a pass over memory of its "
            "own: slower than FP16; use --precision fp16, or an engine of TensorRT (nnet-edge build-engine)"
        )
    if settings.precision == "bf16":
        raise ConfigError("bf16 is for the processor: use --precision fp16 with --runner cuda")
    fusion, geometry = fusion_of(read_facts(graph)), geometry_of(graph)
    require_cuda(settings.gpu)
    device = open_gpu(settings.kept_in, geometry.size, settings.gpu)
    with closed_on_failure(device), device.current():
        stream = device.stream()
        engine = CudaEngine(graph, stream, geometry, settings.max_batch, settings.gpu)
        with closed_on_failure(engine):
            runner = kind(graph, settings, device, engine, fusion, geometry, compute=stream)
    runner.name, runner.version, runner.precision = CUDA_RUNNER, onnxruntime.__version__, precision
    return runner
