"""What is not finite in a layer map reaches score and map of every graph, on every runner, wherever it stands."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nnet_edge.anomaly_map import LAYER_MAPS, PAPER_FUSION, Fusion
from nnet_edge.bundle import Bundle
from nnet_edge.calibration.qdq import plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_activations, quantize
from nnet_edge.export.onnx_graph import add_tail
from nnet_edge.export.precision import to_half
from nnet_edge.runtime.runners.onnx_runner import onnxruntime
from nnet_edge.runtime.runners.openvino_runner import openvino

TAIL = ["anomaly_map", "image_score"]
POWERS = Fusion(False, (0.1, 2.0, 0.5), (1.0, 0.1, 2.0))


class Compiled:
    """A graph on one runner, for one image."""

    def __init__(self, kind: str, model: onnx.ModelProto) -> None:
        content, self.kind = model.SerializeToString(), kind
        if kind == "onnxruntime":
            self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        else:
            core = openvino.Core()
            read = core.read_model(content)
            read.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in read.inputs})
            self.compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def infer(self, feed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Map and score."""
        if self.kind == "onnxruntime":
            anomaly_map, score = self.session.run(TAIL, dict(feed))
            return anomaly_map, score
        found = self.compiled(dict(feed))
        return found["anomaly_map"].copy(), found["image_score"].copy()


def place_of(name: str) -> tuple[int, int]:
    return int(name.split("_")[1]), int(name.split("_")[1])


def info(name: str, of: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, *place_of(of)])


def tail_alone(fusion: Fusion) -> onnx.ModelProto:
    """The tail on inputs that a test poisons: `poison_` and the layer map's name."""
    nodes = [helper.make_node("Identity", [f"poison_{name}"], [name]) for name in LAYER_MAPS]
    inputs, outputs = ([info(f"{start}{name}", name) for name in LAYER_MAPS] for start in ("poison_", ""))
    opsets = [helper.make_opsetid("", 18)]
    graph = helper.make_graph(nodes, "maps", inputs, outputs)
    return add_tail(helper.make_model(graph, opset_imports=opsets, ir_version=10), fusion=fusion)


def with_poison(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of a bundle, with `poison_` inputs that are added to its layer maps before the tail takes them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.input[:] = [f"poisoned_{name}" if name in LAYER_MAPS else name for name in node.input]
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        nodes += [
            helper.make_node("Add", [name, f"poison_{name}"], [f"poisoned_{name}"], name=f"node_poison_{name}")
            for name in node.output
            if name in LAYER_MAPS
        ]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    copy.graph.input.extend(info(f"poison_{name}", name) for name in LAYER_MAPS)
    onnx.checker.check_model(copy)
    return copy


def require_poison_shown(compiled: Compiled, clean: Mapping[str, np.ndarray]) -> None:
    """Each layer map poisoned at its first, last and inner places: neither score nor map may stay finite."""
    anomaly_map, score = compiled.infer(clean)
    assert np.isfinite(score).all()
    assert np.isfinite(anomaly_map).all()
    np.testing.assert_array_equal(score, anomaly_map.max(axis=(1, 2, 3)))
    for name in LAYER_MAPS:
        height, width = place_of(name)
        for place in ((0, 0), (0, width - 1), (height // 2, width // 3), (height - 1, width - 1)):
            for value in (np.nan, np.inf, -np.inf):
                poisoned = clean[f"poison_{name}"].copy()
                poisoned[(0, 0, *place)] = value
                anomaly_map, score = compiled.infer({**clean, f"poison_{name}": poisoned})
                where = f"{compiled.kind}: {value} at {place} of {name}"
                assert not np.isfinite(score).any(), where
                assert not np.isfinite(anomaly_map.sum()), where


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    "fusion",
    [PAPER_FUSION, POWERS, Fusion(False, (0.5, 1.0, 2.0), (0.1, 1.0, 0.25), "sum")],
    ids=["paper", "powers", "sum"],
)
def test_the_tail_keeps_what_is_not_finite(kind: str, fusion: Fusion) -> None:
    rng = np.random.default_rng(3)
    maps = {f"poison_{name}": rng.uniform(0, 2, (1, 1, *place_of(name))).astype(np.float32) for name in LAYER_MAPS}
    require_poison_shown(Compiled(kind, tail_alone(fusion)), maps)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_graphs_of_every_precision_keep_what_is_not_finite(bundle: Bundle, precision: str) -> None:
    model, frames = onnx.load(bundle.graph), bundle.frames("held_out")[:1]
    if precision == "fp16":
        model = to_half(model, frames, threads=1)
    elif precision == "int8":
        planned = plan(model)
        settings = QuantizeSettings(method="max", threads=1)
        model = quantize(planned, measure_activations(planned, frames, settings, lambda done, total: None))
    poisoned = with_poison(model)
    clean = {f"poison_{name}": np.zeros((1, 1, *place_of(name)), np.float32) for name in LAYER_MAPS}
    for kind in ("openvino", "onnxruntime"):
        # a few places of a whole network; the tail's test has them all
        compiled = Compiled(kind, poisoned)
        for name in LAYER_MAPS:
            poison = clean[f"poison_{name}"].copy()
            poison[0, 0, -1, 0] = np.nan
            anomaly_map, score = compiled.infer({"images": frames, **clean, f"poison_{name}": poison})
            assert not np.isfinite(score).any(), (kind, name)
            assert not np.isfinite(anomaly_map.sum()), (kind, name)
        assert np.isfinite(compiled.infer({"images": frames, **clean})[1]).all()
