"""Captured steps: the same training as plain steps, unrecorded on a processor and, where there is one, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nnet_edge.errors import TrainingError
from nnet_edge.geometry import Geometry
from nnet_edge.methods.base import METHODS
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.nnet.settings import PAPER, TUNED, TrainSettings
from nnet_edge.training import captured
from nnet_edge.training.captured import CapturedSteps
from nnet_edge.training.log import LOG
from nnet_edge.training.loop import Trainer, TrainOptions

FP32 = TrainOptions(device="cpu", precision="fp32", checkpoint_every=100)
SETTINGS = replace(  # two phases of the loss, rates of their own, an average, and a last batch that is smaller
    PAPER, epochs=3, batch=2, align_epochs=1, schedule="cosine", ema_decay=0.9, memory_rate=0.1, input=Geometry(64, 64),
    model=replace(PAPER.model, memory_slots=32),
)  # fmt: skip
ASKING = {"_local_scalar_dense", "is_nonzero", "nonzero"}  # what makes the host wait for a GPU

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(small_washers: np.ndarray) -> np.ndarray:
    """Five to learn from, so that an epoch has two whole batches and one image that is left out, and one held out."""
    return small_washers[:6]


def trainer(images: np.ndarray, folder: Path, settings: TrainSettings = SETTINGS, learned: int = 4) -> Trainer:
    return Trainer(images[:learned], images[5:], settings, FP32, folder, Compute("cpu", "fp32"), {}, None)


def run(one: Trainer, steps: int | None = None) -> dict[str, torch.Tensor]:
    """Train to the end, or so many steps; the weights and their average."""
    asked = iter(range(1, 1 << 20))
    one.run(lambda progress: None, lambda: steps is not None and next(asked) >= steps)
    return {**one.network.state_dict(), **{f"average {name}": value for name, value in one.ema.tensors.items()}}


@pytest.fixture
def rounded_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain steps learn at the rates that a tensor of FP32 can hold, as captured ones do."""

    def set_rate(groups: list[dict[str, Any]], rate: float) -> None:
        for group in groups:
            group["lr"] = float(np.float32(rate * group["share"]))

    monkeypatch.setattr("nnet_edge.training.loop.set_rate", set_rate)


def log_of(folder: Path) -> list[str]:
    """The rows of the log without their times."""
    rows = [row.split(",") for row in (folder / LOG).read_text().splitlines()]
    seconds = rows[0].index("seconds")
    return [",".join(row[:seconds] + row[seconds + 1 :]) for row in rows]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.usefixtures("rounded_rates")
@pytest.mark.parametrize("learned", [4, 5])
def test_unrecorded_they_are_the_plain_steps_to_the_bit(images: np.ndarray, tmp_path: Path, learned: int) -> None:
    plain = run(trainer(images, tmp_path / "plain", learned=learned))
    one = trainer(images, tmp_path / "captured", learned=learned)
    one.captured = one.capture(False)

    assert_equal(run(one), plain)
    found, expected = log_of(tmp_path / "captured"), log_of(tmp_path / "plain")
    assert found[0] == expected[0]
    for row, wanted in zip(found[1:], expected[1:], strict=True):  # sums in FP32 instead of Python's
        values, known = (np.array([float(value or "nan") for value in text.split(",")]) for text in (row, wanted))
        np.testing.assert_allclose(values, known, rtol=1e-6, equal_nan=True)


