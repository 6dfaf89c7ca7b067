"""Export of a network to the one ONNX graph: uint8 RGB (N, height, width, 3) to layer maps, anomaly map and image score.

torch's dynamo exporter writes the network (opset 18, dynamic batch, batch norms folded). graphsurgeon puts it into forms
that processors compute faster and adds the tail, which makes `anomaly_map` and `image_score` of the layer maps. Enlargement
and Gaussian are linear and separable, so both are products with the constant matrices of `anomaly_map.py` itself: the
symmetric border is exact, no runner's idea of Resize or of padding enters, and the work is a few small products in FP32.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from onnx_graphsurgeon.logger import G_LOGGER

from nnet_edge import __version__
from nnet_edge.anomaly_map import (
    FUSED_STRIDE,
    PAPER_FUSION,
    SCALES,
    SMALLEST_DISTANCE,
    STRIDES,
    Fusion,
    enlarging_matrix,
    last_matrices,
)
from nnet_edge.errors import ExportError
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.methods.folding import folded
from nnet_edge.methods.network import Network
from nnet_edge.runtime.runners.structure import fault_of

OPSET = 18
INPUT = "images"
EXAMPLE_BATCH = 97  # a prime that is no other dimension: where it stands in a traced graph, the batch is meant
BATCH = "batch"
LARGEST_PROTOBUF = 2**31 - 1  # bytes
SIZES = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
G_LOGGER.severity = G_LOGGER.ERROR  # it prints its warnings past the logging module


def export_onnx(network: Network, facts: dict[str, str]) -> onnx.ModelProto:
    """The graph of `network` with `facts` (system, backbone, ...) as its metadata.

    Raises ExportError when the exporter refuses, the result is not valid ONNX or it is too large for one file.
    """
    model = suit_processors(fold_constants(trace(network)))
    model = add_tail(model, network.geometry, network.map_fusion)
    if model.ByteSize() > LARGEST_PROTOBUF:
        raise ExportError("the graph is larger than 2 GiB, too large for one ONNX file: choose a smaller backbone")
    del model.metadata_props[:]
    model.producer_name, model.doc_string = "nnet-edge", ""
    onnx.helper.set_model_props(model, {f"nnet_edge.{name}": value for name, value in sorted(facts.items())})
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    if fault := fault_of(model.SerializeToString()):
        raise ExportError(f"no runner may be given the exported graph: {fault}; train again")
    return model


def trace(network: Network) -> onnx.ModelProto:
    """The network as torch's exporter writes it for any batch of images of its geometry: layer maps out, no tail.

    It is traced with one batch, half the work of a free one, and the batch is freed afterwards: the graphs are equal. One that
    computes with the batch's size is traced again, with a free one.
    """
    network = folded(network).cpu().float()
    model = run_exporter(network, None)
    if free_batch(model.graph):
        return model
    return run_exporter(network, {"images": {0: torch.export.Dim(BATCH, min=1)}})


def run_exporter(network: Network, dynamic_shapes: dict[str, Any] | None) -> onnx.ModelProto:
    """What torch's exporter gives. Raises ExportError when it refuses."""
    images = torch.zeros(EXAMPLE_BATCH, *network.geometry.shape, dtype=torch.uint8)
    gc.freeze()  # the exporter makes millions of objects: collections that walk torch's as well take a seventh of its time
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                network, (images,), dynamo=True, opset_version=OPSET, external_data=False, input_names=[INPUT],
                output_names=list(network.output_names), dynamic_shapes=dynamic_shapes, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch cannot export the network: {str(error).splitlines()[0]}") from error
    finally:
        gc.unfreeze()
    assert program is not None  # dynamo=True always gives a program
    return program.model_proto


def free_batch(graph: onnx.GraphProto) -> bool:
    """Let every tensor whose first dimension is EXAMPLE_BATCH take any batch; False when more is made of that number."""
    constants = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    known = [onnx.numpy_helper.to_array(one) for one in constants if one.data_type in SIZES or math.prod(one.dims) == 1]
    sizes = {abs(float(value)) for values in known for value in values.flat}
    sizes |= {1 / size for size in sizes if size}
    for tensor in (*graph.input, *graph.output, *graph.value_info):
        dimensions = tensor.type.tensor_type.shape.dim
        if dimensions and dimensions[0].dim_value == EXAMPLE_BATCH:
            dimensions[0].dim_param = BATCH  # takes the place of the value
        sizes |= {float(one.dim_value) for one in dimensions}
    shares = [size / EXAMPLE_BATCH for size in sizes if EXAMPLE_BATCH - 1 < size < LARGEST_PROTOBUF]
    return not any(abs(share - round(share)) < 1e-6 * share for share in shares)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's own progress lines and deprecation warnings off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def facts_of(network: Network) -> dict[str, str]:
    """What the graph says of itself: system, backbone, input and the settings of the model."""
    return {
        "version": __version__,
        "system": network.method,
        "backbone": network.settings.backbone,
        "input": f"uint8 RGB NHWC {network.geometry.text}, {network.geometry.sentence()}",
        "settings": json.dumps(asdict(network.settings), sort_keys=True),
        "fusion": json.dumps(asdict(network.map_fusion), sort_keys=True),
    }


