"""A training keeps freed memory: what is asked for again is there without a page fault."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from nnet_edge.training.heap import keeping_memory

TENSOR = 64 << 20  # bytes; above every threshold of glibc
PAGES = TENSOR // 4096


def faults_of_a_tensor() -> int:
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt  # threads of other tests may live in this process
    torch.empty(TENSOR, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_freed_memory_is_there_again_while_training_and_given_back_afterwards() -> None:
    with keeping_memory():
        assert (
            min(faults_of_a_tensor() for _ in range(4)) < PAGES / 100
        )  # the first ones may find another place in the heap
        kept = resident()
    assert resident() < kept - TENSOR / 2


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("no library is told anything"))
    with keeping_memory():
        pass
