"""A graph cut at its layer maps, in the bytes: what is left is sound, gives the same maps, and computes no more for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from nnet_edge.runtime.runners.cut import base_128, cut_graph
from nnet_edge.runtime.runners.onnx_runner import onnxruntime
from nnet_edge.runtime.runners.structure import fault_of, varint


def test_only_what_the_layer_maps_need_is_left(graph: Path, washers: np.ndarray) -> None:
    whole = onnx.load(graph)
    names = [item.name for item in whole.graph.output if item.name[-3:] in ("_64", "_32", "_16")]
    content = cut_graph(graph.read_bytes(), names)
    left = onnx.load_from_string(content)
    onnx.checker.check_model(left)
    assert not fault_of(content)
    assert [item.name for item in left.graph.output] == names
    assert {node.op_type for node in whole.graph.node} - {node.op_type for node in left.graph.node} == {
        "Resize",
        "ReduceMax",
    }
    wanted = onnxruntime.InferenceSession(graph.read_bytes(), providers=["CPUExecutionProvider"])
    found = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for one, other in zip(wanted.run(names, {"images": washers}), found.run(None, {"images": washers}), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63])
def test_numbers_are_written_as_they_are_read(value: int) -> None:
    written = base_128(value)
    assert varint(memoryview(written), 0) == (value, len(written))
