"""INT8 quantisation of an FP32 graph on real frames: ranges by one of two tools, Q/DQ pairs by `qdq.py`.

onnxruntime  computes the graph frame by frame; the ranges follow from histograms (`ranges.py`). Needs nothing more than
             a runner needs, and takes seconds. Has the methods max, entropy, percentile, and auto: the best for each tensor
modelopt     NVIDIA Model Optimizer quantizes the graph on the CPU; its activation scales are taken as the ranges. Its
             own insertion, pairs on all inputs of every addition, is not. Has max and entropy; auto is entropy
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import onnx

from nnet_edge import __version__
from nnet_edge.calibration.modelopt_ranges import METHODS as MODELOPT_METHODS
from nnet_edge.calibration.modelopt_ranges import modelopt_ranges
from nnet_edge.calibration.probe import Probe
from nnet_edge.calibration.qdq import Plan, insert_qdq
from nnet_edge.calibration.ranges import METHODS, Activations, Progress, measure_histograms, ranges_by
from nnet_edge.errors import CalibrationError, ConfigError
from nnet_edge.kept_frames import require_frames
from nnet_edge.settings.runner import require_choice

TOOLS = {"onnxruntime": {name: name for name in METHODS}, "modelopt": MODELOPT_METHODS}  # -> method -> what runs
PREFIX = "nnet_edge."  # of the graph's facts


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
    """Range and channel means of every activation of the plan on `frames`, uint8 RGB (N, 256, 256, 3).

    Raises CalibrationError without frames or for a graph that cannot be computed, ConfigError for frames of another size or a
    method that the tool lacks, MissingExtraError for a tool that is not installed.
    """
    require_frames(frames)
    if not len(frames):
        raise CalibrationError("no frame to calibrate on: ranges come from real frames alone")
    probe = Probe(plan.model, plan.tensors, settings.threads)
    histograms = measure_histograms(probe.infer, frames, len(frames), report)
    means = {name: histogram.channel_means for name, histogram in histograms.items()}
    peaks = {name: np.asarray(histogram.peaks) for name, histogram in histograms.items()}
    if settings.tool == "modelopt":
        return Activations(modelopt_ranges(plan, frames, settings.method_that_runs), means, peaks)
    return Activations(ranges_by(histograms, settings.method, plan.tensors), means, peaks)


def quantize(plan: Plan, activations: Activations, kept: Collection[str] = ()) -> onnx.ModelProto:
    """The plan's graph in INT8 but for the blocks and layers in `kept`; its facts say so.

    Raises CalibrationError for blocks and layers that the graph lacks.
    """
    unknown = sorted(set(kept) - set(plan.blocks) - set(plan.layers))
    if unknown:
        raise CalibrationError(f"the graph has no block or layer {unknown[0]!r}: blocks are {', '.join(plan.blocks)}")
    model = insert_qdq(plan, activations, kept)
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
