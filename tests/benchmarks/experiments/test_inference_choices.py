"""Ways to compute a graph are compared with what they are beside, and a graph cut in three gives what it gave in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nnet_edge.benchmarks.experiments import inference_choices
from nnet_edge.benchmarks.experiments.inference_choices import (
    Chain,
    Question,
    Way,
    ask,
    command,
    cut_in_three,
    measure_nodes,
)
from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.bundle import Bundle
from nnet_edge.errors import ConfigError
from nnet_edge.frame import Outputs
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.settings.runner import RunnerSettings

ONE = RunnerSettings("openvino", threads=1)
FP32_ATOL = 1e-5  # the same sums, other kernels on either side of a cut


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (3, 256, 256, 3), np.uint8)


def infer(graph: Path, images: np.ndarray) -> Outputs:
    with load_runner(graph, ONE) as runner:
        return runner.infer(images)


def test_every_way_gives_the_runner_s_map(bundle: Bundle, images: np.ndarray, tmp_path: Path) -> None:
    expected = infer(bundle.graph, images)
    chain = Chain(bundle.graph, ONE, tmp_path)
    for number, image in enumerate(images):
        found = chain(image[np.newaxis])
        np.testing.assert_allclose(found["anomaly_map"][0, 0], expected.anomaly_map[number], atol=FP32_ATOL)
    for way in (Way(bundle.graph, ONE), Way(bundle.graph, ONE, None)):
        maps, scores = way.outputs(images)
        np.testing.assert_allclose(maps, expected.anomaly_map, atol=FP32_ATOL)
        np.testing.assert_allclose(scores, expected.image_score, atol=FP32_ATOL)


def test_each_part_reads_its_own_weights_alone(bundle: Bundle, tmp_path: Path) -> None:
    parts = cut_in_three(bundle.graph, tmp_path)
    teacher, student, rest = (
        {item.name.split(".")[0] for item in onnx.load(part.path).graph.initializer if "." in item.name}
        for part in parts
    )
    assert (teacher, student) == ({"teacher"}, {"forward_student"})
    assert rest >= {"fusion", "reverse_student", "teacher_projections", "student_projections"}
    assert not rest & {"teacher", "forward_student"}
    assert parts[0].inputs == parts[1].inputs == ("images",)
    assert set(parts[2].inputs) == {*parts[0].outputs, *parts[1].outputs}
    assert {"anomaly_map", "image_score"} <= set(parts[2].outputs)


def test_rounding_stays_with_its_reader_and_a_graph_of_one_branch_is_refused(tmp_path: Path) -> None:
    """images -> teacher and student -> Q/DQ -> their product with the rest's weight."""
    constants = {"teacher.w": np.float32(2), "forward_student.w": np.float32(3), "fusion.w": np.float32(5),
                 "scale": np.float32(0.5), "zero": np.int8(0)}  # fmt: skip
    nodes = [
        helper.make_node("Mul", ["images", "teacher.w"], ["f"]),
        helper.make_node("Mul", ["images", "forward_student.w"], ["s"]),
        helper.make_node("QuantizeLinear", ["f", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        helper.make_node("Mul", ["dq", "fusion.w"], ["r"]),
        helper.make_node("Add", ["r", "s"], ["anomaly_map"]),
    ]
    images, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
                      for name in ("images", "anomaly_map"))  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "rounded", [images], [answer], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "whole.onnx")
    out = tmp_path / "parts"
    out.mkdir()
    teacher, student, rest = cut_in_three(tmp_path / "whole.onnx", out)
    assert (teacher.outputs, student.outputs, rest.inputs) == (("f",), ("s",), ("f", "s"))
    assert [node.op_type for node in onnx.load(rest.path).graph.node][:2] == ["QuantizeLinear", "DequantizeLinear"]
    onnx.save(onnx.load(teacher.path), tmp_path / "alone.onnx")
    with pytest.raises(ConfigError, match="no teacher and forward student"):
        cut_in_three(tmp_path / "alone.onnx", out)


def test_answers_are_ratios_to_the_first_side_and_nodes_add_up(bundle: Bundle, images: np.ndarray) -> None:
    calls: list[tuple[str, int]] = []

    def work(name: str, products: int) -> None:
        calls.append((name, products))
        matrix = np.ones((200, 200), np.float32)
        for _ in range(products):
            matrix = matrix @ matrix * np.float32(0.005)

    sides = {"little": lambda taken: work("little", 1), "much": lambda taken: work("much", 400)}
    (row,) = ask(Question("products", 2, sides), images, 3)
    assert (row.what, row.choice, row.beside) == ("products", "much", "little")
    assert row.processor > 2, "processor time of 400 times the work"
    assert len(calls) == 2 * 3 * (1 + 2), "an uncounted call and four images in pairs, each side, each round"
    costs = measure_nodes(bundle.graph, ONE, images, 2)
    assert sum(cost.share for cost in costs) == pytest.approx(1)
    assert [cost.milliseconds for cost in costs] == sorted((cost.milliseconds for cost in costs), reverse=True)
    assert {"Convolution", "GroupConvolution", "Softmax"} <= {cost.kind for cost in costs}


def test_the_command_asks_every_question(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference_choices, "BATCHES", (2,))
    monkeypatch.setattr(inference_choices, "NODE_ROUNDS", 2)
    assert run_command(command, [str(bundle.path), "--rounds", "1"]) == 0
    out, err = capsys.readouterr()
    assert "holds no INT8 graph: its rows are left out" in err
    for choice in ("hint throughput", "a graph for any batch", "three graphs"):
        assert f"| FP32, one image | {choice} | hint latency, 1 stream |" in out
    assert "| FP32, 2 images, a request each | one request of 2 | hint latency, 1 stream |" in out
    assert "| FP32 | ConvolutionBackpropData |" in out or "| FP32 | Convolution |" in out
    assert run_command(command, [str(bundle.path), "--threads", "0"]) == 2
