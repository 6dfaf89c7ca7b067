"""What TensorRT refuses, and what nnet-edge makes of its complaints: the node, the reason, what to do; one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from nnet_edge.errors import BundleError, EngineBuildError
from nnet_edge.export import engine
from nnet_edge.export.engine import build_engine
from nnet_edge.export.engine_settings import EngineSettings, parse_target
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary, advice, build_error, telling

WriteGraph = Callable[..., Path]
LIBRARY = TensorrtLibrary("tensorrt", "10.3.0", None)
GRAPH = Path("bundle/nnet.onnx")
NO_DRIVER = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (CUDA driver version is insufficient)"
CAST = helper.make_node("Cast", ["images"], ["numbers"], "cast", to=TensorProto.FLOAT)
TRANSPOSE = helper.make_node("Transpose", ["numbers"], ["planes"], "transpose", perm=[0, 3, 1, 2])
CONV = helper.make_node("Conv", ["planes", "weights"], ["grey"], "conv")
LATE_CAST = (
    helper.make_node("Transpose", ["images"], ["bytes"], "early", perm=[0, 3, 1, 2]),
    helper.make_node("Cast", ["bytes"], ["planes"], "cast", to=TensorProto.FLOAT),
    CONV,
)
PAIR = (
    CAST,
    TRANSPOSE,
    helper.make_node("QuantizeLinear", ["planes", "scale", "zero"], ["small"], "pair"),
    helper.make_node("DequantizeLinear", ["small", "scale", "zero"], ["back"], "unpair"),
    helper.make_node("Conv", ["back", "weights"], ["grey"], "conv"),
)
WHOLE_BIAS = (
    CAST,
    TRANSPOSE,
    helper.make_node("DequantizeLinear", ["bias", "scale"], ["float_bias"], "bias"),
    helper.make_node("Conv", ["planes", "weights", "float_bias"], ["grey"], "conv"),
)
MIXED = (CAST, TRANSPOSE, helper.make_node("Conv", ["planes", "halves"], ["grey"], "conv"))
UNKNOWN = (CAST, TRANSPOSE, CONV, helper.make_node("Sparkle", ["grey"], ["unused"], "sparkling"))
CONSTANTS = {
    "scale": np.array(1.0, np.float32),
    "bias": np.array([1], np.int32),
    "halves": np.ones((1, 3, 1, 1), np.float16),
}


def build(graph: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
    build_engine(graph, EngineSettings(parse_target("rtx:sm86")))


@pytest.mark.parametrize(
    ("head", "zero", "node", "what_to_do"),
    [
        (UNKNOWN, np.int8(0), r"sparkling \(Sparkle\)", "does not know the operator: write the graph again"),
        (LATE_CAST, np.int8(0), r"early \(Transpose\)", "does not take these number types together: write"),
        (MIXED, np.int8(0), r"conv \(Conv\)", "does not take these number types together: write"),
        (WHOLE_BIAS, np.int8(0), r"bias \(DequantizeLinear\)", "does not take these number types together: write"),
        (
            PAIR,
            np.int8(3),
            r"pair \(QuantizeLinear\)",
            "INT8 must be symmetric: write the graph again with `calibrate`",
        ),
        (
            PAIR,
            np.uint8(128),
            r"pair \(QuantizeLinear\)",
            "INT8 must be symmetric: write the graph again with `calibrate`",
        ),
    ],
    ids=["operator", "uint8", "mixed", "int32 bias", "zero point", "uint8 zero point"],
)
def test_what_the_parser_refuses(
    head: tuple[NodeProto, ...], zero: np.generic, node: str, what_to_do: str, write_graph: WriteGraph, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    graph = write_graph(tmp_path / "nnet.onnx", head, more=CONSTANTS | {"zero": np.array(zero)})
    ours = {
        "sparkling": "sparkling .Sparkle. is no operator",
        "conv": "conv .Conv. cannot be computed: it is given float and",
    }
    if own := ours.get(head[-1].name if head in (UNKNOWN, MIXED) else ""):
        with pytest.raises(BundleError, match=own):  # our own check of the graph would refuse it first
            build(graph)
        monkeypatch.setattr(engine, "read_graph_bytes", Path.read_bytes)
    with pytest.raises(EngineBuildError, match=rf"cannot read .*nnet\.onnx: node {node}: ") as caught:
        build(graph)
    assert what_to_do in str(caught.value)
    assert "driver" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_pair_without_a_zero_point_is_taken(write_graph: WriteGraph, tmp_path: Path) -> None:
    build(write_graph(tmp_path / "nnet.onnx", PAIR, more=CONSTANTS | {"zero": np.array(0, np.int8)}))


@pytest.mark.parametrize(
    ("problem", "what_to_do"),
    [
        ("[x.cpp::y::1] Error Code 2: OutOfMemory (Requested size was 5 bytes.)", "lower --batch"),
        ("Unable to load library: libnvinfer_lean.so.10", "install it again"),
        (NO_DRIVER, "it needs an NVIDIA GPU and its driver"),
        ("Error Code 10: Could not find any implementation for node conv.", "give more --workspace"),
        ("Target GPU SM 70 is not supported by this TensorRT release.", "name another --target"),
        ("something new", "report it with the versions that `nnet-edge doctor` prints"),
    ],
)
def test_what_the_builder_says_comes_with_what_to_do(problem: str, what_to_do: str) -> None:
    error = str(build_error(LIBRARY, GRAPH, [problem]))
    assert error.startswith("TensorRT 10.3.0 cannot build an engine of bundle/nnet.onnx: ")
    assert what_to_do in error


def test_many_problems_are_shortened_and_none_is_no_problem() -> None:
    error = str(build_error(LIBRARY, GRAPH, ["one", "two", "two", "three", "four", "five"]))
    assert "one; two; three and 2 more; " in error
    assert "it gave no reason" in str(build_error(LIBRARY, GRAPH, []))


def test_a_missing_driver_is_told_only_when_nothing_else_is() -> None:
    assert telling(["Invalid Node - conv", NO_DRIVER]) == ["Invalid Node - conv"]
    assert len(telling([NO_DRIVER])) == 1
    assert "NVIDIA GPU" in advice(NO_DRIVER)
