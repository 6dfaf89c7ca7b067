"""Graphs of a few nodes that keep the contract of nnet-edge, or break it in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nnet_edge.anomaly_map import LAYER_MAPS

SETTINGS = {"align_corners": False, "scale_exponents": [0.1, 0.1, 1.0], "forward_weights": [1.0, 1.0, 0.5]}
FACTS = {
    "nnet_edge.system": "nnet",
    "nnet_edge.settings": json.dumps(SETTINGS),
    "nnet_edge.backbone": "small",
}
HEAD = (
    helper.make_node("Cast", ["images"], ["numbers"], "cast", to=TensorProto.FLOAT),
    helper.make_node("Transpose", ["numbers"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
    helper.make_node("Conv", ["planes", "weights"], ["grey"], "conv"),
)


def write_small_graph(
    path: Path,
    head: Sequence[NodeProto] = HEAD,
    extra: Sequence[NodeProto] = (),
    facts: dict[str, str] | None = None,
    number_type: int = TensorProto.UINT8,
    more: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A graph that averages the grey picture to six layer maps.

    `extra` nodes may use "grey" (N, 1, 256, 256) and the constants `more`.
    """
    sides = {name: int(name.split("_")[1]) for name in LAYER_MAPS}
    pools = [
        helper.make_node(
            "AveragePool", ["grey"], [name], name, kernel_shape=[256 // side] * 2, strides=[256 // side] * 2
        )
        for name, side in sides.items()
    ]
    tail = [
        helper.make_node("Relu", ["grey"], ["anomaly_map"], "tail"),
        helper.make_node("ReduceMax", ["grey", "axes"], ["image_score"], "score", keepdims=0),
    ]
    images = helper.make_tensor_value_info("images", number_type, ["batch", 256, 256, 3])
    shapes: dict[str, list[object]] = {name: ["batch", 1, side, side] for name, side in sides.items()}
    shapes |= {"anomaly_map": ["batch", 1, 256, 256], "image_score": ["batch"]}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    constants = [
        numpy_helper.from_array(np.full((1, 3, 1, 1), 1 / 765, np.float32), "weights"),
        numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
    ]
    constants += [numpy_helper.from_array(values, name) for name, values in (more or {}).items()]
    graph = helper.make_graph([*head, *extra, *pools, *tail], "small", [images], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    helper.set_model_props(model, FACTS if facts is None else facts)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def write_graph() -> Callable[..., Path]:
    """`write_small_graph`, for tests: they import no module of other tests."""
    return write_small_graph
