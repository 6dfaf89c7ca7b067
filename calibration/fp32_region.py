"""FP32 region: cosines and norms, the memory's softmax and shrinkage, the product of the maps, the Gaussian.

It is found by the shape of the graph, not by names: those are the exporter's. It is every node of an operator that half
precision spoils, the element-wise nodes that only work for such nodes, and the memory's two convolutions, queries with keys and
weights with values: FP16 leaves them alone, INT8 takes them (`qdq.py`), for their sums are 32 bits wide.
The head, what lies before the first convolution, stays FP32 too: it is the cast of the uint8 images and their normalisation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

CONVOLUTIONS = ("Conv", "ConvTranspose")
ENDS_OF_HEAD = (*CONVOLUTIONS, "QuantizeLinear")
SPOILED = frozenset({"Pow", "Sqrt", "Div", "Abs", "Max", "ReduceSum", "ReduceMax", "ReduceL2", "Softmax", "MatMul"})
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Clip", "Relu", "Neg", "Transpose"})
ADDRESSES = frozenset({"Softmax", "Div"})  # what follows the convolution of queries and keys
RECALLS = SPOILED | {"Transpose"}  # what comes before the convolution of weights and values


@dataclass(frozen=True)
class Wiring:
    """Who makes and who takes each tensor of a graph."""

    graph: onnx.GraphProto

    @cached_property
    def constants(self) -> frozenset[str]:
        """Names of the initializers."""
        return frozenset(item.name for item in self.graph.initializer)

    @cached_property
    def producer(self) -> Mapping[str, onnx.NodeProto]:
        """Tensor -> the node that makes it."""
        return {name: node for node in self.graph.node for name in node.output}

    @cached_property
    def consumers(self) -> Mapping[str, list[onnx.NodeProto]]:
        """Tensor -> the nodes that take it."""
        found: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                found[name].append(node)
        return found

    @cached_property
    def outputs(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(item.name for item in self.graph.output)

    def sources(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes whose results `node` takes."""
        return [self.producer[name] for name in node.input if name in self.producer]

    def users(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that take a result of `node`."""
        return [user for name in node.output for user in self.consumers.get(name, [])]


def head_of(wiring: Wiring) -> set[str]:
    """Names of the nodes (in graph order, as ONNX demands) that work on the images before any convolution or rounding."""
    head: set[str] = set()
    inputs = {item.name for item in wiring.graph.input}
    for node in wiring.graph.node:
        sources = wiring.sources(node)
        sees_images = bool(sources) or not inputs.isdisjoint(node.input)  # constants that are scaled do not
        if node.op_type not in ENDS_OF_HEAD and sees_images and all(source.name in head for source in sources):
            head.add(node.name)
    return head


def fp32_region_of(wiring: Wiring, head: Iterable[str]) -> set[str]:
    """Names of the nodes of the FP32 region; those of the `head` do not count."""
    head = set(head)
    nodes = [node for node in wiring.graph.node if node.name not in head]
    region = {node.name for node in nodes if node.op_type in SPOILED}
    grows = True
    while grows:
        joining = {node.name for node in nodes if node.name not in region and belongs(node, wiring, region)}
        region |= joining
        grows = bool(joining)
    return region


def belongs(node: onnx.NodeProto, wiring: Wiring, region: set[str]) -> bool:
    """Whether `node` works for the region: fed only by it, read only by it, or addressing the memory."""
    sources, users = wiring.sources(node), wiring.users(node)
    if node.op_type in ELEMENTWISE:
        is_fed = bool(sources) and all(source.name in region for source in sources)
        is_read = all(user.name in region for user in users)
        return is_fed or (is_read and (bool(users) or any(name in wiring.outputs for name in node.output)))
    if node.op_type == "Conv":
        recalls = bool(sources) and sources[0].name in region and sources[0].op_type in RECALLS
        return recalls or any(user.op_type in ADDRESSES and user.name in region for user in users)
    return False


def block_of(layer: str) -> str:
    """The block of the network that a layer belongs to: "teacher.stages.0.2.0" of "teacher.stages.0.2.0.conv_dw"."""
    parts = layer.split(".")
    seen_number = False
    for place, part in enumerate(parts):
        if seen_number and not part.isdigit():
            return ".".join(parts[:place])
        seen_number = seen_number or part.isdigit()
    return ".".join(parts)
