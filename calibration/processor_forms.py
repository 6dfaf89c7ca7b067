"""Forms of an INT8 graph for processors: unsigned behind ReLUs for OpenVINO, all in integers for ONNX Runtime.

`qdq.py` writes what TensorRT takes: signed, zero points 0. A processor rounds to unsigned bytes as well, and so what a ReLU
gives has 256 steps instead of 128, and the ReLU is left to the rounding. OpenVINO's graph is that and nothing else: seen, half
to three quarters of the signed graph's map error in 0.92 of its time (benchmarks/notes.md).

ONNX Runtime makes an integer convolution only of one whose result is rounded wherever it goes. Where what convolutions read is
rounded, and everyone else gets the float, most of them are computed in floats, slower than FP32. In its form:

    results      of INT8 convolutions are rounded, also the branch that a residual add takes, and the sum; whoever reads them
                 reads rounded values, the cosines too
    activations  are unsigned with zero point 128, or 0 behind a ReLU: the kernels want one type for what they read and give

Weights, biases, layers in FP32 and the FP32 region stay as they are. Seen with ONNX Runtime 1.32: 0.52 to 0.57 of FP32's time,
where the signed graph takes 1.3, and a map error of 0.77 to 0.96 of that one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnet_edge.calibration.folding import RELUS, STEPS, clip_bounds
from nnet_edge.calibration.fp32_region import Wiring
from nnet_edge.calibration.qdq import LARGEST_INT8, SMALLEST_SCALE, Plan, replace_nodes

Form = Callable[[onnx.GraphProto], object]  # brings the graph of an INT8 model into the form that a runner takes
MIDDLE = 128  # of unsigned INT8
SLACK = 1e-6  # share by which a range may pass a ReLU6's end: single precision
FLOATS_ONLY = "ConvTranspose"  # has no integer kernel there
ROUNDS = ("QuantizeLinear", "DequantizeLinear")


def unmeasured(plan: Plan) -> tuple[str, ...]:
    """The results of convolutions and residual adds, behind their ReLUs, that the signed graph needs no range of."""
    wiring = Wiring(plan.model.graph)
    adds = (node for node in plan.model.graph.node if node.name in plan.skips)
    results = dict.fromkeys(
        result_of(wiring, node) for node in (*plan.convolutions, *adds) if node.op_type != FLOATS_ONLY
    )
    return tuple(name for name in results if name not in plan.tensors)


def result_of(wiring: Wiring, node: onnx.NodeProto) -> str:
    """The tensor that a node gives, behind the ReLU that alone reads it."""
    (given,) = node.output
    users = wiring.consumers[given]
    is_clipped = len(users) == 1 and users[0].op_type in RELUS and given not in wiring.outputs
    return users[0].output[0] if is_clipped else given


@dataclass(frozen=True)
class _Rounding:
    """How a tensor is rounded."""

    source: str  # what is rounded: the tensor, or what its ReLU reads
    step: float
    zero: int
    everywhere: bool  # for everyone who reads it, or for the convolutions alone
    relu: str | None = None  # name of the ReLU that goes


def to_integers(graph: onnx.GraphProto, spans: Mapping[str, float]) -> None:
    """Bring the graph of an INT8 model into ONNX Runtime's form; `spans`: the largest value of each `unmeasured` tensor."""
    wiring = Wiring(graph)
    values = {item.name: item for item in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ROUNDS and node.input[0] not in values]
    known = {node.input[0]: span_of(node, values) for node in pairs if node.op_type == "QuantizeLinear"}
    plain = {  # rounded tensor -> the tensor
        node.output[0]: wiring.producer[node.input[0]].input[0] for node in pairs if node.op_type == "DequantizeLinear"
    }
    results = {result_of(wiring, node) for node in graph.node if gives_integers(node, wiring)}
    chosen = {
        name: choose_rounding(name, span, name in results, wiring, values)
        for name, span in ({name: span for name, span in spans.items() if name in results} | known).items()
    }
    gone = {rounding.relu for rounding in chosen.values()}
    nodes = []
    for node in graph.node:
        if any(node is pair for pair in pairs):
            continue
        for place, name in enumerate(node.input):
            tensor = plain.get(name, name)
            if tensor in chosen and (name in plain or chosen[tensor].everywhere):
                node.input[place] = f"{tensor}_dq"
        if node.name not in gone:
            nodes.append(node)
        for name in node.output:
            if name in chosen:
                nodes += make_pair(graph, values, name, chosen[name])
    replace_nodes(graph, nodes)


