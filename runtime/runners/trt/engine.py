"""A loaded engine of TensorRT or TensorRT-RTX: its tensors, and an execution context for each slot and batch size.

All contexts share their device memory: they queue into one stream, so no two run at the same time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.bundle import altered
from nnet_edge.errors import BundleError, StreamError
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.runtime.runners.graph import INPUT
from nnet_edge.runtime.runners.trt.device import CPU_RUNNER, CudaStream, Device, used_up
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary, collecting_log, plain
from nnet_edge.runtime.runners.trt.record import EngineRecord

NO_MEMORY = r"out ?of ?memory|memory .*could not be allocated"  # how TensorRT says it, and CUDA's errors in its words


class TrtEngine:
    """A deserialised engine; `close` it before its device.

    `layer_maps` maps the names of its outputs to their number types; batches from `smallest` to `largest` fit.
    """

    def __init__(
        self, path: Path, record: EngineRecord, library: TensorrtLibrary, device: Device, geometry: Geometry = DEFAULT
    ) -> None:
        """Load `path`, which was checked against `record` before.

        Raises BundleError for an engine that does not load or is not of nnet-edge, StreamError without enough GPU memory.
        """
        self._library, self._path, self._shape = library, path, geometry.shape
        self._log = collecting_log(library)
        self._contexts: list[Any] = []
        self._cache: Any = None  # of TensorRT-RTX: kernels that it compiled for this GPU, shared by the contexts
        self._runtime: Any = library.trt.Runtime(self._log)
        self._engine: Any = None
        try:
            self._load(record, device)
        except BaseException:
            self.close()
            raise

    def _load(self, record: EngineRecord, device: Device) -> None:
        trt: Any = self._library.trt
        runtime, path = self._runtime, self._path
        if record.version_compatible:  # it brings code of its builder's version along; its record vouches for it
            runtime.engine_host_code_allowed = True
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != record.sha256:  # of these very bytes, whatever was checked before
            raise altered(path)
        engine = self._engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            reason, command = self._reason(f"load {path}"), f"nnet-edge build-engine {path.parent}"
            raise BundleError(f"{self._library.title} cannot load {path}: {reason}; build it again here with {command}")
        self._check(record)
        shapes = engine.get_tensor_profile_shape(INPUT, 0)
        self.smallest, self.largest = int(shapes[0][0]), int(shapes[2][0])
        self.layer_maps: Mapping[str, np.dtype] = {
            name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in record.layer_maps
        }
        self._memory = device.allocate(max(int(engine.device_memory_size_v2), 1))

    @property
    def can_capture(self) -> bool:
        """Whether the runner should capture; TensorRT-RTX captures by itself, as `_make_context` tells it."""
        return not self._library.is_rtx

    def bind(self, batch: int, addresses: Mapping[str, int], cuda_stream: CudaStream) -> Callable[[], None]:
        """A function that queues one inference of `batch` images, its tensors at these device addresses.

        Raises StreamError, with what TensorRT logged, when TensorRT refuses.
        """
        context = self._make_context()
        self._require(context is not None, "make an execution context")
        self._require(context.set_optimization_profile_async(0, cuda_stream.handle), "choose the profile")
        context.set_device_memory(self._memory.address, self._memory.size)
        self._require(context.set_input_shape(INPUT, (batch, *self._shape)), f"take a batch of {batch}")
        for name in (INPUT, *self.layer_maps):
            self._require(context.set_tensor_address(name, addresses[name]), f"use the memory of {name}")
        missing = context.infer_shapes()
        self._require(not missing, f"infer shapes ({', '.join(missing)})")
        self._contexts.append(context)

        def queue() -> None:
            self._require(context.execute_async_v3(cuda_stream.handle), f"compute a batch of {batch}")

        return queue

    def close(self) -> None:
        """Release TensorRT's objects, contexts first; the device frees its memory itself."""
        self._contexts.clear()
        self._cache = self._engine = self._runtime = None

    def _make_context(self) -> Any:
        """An execution context that allocates nothing itself."""
        trt: Any = self._library.trt
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._library.is_rtx:
            return self._engine.create_execution_context(managed)
        runtime_config = self._engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(managed)
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # kernels for the very shape, compiled before the first inference: a verdict never waits for a compiler later
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
        if self._cache is None:
            self._cache = runtime_config.create_runtime_cache()
        runtime_config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(runtime_config)

    def _check(self, record: EngineRecord) -> None:
        """Raise BundleError unless the engine's tensors are those that its record names."""
        trt: Any = self._library.trt
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        floats = (trt.DataType.FLOAT, trt.DataType.HALF)
        is_ours = (
            inputs == [INPUT]
            and engine.get_tensor_dtype(INPUT) == trt.DataType.UINT8
            and tuple(engine.get_tensor_shape(INPUT))[1:] == self._shape
            and sorted(outputs) == sorted(record.layer_maps)
            and all(engine.get_tensor_dtype(name) in floats for name in outputs)
        )
        if not is_ours:
            raise BundleError(
                f"{self._path} is no engine of nnet-edge: it takes {', '.join(inputs)} and gives {', '.join(outputs)}, its "
                f"manifest says {INPUT} and {', '.join(record.layer_maps)}; build it again with nnet-edge build-engine "
                f"{self._path.parent}"
            )

    def _require(self, worked: Any, what: str) -> None:
        if not worked:
            reason, title = self._reason(f"{what} with {self._path}"), self._library.title
            raise StreamError(f"{title} could not {what} with {self._path}: {reason}; start again, or {CPU_RUNNER}")

    def _reason(self, what: str) -> str:
        """Take TensorRT's last error from the log. Raises StreamError when one of them is about memory."""
        problems = [plain(problem) for problem in self._log.problems]
        self._log.problems.clear()
        if any(re.search(NO_MEMORY, problem, re.IGNORECASE) for problem in problems):
            raise used_up(what)
        return problems[-1] if problems else "it gave no reason"
