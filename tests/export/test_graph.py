"""The one graph: its contract, its tail, and the parity of all runners on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import scipy.ndimage
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from nnet_edge.anomaly_map import LAYER_MAPS, PAPER_FUSION, Fusion, anomaly_map
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.errors import ExportError, ParityError
from nnet_edge.evaluation.artefact import open_weights
from nnet_edge.export import onnx_graph
from nnet_edge.export.bundling import check_parity, compare, export_bundle, reference_outputs
from nnet_edge.export.onnx_graph import OPSET, add_tail, suit_processors
from nnet_edge.frame import Outputs
from nnet_edge.geometry import Geometry
from nnet_edge.methods.nnet.settings import TUNED
from nnet_edge.runtime.runners.base import infer_all, load_runner
from nnet_edge.runtime.runners.graph_facts import fusion_of, read_facts
from nnet_edge.runtime.runners.onnx_runner import onnxruntime
from nnet_edge.scoring import MARGIN
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.training.checkpoint import read_checkpoint, read_held_out

TAIL_ATOL = 1e-5  # FP32 products of matrices whose rows sum to 1, maps up to 64


@pytest.fixture
def graph(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.graph)


def maps_only_graph(names: tuple[str, ...]) -> onnx.ModelProto:
    """A graph that hands its inputs, the layer maps, through."""
    shapes = {name: ["batch", 1, int(name.split("_")[1]), int(name.split("_")[1])] for name in names}
    inputs = [helper.make_tensor_value_info(f"in_{name}", TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    nodes = [helper.make_node("Identity", [f"in_{name}"], [name]) for name in names]
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(helper.make_graph(nodes, "maps", inputs, outputs), opset_imports=opsets, ir_version=10)


def run_tail(maps: dict[str, np.ndarray], fusion: Fusion = PAPER_FUSION) -> tuple[np.ndarray, np.ndarray]:
    model = add_tail(maps_only_graph(tuple(maps)), fusion=fusion)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {f"in_{name}": value for name, value in maps.items()}
    found, score = session.run(["anomaly_map", "image_score"], feed)
    return found, score


def random_maps(names: tuple[str, ...] = LAYER_MAPS, count: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    sides = {name: int(name.split("_")[1]) for name in names}
    return {name: rng.uniform(0, 2, (count, 1, side, side)).astype(np.float32) for name, side in sides.items()}


def test_inputs_and_outputs_are_the_contract(graph: onnx.ModelProto) -> None:
    (images,) = graph.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == TensorProto.UINT8
    shape = [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim]
    assert shape == ["batch", 256, 256, 3]
    found = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.graph.output}
    sides = {name: int(name.split("_")[1]) for name in LAYER_MAPS}
    expected: dict[str, list[object]] = {name: ["batch", 1, side, side] for name, side in sides.items()}
    assert found == expected | {"anomaly_map": ["batch", 1, 256, 256], "image_score": ["batch"]}


def test_only_the_cast_sees_uint8_and_nothing_resizes(graph: onnx.ModelProto) -> None:
    takers = [node.op_type for node in graph.graph.node if "images" in node.input]
    assert takers == ["Cast"]
    assert not {node.op_type for node in graph.graph.node} & {"Resize", "BatchNormalization", "Pad_reflect", "Dropout"}


def test_opset_and_metadata(bundle: Bundle, graph: onnx.ModelProto) -> None:
    assert [(item.domain, item.version) for item in graph.opset_import if item.domain == ""] == [("", 18)]
    assert {item.domain for item in graph.opset_import} <= {"", "ai.onnx"}
    facts = read_facts(bundle.graph)
    assert facts["system"] == "nnet"
    assert facts["backbone"] == "efficientnet_lite0"
    assert "uint8 RGB NHWC" in facts["input"]


def test_a_second_export_gives_the_same_names(bundle: Bundle, second_run: Path) -> None:
    """Of the same network with other weights, for another size: what `calibrate` keeps apart goes by the names.

    Those of the tail count what the fusion needs.
    """

    def names(model: onnx.ModelProto, of_tail: bool) -> list[str]:
        return [node.name for node in model.graph.node if node.name.startswith("node_tail_") == of_tail]

    models = [onnx.load(one.graph) for one in (bundle, read_bundle(second_run / "run/bundle"))]
    first, second = (names(model, of_tail=False) for model in models)
    assert first == second
    fusions = [fusion_of(read_facts(one.graph)) for one in (bundle, read_bundle(second_run / "run/bundle"))]
    for model, fusion in zip(models, fusions, strict=True):
        alone = names(add_tail(maps_only_graph(LAYER_MAPS), fusion=fusion), of_tail=True)
        assert sorted(names(model, of_tail=True)) == sorted(alone) != []


class Small(nn.Module):
    """Says how bright the pictures are; `how` may put their number into the graph."""

    output_names = ("brightness",)
    geometry = Geometry(32, 32)

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, images: Tensor) -> Tensor:
        bright = images.float().mean(dim=(1, 2))
        if self.how == "rows":
            return bright.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 3).reshape(images.shape[0], 6)
        return bright / images.shape[0] if self.how == "share" else bright


@pytest.mark.parametrize(("how", "traces"), [("plain", 1), ("rows", 2), ("share", 2)])
def test_a_graph_takes_any_batch_whether_it_states_the_batch_or_not(
    how: str, traces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = onnx_graph.run_exporter
    monkeypatch.setattr(onnx_graph, "run_exporter", lambda *what: asked.append(what) or real(*what))
    model = onnx_graph.trace(Small(how))  # type: ignore[arg-type]
    assert len(asked) == traces
    images = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"images": images})[0], Small(how)(torch.from_numpy(images)), rtol=1e-5
        )
    assert "97" not in str(model.graph)


@pytest.mark.parametrize("names", [LAYER_MAPS, LAYER_MAPS[3:], LAYER_MAPS[:3]], ids=["both", "reverse", "forward"])
@pytest.mark.parametrize(
    "fusion",
    [
        PAPER_FUSION,
        TUNED.model.fusion,
        Fusion(False, (0.0, 0.5, 1.0), (0.0, 2.0, 0.3)),
        Fusion(False, (0.5, 1.0, 2.0), (0.1, 1.0, 0.25), "sum"),
    ],
)
def test_the_tail_is_the_reference(names: tuple[str, ...], fusion: Fusion) -> None:
    maps = random_maps(names)
    found, score = run_tail(maps, fusion)
    np.testing.assert_allclose(found, anomaly_map(maps, fusion=fusion), atol=TAIL_ATOL, rtol=1e-6)
    np.testing.assert_array_equal(score, found.max(axis=(1, 2, 3)))


def test_rounding_below_zero_makes_no_nan() -> None:
    maps = {name: np.full_like(value, -1e-7) for name, value in random_maps().items()}
    found, _ = run_tail(maps, TUNED.model.fusion)
    assert np.isfinite(found).all()


def test_the_tail_has_scipys_border() -> None:
    maps = {name: np.ones_like(value) for name, value in random_maps().items()}
    corner = np.zeros((3, 1, 64, 64), np.float32)
    corner[:, :, 0, 0] = 1.0
    maps["forward_64"], maps["reverse_64"] = corner, np.zeros_like(corner)
    found, _ = run_tail(maps)
    fraction = np.maximum(0, 1 - np.arange(256) * 63 / 255)  # bilinear enlargement of the corner, corners aligned
    expected = 4 * scipy.ndimage.gaussian_filter(np.outer(fraction, fraction), sigma=4)
    np.testing.assert_allclose(found[0, 0], expected, atol=TAIL_ATOL)


def test_a_tail_needs_layer_maps() -> None:
    model = maps_only_graph(("forward_64",))
    model.graph.output[0].name = model.graph.node[0].output[0] = "something"
    with pytest.raises(ExportError, match="layer maps"):
        add_tail(model)


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_runners_agree_with_torch_whatever_the_batch(kind: str, trained_run: Path, bundle: Bundle) -> None:
    images = read_held_out(trained_run / "training")
    torch_runner = open_weights(bundle, RunnerSettings())
    with load_runner(bundle.graph, RunnerSettings(kind=kind, max_batch=8)) as runner:
        found, expected = infer_all(runner, images), infer_all(torch_runner, images)
        parity = check_parity("torch", expected, kind, found, bundle.threshold.value)
        assert parity.holds
        assert parity.flipped_verdicts == 0
        alone = np.concatenate([runner.infer(images[n : n + 1]).image_score for n in range(len(images))])
    np.testing.assert_allclose(alone, expected.image_score, rtol=1e-4)


def test_parity_fails_on_a_map_a_score_a_flip_or_a_nan() -> None:
    maps = {"reverse_16": np.full((2, 1, 16, 16), 0.5, np.float32)}
    good = Outputs(np.ones((2, 256, 256), np.float32), np.array([1.0, 2.0], np.float32), maps)
    assert compare("a", "b", good, good, 1.5).holds
    nudged = {"reverse_16": maps["reverse_16"] + np.float32(2e-4)}
    assert not compare("a", "b", good, Outputs(good.anomaly_map, good.image_score, nudged), None).holds
    assert not compare(
        "a", "b", good, Outputs(good.anomaly_map, good.image_score * np.float32(1.001), maps), None
    ).holds
    flipped = compare("a", "b", good, Outputs(good.anomaly_map, good.image_score * np.float32(1.00005), maps), 2.00005)
    assert flipped.flipped_verdicts == 1
    assert not flipped.holds
    broken = {"reverse_16": np.full((2, 1, 16, 16), np.nan, np.float32)}
    assert not compare("a", "b", good, Outputs(good.anomaly_map, good.image_score, broken), None).holds


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_parity_names_the_runner_and_the_frame_of_what_is_not_finite(bad: float, washers: np.ndarray) -> None:
    class Judges:
        name, precision, max_batch, input_shape = "one", "fp32", 2, (256, 256, 3)

        def __init__(self, name: str, value: float) -> None:
            self.name, self.value, self.seen = name, value, 0

        def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
            self.seen += len(images)
            maps = np.ones((len(images), 256, 256), np.float32)
            maps[-1, 3, 4] = self.value if self.seen == 4 else 1.0
            return Outputs(maps, np.ones(len(images), np.float32))

    says = "the network gives NaN or infinite scores .one, .* 1 of 6 images .* the first is number 4 with the score 1"
    with pytest.raises(ParityError, match=says):
        reference_outputs(Judges("one", bad), washers)  # type: ignore[arg-type]
    good = reference_outputs(Judges("one", 1.0), washers)  # type: ignore[arg-type]
    found = infer_all(Judges("other", bad), washers)  # type: ignore[arg-type]
    with pytest.raises(ParityError, match=r"nnet\.onnx on other, .* 1 of 6 images .* the first is number 4"):
        check_parity("one", good, "other", found)


def test_a_bundle_that_fails_parity_is_not_written(
    trained_run: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "nnet_edge.export.bundling.export_onnx", lambda *rest: onnx.load(bundle.graph)
    )  # the same again
    monkeypatch.setattr("nnet_edge.export.bundling.LAYER_MAP_ATOL", -1.0)  # nothing is this good
    with pytest.raises(ParityError, match="No bundle was written"):
        export_bundle(trained_run / "training", tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_threshold_is_the_deployed_runners(trained_run: Path, bundle: Bundle) -> None:
    images = read_held_out(trained_run / "training")
    with load_runner(bundle.graph, RunnerSettings()) as runner:
        scores = infer_all(runner, images).image_score
    assert bundle.threshold.value == pytest.approx(float(scores.max()) * (1 + MARGIN), rel=1e-6)
    assert bundle.manifest["threshold"]["chosen_on"] == {"name": "openvino", "precision": "fp32"}
    assert read_checkpoint(trained_run / "training").epoch == bundle.manifest["trained"]["epochs"] == 4


def addressing_graph() -> onnx.ModelProto:
    """A memory of 5 slots for 3 channels that shrinks its weights, and three means of what it recalls."""
    keys = np.random.default_rng(1).normal(size=(5, 3, 1, 1)).astype(np.float32)
    constants = {
        "keys": keys,
        "values": keys.transpose(1, 0, 2, 3),
        "least": np.float32(0.1),
        "channels": np.array([1]),
        "height": np.array([2]),
        "width": np.array([-1]),
        "both": np.array([2, 3]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "keys"], ["similarity"]),
        helper.make_node("Softmax", ["similarity"], ["weights"], axis=1),
        helper.make_node("Sub", ["weights", "least"], ["over"]),
        helper.make_node("Relu", ["over"], ["shrunk"]),
        helper.make_node("Mul", ["shrunk", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "channels"], ["sum"], keepdims=1),
        helper.make_node("Div", ["kept", "sum"], ["address"]),
        helper.make_node("Conv", ["address", "values"], ["recalled"]),
        *(helper.make_node("ReduceMean", ["recalled", axes], [f"mean_{axes}"], keepdims=1)
          for axes in ("height", "width", "both")),
    ]  # fmt: skip
    for number, node in enumerate(nodes):
        node.name = f"node_{number}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 6])]
    outputs = [helper.make_tensor_value_info(f"mean_{axes}", TensorProto.FLOAT, ["batch", 3, *size])
               for axes, size in (("height", [1, 6]), ("width", [4, 1]), ("both", [1, 1]))]  # fmt: skip
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "memory", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def test_forms_that_processors_compute_faster_compute_the_same() -> None:
    before = addressing_graph()
    after = suit_processors(before)
    onnx.checker.check_model(after, full_check=True)
    kinds = [node.op_type for node in after.graph.node]
    assert (kinds.count("AveragePool"), kinds.count("ReduceMean"), kinds.count("Transpose")) == (2, 1, 2)
    x = np.random.default_rng(2).normal(size=(3, 3, 4, 6)).astype(np.float32)
    expected, found = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for model in (before, after)
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_exported_memory_has_its_slots_last(graph: onnx.ModelProto) -> None:
    (softmax,) = (node for node in graph.graph.node if node.op_type == "Softmax")
    assert [item.i for item in softmax.attribute if item.name == "axis"] == [3]
    assert {"memory.keys.weight", "memory.values.weight"} <= {item.name for item in graph.graph.initializer}
    assert "ReduceMean" not in {node.op_type for node in graph.graph.node}
