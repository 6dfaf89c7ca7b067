"""What computes maps and scores: one protocol, and one function that picks who obeys it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from nnet_edge.config import RunnerSettings
from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.frame import Outputs


class Runner(Protocol):
    """A loaded graph or engine. A context manager; entering one twice is allowed, the last exit releases it."""

    name: str  # of the library that computes
    precision: str  # "fp32" or "bf16", what is really computed in
    max_batch: int  # images in one infer
    input_shape: tuple[int, int, int]  # (256, 256, 3)

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """Maps and scores of `images`, uint8 RGB (N, 256, 256, 3); the caller may keep the arrays."""
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def load_runner(graph: Path, settings: RunnerSettings | None = None) -> Runner:
    """A runner for `graph`, ready to infer: OpenVINO or ONNX Runtime for .onnx.

    Raises ConfigError for a file or a setting that cannot be meant, MissingExtraError when the library is absent,
    BundleError for a file that is no graph of nnet-edge.
    """
    settings = settings or RunnerSettings()
    if graph.suffix == ".engine":
        raise ConfigError(f"{graph} is a TensorRT engine and engines come with `build-engine`: give the .onnx graph")
    if graph.suffix != ".onnx":
        raise ConfigError(f"{graph} is no graph: a runner takes a .onnx file that `export` wrote")
    kind = installed_kind() if settings.kind == "auto" else settings.kind
    if kind == "openvino":
        from nnet_edge.runtime.openvino_runner import OpenvinoRunner

        return OpenvinoRunner(graph, settings)
    from nnet_edge.runtime.onnx_runner import OnnxRunner

    return OnnxRunner(graph, settings)


def installed_kind() -> str:
    """The runner that "auto" means here. Raises MissingExtraError when neither library is installed."""
    for kind in ("openvino", "onnxruntime"):
        if find_spec(kind) is not None:
            return kind
    raise MissingExtraError("neither openvino nor onnxruntime is installed: pip install 'nnet-edge[cpu]'")
