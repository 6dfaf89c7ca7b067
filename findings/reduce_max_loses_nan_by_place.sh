#!/usr/bin/env bash
# ReduceMax over 4 or 40 values of which one is NaN. ONNX Runtime 1.32.0 answers NaN only when it stands first; OpenVINO 2026.4.1
# (CPU plug-in) only when it stands last. In between both answer the largest of the others; for a NaN at the other end, ONNX
# Runtime answers the largest value BEFORE it. ReduceMean keeps NaN on both.
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


def answers(operator: str, values: np.ndarray) -> tuple[float, float]:
    """What ONNX Runtime and OpenVINO give."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], keepdims=0)],
        operator,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": values})[0]), float(compiled([values])[compiled.output(0)])


for size in (4, 40):
    for place in (0, size // 2, size - 1):
        values = np.linspace(0.1, 0.9, size, dtype=np.float32)[None].copy()
        values[0, place] = np.nan
        first, second = answers("ReduceMax", values)
        print(f"ReduceMax, NaN at {place} of {size}: ONNX Runtime {first:.3f}, OpenVINO {second:.3f}")
        assert np.isnan(first) == (place == 0), "ONNX Runtime changed"
        assert np.isnan(second) == (place == size - 1), "OpenVINO changed"
        assert np.isnan(answers("ReduceMean", values)).all(), "ReduceMean changed"
PY
