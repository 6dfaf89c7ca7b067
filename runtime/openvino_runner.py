"""N-Net on OpenVINO, the default on a processor; the only file that imports openvino.

OpenVINO computes in BF16 by itself on processors that have it, so the precision is set every time and read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.config import RunnerSettings
from nnet_edge.errors import BundleError, ConfigError, MissingExtraError, StreamError
from nnet_edge.runtime.graph_runner import INPUT, GraphRunner, require_contract, shares

try:
    import openvino
except ImportError as error:
    raise MissingExtraError("openvino is not installed: pip install 'nnet-edge[cpu]'") from error

DEVICE = "CPU"
PRECISION_NAMES = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's words
NUMBER_TYPES = {"u8": "uint8", "f32": "float32"}


class OpenvinoRunner(GraphRunner):
    """A graph compiled by OpenVINO for the processor; the batch may change from call to call."""

    name = "openvino"

    def __init__(self, graph: Path, settings: RunnerSettings) -> None:
        super().__init__(graph, settings)
        self.version = openvino.__version__.split("-")[0]
        core = openvino.Core()
        require_precision(core, settings.precision)
        model = read_graph(core, graph)
        compiled = compile_graph(core, model, graph, settings)
        self._requests = [compiled.create_infer_request() for _ in range(requests_for(compiled, settings))]

    def _compute(self, images: np.ndarray, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
        parts = shares(images, len(self._requests))
        used = self._requests[: len(parts)]
        try:
            if len(parts) == 1:
                used[0].infer({INPUT: images}, share_inputs=True, share_outputs=True)
            else:
                for request, part in zip(used, parts, strict=True):
                    request.start_async({INPUT: part}, share_inputs=True)
                for request in used:
                    request.wait()
            return {name: np.concatenate([request.get_tensor(name).data for request in used]) for name in wanted}
        except RuntimeError as error:
            raise StreamError(f"OpenVINO could not compute {len(images)} images: {reason(error)}") from error

    def _release(self) -> None:
        self._requests = []


def require_precision(core: openvino.Core, precision: str) -> None:
    """Nothing, when this processor computes in `precision`. Raises ConfigError otherwise."""
    if precision == "bf16" and "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("this processor has no BF16 arithmetic: choose the precision fp32")


def read_graph(core: openvino.Core, graph: Path) -> openvino.Model:
    """The graph as OpenVINO reads it. Raises BundleError when it cannot, or when the contract's names are missing."""
    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot read {graph}: {reason(error)}; write it again with `export`") from error
    require_contract(graph, port_types(model.inputs), port_types(model.outputs))
    return model


def compile_graph(
    core: openvino.Core, model: openvino.Model, graph: Path, settings: RunnerSettings
) -> openvino.CompiledModel:
    """The graph compiled as `settings` say. Raises ConfigError for an unusable cache folder or another precision."""
    precision = PRECISION_NAMES[settings.precision]
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": settings.hint.upper()}
    if settings.threads is not None:
        options["INFERENCE_NUM_THREADS"] = settings.threads
    if settings.cache_dir is not None:
        options["CACHE_DIR"] = str(writable_folder(settings.cache_dir))
    try:
        compiled = core.compile_model(model, DEVICE, options)
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot compile {graph}: {reason(error)}") from error
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if chosen != precision:
        raise ConfigError(f"OpenVINO computes in {chosen} on this processor, not in the {precision} that was asked for")
    return compiled


def requests_for(compiled: openvino.CompiledModel, settings: RunnerSettings) -> int:
    """How many parts of a batch are computed at the same time: one for latency, one a stream for throughput."""
    if settings.hint == "latency":
        return 1
    return min(settings.max_batch, compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def port_types(ports: Sequence[Any]) -> dict[str, str]:
    """The name of each input or output -> its number type, "uint8" or "float32", others by OpenVINO's own word."""
    types = {}
    for port in ports:
        number_type = port.element_type.get_type_name()
        types.update(dict.fromkeys(port.names, NUMBER_TYPES.get(number_type, number_type)))
    return types


def writable_folder(folder: Path) -> Path:
    """`folder`, made if it was absent. Raises ConfigError when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".nnet-edge-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"the cache folder {folder} cannot be written ({error.strerror}): give another") from error
    return folder


def reason(error: Exception) -> str:
    """The last line that says something: OpenVINO puts its source files first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
