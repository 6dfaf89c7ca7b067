"""Q/DQ insertion: a graph and its ranges give the same graph in symmetric INT8, biases in float.

    activations   one pair before every convolution that is worth it (not those that read the images), zero point 0, one scale
                  a tensor; whoever else reads the tensor still reads the float
    memory        its two convolutions are such; softmax and shrinkage between them are of the FP32 region and stay floats
    residual adds a pair on the skip only: the other branch comes straight from a convolution, and TensorRT adds it in
                  that convolution's own pass
    ReLUs         between a convolution and the rounding before the next are left to that rounding (`folding.py`): finer steps
    weights       INT8 in the file, one scale an output channel, and DQ
    biases        float, less what the rounding of the weights adds on average over the frames: a depthwise filter that
                  should give nothing on a plain surface gives nothing again (map error 0.015 -> 0.006 of the weights alone)

TensorRT takes this form; of it `processor_forms.py` makes those of OpenVINO and ONNX Runtime. The other reading, a pair for
whoever reads the tensor (the form that quantizers write by themselves), puts rounding into the cosines: it cost 1.5 times the
map error on EfficientNet-Lite0.

The convolutions that read the images stay FP32: with them in INT8 OpenVINO (2026.4, a processor with VNNI and without AMX)
gives maps that are wrong by half a threshold where ONNX Runtime's are right, and saves less than 5 % of the time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nnet_edge.calibration.folding import attribute, find_folds, fold
from nnet_edge.calibration.fp32_region import CONVOLUTIONS, Wiring, block_of, fp32_region_of, head_of
from nnet_edge.calibration.ranges import Activations
from nnet_edge.errors import CalibrationError

MOVED = 30  # multiplications that take as long as writing and reading one more float, on a processor with INT8 units
SMALLEST_SHARE = 1e-4  # of all multiplications: below it a convolution gains nothing and still costs precision
LARGEST_INT8 = 127
SMALLEST_SCALE = 2.0**-24  # the smallest half float: dead channels must not get a scale that becomes 0 in FP16


@dataclass(frozen=True)
class Plan:
    """What can be INT8 in a graph."""

    model: onnx.ModelProto
    convolutions: tuple[onnx.NodeProto, ...]  # in the order of the graph
    skips: Mapping[str, tuple[str, str]]  # name of a residual Add -> (its skip input, the layer that does the adding)
    multiplications: Mapping[str, int]  # name of a convolution -> multiplications for one image
    moved: Mapping[str, int]  # name of a convolution -> values that it reads and writes for one image

    @cached_property
    def layers(self) -> dict[str, onnx.NodeProto]:
        """Layer ("teacher.stages.0.2.0.conv_dw") -> its convolution, in the order of the graph."""
        return {layer_of(node): node for node in self.convolutions}

    @cached_property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Block of the network ("teacher.stages.0.2.0") -> its layers, blocks in the order of the graph."""
        names = dict.fromkeys(block_of(layer) for layer in self.layers)
        return {name: tuple(layer for layer in self.layers if block_of(layer) == name) for name in names}

    def layers_in(self, units: Collection[str]) -> set[str]:
        """The layers that these units, blocks or layers, stand for."""
        return {layer for layer in self.layers if layer in units or block_of(layer) in units}

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every activation that needs a range."""
        inputs = [node.input[0] for node in self.convolutions]
        return tuple(dict.fromkeys([*inputs, *(skip for skip, _ in self.skips.values())]))

    def share(self, units: Collection[str]) -> float:
        """The share of all multiplications of the graph's convolutions that these blocks and layers make."""
        mine = sum(self.multiplications[self.layers[layer].name] for layer in self.layers_in(units))
        return mine / sum(self.multiplications.values())

    def effort(self, unit: str) -> float:
        """What computing a block or layer in FP32 costs, moving its values included, in multiplications."""
        nodes = [self.layers[layer].name for layer in self.layers_in([unit])]
        return float(sum(self.multiplications[name] + MOVED * self.moved[name] for name in nodes))


