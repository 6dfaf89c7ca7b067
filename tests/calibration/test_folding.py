"""The rounding that does a ReLU's work: what is computed stays the same, only the steps get finer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from nnet_edge.calibration import qdq as placement
from nnet_edge.calibration.folding import HEADROOM, LEAST_SHARE, find_folds, fold
from nnet_edge.calibration.fp32_region import Wiring
from nnet_edge.calibration.qdq import LARGEST_INT8, Plan, insert_qdq
from nnet_edge.calibration.ranges import Activations, Probe

CHANNELS = 6
RELU6 = helper.make_node("Clip", ["made", "zero", "six"], ["relu"], "relu")
RELU = helper.make_node("Relu", ["made"], ["relu"], "relu")


def small_graph(relu: onnx.NodeProto, kind: str, pads: int = 0, extra_reader: bool = False) -> onnx.GraphProto:
    """Convolution, ReLU, convolution: a pointwise or a depthwise one."""
    random = np.random.default_rng(3)
    shape = {"pointwise": (4, CHANNELS, 1, 1), "depthwise": (CHANNELS, 1, 3, 3)}[kind]
    constants = {
        "a.weight": random.normal(size=(CHANNELS, 3, 3, 3)),
        "a.bias": random.normal(size=CHANNELS),
        "b.weight": random.normal(size=shape),
        "b.bias": random.normal(size=shape[0]),
        "zero": np.array(0.0),
        "six": np.array(6.0),
    }
    group = CHANNELS if kind == "depthwise" else 1
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["made"], "a", pads=[1] * 4),
        relu,
        helper.make_node("Conv", ["relu", "b.weight", "b.bias"], ["y"], "b", group=group, pads=[pads] * 4),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if extra_reader:
        nodes.append(helper.make_node("Neg", ["relu"], ["z"], "neg"))
        outputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    return helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])],
        outputs,
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )


def computed(graph: onnx.GraphProto, x: np.ndarray, name: str = "y") -> np.ndarray:
    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    del copy.output[:]
    copy.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    model = helper.make_model(copy, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])  # type: ignore[index]


def with_clip_of_rounding(graph: onnx.GraphProto, span: float) -> onnx.GraphProto:
    """The graph with what INT8 does to the reader's input but for the steps: -128 to 127 times the scale."""
    reader = graph.node[-1]
    for name, level in (("lowest", -128), ("highest", 127)):
        graph.initializer.append(numpy_helper.from_array(np.float32(level * span / LARGEST_INT8), name))
    clip = helper.make_node("Clip", [reader.input[0], "lowest", "highest"], ["rounded"], "rounded")
    reader.input[0] = "rounded"
    graph.node.insert(len(graph.node) - 1, clip)
    return graph


@pytest.mark.parametrize("relu", [RELU6, RELU], ids=["relu6", "relu"])
@pytest.mark.parametrize(("kind", "pads"), [("pointwise", 0), ("depthwise", 1)])
def test_a_fold_computes_the_same(relu: onnx.NodeProto, kind: str, pads: int) -> None:
    graph = small_graph(relu, kind, pads)
    x = 2 * np.random.default_rng(5).normal(size=(1, 3, 9, 9)).astype(np.float32)
    before, inner = computed(graph, x), computed(graph, x, "relu")
    activations = Activations(
        {"relu": float(inner.max())}, {"relu": inner.mean(axis=(0, 2, 3))}, {"relu": inner.max(axis=(0, 2, 3))}
    )
    (found,) = find_folds(Wiring(graph), {"b"})
    folded = fold(graph, [found], activations)
    reader = graph.node[-1].input[0]
    step = folded.ranges[reader] / LARGEST_INT8
    made = computed(graph, x, reader).clip(-128 * step, 127 * step)
    if kind == "pointwise":
        assert reader == "made", "the rounding is the ReLU"
        assert "relu" not in {node.name for node in graph.node}
        assert 255 * step == pytest.approx(inner.max()), "all 255 steps, not half of them"
    assert made.mean(axis=(0, 2, 3)) == pytest.approx(folded.means[reader], abs=1e-5), "the bias correction needs it"
    after = computed(with_clip_of_rounding(graph, folded.ranges[reader]), x)
    assert after == pytest.approx(before, abs=1e-4)


def test_each_channel_of_a_depthwise_input_gets_its_own_range_with_headroom() -> None:
    graph = small_graph(RELU6, "depthwise", 1)
    peaks = np.array([6.0, 5.9, 3.0, 0.6, 0.001, 0.0])
    activations = Activations({"relu": 6.0}, {"relu": np.zeros(CHANNELS)}, {"relu": peaks})
    old = {item.name: numpy_helper.to_array(item).copy() for item in graph.initializer}
    assert fold(graph, find_folds(Wiring(graph), {"b"}), activations).ranges["relu"] == 6.0
    new = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    ranges = 6 * (old["a.weight"] / new["a.weight"])[:, 0, 0, 0]
    least = 6 * LEAST_SHARE
    assert ranges == pytest.approx([6.0, 6.0, 3 * HEADROOM, 0.6 * HEADROOM, least, least], rel=1e-4)


@pytest.mark.parametrize(
    ("graph", "chosen", "why"),
    [
        (small_graph(RELU6, "pointwise", extra_reader=True), {"b"}, "somebody else reads the ReLU"),
        (small_graph(RELU6, "pointwise", pads=1), {"b"}, "padding of a shifted tensor is not zero"),
        (small_graph(RELU6, "pointwise"), {"a"}, "the reader stays FP32"),
        (small_graph(helper.make_node("Clip", ["made", "six"], ["relu"]), "pointwise"), {"b"}, "it is no ReLU"),
        (small_graph(helper.make_node("Sigmoid", ["made"], ["relu"]), "pointwise"), {"b"}, "it is no ReLU"),
    ],
)
def test_what_cannot_be_folded_is_left(graph: onnx.GraphProto, chosen: set[str], why: str) -> None:
    assert find_folds(Wiring(graph), chosen) == [], why


def test_folds_make_the_real_graph_more_exact(
    planned: Plan, activations: Activations, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against at the projections: their results no fold rescales, and no random map of a small training is between."""
    folds = find_folds(Wiring(planned.model.graph), {node.name for node in planned.convolutions})
    assert sum(each.is_depthwise for each in folds) >= 16, "every depthwise convolution of teacher and student"
    projections = [each.reader.output[0] for each in folds if not each.is_depthwise]
    assert len(projections) >= 16, "and every projection after one"
    fp32 = Probe(planned.model, projections, 1).infer(frames)

    def errors() -> np.ndarray:
        int8 = Probe(insert_qdq(planned, activations), projections, 1).infer(frames)
        return np.array([np.linalg.norm(int8[name] - fp32[name]) / np.linalg.norm(fp32[name]) for name in projections])

    with_folds = errors()
    monkeypatch.setattr(placement, "find_folds", lambda wiring, chosen: [])
    shares = with_folds / errors()  # seen: 0.73 to 0.90, 0.81 in the middle
    assert shares.max() < 1
    assert np.median(shares) < 0.9
