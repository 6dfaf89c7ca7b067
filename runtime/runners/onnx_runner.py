"""ONNX Runtime runner; the only file that imports onnxruntime at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.errors import BundleError, ConfigError, StreamError, missing_library
from nnet_edge.machine import usable_cores
from nnet_edge.runtime.runners.graph import (
    DEPLOYED,
    INPUT,
    Contract,
    GraphRunner,
    input_shape_of,
    layer_maps_of,
    read_graph_bytes,
    require_contract,
)
from nnet_edge.settings.runner import RunnerSettings

try:
    import onnxruntime
except ImportError as error:
    raise missing_library("onnxruntime", "cpu", error) from error

ERRORS_ONLY = 3  # ONNX Runtime's severity: below it, it warns about every unused initializer
NUMBER_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRunner(GraphRunner):
    """A graph in a session of ONNX Runtime on the processor, FP32; the batch may change from call to call.

    For the hint "throughput" single-threaded workers share the batch. ONNX Runtime compiles nothing that a cache folder
    could keep.
    """

    name = "onnxruntime"

    def __init__(self, graph: Path, settings: RunnerSettings, contract: Contract = DEPLOYED) -> None:
        super().__init__(graph, settings, contract)
        self.version = onnxruntime.__version__
        if (precision := settings.precision) != "fp32":
            raise ConfigError(f"ONNX Runtime computes this graph in fp32 only, not in {precision}: use openvino")
        if settings.kept_in is not None:
            raise ConfigError("ONNX Runtime keeps no compiled graphs: leave the cache folder out or use openvino")
        threads = settings.threads or usable_cores()
        alone = settings.hint == "throughput"
        self._session = open_session(graph, 1 if alone else threads, contract)
        self.input_shape = input_shape_of(graph, self._session.get_inputs()[0].shape)
        self.layer_maps = layer_maps_of(port.name for port in self._session.get_outputs())
        self._worker_count = min(threads, settings.max_batch) if alone else 1
        self._workers = ThreadPoolExecutor(self._worker_count, thread_name_prefix="onnxruntime")

    def _start(self, images: np.ndarray, wanted: Sequence[str]) -> Callable[[], Mapping[str, np.ndarray]]:
        def compute(part: np.ndarray) -> list[np.ndarray]:
            return self._session.run(list(wanted), {INPUT: part})

        shares = np.array_split(images, min(self._worker_count, len(images)))
        parts = [self._workers.submit(compute, part) for part in shares]

        def collect() -> Mapping[str, np.ndarray]:
            try:
                done = [part.result() for part in parts]
            except Exception as error:  # ONNX Runtime's errors have no common base below Exception
                raise StreamError(f"ONNX Runtime could not compute {len(images)} images: {error}") from error
            if len(done) == 1:
                return dict(zip(wanted, done[0], strict=True))
            return {name: np.concatenate(arrays) for name, arrays in zip(wanted, zip(*done, strict=True), strict=True)}

        return collect

    def _release(self) -> None:
        self._workers.shutdown()
        del self._session


def open_session(graph: Path, threads: int, contract: Contract) -> onnxruntime.InferenceSession:
    """A session on the processor. Raises BundleError when the graph cannot be read or lacks the contract's names."""
    content = read_graph_bytes(graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as in collect
        reason = " ".join(str(error).split())
        raise BundleError(f"ONNX Runtime cannot read {graph}: {reason}; write it again with `export`") from error
    require_contract(graph, port_types(session.get_inputs()), port_types(session.get_outputs()), contract)
    return session


def port_types(ports: Sequence[Any]) -> dict[str, str]:
    """The name of each input or output -> its number type, "uint8" or "float32", others by ONNX Runtime's own word."""
    return {port.name: NUMBER_TYPES.get(port.type, port.type) for port in ports}