def plan(model: onnx.ModelProto) -> Plan:
    """What can be INT8 in `model`, an FP32 graph of nnet-edge. Raises CalibrationError when nothing can."""
    wiring = Wiring(model.graph)
    head = head_of(wiring)
    region = fp32_region_of(wiring, head)
    images = {name for node in model.graph.node if node.name in head for name in node.output}
    work, moved = measure_work(model)
    least = SMALLEST_SHARE * sum(work.values())
    convolutions = tuple(
        node
        for node in model.graph.node
        if node.op_type in CONVOLUTIONS
        and node.input[0] not in images
        and work[node.name] >= least
        and node.input[1] in wiring.constants
    )
    if not convolutions:
        raise CalibrationError("the graph has no convolution outside its FP32 region: give a graph that export wrote")
    return Plan(model, convolutions, find_skips(wiring, region, convolutions), work, moved)


def find_skips(wiring: Wiring, region: set[str], layers: Collection[onnx.NodeProto]) -> dict[str, tuple[str, str]]:
    """The residual adds: one input straight from a quantized convolution, the other from further back."""
    place = {node.name: n for n, node in enumerate(wiring.graph.node)}
    own = {node.output[0]: node for node in layers}
    skips = {}
    for node in wiring.graph.node:
        if node.op_type != "Add" or node.name in region or any(name not in wiring.producer for name in node.input):
            continue
        ends = [name for name in node.input if name in own and len(wiring.consumers[name]) == 1]
        if ends:  # of two convolutions the later one does the adding
            main = max(ends, key=lambda name: place[own[name].name])
            (skip,) = (name for name in node.input if name != main)
            skips[node.name] = (skip, layer_of(own[main]))
    return skips


def measure_work(model: onnx.ModelProto) -> tuple[dict[str, int], dict[str, int]]:
    """Convolution -> multiplications, and convolution -> values read and written, for one image.

    Raises CalibrationError when the graph does not say a shape.
    """
    shapes = {item.name: item for item in (*model.graph.value_info, *model.graph.output)}
    weights = {item.name: tuple(item.dims) for item in model.graph.initializer}
    work, moved = {}, {}
    for node in model.graph.node:
        if node.op_type not in CONVOLUTIONS or node.input[1] not in weights:
            continue
        sizes = []
        for tensor in (node.input[0], node.output[0]):
            if tensor not in shapes:
                raise CalibrationError(f"the graph does not say the shape of {tensor}: export it again")
            sizes.append(prod(size.dim_value or 1 for size in shapes[tensor].type.tensor_type.shape.dim))
        driving = sizes[0] if node.op_type == "ConvTranspose" else sizes[1]
        work[node.name] = driving * prod(weights[node.input[1]][1:])
        moved[node.name] = sum(sizes)
    return work, moved


def layer_of(convolution: onnx.NodeProto) -> str:
    """What a convolution is called in the network."""
    return convolution.input[1].removesuffix(".weight")


def insert_qdq(plan: Plan, activations: Activations, kept: Collection[str] = ()) -> onnx.ModelProto:
    """The plan's graph with Q/DQ; blocks and layers in `kept` stay FP32, with the skips that they add."""
    model = deepcopy(plan.model)
    quantized = set(plan.layers) - plan.layers_in(kept)
    chosen = {plan.layers[layer].name for layer in quantized}
    activations = fold(model.graph, find_folds(Wiring(model.graph), chosen), activations)
    inserter = _Inserter(model.graph, activations.ranges)
    skips = {name: skip for name, (skip, layer) in plan.skips.items() if layer in quantized}
    for node in list(model.graph.node):
        if node.name in chosen:
            mean = activations.means[node.input[0]]
            node.input[0] = inserter.activation(node.input[0])
            weight = node.input[1]
            node.input[1] = inserter.weight(weight, axis=0 if node.op_type == "Conv" else 1)
            if len(node.input) == 3:
                surplus = mean_response(node, inserter.rounding_errors[weight], mean)
                node.input[2] = inserter.bias(node.input[2], f"{node.name}_corrected_bias", surplus)
        elif node.name in skips:
            place = list(node.input).index(skips[node.name])
            node.input[place] = inserter.activation(skips[node.name])
    inserter.finish()
    return model


