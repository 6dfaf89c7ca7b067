"""What each choice in the training step brings on this processor: `python -m nnet_edge.benchmarks.training_steps`.

One choice at a time is undone and the step timed between two steps as it stands, on one thread, in processor seconds, which
other programs do not lengthen. Everything is real but the pictures: EfficientNet-Lite0 with its weights, the tuned
protocol, batches of 8 of twelve quarters of photographs. `notes.md` says what was expected and what else was tried.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say_if_busy
from nnet_edge.benchmarks.harness.machine import describe_machine, torch_threads
from nnet_edge.benchmarks.harness.random_bundle import real_pictures
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.benchmarks.harness.rounds import between, took
from nnet_edge.methods.backbone import Features
from nnet_edge.methods.base import Batch
from nnet_edge.methods.compute import Compute, choose_precision
from nnet_edge.methods.cosine import cosine_distance
from nnet_edge.methods.depthwise import DepthwiseConv2d
from nnet_edge.methods.nnet import losses
from nnet_edge.methods.nnet.network import Branches, NNet
from nnet_edge.methods.nnet.parts import FeatureStorage
from nnet_edge.methods.nnet.settings import TUNED, TrainSettings
from nnet_edge.training.loop import Trainer, TrainOptions

ROUNDS = 5
SHOWN = 20  # operations of a profile
SETTINGS = replace(TUNED, augmentation_copies=0)
Patch = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Choice:
    """A choice in the training step and how to undo it."""

    name: str
    without: str  # what is done then
    trainer: Trainer  # whose steps are timed
    undo: Patch
    beside: Patch = nullcontext  # what holds on both sides


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute `name` of `owner`; as before afterwards."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def start_trainer(settings: TrainSettings, precision: str, folder: Path) -> Trainer:
    """A training before its first step."""
    pictures = real_pictures()
    trainer = Trainer(pictures, pictures[:1], settings, TrainOptions(), folder, Compute("cpu", precision), {}, None)
    trainer.network.train()
    return trainer


def choices(settings: TrainSettings, folder: Path) -> list[Choice]:
    """The choices that this processor has."""
    precision = choose_precision("auto", "cpu")
    trainer = start_trainer(settings, precision, folder)
    plain = in_contiguous_maps(trainer)
    found = [
        Choice("teacher's features kept in the bank", "computed in every step", trainer, lambda: no_bank(trainer)),
        Choice("channels_last (both sides with plain depthwise gradients)", "contiguous", trainer, plain, no_depthwise),
        Choice("quick depthwise gradients", "oneDNN's own", trainer, no_depthwise),
        Choice("memory by matrix products in training", "1x1 convolutions, as in the graph", trainer,
               lambda: replaced(FeatureStorage, "recall_rows", FeatureStorage.recall)),
        Choice("cosine with a written-out gradient", "torch's", trainer,
               lambda: replaced(losses, "learned_distance", cosine_distance)),
        Choice("Adam in one pass (fused)", "operation by operation", trainer, lambda: no_fused(trainer)),
    ]  # fmt: skip
    if precision == "bf16":
        full = start_trainer(settings, "fp32", folder / "fp32")
        found.insert(0, Choice("BF16", "FP32", trainer, lambda: replaced(trainer, "train_step", full.train_step)))
    return found


def no_bank(trainer: Trainer) -> AbstractContextManager[None]:
    """The teacher computes in every step."""

    def features(rows: np.ndarray) -> Features:
        with torch.no_grad(), trainer.compute.autocast():
            images = torch.from_numpy(trainer.cache.images[rows])
            return trainer.network.teacher_features(trainer.network.normalise(images))

    return replaced(trainer.cache, "features", features)


def in_contiguous_maps(trainer: Trainer) -> Patch:
    """Weights and feature maps in torch's default order (N, C, H, W)."""

    def compare(network: NNet, batch: Batch) -> Branches:
        first, second, third = (values.contiguous() for values in batch.teacher)
        return network.branches(batch.images.contiguous(), (first, second, third))

    @contextmanager
    def undo() -> Iterator[None]:
        trainer.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        try:
            with replaced(trainer, "compare", compare):
                yield
        finally:
            trainer.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    return undo


def no_depthwise() -> AbstractContextManager[None]:
    """Every gradient of a depthwise convolution as autograd computes it."""

    def forward(self: DepthwiseConv2d, x: Tensor) -> Tensor:
        padded = self.pad(x) if self.padding is None else x
        return functional.conv2d(padded, self.weight, None, self.stride, self.padding or 0, groups=len(self.weight))

    return replaced(DepthwiseConv2d, "forward", forward)


@contextmanager
def no_fused(trainer: Trainer) -> Iterator[None]:
    """Adam by a torch operation after the other for each parameter."""
    for group in trainer.optimiser.param_groups:
        group["fused"] = False
    try:
        yield
    finally:
        for group in trainer.optimiser.param_groups:
            group["fused"] = True


def measure(choice: Choice, rounds: int = ROUNDS) -> tuple[float, list[float]]:
    """Milliseconds of the step as it stands (median), and the ratio with / without the choice in each round."""
    batch = np.arange(choice.trainer.settings.batch)

    def step() -> float:
        return took(lambda: choice.trainer.train_step(batch, 0, 0)).processor_s

    def without() -> float:
        with choice.undo():
            return step()

    with choice.beside():
        without()  # memory is taken, weights are cast
        without_s, with_s = between(without, step, rounds)
    return 1000 * median(with_s), [one / other for one, other in zip(with_s, without_s, strict=True)]


def costs(trainer: Trainer) -> list[tuple[str, float, int]]:
    """Operations of a step, the dearest first: name, share of all time (0 to 1), and how often it is called."""
    batch = np.arange(trainer.settings.batch)
    trainer.train_step(batch, 0, 0)  # memory is taken
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        trainer.train_step(batch, 0, 0)
    found = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole_us = sum(event.self_cpu_time_total for event in found)
    return [(event.key, event.self_cpu_time_total / whole_us, event.count) for event in found]


def row_of(choice: Choice, step_ms: float, ratios: list[float]) -> list[str]:
    """A row of the table."""
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return [choice.name, choice.without, f"{median(ratios):.2f}", spread, f"{step_ms:.0f}"]


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True, help="For each choice.")
@click.option("--only", default="", help="Choices whose name holds this.")
@click.option("--profile", "is_profiled", is_flag=True, help="Print what the step spends its time on instead.")
def command(rounds: int, only: str, is_profiled: bool) -> None:
    """Time the training step without one of its choices at a time and print a table of ratios."""
    say_if_busy()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-steps-")))
        stack.enter_context(torch_threads(1))
        if is_profiled:
            dearest = costs(start_trainer(SETTINGS, choose_precision("auto", "cpu"), folder))[:SHOWN]
            table = table_text(["operation", "share", "calls"], [[name, f"{part:.1%}", n] for name, part, n in dearest])
        else:
            wanted = [choice for choice in choices(SETTINGS, folder) if only in choice.name]
            rows = [row_of(choice, *measure(choice, rounds)) for choice in wanted]
            table = table_text(["choice", "without it", "with / without", "rounds", "step, ms"], rows)
    click.echo(command_text("nnet_edge.benchmarks.training_steps"))
    click.echo(f"{describe_machine(1)['processor']}; one thread\n\n{table}")


if __name__ == "__main__":
    sys.exit(run_command(command))
