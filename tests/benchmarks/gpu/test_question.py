"""The command that asks TensorRT whether it runs on this GPU."""

from __future__ import annotations

import json

import pytest

from nnet_edge.benchmarks.gpu import question as gpu_question
from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners.trt.flavours import Answer


@pytest.mark.skipif(not isinstance(find_gpu(), NoGpu), reason="this machine has a GPU")
def test_without_a_gpu_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(gpu_question.command, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the question needs one")


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer("9.0", "1.7.1", False, "out of luck")
    monkeypatch.setattr(gpu_question, "find_gpu", lambda index: GpuFacts("Test GPU", "9.0", "580.1", "13.0", 24000))
    monkeypatch.setattr(gpu_question, "installed_flavours", lambda: ("tensorrt_rtx",))
    monkeypatch.setattr(gpu_question, "ask_in_process", lambda flavour, gpu: answer)
    assert run_command(gpu_question.command, []) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)[0]["runs"] is False
    assert "TensorRT-RTX 1.7.1 does NOT run on compute capability 9.0 (out of luck)" in told.err
