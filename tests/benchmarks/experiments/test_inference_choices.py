"""Ways to compute a graph are compared with what they are beside, and each gives the runner's map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnet_edge.benchmarks.experiments import inference_choices
from nnet_edge.benchmarks.experiments.inference_choices import (
    Question,
    Way,
    ask,
    command,
    measure_nodes,
)
from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.bundle import Bundle
from nnet_edge.frame import Outputs
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.settings.runner import RunnerSettings

ONE = RunnerSettings("openvino", threads=1)
FP32_ATOL = 1e-5  # the same sums, other kernels


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (3, 256, 256, 3), np.uint8)


def infer(graph: Path, images: np.ndarray) -> Outputs:
    with load_runner(graph, ONE) as runner:
        return runner.infer(images)


def test_every_way_gives_the_runner_s_map(bundle: Bundle, images: np.ndarray) -> None:
    expected = infer(bundle.graph, images)
    for way in (Way(bundle.graph, ONE), Way(bundle.graph, ONE, None)):
        maps, scores = way.outputs(images)
        np.testing.assert_allclose(maps, expected.anomaly_map, atol=FP32_ATOL)
        np.testing.assert_allclose(scores, expected.image_score, atol=FP32_ATOL)


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
    for choice in ("hint throughput", "a graph for any batch"):
        assert f"| FP32, one image | {choice} | hint latency, 1 stream |" in out
    assert "| FP32, 2 images, a request each | one request of 2 | hint latency, 1 stream |" in out
    assert "| FP32 | ConvolutionBackpropData |" in out or "| FP32 | Convolution |" in out
    assert run_command(command, [str(bundle.path), "--threads", "0"]) == 2
