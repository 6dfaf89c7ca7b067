"""A graph that a library could not survive is refused before it is given one; sound graphs pass, with the right shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nnet_edge.errors import BundleError
from nnet_edge.runtime.runners import structure
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.runners.shapes import Layer, shapes_of
from nnet_edge.runtime.runners.types import types_of
from nnet_edge.settings.runner import RunnerSettings

BUNDLE = Path(__file__).parents[2] / "data/from_0_1/bundle"
GRAPHS = ("nnet.onnx", "nnet.fp16.onnx", "nnet.int8.onnx", "nnet.int8.source.onnx")
Alter = Callable[[onnx.GraphProto], object]


def model() -> onnx.ModelProto:
    return onnx.load(BUNDLE / "nnet.onnx")


def node(graph: onnx.GraphProto, operator: str) -> onnx.NodeProto:
    return next(item for item in graph.node if item.op_type == operator)


def weights(graph: onnx.GraphProto, rank: int = 4) -> onnx.TensorProto:
    return next(item for item in graph.initializer if len(item.dims) == rank and item.data_type == TensorProto.FLOAT)


def put(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, order="C"), tensor.name))


def poison(graph: onnx.GraphProto, value: float) -> None:
    values = numpy_helper.to_array(weights(graph)).copy()
    values.flat[-1] = value
    put(weights(graph), values)


@pytest.mark.parametrize("name", GRAPHS)
def test_sound_graphs_pass_with_the_shapes_that_onnx_infers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = []

    def noted(layer: Layer) -> list[tuple[int, ...] | None]:
        shapes = shapes_of(layer)
        found.extend(shapes)
        return shapes

    monkeypatch.setattr(structure, "shapes_of", noted)
    content = (BUNDLE / name).read_bytes()
    structure.check_model(memoryview(content))
    expected = onnx.load_model_from_string(content)
    del expected.graph.value_info[:]
    for item in (*expected.graph.input, *expected.graph.output):
        item.type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(expected).graph
    known = {
        item.name: tuple(size.dim_value for size in item.type.tensor_type.shape.dim)
        for item in (*inferred.value_info, *inferred.output)
    }
    assert found == [known[output] for each in expected.graph.node for output in each.output]


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (lambda graph: poison(graph, np.nan), "are NaN or infinite in places"),
        (lambda graph: poison(graph, np.inf), "are NaN or infinite in places"),
        (lambda graph: poison(graph, -np.inf), "are NaN or infinite in places"),
        (lambda graph: weights(graph).dims.append(2), "bytes and their shape"),
        (lambda graph: setattr(weights(graph), "data_type", 8), "the number type 8"),
        (lambda graph: setattr(weights(graph), "data_location", 1), "lie in another file"),
        (lambda graph: graph.initializer.append(weights(graph)), "come twice"),
        (lambda graph: graph.initializer.remove(weights(graph)), "which nothing before it makes"),
        (lambda graph: node(graph, "Relu").input.append("images"), "has 2 inputs"),
        (lambda graph: node(graph, "Pow").input.pop(), "has 1 inputs"),
        (lambda graph: setattr(node(graph, "Relu"), "op_type", "Loop"), "no operator that networks here use"),
        (lambda graph: setattr(node(graph, "Relu"), "domain", "com.example"), "no operator that networks here use"),
        (lambda graph: node(graph, "Conv").attribute.append(helper.make_attribute("axis", 1)), "which Conv lacks"),
        (lambda graph: node(graph, "Transpose").attribute[0].ints.__setitem__(0, 3), "has the axes"),
        (lambda graph: put(weights(graph), numpy_helper.to_array(weights(graph))[:, :1]), "cannot be computed|fit"),
        (lambda graph: node(graph, "Relu").output.__setitem__(0, node(graph, "Conv").output[0]), "made already|before"),
        (lambda graph: graph.output.append(helper.make_tensor_value_info("x", 1, [1])), "nothing makes its outputs"),
        (lambda graph: graph.node.reverse(), "which nothing before it makes"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_with_its_reason(alter: Alter, says: str) -> None:
    spoiled = model()
    alter(spoiled.graph)
    with pytest.raises(BundleError, match=rf"a runner cannot read x\.onnx: .*({says}).*; copy the bundle again"):
        structure.require_structure(spoiled.SerializeToString(), "x.onnx")


def test_every_attribute_of_the_operators_is_known() -> None:
    """Those of opset 11 to 23: torch's exporter writes them all, as keep_aspect_ratio_policy of Resize from 18 on."""
    for operator, (_, _, known) in structure.SIGNATURES.items():
        written: set[str] = set()
        for opset in range(11, 24):
            with suppress(onnx.defs.SchemaError):  # the operator came later
                written |= set(onnx.defs.get_schema(operator, opset, "").attributes)
        assert written == known, operator


