#!/usr/bin/env bash
# One NaN among the inputs of a Softmax: ONNX Runtime 1.32.0 gives NaN for the whole row, as the formula does; OpenVINO 2026.4.1
# (CPU plug-in) gives NaN at that entry, at times at a few that share its vector lane, and exactly 0 for all others: no
# probability is left and nothing says so.
set -euo pipefail
export ORT_DISABLE_TELEMETRY=1
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-deps openvino==2026.4.1 numpy==2.4.6 onnxruntime==1.32.0 flatbuffers==25.12.19 \
    onnx==1.23.2 protobuf==7.35.1 ml_dtypes==0.6.0 typing_extensions==4.16.0 packaging==26.2
"$dir/venv/bin/python" - <<'PY'
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper

SIZE = 40
graph = helper.make_graph(
    [helper.make_node("Softmax", ["x"], ["y"])],
    "softmax",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIZE])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SIZE])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
core = openvino.Core()
compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for place in (0, 17, SIZE - 1):
    values = np.linspace(0.1, 0.9, SIZE, dtype=np.float32)[None].copy()
    values[0, place] = np.nan
    expected = session.run(None, {"x": values})[0][0]
    given = compiled([values])[compiled.output(0)][0]
    others = given[~np.isnan(given)]
    print(f"NaN at {place}: NaN in {np.isnan(expected).sum()} of {SIZE} by ONNX Runtime; by OpenVINO {SIZE - others.size}, the rest sum up to {others.sum()}")
    assert np.isnan(expected).all(), "ONNX Runtime changed"
    assert np.isnan(given[place]) and others.size > SIZE // 2 and not others.any(), "OpenVINO changed"
PY
