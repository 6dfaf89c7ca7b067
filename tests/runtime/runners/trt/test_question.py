"""The question whether TensorRT runs on a GPU: every answer it can have, asked of the real TensorRT-RTX where it can be."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnet_edge.errors import MissingExtraError, StreamError
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners.trt import flavours
from nnet_edge.runtime.runners.trt import question as gpu_question
from nnet_edge.runtime.runners.trt.device import used_up
from nnet_edge.runtime.runners.trt.flavours import Answer, answer_of, ask_in_process, cache_file, refusal
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary, load_tensorrt
from nnet_edge.runtime.runners.trt.question import NUMBERS, ask, build_probe, run_probe

HOPPER = GpuFacts("Test GPU", "9.0", "580.1", "13.0", 24000)


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
        (library(right), True, "TensorRT-RTX 1.7.1 runs on compute capability 9.0"),
        (
            library(right, loads=False),
            False,
            "does NOT run on compute capability 9.0 (it does not load what it built: it gave no reason)",
        ),
        (
            library(right, has_context=False),
            False,
            "does NOT run on compute capability 9.0 (it does not make an execution context",
        ),
        (
            library(lambda numbers, positive: False),
            False,
            "does NOT run on compute capability 9.0 (it does not compute",
        ),
        (library(lambda numbers, positive: True), False, "9.0 (it computes wrong numbers on it)"),
    ],
)
def test_each_answer(found: Any, runs: bool, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Memory()
    monkeypatch.setattr(gpu_question, "load_tensorrt", lambda flavour: found)
    monkeypatch.setattr(gpu_question, "build_probe", lambda library, capability: b"plan")
    monkeypatch.setattr(gpu_question, "open_gpu", lambda index, kernels: device)
    answer = ask("tensorrt_rtx", HOPPER)
    assert (answer.runs, answer.version) == (runs, "1.7.1")
    assert answer.is_broken == ("wrong numbers" in answer.reason)
    assert says in answer.sentence()
    assert device.is_closed


def test_without_tensorrt_rtx_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(flavour: str) -> Any:
        raise MissingExtraError("TensorRT-RTX is not installed: pip install 'nnet-edge[rtx]'")

    monkeypatch.setattr(gpu_question, "load_tensorrt", absent)
    answer = ask("tensorrt_rtx", HOPPER)
    assert (answer.runs, answer.version) == (None, None)
    assert "was not asked whether it runs on compute capability 9.0 (TensorRT-RTX is not" in answer.sentence()


def test_a_gpu_that_is_full_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*rest: Any) -> None:
        raise used_up("allocate 256 bytes")

    monkeypatch.setattr(gpu_question, "load_tensorrt", lambda flavour: library(right))
    monkeypatch.setattr(gpu_question, "build_probe", lambda library, capability: b"plan")
    monkeypatch.setattr(gpu_question, "open_gpu", lambda index, kernels: Memory())
    monkeypatch.setattr(gpu_question, "run_probe", full)
    assert ask("tensorrt_rtx", HOPPER).runs is None


def test_the_real_one_builds_the_probe_and_refuses_what_it_cannot_load() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
    found = load_tensorrt("tensorrt_rtx")
    plan = build_probe(found, "8.6")
    assert plan.startswith(b"vtrt")
    if isinstance(find_gpu(), NoGpu):
        with pytest.raises(StreamError, match="it does not load what it built: "):
            run_probe(found, plan, Memory())


@pytest.mark.parametrize("capability", ["8.7", "9.0", "10.0", "11.0"])
def test_the_real_one_refuses_what_it_was_not_made_for(capability: str) -> None:
    """Needs no GPU: it says so as soon as it is told the compute capability."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
    answer = ask("tensorrt_rtx", replace(HOPPER, compute_capability=capability))
    assert (answer.runs, answer.is_broken) == (False, False)
    assert "Compute capability is invalid or not supported" in answer.sentence()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The flavours that were asked in a process, which says that they do not run; answers are kept in tmp_path."""
    found: list[str] = []

    def program_output(command: list[str], patience: float) -> tuple[str, str]:
        found.append(command[-2])
        answer = Answer("9.0", "1.7.1.116", False, "it does not build for it", command[-2])
        return f"a library that chats\n\n{json.dumps(asdict(answer))}\n", ""

    monkeypatch.setattr(flavours, "program_output", program_output)
    monkeypatch.setattr(flavours, "installed_as", lambda flavour: (f"{flavour}-cu13", "1.7.1.116"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return found


def test_it_is_asked_once_for_each_driver_gpu_and_version(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        answer = answer_of("tensorrt_rtx", HOPPER)
        assert (answer.runs, answer.reason) == (False, "it does not build for it")
    assert asked == ["tensorrt_rtx"]
    others = [replace(HOPPER, driver="590.1"), replace(HOPPER, uuid="ab"), replace(HOPPER, compute_capability="8.9")]
    for number, other in enumerate(others, start=2):
        answer_of("tensorrt_rtx", other)
        assert len(asked) == number
    monkeypatch.setattr(flavours, "installed_as", lambda flavour: ("tensorrt-rtx-cu13", "1.8"))
    answer_of("tensorrt_rtx", HOPPER)
    assert len(asked) == 5
    for _ in range(2):
        answer_of("tensorrt_rtx", replace(HOPPER, driver=None))  # nothing to keep it by
    assert len(asked) == 7


def test_a_kept_answer_that_cannot_be_read_is_asked_again(asked: list[str], caplog: pytest.LogCaptureFixture) -> None:
    answer_of("tensorrt_rtx", HOPPER)
    file = cache_file("tensorrt_rtx", "1.7.1.116", HOPPER)
    assert file is not None
    for text in ("{", '{"runs": true}', "[]"):
        file.write_text(text)
        assert answer_of("tensorrt_rtx", HOPPER).runs is False
    assert len(asked) == 4
    assert "is asked again" in caplog.text


def test_a_library_that_ends_its_process_is_an_answer_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real process: no GPU has that number, so it ends with an error."""
    kept: list[Answer] = []
    monkeypatch.setattr(flavours, "keep_answer", lambda file, answer: kept.append(answer))
    answer = answer_of("tensorrt_rtx", replace(HOPPER, index=63))
    assert (answer.runs, answer.is_broken) == (False, True)
    assert "it ended the process that asked it: python" in answer.reason
    assert not kept
    monkeypatch.setattr(flavours, "program_output", lambda command, patience: ('{"odd": 1}', ""))
    assert ask_in_process("tensorrt_rtx", HOPPER).is_broken


def test_a_driver_older_than_the_package_is_said_without_asking(asked: list[str]) -> None:
    answer = answer_of("tensorrt_rtx", replace(HOPPER, driver="560.35", cuda="12.6"))
    assert answer.runs is False
    assert "tensorrt_rtx-cu13 needs CUDA 13 and the driver 560.35 knows CUDA 12.6: update the driver" in answer.reason
    assert not asked


def test_what_to_install_instead() -> None:
    no, yes = Answer("9.0", "1.7", False, "so"), Answer("9.0", "10.9", True, "", "tensorrt")
    assert refusal([no]).endswith(
        "(so): try TensorRT (pip install 'nnet-edge[tensorrt]'), or use --runner cuda (pip install 'nnet-edge[cuda]'), or a "
        "CPU runner of the graph"
    )
    assert refusal([no, yes]) == refusal([]) == ""