def zero_point(graph: onnx.GraphProto, operator: str = "QuantizeLinear") -> onnx.TensorProto:
    name = node(graph, operator).input[2]
    return next(item for item in graph.initializer if item.name == name)


def scale(graph: onnx.GraphProto) -> onnx.TensorProto:
    name = node(graph, "QuantizeLinear").input[1]
    return next(item for item in graph.initializer if item.name == name)


def without(graph: onnx.GraphProto, operator: str) -> None:
    """Whatever read what the first node of that operator gives reads what it was given."""
    left_out = node(graph, operator)
    graph.node.remove(left_out)
    for item in graph.node:
        item.input[:] = [left_out.input[0] if name == left_out.output[0] else name for name in item.input]


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (lambda graph: put(zero_point(graph), np.float32(0)), "is given float and takes uint8, int8"),
        (lambda graph: put(zero_point(graph), np.int32(0)), "is given int32 and takes uint8, int8"),
        (lambda graph: put(zero_point(graph), np.zeros(1, np.int8)), r"scales \(\) and zero points \(1,\)"),
        (lambda graph: put(scale(graph), np.ones((1, 1), np.float32)), "no constant above 0"),
        (lambda graph: put(scale(graph), np.ones(7, np.float32)), r"scales \(7,\)"),
        (lambda graph: put(scale(graph), np.zeros(0, np.float32)), "no constant above 0"),
        (lambda graph: put(scale(graph), np.float32(0)), "no constant above 0"),
        (lambda graph: put(scale(graph), np.float32(-1)), "no constant above 0"),
        (lambda graph: put(scale(graph), np.float16(1)), "is given float16 and takes float"),
        (lambda graph: node(graph, "QuantizeLinear").attribute.append(helper.make_attribute("block_size", 2)), "in blocks"),
        (lambda graph: without(graph, "QuantizeLinear"), "is given float and takes uint8, int8, int32"),
        (lambda graph: without(graph, "DequantizeLinear"), "is given .*int8"),
    ],
)  # fmt: skip
def test_rounded_numbers_where_real_ones_belong_are_refused(alter: Alter, says: str) -> None:
    spoiled = onnx.load(BUNDLE / "nnet.int8.onnx")
    alter(spoiled.graph)
    with pytest.raises(BundleError, match=rf"a runner cannot read x\.onnx: .*({says})"):
        structure.require_structure(spoiled.SerializeToString(), "x.onnx")


@pytest.mark.parametrize("name", GRAPHS)
def test_types_are_those_that_onnx_infers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int | None] = []

    def noted(*given: Any) -> list[int | None]:
        types = types_of(*given)
        found.append(types[0])
        return types

    monkeypatch.setattr(structure, "types_of", noted)
    structure.check_model(memoryview((BUNDLE / name).read_bytes()))
    inferred = onnx.shape_inference.infer_shapes(onnx.load(BUNDLE / name)).graph
    known = {item.name: item.type.tensor_type.elem_type for item in (*inferred.value_info, *inferred.output)}
    assert found == [known[item.output[0]] for item in inferred.node]


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_no_runner_is_given_weights_that_are_not_finite(kind: str, tmp_path: Path) -> None:
    spoiled = model()
    poison(spoiled.graph, np.nan)
    onnx.save(spoiled, tmp_path / "nnet.onnx")
    with pytest.raises(BundleError, match="are NaN or infinite in places"):
        load_runner(tmp_path / "nnet.onnx", RunnerSettings(kind=kind))


def test_every_byte_that_is_flipped_or_cut_is_refused_in_words_or_harmless() -> None:
    """The check itself survives whatever it reads: 300 damaged copies, none of which any runner sees."""
    content = (BUNDLE / "nnet.onnx").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(300):
        damaged = bytearray(content)
        if number % 3:
            damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[int(rng.integers(len(damaged))) :]
        try:
            structure.check_model(memoryview(bytes(damaged)))
        except (structure.MalformedError, UnicodeDecodeError):
            refused += 1
    assert refused > 100


def test_a_graph_that_was_checked_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    content = (BUNDLE / "nnet.onnx").read_bytes()
    structure.require_structure(content, "x")
    monkeypatch.setattr(structure, "check_model", lambda content: pytest.fail("it was walked again"))
    began = time.process_time()
    structure.require_structure(content, "x")
    assert time.process_time() - began < 0.1