def mean_response(convolution: onnx.NodeProto, weight: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """What that weight gives on average, away from the border, where channels have the means (C,): float64 (outputs,)."""
    if convolution.op_type == "ConvTranspose":  # N-Net's are 2x2 with stride 2: each output sees one tap
        return np.einsum("ioyx,i->o", weight, mean) / prod(weight.shape[2:])
    groups = attribute(convolution, "group", 1)
    grouped = weight.sum(axis=(2, 3)).reshape(groups, -1, weight.shape[1])
    return np.einsum("goi,gi->go", grouped, mean.reshape(groups, -1)).ravel()


class _Inserter:
    """Makes Q/DQ pairs, each once, and puts them where they are first needed."""

    def __init__(self, graph: onnx.GraphProto, ranges: Mapping[str, float]) -> None:
        self.graph, self.ranges = graph, ranges
        self.weights = {item.name: item for item in graph.initializer}
        self.pairs: dict[str, list[onnx.NodeProto]] = {}  # quantized tensor -> its nodes
        self.rounding_errors: dict[str, np.ndarray] = {}  # weight -> rounded less true values

    def activation(self, tensor: str) -> str:
        """The tensor after Q and DQ."""
        if tensor not in self.pairs:
            span = self.ranges[tensor]
            scale, zero, rounded = f"{tensor}_scale", f"{tensor}_zero", f"{tensor}_int8"
            self.constant(scale, np.float32(max(span / LARGEST_INT8, SMALLEST_SCALE)))
            self.constant(zero, np.int8(0))
            self.pairs[tensor] = [
                helper.make_node("QuantizeLinear", [tensor, scale, zero], [rounded], f"Q_{tensor}"),
                helper.make_node("DequantizeLinear", [rounded, scale, zero], [f"{tensor}_dq"], f"DQ_{tensor}"),
            ]
        return f"{tensor}_dq"

    def weight(self, name: str, axis: int) -> str:
        """The weight as INT8 and DQ; one scale a channel of `axis`."""
        if name not in self.pairs:
            values = numpy_helper.to_array(self.weights[name])
            others = tuple(n for n in range(values.ndim) if n != axis)
            span = np.abs(values).max(axis=others, keepdims=True)
            scale = np.maximum(span / LARGEST_INT8, SMALLEST_SCALE).astype(np.float32)
            rounded = np.clip(np.rint(values / scale), -LARGEST_INT8, LARGEST_INT8).astype(np.int8)
            self.constant(f"{name}_int8", rounded)
            self.constant(f"{name}_scale", scale.ravel())
            self.constant(f"{name}_zero", np.zeros(scale.size, np.int8))
            inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
            self.pairs[name] = [helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"DQ_{name}", axis=axis)]
            self.rounding_errors[name] = rounded * scale.astype(np.float64) - values
        return f"{name}_dq"

    def bias(self, name: str, corrected: str, surplus: np.ndarray) -> str:
        """The bias without what the rounded weights add on average, under the name `corrected`."""
        values = numpy_helper.to_array(self.weights[name])
        self.constant(corrected, (values - surplus).astype(np.float32))
        return corrected

    def constant(self, name: str, values: np.ndarray | np.generic) -> None:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))

    def finish(self) -> None:
        """Put every pair before its first reader."""
        waiting = {nodes[-1].output[0]: nodes for nodes in self.pairs.values()}
        ordered: list[onnx.NodeProto] = []
        for node in self.graph.node:
            for name in node.input:
                ordered += waiting.pop(name, [])
            ordered.append(node)
        replace_nodes(self.graph, ordered)


def replace_nodes(graph: onnx.GraphProto, nodes: Collection[onnx.NodeProto]) -> None:
    """Give the graph these nodes, and take away the constants that none of them reads."""
    read = {name for node in nodes for name in node.input}
    kept = [item for item in graph.initializer if item.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
