"""The tests here train and infer tiny things: one thread is faster than several that wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from nnet_edge.benchmarks.accuracy.accuracy import run_accuracy
from nnet_edge.benchmarks.accuracy.tables import AccuracyTables
from nnet_edge.benchmarks.accuracy.trainings import read_datasets
from nnet_edge.benchmarks.harness import roofline
from nnet_edge.benchmarks.harness.machine import torch_threads
from nnet_edge.benchmarks.harness.random_bundle import make_random_bundle
from nnet_edge.benchmarks.peers import pipes
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.calibration import gate as gates
from nnet_edge.data.dataset import Dataset
from nnet_edge.data.images import read_dataset
from tests.benchmarks.miniatures import TINY, make_visa


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch and NumPy on one thread; as before afterwards. No test here asks how fast this machine is at most."""
    with torch_threads(1), threadpool_limits(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "SHORTEST_S", 0.001)
        yield


@pytest.fixture(scope="session")
def visa(made_once: Callable[..., Path]) -> Path:
    """A tiny VisA."""
    return made_once("VisA", make_visa)


@pytest.fixture(scope="session")
def accuracy(visa: Path, made_once: Callable[..., Path]) -> tuple[AccuracyTables, Path]:
    """A category of it trained, exported, calibrated and measured for real, and the folder that this left."""

    def measure(out: Path) -> AccuracyTables:
        with torch_threads(1), threadpool_limits(1), pytest.MonkeyPatch.context() as patch:
            patch.setattr(gates, "ROUNDS", 5)  # no test here asks how fast a graph is
            return run_accuracy(read_datasets([visa], categories=["candle"]), out, TINY, "nnet-edge bench accuracy")

    out = made_once("accuracy", measure)
    return measure(out), out  # of the rows that are there


@pytest.fixture(scope="session")
def random_bundle(made_once: Callable[..., Path]) -> Bundle:
    """A bundle of the smallest backbone with random weights; no test changes it."""

    def fill(folder: Path) -> None:
        with torch_threads(1), threadpool_limits(1):
            make_random_bundle(folder / "bundle", "efficientnet_lite0")

    return read_bundle(made_once("random", fill) / "bundle")


@pytest.fixture(autouse=True)
def any_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else takes memory now."""
    monkeypatch.setattr(pipes, "LEAST_FREE_MIB", 0.0)


@pytest.fixture
def parts(parts_folder: Path) -> Dataset:
    """A small folder with defects and masks."""
    return read_dataset(parts_folder)
