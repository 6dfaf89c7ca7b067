"""Runner protocols, the choice of a runner for a file, and inference of many images in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np

from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.frame import Frame, FrameOutputs, Outputs
from nnet_edge.settings.runner import RunnerSettings


class Runner(Protocol):
    """A loaded graph or engine. A context manager; entering one twice is allowed, the last exit releases it."""

    name: str  # of the library that computes
    precision: str  # "fp32" or "bf16", what it really computes in
    max_batch: int  # images in one infer
    input_shape: tuple[int, int, int]  # (height, width, channels) of one image

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """Maps and scores of `images`, uint8 RGB (N, height, width, 3); the caller may keep the arrays."""

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        """Begin to infer; call the returned function once, to wait for the outputs.

        A second batch may be started before the first is waited for, and more until there are more images than the runner
        computes `at_once`; the images must not change until then.
        """

    def __enter__(self) -> Runner: ...

    def __exit__(self, *error: object) -> None: ...


def device_of(runner: Runner) -> str:
    """What it computes on: "the processor", or a GPU's name."""
    return str(getattr(runner, "device", "the processor"))


def at_once(runner: Runner) -> int:
    """How many images it computes at once, each on cores of its own."""
    return int(getattr(runner, "at_once", 1))


def words_of(runner: Runner) -> str:
    """The runner, its precision and its GPU, for the first line of a command: "onnxruntime-cuda (fp16, NVIDIA L4)"."""
    device = device_of(runner)
    return f"{runner.name} ({runner.precision}{'' if device == 'the processor' else f', {device}'})"


@runtime_checkable
class FrameRunner(Protocol):
    """A Runner that also resizes frames itself and keeps their maps until they are asked for."""

    def start_frames(self, frames: Sequence[Frame]) -> Callable[[], FrameOutputs]:
        """Begin to judge frames of any size; call the returned function to wait for the scores."""


def is_frame_runner(runner: Runner) -> TypeGuard[FrameRunner]:
    """Whether it resizes frames itself; `isinstance` looks a protocol up anew each time, which takes 20 us."""
    return hasattr(runner, "start_frames")


def load_runner(graph: Path, settings: RunnerSettings | None = None) -> Runner:
    """A runner for `graph`, ready to infer: OpenVINO or ONNX Runtime for .onnx (on the GPU with the kind "cuda"), TensorRT for
    .engine.

    Raises ConfigError for an invalid file or setting, MissingExtraError when the library is absent, BundleError for a file
    that is no graph of nnet-edge or an engine that does not fit this machine, StreamError without the GPU of an engine.
    """
    settings = settings or RunnerSettings()
    if graph.suffix == ".engine":
        return load_engine(graph, settings)
    if graph.suffix != ".onnx":
        raise ConfigError(f"{graph} is neither graph nor engine: a runner takes .onnx or .engine files of a bundle")
    if settings.kind == "tensorrt":
        command = f"nnet-edge build-engine {graph.parent}"
        raise ConfigError(f"{graph} is a graph and TensorRT runs engines: build one with {command}")
    if settings.kind == "cuda":
        from nnet_edge.runtime.runners.trt.cuda_engine import load_cuda_runner

        return load_cuda_runner(graph, settings)
    return runner_class(installed_kind() if settings.kind == "auto" else settings.kind)(graph, settings)


def runner_class(kind: str) -> Callable[[Path, RunnerSettings], Runner]:
    """What runs graphs on the processor. Raises MissingExtraError for a library that is absent or cannot be loaded."""
    if kind == "openvino":
        from nnet_edge.runtime.runners.openvino_runner import OpenvinoRunner

        return OpenvinoRunner
    from nnet_edge.runtime.runners.onnx_runner import OnnxRunner

    return OnnxRunner


def load_engine(engine: Path, settings: RunnerSettings) -> Runner:
    """A TensorRT runner. Raises ConfigError for settings of another runner, and what `TrtRunner.load` raises."""
    if settings.kind not in ("auto", "tensorrt"):
        raise ConfigError(f"{engine} is an engine of TensorRT, which {settings.kind} cannot run: give a .onnx graph")
    if settings.precision == "bf16":
        raise ConfigError(f"{engine} computes in the precision that it was built with: leave bf16 out")
    from nnet_edge.runtime.runners.trt.trt_runner import TrtRunner

    return TrtRunner.load(engine, settings)


def installed_kind() -> str:
    """The runner that "auto" means here. Raises MissingExtraError when neither library is installed."""
    for kind in ("openvino", "onnxruntime"):
        if find_spec(kind) is not None:
            return kind
    raise MissingExtraError("neither openvino nor onnxruntime is installed: pip install 'nnet-edge[cpu]'")


def infer_all(runner: Runner, images: np.ndarray, layer_maps: bool = True) -> Outputs:
    """The outputs for all images, uint8 RGB (N, height, width, 3), N at least 1; the layer maps unless told otherwise."""
    starts = range(0, len(images), runner.max_batch)
    parts = [runner.infer(images[start : start + runner.max_batch], layer_maps) for start in starts]
    return Outputs(
        np.concatenate([part.anomaly_map for part in parts]),
        np.concatenate([part.image_score for part in parts]),
        {name: np.concatenate([part.layer_maps[name] for part in parts]) for name in parts[0].layer_maps},
    )
