"""FP16 graphs: weights and activations are cast in the graph, the FP32 region, inputs and outputs stay as they are.

A strongly typed TensorRT network takes its types from the graph, so this is all that FP16 needs. Casts stand only where a
tensor leaves or enters the region. Real frames decide what else must stay FP32: a node whose values come near the largest
half float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nnet_edge.calibration.fp32_region import Wiring, fp32_region_of, head_of
from nnet_edge.calibration.qdq import replace_nodes
from nnet_edge.calibration.quantize import state_facts
from nnet_edge.calibration.ranges import Probe, Progress
from nnet_edge.errors import CalibrationError
from nnet_edge.kept_frames import require_frames

LARGEST_HALF = 65504.0
HEADROOM = 4.0  # real parts may be brighter than the frames at hand
HALF_OPSET = 19  # from here on QuantizeLinear and DequantizeLinear take half scales


def to_half(
    model: onnx.ModelProto, frames: np.ndarray, report: Progress = lambda done, total: None, threads: int | None = None
) -> onnx.ModelProto:
    """`model`, an FP32 or INT8 graph of nnet-edge, with everything outside the FP32 region in FP16.

    `frames`, uint8 RGB (N, H, W, 3), are computed in FP32 to find values that half floats cannot hold; those nodes stay
    FP32. Raises CalibrationError without frames or for a graph that cannot be computed.
    """
    require_frames(frames, model)
    if not len(frames):
        raise CalibrationError("no frame to look at: what overflows in FP16 shows on real frames alone")
    wiring = Wiring(model.graph)
    head = head_of(wiring)
    kept = head | fp32_region_of(wiring, head)
    candidates = [name for node in model.graph.node if node.name not in kept for name in float_outputs(node)]
    largest = largest_values(model, candidates, frames, report, threads)
    too_large = {name for name, value in largest.items() if value * HEADROOM > LARGEST_HALF}
    kept |= {wiring.producer[name].name for name in too_large}
    half = cast_graph(model, kept)
    if not any(item.key == "nnet_edge.precision" and item.value != "fp32" for item in model.metadata_props):
        state_facts(half, precision="fp16")
    return half


def largest_values(
    model: onnx.ModelProto, tensors: Collection[str], frames: np.ndarray, report: Progress, threads: int | None
) -> dict[str, float]:
    """Tensor -> largest absolute value over all frames; infinite where a value is NaN or infinite."""
    probe = Probe(model, list(tensors), threads)
    largest = dict.fromkeys(probe.tensors, 0.0)
    for done, frame in enumerate(frames, start=1):
        for name, values in probe.infer(frame[None]).items():
            value = float(np.abs(values).max())
            largest[name] = max(largest[name], value if np.isfinite(value) else np.inf)
        report(done, len(frames))
    return largest


def float_outputs(node: onnx.NodeProto) -> list[str]:
    """The outputs of `node` that are floats: all but those of QuantizeLinear."""
    return [] if node.op_type == "QuantizeLinear" else [name for name in node.output if name]


def cast_graph(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """`model` with every node in FP16 but those in `kept`, and casts where tensors pass between the two."""
    copy = deepcopy(model)
    _Caster(copy, kept).cast()
    del copy.graph.value_info[:]  # they state the old types; every reader infers them
    if any(node.op_type == "QuantizeLinear" for node in copy.graph.node):
        for opset in copy.opset_import:
            opset.version = max(opset.version, HALF_OPSET) if opset.domain == "" else opset.version
    return copy


class _Caster:
    """Walks the nodes once, in order: each learns in which type its inputs come and makes its own."""

    def __init__(self, model: onnx.ModelProto, kept: Collection[str]) -> None:
        self.graph, self.kept = model.graph, set(kept)
        self.constants: Mapping[str, onnx.TensorProto] = {item.name: item for item in self.graph.initializer}
        self.types: dict[str, int] = {}  # float tensor -> its type after the cast
        self.casts: dict[tuple[str, int], str] = {}  # (tensor, type) -> the tensor cast to it
        self.halves: dict[str, str] = {}  # constant -> its half
        self.nodes: list[onnx.NodeProto] = []

    def cast(self) -> None:
        for node in list(self.graph.node):
            is_kept = node.name in self.kept
            wanted = TensorProto.FLOAT if is_kept else TensorProto.FLOAT16
            for place, name in enumerate(node.input):
                if name in self.constants:
                    node.input[place] = name if is_kept else self.half(name)
                elif name in self.types and self.types[name] != wanted:
                    node.input[place] = self.converted(name, wanted)
            self.nodes.append(node)
            self.types.update(dict.fromkeys(float_outputs(node), wanted))
        self.restore_outputs()
        replace_nodes(self.graph, self.nodes)

    def half(self, name: str) -> str:
        """The constant as a half; constants that are no floats stay as they are. Values beyond half's range are cut off."""
        constant = self.constants[name]
        if constant.data_type != TensorProto.FLOAT:
            return name
        if name not in self.halves:
            values = np.clip(numpy_helper.to_array(constant), -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
            self.halves[name] = f"{name}_half"
            self.graph.initializer.append(numpy_helper.from_array(values, self.halves[name]))
        return self.halves[name]

    def converted(self, name: str, wanted: int) -> str:
        """The tensor in the type that is wanted, cast once for all its readers."""
        if (name, wanted) not in self.casts:
            word = "half" if wanted == TensorProto.FLOAT16 else "float"
            self.casts[name, wanted] = f"{name}_as_{word}"
            self.nodes.append(helper.make_node("Cast", [name], [f"{name}_as_{word}"], f"cast_{name}_{word}", to=wanted))
        return self.casts[name, wanted]

    def restore_outputs(self) -> None:
        """Outputs of the graph that became half are cast back under their own name."""
        for output in self.graph.output:
            if self.types.get(output.name) != TensorProto.FLOAT16:
                continue
            inner = f"{output.name}_inner"
            for node in self.nodes:
                node.input[:] = [inner if name == output.name else name for name in node.input]
                node.output[:] = [inner if name == output.name else name for name in node.output]
            ends = [inner], [output.name]
            self.nodes.append(helper.make_node("Cast", *ends, f"cast_{output.name}", to=TensorProto.FLOAT))
