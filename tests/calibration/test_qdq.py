"""Q/DQ where it belongs and nowhere else; what TensorRT's parser is known to refuse is not in the graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nnet_edge.calibration.fp32_region import Wiring, block_of, fp32_region_of, head_of
from nnet_edge.calibration.qdq import Plan, insert_qdq, mean_response, plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_activations, quantize, read_graph
from nnet_edge.calibration.ranges import Activations, Probe, map_error
from nnet_edge.errors import CalibrationError, ConfigError
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.settings.runner import RunnerSettings

INT8_MAP_ERROR = 0.1  # thresholds, mean: a network of four epochs, far rougher than a trained one
RUNNERS_MAP_ERROR = 0.05  # of the largest value, mean: values that lie between two steps fall to either side


@pytest.fixture(scope="module")
def int8(planned: Plan, activations: Activations) -> onnx.ModelProto:
    return quantize(planned, activations)


def values_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def test_the_fp32_region_holds_what_half_precision_spoils(fp32: onnx.ModelProto) -> None:
    wiring = Wiring(fp32.graph)
    head = head_of(wiring)
    region = fp32_region_of(wiring, head)
    operators = {node.op_type for node in fp32.graph.node if node.name not in region | head}
    assert not operators & {"Softmax", "Pow", "Sqrt", "Div", "ReduceSum", "MatMul", "ReduceMax", "Max"}
    addressing = [node for node in fp32.graph.node if node.name in region and node.op_type == "Conv"]
    slots = {tuple(values_of(fp32)[node.input[1]].shape[:2]) for node in addressing}
    assert slots == {(128, 112), (112, 128)}, "the convolutions with the memory's keys and values, and no other"
    assert {node.op_type for node in fp32.graph.node if node.name in head} == {"Cast", "Sub", "Div", "Transpose"}


def test_every_layer_map_and_the_tail_come_out_of_the_fp32_region(fp32: onnx.ModelProto) -> None:
    wiring = Wiring(fp32.graph)
    region = fp32_region_of(wiring, head_of(wiring))
    assert {wiring.producer[output.name].name for output in fp32.graph.output} <= region


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("teacher.stages.0.2.0.conv_dw", "teacher.stages.0.2.0"),
        ("teacher.stages.0.0", "teacher.stages.0.0"),
        ("teacher.stages.1.3.conv2", "teacher.stages.1.3"),
        ("reverse_student.stages.0.1.body.3", "reverse_student.stages.0.1"),
        ("fusion.mix.0", "fusion.mix.0"),
    ],
)
def test_layers_belong_to_blocks(layer: str, block: str) -> None:
    assert block_of(layer) == block


def test_the_plan_leaves_out_what_is_not_worth_it(planned: Plan) -> None:
    assert not [layer for layer in planned.layers if "projection" in layer], "gates on 128 positions gain nothing"
    assert {"teacher.stages.0.2.0.conv_dw", "reverse_student.stages.0.0.body.0"} <= set(planned.layers)
    assert planned.share(planned.blocks) > 0.9
    assert planned.share(["teacher.stages.0.2.0"]) == pytest.approx(
        planned.share(planned.blocks["teacher.stages.0.2.0"])
    )
    assert not {"teacher.stages.0.0", "forward_student.stages.0.0"} & set(planned.layers), "they read the images"


def test_the_memorys_two_products_are_integers_and_its_softmax_is_not(planned: Plan, int8: onnx.ModelProto) -> None:
    assert {"memory.keys", "memory.values"} <= set(planned.layers)
    wiring = Wiring(int8.graph)
    (softmax,) = (node for node in int8.graph.node if node.op_type == "Softmax")
    between, waiting = set(), [softmax]
    while waiting:  # from the softmax up to the rounding of the weights
        node = waiting.pop()
        between.add(node.op_type)
        waiting += [user for user in wiring.users(node) if user.op_type != "QuantizeLinear"]
    assert not between & {"Conv", "DequantizeLinear"}, "nothing but the rounded weights is multiplied by the values"


def test_the_form_is_what_tensorrt_takes(int8: onnx.ModelProto) -> None:
    """Zero points 0 and signed, no quantized bias, no pair around uint8, weights a channel each."""
    onnx.checker.check_model(int8, full_check=True)
    values = values_of(int8)
    pairs = [node for node in int8.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 200
    for node in pairs:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (values[node.input[1]] > 0).all()
    weights = [node for node in pairs if node.input[0] in values]
    for node in weights:
        axis = next(item.i for item in node.attribute if item.name == "axis")
        assert values[node.input[0]].dtype == np.int8
        assert values[node.input[1]].shape == (values[node.input[0]].shape[axis],)
    readers = {name: node for node in int8.graph.node for name in node.input}
    transposed = [node for node in weights if readers[node.output[0]].op_type == "ConvTranspose"]
    assert transposed
    for node in int8.graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3:
            assert values[node.input[2]].dtype == np.float32


def test_only_convolutions_and_skips_read_rounded_tensors(planned: Plan, int8: onnx.ModelProto) -> None:
    rounded = {node.output[0] for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    readers = [node for node in int8.graph.node if rounded & set(node.input)]
    assert {node.op_type for node in readers} == {"Conv", "ConvTranspose", "Add"}
    for node in readers:
        if node.op_type == "Add":
            assert node.name in planned.skips
            assert sum(name in rounded for name in node.input) == 1, "the other branch is added in the convolution"


def test_the_file_is_a_third_of_its_size_and_computes_nearly_the_same(
    planned: Plan, int8: onnx.ModelProto, fp32: onnx.ModelProto, frames: np.ndarray
) -> None:
    assert int8.ByteSize() < fp32.ByteSize() / 3
    expected, found = (Probe(model, ["anomaly_map"], 1).infer(frames[:2]) for model in (fp32, int8))
    error = map_error(found, expected, float(expected["anomaly_map"].max()))
    assert 0 < error < INT8_MAP_ERROR


def test_openvino_computes_it_as_onnxruntime_does(int8: onnx.ModelProto, frames: np.ndarray, tmp_path: Path) -> None:
    """With the convolutions that read the images in INT8 it did not on a processor with VNNI and without AMX."""
    onnx.save(int8, tmp_path / "nnet.int8.onnx")
    maps = []
    for kind in ("onnxruntime", "openvino"):
        with load_runner(tmp_path / "nnet.int8.onnx", RunnerSettings(kind=kind, threads=1)) as runner:
            maps.append(runner.infer(frames[:2]).anomaly_map)
    assert np.abs(maps[0] - maps[1]).mean() < RUNNERS_MAP_ERROR * maps[0].max()


def test_kept_blocks_and_layers_are_exactly_as_before(
    planned: Plan, activations: Activations, fp32: onnx.ModelProto, frames: np.ndarray
) -> None:
    everything = insert_qdq(planned, activations, kept=planned.blocks)
    assert not [node for node in everything.graph.node if node.op_type.endswith("Linear")]
    before, after = (Probe(model, ["anomaly_map"], 1).infer(frames[:1]) for model in (fp32, everything))
    assert np.array_equal(before["anomaly_map"], after["anomaly_map"])
    layer = "teacher.stages.0.3.0.conv_dw"
    one = insert_qdq(planned, activations, kept=[layer])
    original = planned.layers[layer]
    (kept,) = (node for node in one.graph.node if node.name == original.name)
    assert list(kept.input) == list(original.input)
    with pytest.raises(CalibrationError, match=r"no block or layer .teacher\.eye."):
        quantize(planned, activations, kept=["teacher.eye"])


def test_the_bias_takes_back_what_rounded_weights_add() -> None:
    """A filter whose taps sum to nothing answers a plain surface with nothing, rounded or not."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (6, 1, 3, 3)).astype(np.float32)
    weight -= weight.mean(axis=(2, 3), keepdims=True)
    constants = {"dw.weight": weight, "dw.bias": np.zeros(6, np.float32)}
    node = helper.make_node("Conv", ["x", "dw.weight", "dw.bias"], ["y"], "dw", kernel_shape=[3, 3], group=6)
    graph = helper.make_graph(
        [node],
        "filter",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, 30, 30])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    only = Plan(model, (model.graph.node[0],), {}, {"dw": 1}, {"dw": 1})
    means = np.linspace(1, 6, 6)
    surface = np.broadcast_to(means[None, :, None, None], (1, 6, 32, 32)).astype(np.float32)
    rounded = insert_qdq(only, Activations({"x": 6.0}, {"x": means}, {"x": means}))
    values = values_of(rounded)
    weights = values["dw.weight_int8"] * values["dw.weight_scale"][:, None, None, None]
    plain = mean_response(node, weights, means)
    assert np.abs(plain).max() > 5e-3, "without the correction there would be an answer"
    assert plain + values["dw_corrected_bias"] == pytest.approx(np.zeros(6), abs=1e-5)
    direct = np.einsum("coyx,c->c", weights, surface[0, :, 0, 0])
    assert plain == pytest.approx(direct, abs=1e-5)


