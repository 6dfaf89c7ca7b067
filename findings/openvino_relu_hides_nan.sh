#!/usr/bin/env bash
# OpenVINO 2026.4.1 (CPU plug-in) turns NaN into a number in Relu (0), Clip (its lower bound), Min(x, 1) (1) and Max(x, 0) (0),
# while Max(0, x) keeps it. ONNX Runtime 1.32.0 keeps NaN in all five. A network with one NaN weight therefore gives plausible
# scores on one and NaN on the other.
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

ZERO, ONE = (helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in (("zero", 0.0), ("one", 1.0)))
CASES = {  # operator and inputs: what OpenVINO makes of NaN
    ("Relu", "x"): 0.0,
    ("Clip", "x", "zero"): 0.0,
    ("Max", "x", "zero"): 0.0,
    ("Min", "x", "one"): 1.0,
    ("Max", "zero", "x"): np.nan,
}
images = np.array([[0.1, np.nan, 0.5, 0.9]], np.float32)
for (operator, *inputs), expected in CASES.items():
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"])],
        operator,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [constant for constant in (ZERO, ONE) if constant.name in inputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    kept = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": images})[0][0, 1]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = compiled([images])[compiled.output(0)][0, 1]
    print(f"{operator}({', '.join(inputs)}) of NaN: ONNX Runtime {kept}, OpenVINO {given}")
    assert np.isnan(kept), f"ONNX Runtime changed: {operator}"
    assert np.array_equal(given, expected, equal_nan=True), f"OpenVINO changed: {operator} gives {given}, was {expected}"
PY
