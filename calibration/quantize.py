"""INT8 quantisation of an FP32 graph on chosen real frames: ranges by one of two tools, Q/DQ pairs by `qdq.py`.

Never on random data: noise has other ranges than photographs, and INT8 calibrated on it fails silently.

onnxruntime  computes the graph frame by frame; the ranges follow from histograms (`ranges.py`). Needs nothing more than
             a runner needs, and takes seconds. Has the methods max, entropy, percentile, and auto: the best for each tensor
modelopt     NVIDIA Model Optimizer quantizes the graph on the CPU; its activation scales are taken as the ranges. Its
             own insertion, pairs on all inputs of every addition, is not. Has max and entropy; auto is entropy
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from nnet_edge import __version__
from nnet_edge.calibration.processor_forms import Form, unmeasured
from nnet_edge.calibration.qdq import LARGEST_INT8, Plan, insert_qdq
from nnet_edge.calibration.ranges import METHODS, Activations, Probe, Progress, measure_histograms, ranges_by
from nnet_edge.calibration.whole_pictures import match_whole, measure_whole
from nnet_edge.errors import CalibrationError, ConfigError, MissingExtraError
from nnet_edge.imaging import bilinear
from nnet_edge.kept_frames import frame_hash, require_frames
from nnet_edge.settings.runner import require_choice

MODELOPT_METHODS = {"max": "max", "entropy": "entropy", "auto": "entropy"}  # ours -> its own for INT8: it has no other
TOOLS = {"onnxruntime": {name: name for name in METHODS}, "modelopt": MODELOPT_METHODS}  # -> method -> what runs
PREFIX = "nnet_edge."  # of the graph's facts
LEAST_FRAMES = 8  # below it one odd frame decides every range
THUMBNAIL = 16  # pixels a side; enough to see where parts differ


@dataclass(frozen=True)
class QuantizeSettings:
    """How ranges are measured. Raises ConfigError for a tool or method that is unknown, or a method that the tool lacks."""

    tool: str = "onnxruntime"
    method: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        require_choice("calibration tool", self.tool, tuple(TOOLS))
        require_choice("calibration method", self.method, METHODS)
        if self.method not in TOOLS[self.tool]:
            known = ", ".join(TOOLS[self.tool])
            raise ConfigError(f"{self.tool} has no calibration method {self.method!r}: choose {known}, or another tool")

    @property
    def method_that_runs(self) -> str:
        """The method by the tool's own name: modelopt's "auto" is entropy."""
        return TOOLS[self.tool][self.method]

    def origin(self) -> dict[str, str]:
        """Whose arithmetic the ranges are, and what computed the activations, with versions; for the manifest."""
        is_ours = self.tool == "onnxruntime"
        by = f"nnet-edge {__version__}" if is_ours else f"nvidia-modelopt {metadata.version('nvidia-modelopt')}"
        return {"by": by, "activations": f"onnxruntime {metadata.version('onnxruntime')}"}


def measure_activations(plan: Plan, frames: np.ndarray, settings: QuantizeSettings, report: Progress) -> Activations:
    """Range and channel means of every activation of the plan on `frames`, uint8 RGB (N, H, W, 3).

    Raises CalibrationError without frames or for a graph that cannot be computed, ConfigError for frames of another size or a
    method that the tool lacks, MissingExtraError for a tool that is not installed.
    """
    require_frames(frames, plan.model)
    if not len(frames):
        raise CalibrationError("no frame to calibrate on: ranges come from real frames alone")
    probe = Probe(plan.model, plan.tensors, settings.threads)
    histograms = measure_histograms(probe.infer, frames, len(frames), report)
    means = {name: histogram.channel_means for name, histogram in histograms.items()}
    peaks = {name: np.asarray(histogram.peaks) for name, histogram in histograms.items()}
    whole = measure_whole(plan.model, frames, settings.threads)
    if settings.tool == "modelopt":
        return Activations(modelopt_ranges(plan, frames, settings.method_that_runs), means, peaks, whole)
    return Activations(ranges_by(histograms, settings.method, plan.tensors), means, peaks, whole)


def measure_spans(plan: Plan, frames: np.ndarray, settings: QuantizeSettings, report: Progress) -> Mapping[str, float]:
    """The ranges that `to_integers` needs beside those of `measure_activations`, of the same frames."""
    tensors = unmeasured(plan)
    probe = Probe(plan.model, tensors, settings.threads)
    return ranges_by(measure_histograms(probe.infer, frames, len(frames), report), settings.method, tensors)


def quantize(
    plan: Plan,
    activations: Activations,
    kept: Collection[str] = (),
    form: Form = lambda graph: None,
) -> onnx.ModelProto:
    """The plan's graph in INT8 but for the blocks and layers in `kept`; its facts say so.

    `form` brings it into that of a processor (`processor_forms.py`); without one it is as TensorRT takes it. Raises
    CalibrationError for blocks and layers that the graph lacks.
    """
    unknown = sorted(set(kept) - set(plan.blocks) - set(plan.layers))
    if unknown:
        raise CalibrationError(f"the graph has no block or layer {unknown[0]!r}: blocks are {', '.join(plan.blocks)}")
    model = insert_qdq(plan, activations, kept)
    form(model.graph)
    if activations.whole is not None:
        match_whole(model, activations.whole)
    state_facts(model, precision="int8", kept_in_fp32=" ".join(kept))
    return model


def state_facts(model: onnx.ModelProto, **facts: str) -> None:
    """Put facts into the graph's metadata, over those of the same name."""
    known = {item.key: item.value for item in model.metadata_props}
    known |= {f"{PREFIX}{name}": value for name, value in facts.items()}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(known.items())))