def test_a_channel_that_is_all_zero_and_an_input_that_never_moves_stay_finite(
    planned: Plan, activations: Activations
) -> None:
    still = replace(activations, ranges=dict.fromkeys(activations.ranges, 0.0))
    model = insert_qdq(planned, still)
    assert all(
        np.isfinite(value).all() and (value > 0).all()
        for name, value in values_of(model).items()
        if name.endswith("_scale")
    )


def test_the_graph_says_what_it_is(planned: Plan, activations: Activations) -> None:
    facts = {item.key: item.value for item in quantize(planned, activations, ["fusion.mix.0"]).metadata_props}
    assert facts["nnet_edge.precision"] == "int8"
    assert facts["nnet_edge.kept_in_fp32"] == "fusion.mix.0"
    assert json.loads(facts["nnet_edge.settings"])["backbone"] == "efficientnet_lite0", "the old facts are still there"


def test_no_frames_no_int8(planned: Plan, frames: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="real frames alone"):
        measure_activations(planned, frames[:0], QuantizeSettings(), lambda done, total: None)
    with pytest.raises(ConfigError, match="resize with"):
        measure_activations(planned, frames[:, ::2], QuantizeSettings(), lambda done, total: None)
    with pytest.raises(ConfigError, match="calibration method 'best' is unknown"):
        QuantizeSettings(method="best")


def test_a_graph_of_other_making_is_refused(fp32: onnx.ModelProto) -> None:
    with pytest.raises(CalibrationError, match=r"x\.onnx is no ONNX graph"):
        read_graph(b"\xff\xfe no graph", "x.onnx")
    bare = onnx.ModelProto()
    bare.CopyFrom(fp32)
    del bare.metadata_props[:]
    with pytest.raises(CalibrationError, match=r"x\.onnx has no facts of nnet-edge"):
        read_graph(bare.SerializeToString(), "x.onnx")
    del bare.graph.value_info[:]
    with pytest.raises(CalibrationError, match="does not say the shape"):
        plan(bare)


def test_an_operator_that_onnxruntime_does_not_know_is_said_so(fp32: onnx.ModelProto) -> None:
    odd = onnx.ModelProto()
    odd.CopyFrom(fp32)
    next(node for node in odd.graph.node if node.op_type == "Relu").op_type = "Relish"
    with pytest.raises(CalibrationError, match=r"ONNX Runtime cannot read the graph: .*Relish"):
        Probe(odd, ["anomaly_map"], 1)
