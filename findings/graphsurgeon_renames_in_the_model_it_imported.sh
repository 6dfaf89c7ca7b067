#!/usr/bin/env bash
# onnx-graphsurgeon 0.6.1: a constant that import_onnx() took from a model and that was renamed in the imported graph is renamed in
# the model, too, when the graph is exported: its weights are not copied before somebody reads them, and export_onnx() writes the new
# name into the same TensorProto. The model's nodes keep the old name, so the model that was imported is no longer valid. Once
# `constant.values` was read, it stays whole.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q onnx-graphsurgeon==0.6.1 onnx==1.23.2 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper


def convolution() -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "weight"], ["y"])], "g", ports[:1], ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def is_valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


for reads in (False, True):
    model = convolution()
    assert is_valid(model)
    graph = gs.import_onnx(model)
    constant = graph.nodes[0].inputs[1]
    if reads:
        constant.values
    constant.name = "renamed"
    assert is_valid(model) and model.graph.initializer[0].name == "weight"
    exported = gs.export_onnx(graph)
    assert is_valid(exported)
    name, wanted = model.graph.initializer[0].name, model.graph.node[0].input[1]
    print(f"values read first: {reads}; imported model: initializer {name!r}, node asks for {wanted!r}, valid: {is_valid(model)}")
    assert (name, wanted, is_valid(model)) == (("weight", "weight", True) if reads else ("renamed", "weight", False))
PY
echo "seen: exporting a graph renamed a weight of the model that it was imported from"
