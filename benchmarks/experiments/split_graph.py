"""A bundle's graph cut in three: what the teacher alone decides, what the forward student alone decides, and the rest.

Deployed is one graph. Whether three of them, computed one after another, would be as fast is a question of
`inference_choices.py`: a runtime that can run only one network a time, or shares a teacher, would want them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.shape_inference
import onnx.utils

from nnet_edge.errors import ConfigError
from nnet_edge.runtime.runners.graph import INPUT

TEACHER, STUDENT = "teacher", "forward_student"
ROUNDING = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Part:
    """One of the three graphs; a tensor has the same name in the part that gives it and in the one that takes it."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut_in_three(graph: Path, out: Path) -> tuple[Part, Part, Part]:
    """Teacher, forward student and rest of the graph at `graph`, as files in the folder `out`; the rest takes from both.

    The memory's recall depends on the teacher's features alone and lies in the first part. Raises ConfigError for a graph
    without a forward student.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    owners = owners_of(model.graph)
    cuts = {part: cut_tensors(model.graph, owners, part) for part in (TEACHER, STUDENT)}
    if not all(cuts.values()):
        raise ConfigError(f"{graph} has no teacher and forward student that could be cut out: give a graph with both")
    extractor = onnx.utils.Extractor(model)
    outputs = tuple(item.name for item in model.graph.output)
    parts = []
    for name, inputs, given in (
        (TEACHER, (INPUT,), cuts[TEACHER]),
        (STUDENT, (INPUT,), cuts[STUDENT]),
        ("rest", (*cuts[TEACHER], *cuts[STUDENT]), outputs),
    ):
        path = out / f"{graph.stem}.{name}.onnx"
        onnx.save(extractor.extract_model(list(inputs), list(given)), path)
        parts.append(Part(path, inputs, given))
    first, second, third = parts
    return first, second, third


def owners_of(graph: onnx.GraphProto) -> dict[str, frozenset[str]]:
    """Tensor -> the parts of the network ("teacher", "fusion", ...) whose weights it depends on."""
    owners = {item.name: frozenset([item.name.split(".")[0]]) for item in graph.initializer if "." in item.name}
    for node in graph.node:
        own = frozenset[str]().union(*(owners.get(name, frozenset()) for name in node.input))
        owners.update(dict.fromkeys(node.output, own))
    return owners


def cut_tensors(graph: onnx.GraphProto, owners: Mapping[str, frozenset[str]], part: str) -> tuple[str, ...]:
    """What depends on `part` alone and is read by something that does not: floats, so that rounding stays by its reader."""
    producer = {name: node for node in graph.node for name in node.output}
    found: dict[str, None] = {}
    for node in graph.node:
        if owners[node.output[0]] == {part}:
            continue
        for name in node.input:
            if owners.get(name) == {part} and name in producer:
                while producer[name].op_type in ROUNDING:
                    name = producer[name].input[0]
                found[name] = None
    return tuple(found)
