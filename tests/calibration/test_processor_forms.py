"""Each processor's form computes what the signed graph computes, rounded as that runner likes it and no more coarsely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nnet_edge.calibration.fp32_region import Wiring
from nnet_edge.calibration.processor_forms import to_integers, to_unsigned, unmeasured
from nnet_edge.calibration.qdq import Plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_spans, quantize
from nnet_edge.calibration.ranges import Activations
from nnet_edge.runtime.runners.onnx_runner import onnxruntime
from nnet_edge.runtime.runners.structure import fault_of

RELUS = {"Relu", "Clip"}


@pytest.fixture(scope="module")
def spans(planned: Plan, frames: np.ndarray) -> Mapping[str, float]:
    return measure_spans(planned, frames, QuantizeSettings(threads=1), lambda done, total: None)


@pytest.fixture(scope="module")
def graphs(planned: Plan, activations: Activations, spans: Mapping[str, float]) -> dict[str, onnx.ModelProto]:
    forms: dict[str, Callable[[onnx.GraphProto], object]] = {
        "signed": lambda graph: None,
        "unsigned": to_unsigned,
        "integers": partial(to_integers, spans=spans),
    }
    return {name: quantize(planned, activations, form=form) for name, form in forms.items()}


def zeros_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Rounded activation -> its zero point."""
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    return {node.input[0]: values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def maps_of(model: onnx.ModelProto, frames: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["anomaly_map"], {"images": frame[None]})[0] for frame in frames])


def test_what_a_relu_gives_is_unsigned_and_the_rest_is_as_it_was(graphs: Mapping[str, onnx.ModelProto]) -> None:
    onnx.checker.check_model(graphs["unsigned"], full_check=True)
    assert not fault_of(graphs["unsigned"].SerializeToString())
    zeros = zeros_of(graphs["unsigned"])
    kinds = {(zero.dtype.name, int(zero)) for zero in zeros.values()}
    assert kinds == {("uint8", 0), ("int8", 0)}
    wiring = Wiring(graphs["unsigned"].graph)
    for name, zero in zeros.items():
        if wiring.producer[name].op_type in RELUS:
            assert zero.dtype == np.uint8, name
    clipped = [node for node in graphs["signed"].graph.node if node.op_type in RELUS]
    left = [node for node in graphs["unsigned"].graph.node if node.op_type in RELUS]
    assert len(left) < len(clipped) / 2, "the rounding clips by itself"


def test_onnx_runtime_computes_every_convolution_that_is_int8_in_integers(
    graphs: Mapping[str, onnx.ModelProto], planned: Plan, tmp_path: Path
) -> None:
    onnx.checker.check_model(graphs["integers"], full_check=True)
    assert not fault_of(graphs["integers"].SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    content = graphs["integers"].SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    wanted = sum(node.op_type == "Conv" for node in planned.convolutions)
    assert sum(node.op_type == "QLinearConv" for node in nodes) == wanted
    assert sum(node.op_type == "QLinearAdd" for node in nodes) > 0
    assert {zero.dtype.name for zero in zeros_of(graphs["integers"]).values()} == {"uint8"}


def test_neither_form_is_coarser_than_the_signed_graph(
    graphs: Mapping[str, onnx.ModelProto], fp32: onnx.ModelProto, frames: np.ndarray
) -> None:
    truth = maps_of(fp32, frames)
    errors = {name: float(np.abs(maps_of(model, frames) - truth).mean()) for name, model in graphs.items()}
    assert 0 < errors["unsigned"] < errors["signed"]
    assert 0 < errors["integers"] < 1.5 * errors["signed"], "results are rounded besides"


def test_a_layer_that_stays_fp32_reads_and_gives_floats(
    planned: Plan, activations: Activations, spans: Mapping[str, float]
) -> None:
    kept = "teacher.stages.0.3.1.conv_pwl"
    model = quantize(planned, activations, [kept], partial(to_integers, spans=spans))
    (node,) = (node for node in model.graph.node if node.op_type == "Conv" and f"{kept}.weight" in node.input)
    onnx.checker.check_model(model, full_check=True)
    assert not fault_of(model.SerializeToString())
    assert not any(name.endswith("_dq") for name in node.input[1:])


def test_tensors_that_the_plan_knows_are_not_measured_again(planned: Plan) -> None:
    assert not set(unmeasured(planned)) & set(planned.tensors)
    assert unmeasured(planned)


def test_a_relu_stays_where_its_float_is_read_or_its_ceiling_lies_below_the_range() -> None:
    """Relu a: a rounding alone reads it, 256 steps. Clip b ends at 6 and the range at 8. Relu c: an Abs reads the float."""
    scale = numpy_helper.from_array(np.float32(8 / 127), "scale")
    nodes, items = [], [numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0), ("six", 6))]
    for name, operator, ends in (("a", "Relu", []), ("b", "Clip", ["low", "six"]), ("c", "Relu", [])):
        items += [
            numpy_helper.from_array(numpy_helper.to_array(scale), f"{name}_scale"),
            numpy_helper.from_array(np.int8(0), f"{name}_zero"),
        ]
        constants = [f"{name}_scale", f"{name}_zero"]
        nodes += [
            helper.make_node(operator, ["x", *ends], [name], f"relu_{name}"),
            helper.make_node("QuantizeLinear", [name, *constants], [f"{name}_int8"], f"Q_{name}"),
            helper.make_node("DequantizeLinear", [f"{name}_int8", *constants], [f"{name}_dq"], f"DQ_{name}"),
        ]
    # what the three read must be theirs alone, or nobody may clip it
    for node, given in zip((nodes[0], nodes[3], nodes[6]), ("xa", "xb", "xc"), strict=True):
        node.input[0] = given
    before = [helper.make_node("Neg", ["x"], [given], given) for given in ("xa", "xb", "xc")]
    after = [helper.make_node("Abs", ["c"], ["d"], "abs")]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5]) for name in ("a_dq", "b_dq", "c_dq", "d")]
    graph = helper.make_graph(
        [*before, *nodes, *after], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5])], ports, items
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    to_unsigned(model.graph)
    onnx.checker.check_model(model, full_check=True)
    assert [node.name for node in model.graph.node if node.op_type in RELUS] == ["relu_b", "relu_c"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": np.array([3, 0, -1, -7, -20], np.float32)})
    step = 8 / 255
    for values, truth in zip(found, ([0, 0, 1, 7, 8], [0, 0, 1, 6, 6], [0, 0, 1, 7, 8], [0, 0, 1, 7, 20]), strict=True):
        np.testing.assert_allclose(values, truth, atol=step / 2 + 1e-6)
