"""FP16 in the graph: half outside the region, nothing changed at its doors, overflow found on real frames."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from nnet_edge.bundle import Bundle, graph_name
from nnet_edge.calibration.fp32_region import CONVOLUTIONS, Wiring, fp32_region_of, head_of
from nnet_edge.calibration.qdq import plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_activations, quantize
from nnet_edge.errors import CalibrationError, ConfigError
from nnet_edge.export.precision import cast_graph, to_half
from nnet_edge.runtime.runners.base import infer_all, load_runner
from nnet_edge.settings.runner import RunnerSettings

HALF_LAYER_MAP_MEAN = 0.005  # half has 11 significant bits; layer maps lie in [0, 2] and sum hundreds of products
HALF_LAYER_MAP_ATOL = (
    0.05  # at the worst place: where a feature is short its direction is rough, and the network trains here
)
HALF_SCORE_RTOL = 0.02


@pytest.fixture
def fp32(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.graph)


@pytest.fixture
def frames(bundle: Bundle) -> np.ndarray:
    return bundle.frames("held_out")[:2]


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {
        item.name: item.type.tensor_type.elem_type for item in (*inferred.value_info, *inferred.output, *inferred.input)
    }
    return known | {item.name: item.data_type for item in model.graph.initializer}


def test_convolutions_are_half_and_the_fp32_region_is_not(fp32: onnx.ModelProto, frames: np.ndarray) -> None:
    half = to_half(fp32, frames, threads=1)
    onnx.checker.check_model(half)
    types, wiring = types_of(half), Wiring(fp32.graph)
    kept = fp32_region_of(wiring, head_of(wiring))
    for node in half.graph.node:
        wanted = TensorProto.FLOAT if node.name in kept else TensorProto.FLOAT16
        if node.op_type in (*CONVOLUTIONS, "Softmax", "Pow", "ReduceSum"):
            assert {types[name] for name in (*node.input[:1], *node.output)} == {wanted}, node.name
    assert Counter(node.op_type for node in half.graph.node)["Cast"] < 40, "casts stand at the region's shore only"


def test_inputs_and_outputs_stay_as_they_were(fp32: onnx.ModelProto, frames: np.ndarray) -> None:
    half = to_half(fp32, frames, threads=1)
    for before, after in ((fp32.graph.input, half.graph.input), (fp32.graph.output, half.graph.output)):
        assert [(item.name, item.type) for item in before] == [(item.name, item.type) for item in after]
    assert next(item.value for item in half.metadata_props if item.key == "nnet_edge.precision") == "fp16"
    assert half.ByteSize() < 0.55 * fp32.ByteSize()


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_both_runners_compute_it_as_fp32_within_half(
    fp32: onnx.ModelProto, bundle: Bundle, frames: np.ndarray, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / graph_name("fp16")
    onnx.save(to_half(fp32, frames, threads=1), path)
    settings = RunnerSettings(kind=kind, threads=1)
    with load_runner(bundle.graph, settings) as reference, load_runner(path, settings) as runner:
        assert runner.precision == "fp16"
        expected, found = infer_all(reference, frames), infer_all(runner, frames)
    for name, layer_map in expected.layer_maps.items():
        error = np.abs(layer_map - found.layer_maps[name])
        assert error.mean() < HALF_LAYER_MAP_MEAN
        assert error.max() < HALF_LAYER_MAP_ATOL
    assert found.image_score == pytest.approx(expected.image_score, rel=HALF_SCORE_RTOL)


def test_a_node_that_would_overflow_stays_fp32(fp32: onnx.ModelProto, frames: np.ndarray) -> None:
    """The first layer's bias is so large that its output fits into no half float; the next one divides by it again."""
    loud = onnx.ModelProto()
    loud.CopyFrom(fp32)
    node = next(
        node for node in loud.graph.node if node.op_type == "Conv" and node.input[1].startswith("teacher.stages.1")
    )
    bias = next(item for item in loud.graph.initializer if item.name == node.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[0] = 1e5
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    half = to_half(loud, frames, threads=1)
    types = types_of(half)
    assert types[node.output[0]] == TensorProto.FLOAT
    others = [
        other for other in half.graph.node if other.op_type == "Conv" and types[other.output[0]] == TensorProto.FLOAT16
    ]
    assert len(others) > 80


def test_an_int8_graph_takes_half_for_the_rest(fp32: onnx.ModelProto, frames: np.ndarray) -> None:
    planned = plan(fp32)
    activations = measure_activations(planned, frames, QuantizeSettings(threads=1), lambda done, total: None)
    both = to_half(quantize(planned, activations), frames, threads=1)
    onnx.checker.check_model(both)
    types = types_of(both)
    readers = {name: node for node in both.graph.node for name in node.input}
    pairs = [node for node in both.graph.node if node.op_type == "DequantizeLinear"]
    scales = Counter(types[node.input[1]] for node in pairs if readers[node.output[0]].op_type in CONVOLUTIONS)
    assert set(scales) == {TensorProto.FLOAT16}, "a convolution's type is that of its scales"
    assert scales[TensorProto.FLOAT16] > 150
    values = {item.name: numpy_helper.to_array(item) for item in both.graph.initializer}
    assert all((values[node.input[1]] > 0).all() for node in pairs), "TensorRT refuses a scale that became 0 in half"
    assert next(item.value for item in both.metadata_props if item.key == "nnet_edge.precision") == "int8"


def test_an_output_that_became_half_is_cast_back(fp32: onnx.ModelProto) -> None:
    everything_half = cast_graph(fp32, kept=[])
    types = types_of(everything_half)
    assert {types[output.name] for output in fp32.graph.output} == {TensorProto.FLOAT}


def test_no_frames_no_fp16(fp32: onnx.ModelProto, frames: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="on real frames alone"):
        to_half(fp32, frames[:0])
    with pytest.raises(ConfigError, match="resize with"):
        to_half(fp32, frames[:, :64])
