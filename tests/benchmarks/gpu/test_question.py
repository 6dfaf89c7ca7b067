"""The question whether TensorRT-RTX runs on a GPU: every answer it can have, asked of the real TensorRT-RTX where it can be."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnet_edge.benchmarks.gpu import question as gpu_question
from nnet_edge.benchmarks.gpu.question import NUMBERS, Answer, ask_tensorrt_rtx, build_probe, run_probe
from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.errors import MissingExtraError, StreamError
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary, load_tensorrt

HOPPER = GpuFacts("Test GPU", "9.0", "580.1", "13.0", 24000)
without_gpu = pytest.mark.skipif(not isinstance(find_gpu(), NoGpu), reason="this machine has a GPU")


class Memory:
    """A device whose memory is the host's and whose copies are done at once."""

    def __init__(self) -> None:
        self.kept: list[np.ndarray] = []
        self.is_closed = False

    def current(self) -> Any:
        return nullcontext()

    def pinned(self, size: int) -> np.ndarray:
        self.kept.append(np.full(size, 0xEE, np.uint8))
        return self.kept[-1]

    def allocate(self, size: int) -> Any:
        return SimpleNamespace(address=self.pinned(size).ctypes.data)

    def stream(self) -> Any:
        return SimpleNamespace(handle=7, synchronize=lambda: None)

    def upload(self, address: int, source: np.ndarray, queue: Any) -> None:
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def download(self, target: np.ndarray, address: int, queue: Any) -> None:
        ctypes.memmove(target.ctypes.data, address, target.nbytes)

    def close(self) -> None:
        self.is_closed = True


def numbers_at(address: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * NUMBERS).from_address(address))


def library(compute: Callable[[np.ndarray, np.ndarray], bool], loads: bool = True, has_context: bool = True) -> Any:
    """A TensorRT-RTX whose engine is `compute(input, output)`."""
    addresses: dict[str, int] = {}
    context = SimpleNamespace(
        set_tensor_address=addresses.__setitem__,
        execute_async_v3=lambda handle: compute(numbers_at(addresses["numbers"]), numbers_at(addresses["positive"])),
    )
    engine = SimpleNamespace(create_execution_context=lambda: context if has_context else None)
    severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)
    trt = SimpleNamespace(
        ILogger=type("ILogger", (), {"Severity": severity}),
        Runtime=lambda log: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if loads else None),
        ComputeCapability=SimpleNamespace(CURRENT="current"),
    )
    return TensorrtLibrary("tensorrt_rtx", "1.7.1", trt)


def right(numbers: np.ndarray, positive: np.ndarray) -> bool:
    positive[:] = np.maximum(numbers, 0)
    return True


@pytest.mark.parametrize(
    ("found", "runs", "says"),
    [
        (library(right), True, "compute capability 9.0: yes"),
        (library(right, loads=False), False, "NO (it does not load what it built: it gave no reason)"),
        (library(right, has_context=False), False, "NO (it does not make an execution context"),
        (library(lambda numbers, positive: False), False, "NO (it does not compute"),
        (library(lambda numbers, positive: True), False, "NO (TensorRT-RTX computes wrong numbers on it)"),
    ],
)
def test_each_answer(found: Any, runs: bool, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Memory()
    monkeypatch.setattr(gpu_question, "load_tensorrt", lambda flavour: found)
    monkeypatch.setattr(gpu_question, "build_probe", lambda library, capability: b"plan")
    monkeypatch.setattr(gpu_question, "open_gpu", lambda: device)
    answer = ask_tensorrt_rtx(HOPPER)
    assert (answer.runs, answer.version) == (runs, "1.7.1")
    assert says in answer.sentence()
    assert device.is_closed


def test_without_tensorrt_rtx_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(flavour: str) -> Any:
        raise MissingExtraError("TensorRT-RTX is not installed: pip install 'nnet-edge[rtx]'")

    monkeypatch.setattr(gpu_question, "load_tensorrt", absent)
    answer = ask_tensorrt_rtx(HOPPER)
    assert (answer.runs, answer.version) == (None, None)
    assert "not asked (TensorRT-RTX is not installed" in answer.sentence()


def test_the_real_one_builds_the_probe_and_refuses_what_it_cannot_load() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
    found = load_tensorrt("tensorrt_rtx")
    plan = build_probe(found, found.trt.ComputeCapability.SM86)
    assert plan.startswith(b"vtrt")
    if isinstance(find_gpu(), NoGpu):
        with pytest.raises(StreamError, match="it does not load what it built: "):
            run_probe(found, plan, Memory())
        answer = ask_tensorrt_rtx(HOPPER)
        assert answer.runs is False
        assert answer.reason.startswith("it does not build for it: ")


@without_gpu
def test_without_a_gpu_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(gpu_question.command, []) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the question needs one")


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_question, "find_gpu", lambda: HOPPER)
    monkeypatch.setattr(gpu_question, "ask_tensorrt_rtx", lambda gpu: Answer("9.0", "1.7.1", False, "out of luck"))
    assert run_command(gpu_question.command, []) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["runs"] is False
    assert "NO (out of luck)" in told.err