def to_unsigned(graph: onnx.GraphProto) -> None:
    """Round what a ReLU gives to unsigned bytes, in the graph of an INT8 model."""
    wiring = Wiring(graph)
    values = {item.name: item for item in graph.initializer}
    gone = []
    for node in graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        name = node.input[0]
        rounding = choose_rounding(name, span_of(node, values), False, wiring, values)
        if rounding.zero == 0:
            write_constants(graph, values, name, rounding.step, 0)
            node.input[0] = rounding.source
            gone.append(rounding.relu)
    replace_nodes(graph, [node for node in graph.node if node.name not in gone])


def span_of(rounding: onnx.NodeProto, values: Mapping[str, onnx.TensorProto]) -> float:
    """The value that a signed rounding makes 127."""
    return LARGEST_INT8 * float(numpy_helper.to_array(values[rounding.input[1]]))


def gives_integers(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether a node is a convolution of rounded values and weights, or adds a rounded skip to what such a one gives."""
    sources = wiring.sources(node)
    if node.op_type == "Conv":
        return len(sources) >= 2 and all(source.op_type == "DequantizeLinear" for source in sources[:2])
    if node.op_type != "Add" or not any(source.op_type == "DequantizeLinear" for source in sources):
        return False
    makers = [wiring.sources(source)[0] if source.op_type in RELUS else source for source in sources]
    return any(maker.op_type == "Conv" and gives_integers(maker, wiring) for maker in makers)


def choose_rounding(
    name: str, span: float, is_result: bool, wiring: Wiring, values: Mapping[str, onnx.TensorProto]
) -> _Rounding:
    """How the tensor is rounded, whose range is `span`."""
    everywhere = is_result or all(reader.op_type == "QuantizeLinear" for reader in wiring.consumers[name])
    relu = wiring.producer.get(name)
    low, high = clip_bounds(relu, values) if relu is not None and relu.op_type in RELUS else (-np.inf, np.inf)
    if relu is None or low != 0:
        return _Rounding(name, span / LARGEST_INT8, MIDDLE, everywhere)
    if everywhere and len(wiring.consumers[relu.input[0]]) == 1 and span <= high * (1 + SLACK):
        return _Rounding(relu.input[0], span / STEPS, 0, everywhere, relu.name)
    return _Rounding(name, span / STEPS, 0, everywhere)


def make_pair(
    graph: onnx.GraphProto, values: Mapping[str, onnx.TensorProto], name: str, rounding: _Rounding
) -> list[onnx.NodeProto]:
    """Q and DQ of a tensor; their constants are put into the graph."""
    constants = write_constants(graph, values, name, rounding.step, rounding.zero)
    return [
        helper.make_node("QuantizeLinear", [rounding.source, *constants], [f"{name}_int8"], f"Q_{name}"),
        helper.make_node("DequantizeLinear", [f"{name}_int8", *constants], [f"{name}_dq"], f"DQ_{name}"),
    ]


def write_constants(
    graph: onnx.GraphProto, values: Mapping[str, onnx.TensorProto], name: str, step: float, zero: int
) -> list[str]:
    """Names of the scale and the zero point of a tensor, which the graph has afterwards."""
    constants = {f"{name}_scale": np.float32(max(step, SMALLEST_SCALE)), f"{name}_zero": np.uint8(zero)}
    for constant, value in constants.items():
        item = values[constant] if constant in values else graph.initializer.add()
        item.CopyFrom(numpy_helper.from_array(np.asarray(value), constant))
    return list(constants)