def read_graph(content: bytes, name: str) -> onnx.ModelProto:
    """The graph of an .onnx file's `content`. Raises CalibrationError when it is none of nnet-edge."""
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own errors
        raise CalibrationError(f"{name} is no ONNX graph: export it again") from error
    if not any(item.key == f"{PREFIX}system" for item in model.metadata_props):
        raise CalibrationError(f"{name} has no facts of nnet-edge in it: give a graph that export wrote")
    return model


def modelopt_ranges(plan: Plan, frames: np.ndarray, method: str) -> dict[str, float]:
    """Activation -> the value that becomes 127, as Model Optimizer finds it on `frames`, uint8 RGB (N, H, W, 3).

    `method` is "max" or "entropy". Raises MissingExtraError where it is not installed, CalibrationError when it fails or
    leaves an activation of the plan without a scale.
    """
    if find_spec("modelopt") is None:
        raise MissingExtraError("nvidia-modelopt is not installed: pip install 'nnet-edge[modelopt]'")
    quantized = run_modelopt(plan, frames, method)
    values = {item.name: item for item in quantized.graph.initializer}
    scales = {
        node.input[0]: float(numpy_helper.to_array(values[node.input[1]]))
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in plan.tensors
    }
    missing = [name for name in plan.tensors if name not in scales]
    if missing:
        left = f"{len(missing)} of {len(plan.tensors)} activations without a scale, {missing[0]} for one"
        raise CalibrationError(f"Model Optimizer left {left}: use --tool onnxruntime")
    return {name: scale * LARGEST_INT8 for name, scale in scales.items()}


def run_modelopt(plan: Plan, frames: np.ndarray, method: str) -> onnx.ModelProto:
    """The plan's convolutions and additions as Model Optimizer quantizes them; it works on a copy, as it alters its input."""
    from modelopt.onnx.quantization import quantize

    others = [node.name for node in plan.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    chosen = {node.name for node in plan.convolutions}
    with tempfile.TemporaryDirectory(prefix="nnet-edge-modelopt-") as folder, quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(plan.model, source)
        try:
            quantize(
                str(source), quantize_mode="int8", calibration_data={"images": frames}, calibration_method=method,
                calibration_eps=["cpu"], op_types_to_quantize=["Conv", "ConvTranspose", "Add"],
                nodes_to_exclude=[name for name in others if name not in chosen], high_precision_dtype="fp32",
                output_path=str(target), log_level="ERROR",
            )  # fmt: skip
            return onnx.load(target)
        except Exception as error:  # it raises whatever its many libraries raise
            words = " ".join(str(error).split())[:300]
            raise CalibrationError(f"Model Optimizer cannot quantize it: {words}; use --tool onnxruntime") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep its progress bars, log lines and deprecation warnings off the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def choose_frames(images: np.ndarray, count: int = 64, seed: int = 0, besides: tuple[str, ...] = ()) -> np.ndarray:
    """At most `count` frames of `images`, uint8 RGB (N, H, W, 3), as unlike each other as `images` allow.

    The first is drawn by `seed`, each further one is the farthest from those before it (as thumbnails). `besides` are
    hashes of frames that must not be taken, the held-out ones; equal frames are taken once. Raises CalibrationError when
    fewer than 8 are left, ConfigError for images of another size or an invalid count.
    """
    require_frames(images)
    if count < LEAST_FRAMES:
        raise ConfigError(f"{count} calibration frames are too few: ask for {LEAST_FRAMES} or more (64 is usual)")
    hashes = [frame_hash(image) for image in images]
    first_seen = {name: row for row, name in reversed(list(enumerate(hashes)))}
    free = sorted(row for name, row in first_seen.items() if name not in set(besides))
    if len(free) < LEAST_FRAMES:
        raise CalibrationError(
            f"{len(free)} of {len(images)} good images can be calibrated on (the held-out ones and repetitions cannot): "
            f"at least {LEAST_FRAMES} are needed; add good images, INT8 without real frames would be a guess"
        )
    return images[[free[row] for row in spread(images[free], min(count, len(free)), seed)]]


def spread(images: np.ndarray, count: int, seed: int) -> list[int]:
    """Rows of `count` images, in the order of their choice: one by `seed`, then always the farthest from the chosen."""
    thumbnails = np.stack([bilinear(image, THUMBNAIL, THUMBNAIL).ravel() for image in images]).astype(np.float32)
    chosen = [int(np.random.default_rng(seed).integers(len(images)))]
    distance = np.full(len(images), np.inf, np.float32)
    while len(chosen) < count:
        distance = np.minimum(distance, ((thumbnails - thumbnails[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen[-1]] = -1  # taken
        chosen.append(int(distance.argmax()))
    return chosen