def test_a_step_asks_nothing_of_the_host(images: np.ndarray, tmp_path: Path) -> None:
    one = trainer(images, tmp_path)
    steps = one.capture(False)
    assert steps is not None
    rows, asked = np.array([0, 2]), []

    class Listening(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    one.network.train()
    steps.step(rows, 0.01, 0, 0)
    with Listening():
        steps._run(steps._rows, 0, 0)
    assert not ASKING & set(asked)
    assert "convolution" in asked
    assert steps.look().steps == 1


class FakeGraph:
    """Stands for a CUDA graph: what is recorded runs, so its first replay does nothing; each later one runs it again."""

    made: list[FakeGraph]

    def __init__(self) -> None:
        self.replays = 0
        self.again: Any = None
        FakeGraph.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        if self.replays > 1:
            self.again()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and graphs of CUDA that run on the processor."""
    FakeGraph.made = []

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    run_step = CapturedSteps._run

    def remembered(self: CapturedSteps, rows: torch.Tensor, phase: int, epoch: int) -> Any:
        if FakeGraph.made and FakeGraph.made[-1].again is None:
            FakeGraph.made[-1].again = lambda: run_step(self, rows, phase, epoch)
        return run_step(self, rows, phase, epoch)

    monkeypatch.setattr(CapturedSteps, "_run", remembered)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())

    @contextmanager
    def recording(graph: FakeGraph, stream: Stream) -> Iterator[None]:
        yield
        assert graph.again is not None

    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(captured, "fits", lambda cache, device: True)
    monkeypatch.setattr("nnet_edge.training.loop.fits", lambda cache, device: True)


@pytest.mark.usefixtures("fake_cuda", "rounded_rates")
@pytest.mark.parametrize("learned", [4, 5])
def test_each_phase_is_recorded_once_and_replayed(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learned: int
) -> None:
    monkeypatch.setattr(captured, "UNRECORDED", 1)
    plain = run(trainer(images, tmp_path / "plain", learned=learned))
    one = trainer(images, tmp_path / "captured", learned=learned)
    one.captured = one.capture(True)

    assert_equal(run(one), plain)
    # of two steps an epoch the first of each phase is as it is written, the second recorded; the third epoch replays
    assert [graph.replays for graph in FakeGraph.made] == [1, 3]


@pytest.mark.usefixtures("rounded_rates")
def test_a_stopped_training_goes_on_as_if_it_had_not_been(images: np.ndarray, tmp_path: Path) -> None:
    from nnet_edge.training.checkpoint import read_checkpoint

    whole = run(trainer(images, tmp_path / "whole"))
    first = trainer(images, tmp_path / "stopped")
    first.captured = first.capture(False)
    run(first, 3)
    assert first.sums["loss"] > 0
    again = Trainer(images[:4], images[5:], SETTINGS, FP32, tmp_path / "stopped", Compute("cpu", "fp32"), {},
                    read_checkpoint(tmp_path / "stopped"))  # fmt: skip
    again.captured = again.capture(False)

    assert_equal(run(again), whole)


def test_a_loss_that_is_no_number_ends_it_and_leaves_the_checkpoint(images: np.ndarray, tmp_path: Path) -> None:
    one = trainer(images, tmp_path)
    one.captured = one.capture(False)
    with torch.no_grad():
        next(value for name, value in one.network.named_parameters() if not name.startswith("teacher.")).fill_(np.nan)

    with pytest.raises(
        TrainingError, match=r"the loss is nan in one of 2 steps of epoch 1; there was no checkpoint yet"
    ):
        run(one)


def test_losses_are_looked_at_now_and_then(images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "LOOK_EVERY", 3)
    one = trainer(images, tmp_path)
    steps = one.captured = one.capture(False)
    assert steps is not None
    looks, look = [], steps.look
    monkeypatch.setattr(steps, "look", lambda: looks.append(steps.pending) or look())
    one.network.train()
    for number in range(7):
        one.position = (0, number + 1)
        one.take_step(np.array([0, 1]), 0, number, None)
    assert looks == [3, 3]
    assert one.sums["loss"] == pytest.approx(sum(one.sums[name] for name in ("reverse", "forward", "align", "query")))
    one.look()
    one.look()
    assert looks == [3, 3, 1]


def test_who_may_be_captured() -> None:
    nnet = METHODS.find("nnet")
    assert nnet.can_capture(TUNED)
    assert not nnet.can_capture(replace(TUNED, model=replace(TUNED.model, standardise=True, anchor=0.5)))
    assert [nnet.phase(replace(PAPER, align_epochs=2), epoch) for epoch in range(4)] == [1, 1, 0, 0]
    assert not any(
        METHODS.find(name).can_capture(METHODS.find(name).protocols["tuned"]) for name in ("dmdd", "bikd", "rbd")
    )


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_here")
def test_on_a_gpu_they_are_the_plain_steps(images: np.ndarray, tmp_path: Path) -> None:
    options, compute = replace(FP32, device="cuda"), Compute("cuda", "fp32")
    settings = replace(SETTINGS, epochs=12)
    one = Trainer(images[:4], images[5:], settings, options, tmp_path / "captured", compute, {}, None)
    assert one.captured is not None
    other = Trainer(images[:4], images[5:], settings, options, tmp_path / "plain", compute, {}, None)
    other.captured = None
    found, expected = run(one), run(other)

    assert len(one.captured._recorded) == 2
    for name, value in expected.items():  # atomic additions have no fixed order, and a training amplifies them
        if value.dtype.is_floating_point:
            torch.testing.assert_close(
                found[name], value, rtol=0.05, atol=0.02, msg=lambda text, name=name: f"{name}: {text}"
            )
