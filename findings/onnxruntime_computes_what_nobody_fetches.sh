#!/usr/bin/env bash
# onnxruntime 1.32.0: RunOptions.only_execute_path_to_fetches, documented as executing only the nodes that the fetches need, changes
# nothing: nodes of an output that nobody asks for are computed all the same, by run() and by run_with_iobinding(). Whoever wants
# part of a graph has to cut it.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import json

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
wanted = helper.make_tensor_value_info("wanted", TensorProto.FLOAT, [1, 3, 8, 8])
other = helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3, 8, 8])
nodes = [helper.make_node("Sin", ["image"], ["wanted"], "sin")]
names = ["image", "c1", "c2", "c3", "c4", "other"]
nodes += [helper.make_node("Cos", [before], [after], after) for before, after in zip(names, names[1:])]
graph = helper.make_graph(nodes, "two", [image], [wanted, other])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
value = np.zeros((1, 3, 8, 8), np.float32)


def nodes_run(cut: bool, binding: bool) -> int:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    run = onnxruntime.RunOptions()
    run.only_execute_path_to_fetches = cut
    if binding:
        bound = session.io_binding()
        bound.bind_cpu_input("image", value)
        bound.bind_output("wanted")
        session.run_with_iobinding(bound, run)
    else:
        session.run(["wanted"], {"image": value}, run)
    events = json.load(open(session.end_profiling()))
    return sum(event.get("cat") == "Node" and event["name"].endswith("_kernel_time") for event in events)


print("onnxruntime", onnxruntime.__version__)
for cut in (False, True):
    for binding in (False, True):
        found = nodes_run(cut, binding)
        print(f"only_execute_path_to_fetches {cut}, {'run_with_iobinding' if binding else 'run'}: {found} of 6 nodes")
        assert found == 6, "onnxruntime changed"
PY
