#!/usr/bin/env bash
# Two branches with equal weights, each with arrays of its own in the file: OpenVINO 2026.4.1 compares the constants' values and computes
# ONE of them; ONNX Runtime 1.32.0 computes both. A teacher and a student (or a Siamese pair) that a benchmark draws from the same seed
# are therefore timed at about half their cost by OpenVINO, and at all of it once they are trained.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$dir/program.py" <<'PY'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

LAYERS, CHANNELS, SIDE = 6, 16, 32


def graph(seeds: tuple[int, int]) -> onnx.ModelProto:
    """Two stacks of convolutions of one image, side by side; their weights are drawn from one seed each."""
    nodes, weights, ends = [], [], []
    for branch, seed in enumerate(seeds):
        draw, before = np.random.default_rng(seed), "image"
        for layer in range(LAYERS):
            name = f"branch{branch}_layer{layer}"
            values = draw.normal(0, 0.1, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
            weights.append(numpy_helper.from_array(values, f"{name}.weight"))
            nodes.append(helper.make_node("Conv", [before, f"{name}.weight"], [name], pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [name], [f"{name}_relu"]))
            before = f"{name}_relu"
        ends.append(before)
    shape = [1, CHANNELS, SIDE, SIDE]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ends]
    made = helper.make_graph(nodes, "two", inputs, outputs, weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


folder, counts = sys.argv[1], {}
for name, seeds in (("equal", (0, 0)), ("different", (0, 1))):
    path = f"{folder}/{name}.onnx"
    onnx.save(graph(seeds), path)
    compiled = openvino.Core().compile_model(path, "CPU")
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = f"{folder}/{name}.optimised.onnx"
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kept = onnx.load(options.optimized_model_filepath).graph.node
    counts[name] = kinds.count("Convolution"), sum("Conv" in node.op_type for node in kept)
    print(f"{name} weights: {2 * LAYERS} convolutions; OpenVINO computes {counts[name][0]}, ONNX Runtime {counts[name][1]}")
sys.exit(counts != {"equal": (LAYERS, 2 * LAYERS), "different": (2 * LAYERS, 2 * LAYERS)})
PY
HOME="$dir" "$dir/venv/bin/python" "$dir/program.py" "$dir" 2>&1 || { echo "changed: other counts" >&2; exit 1; }