def add_tail(model: onnx.ModelProto, geometry: Geometry = DEFAULT, fusion: Fusion = PAPER_FUSION) -> onnx.ModelProto:
    """`model` with `anomaly_map` (N, 1, height, width) and `image_score` (N,) added to its layer maps, fused by `fusion`.

    Raises ExportError when the model's outputs are not layer maps.
    """
    graph = gs.import_onnx(model)
    maps = {output.name: output for output in graph.outputs}
    if not maps or not set(maps) <= set(fusion.layer_maps):
        raise ExportError(
            f"the tail needs layer maps ({', '.join(fusion.layer_maps)}), the graph gives {', '.join(maps)}"
        )
    tail = _Tail(graph, fusion, geometry)
    fused = tail.fused(tail.factors(maps))
    anomaly_map = tail.separable(fused, *last_matrices(geometry, fusion.align_corners), "anomaly_map")
    axes = gs.Constant("tail_axes", np.array([1, 2, 3], dtype=np.int64))
    largest = tail.node("ReduceMax", [anomaly_map, axes], keepdims=0)
    score = tail.keeping_nan(largest, tail.node("ReduceSum", [fused, axes], keepdims=0), "image_score")
    batch = graph.inputs[0].shape[0]
    for tensor, shape in ((anomaly_map, (batch, 1, *geometry.size)), (score, (batch,))):
        tensor.dtype, tensor.shape = np.float32, shape
        graph.outputs.append(tensor)
    graph.cleanup().toposort()
    finished = gs.export_onnx(graph)
    finished.ir_version = model.ir_version
    return finished


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with everything that depends on no input computed now (the memory's normalised keys, for one)."""
    graph = gs.import_onnx(model)
    graph.fold_constants().cleanup().toposort()
    folded = gs.export_onnx(graph)
    folded.ir_version = model.ir_version
    return folded


def suit_processors(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, constants folded, in the forms that OpenVINO computes fastest: it keeps the channels last in memory.

    The mean along one axis is a pooling, and what stands between the memory's two convolutions has the slots last, else the
    softmax has a megabyte brought into another order before it and back behind it (benchmarks/notes.md).
    """
    graph = gs.import_onnx(model)
    for node in graph.nodes:
        if node.op == "ReduceMean":
            _pool(node)
        elif node.op == "Softmax":
            _put_slots_last(graph, node)
    suited = gs.export_onnx(graph.cleanup().toposort())
    suited.ir_version = model.ir_version
    return suited


def _pool(mean: gs.Node) -> None:
    """Make a mean along height or width an average pooling over all of it, where both are known."""
    axes = [int(axis) % 4 for axis in np.ravel(mean.inputs[1].values)]
    shape = mean.inputs[0].shape
    if len(shape) == 4 and mean.attrs.get("keepdims", 1) and axes in ([2], [3]) and isinstance(shape[axes[0]], int):
        kernel = [shape[2], 1] if axes == [2] else [1, shape[3]]
        mean.op, mean.inputs, mean.attrs = "AveragePool", mean.inputs[:1], {"kernel_shape": kernel}


def _put_slots_last(graph: gs.Graph, softmax: gs.Node) -> None:
    """Let everything from the softmax over axis 1 to the next convolution see (N, H, W, slots)."""
    start = softmax.inputs[0]
    nodes, ends = _until_convolution(start)
    plain = all(isinstance(tensor, gs.Variable) or tensor.values.size == 1 for node in nodes for tensor in node.inputs)
    if softmax.attrs.get("axis") != 1 or len(start.shape) != 4 or not plain or len(ends) != 1:
        return
    (end,) = ends
    _name_weights(start.inputs[0], "memory.keys")
    for node in end.outputs:
        _name_weights(node, "memory.values")
    first = gs.Variable(f"{start.name}_slots_last", np.float32, _channels_last(start.shape))
    last = gs.Variable(f"{end.name}_slots_first", np.float32, end.shape)
    for convolution in list(end.outputs):
        convolution.inputs = [last if tensor is end else tensor for tensor in convolution.inputs]
    for node in nodes:
        node.inputs = [first if tensor is start else tensor for tensor in node.inputs]
        for output in node.outputs:
            output.shape = _channels_last(output.shape)
        if node.op == "Softmax":
            node.attrs["axis"] = 3
        if node.op == "ReduceSum":
            node.inputs[1] = gs.Constant(f"{node.name}_axis", np.array([3], np.int64))
    graph.nodes.append(gs.Node("Transpose", "node_slots_last", {"perm": [0, 2, 3, 1]}, [start], [first]))
    graph.nodes.append(gs.Node("Transpose", "node_slots_first", {"perm": [0, 3, 1, 2]}, [end], [last]))


def _name_weights(node: gs.Node, name: str) -> None:
    """Call the weights of a convolution, or of the one that `node` divides the result of, what its layer shall be called."""
    convolution = node if node.op == "Conv" else node.i()
    if convolution.op == "Conv" and isinstance(convolution.inputs[1], gs.Constant):
        convolution.inputs[1] = gs.Constant(f"{name}.weight", convolution.inputs[1].values)


def _channels_last(shape: list[int | str]) -> list[int | str]:
    batch, channels, height, width = shape
    return [batch, height, width, channels]


def _until_convolution(start: gs.Tensor) -> tuple[list[gs.Node], list[gs.Tensor]]:
    """The nodes that work on `start` before any convolution, and the tensors that convolutions take of them."""
    nodes: dict[str, gs.Node] = {}
    ends: list[gs.Tensor] = []
    waiting = [start]
    while waiting:
        tensor = waiting.pop()
        for user in tensor.outputs:
            if user.op == "Conv":
                ends += [tensor] if not any(tensor is end for end in ends) else []
            elif user.name not in nodes:
                nodes[user.name] = user
                waiting += user.outputs
    return list(nodes.values()), ends


class _Tail:
    """Adds nodes with stable names (tail_0, tail_1, ...) to a graph."""

    def __init__(self, graph: gs.Graph, fusion: Fusion, geometry: Geometry) -> None:
        self.graph, self.fusion, self.geometry = graph, fusion, geometry
        self.count = 0

    def node(self, operator: str, inputs: list[gs.Tensor], name: str = "", **attributes: int) -> gs.Tensor:
        output = gs.Variable(name or f"tail_{self.count}", dtype=np.float32)
        self.graph.nodes.append(gs.Node(operator, f"node_tail_{self.count}", attributes, inputs, [output]))
        self.count += 1
        return output

    def constant(self, values: np.ndarray) -> gs.Constant:
        self.count += 1
        return gs.Constant(f"tail_matrix_{self.count}", np.ascontiguousarray(values, dtype=np.float32))

    def separable(self, maps: gs.Tensor, rows: np.ndarray, columns: np.ndarray, name: str = "") -> gs.Tensor:
        down = self.node("MatMul", [self.constant(rows), maps])
        return self.node("MatMul", [down, self.constant(columns.T)], name)

    def enlarged(self, maps: gs.Tensor, stride: int) -> gs.Tensor:
        if stride == FUSED_STRIDE:
            return maps
        rows, columns = (
            enlarging_matrix(side // stride, side // FUSED_STRIDE, self.fusion.align_corners)
            for side in self.geometry.size
        )
        return self.separable(maps, rows, columns)

    def factors(self, maps: dict[str, gs.Tensor]) -> list[gs.Tensor]:
        """Weighted first + second map of each scale that has one, enlarged and raised to its exponent (times it, in a sum)."""
        factors = []
        for size, stride, exponent in zip(SCALES, STRIDES, self.fusion.exponents, strict=True):
            present = [
                self.times(tensor, self.fusion.weight(name))
                for name, tensor in maps.items()
                if name.endswith(f"_{size}") and self.fusion.weight(name) > 0
            ]
            if present and exponent > 0:
                total = present[0] if len(present) == 1 else self.node("Add", present)
                enlarged = self.enlarged(total, stride)
                is_sum = self.fusion.rule == "sum"
                factors.append(self.times(enlarged, exponent) if is_sum else self.power(enlarged, exponent))
        if not factors:
            raise ExportError(f"{self.fusion} leaves none of {', '.join(maps)}")
        return factors

    def times(self, maps: gs.Tensor, weight: float) -> gs.Tensor:
        return maps if weight == 1 else self.node("Mul", [maps, self.constant(np.array(weight))])

    def power(self, maps: gs.Tensor, exponent: float) -> gs.Tensor:
        if exponent == 1:
            return maps
        positive = self.node("Max", [maps, self.constant(np.array(SMALLEST_DISTANCE))])
        return self.keeping_nan(self.node("Pow", [positive, self.constant(np.array(exponent))]), maps)

    def keeping_nan(self, result: gs.Tensor, source: gs.Tensor, name: str = "") -> gs.Tensor:
        """`result`, and NaN where `source` is not finite: no runner's Max and ReduceMax can be trusted to keep a NaN.

        OpenVINO's lose it in either, ONNX Runtime's in ReduceMax by its place; sums and products keep it everywhere.
        """
        return self.node("Add", [result, self.node("Mul", [source, self.constant(np.array(0.0))])], name)

    def fused(self, factors: list[gs.Tensor]) -> gs.Tensor:
        """All factors multiplied, or added."""
        fused = factors[0]
        for factor in factors[1:]:
            fused = self.node("Add" if self.fusion.rule == "sum" else "Mul", [fused, factor])
        return fused
