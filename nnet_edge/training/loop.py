"""The training loop of N-Net, from good images to one checkpoint.

Everything random is drawn from (seed, epoch), so a training that goes on from its checkpoint is, on the CPU, bit for bit the
one that was never interrupted.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnet_edge.data.augment import augmented_copies
from nnet_edge.errors import ConfigError, TrainingError
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.compute import Compute, choose_device, choose_precision, deterministic, full_fp32
from nnet_edge.methods.nnet.losses import empty_row_share, nnet_losses
from nnet_edge.methods.nnet.network import build_nnet
from nnet_edge.methods.nnet.parts import MAX_EMPTY_ROWS
from nnet_edge.methods.nnet.settings import TrainSettings
from nnet_edge.methods.teacher_weights import load_teacher
from nnet_edge.training.augmentation_search import choose_augmentation
from nnet_edge.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    facts_of_teacher,
    optimiser_tensors,
    restore_optimiser,
    write_checkpoint,
    write_held_out,
)
from nnet_edge.training.early_stopping import Marks, Watch
from nnet_edge.training.feature_cache import FeatureBank, chunks, fill_bank, measure_channels, removing_bank, to_device
from nnet_edge.training.fusion_search import choose_exponents
from nnet_edge.training.log import PICTURE, TrainingLog, read_log
from nnet_edge.training.optimiser import RunningMean, build_optimiser, learning_rate, set_rate

SMALLEST_BATCH = 2  # batch norm has no variance over one image of FPM's pooled rows
SMALL_SET = 100  # images; a larger set shows its variety by itself and gets no augmented copies


@dataclass(frozen=True)
class TrainOptions:
    """How a training is computed; nothing here changes what is learned, but for rounding."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "auto"  # auto | fp32 | bf16: BF16 autocast where the processor multiplies it in hardware
    compile: bool = False  # torch.compile
    deterministic: bool = False  # only kernels whose sums have a fixed order (slower on CUDA)
    checkpoint_every: int = 10  # epochs
    memory_limit: int = 4 << 30  # bytes of teacher features kept in memory
    teacher_weights: str | None = None


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    epoch: int  # from 1
    epochs: int  # at most
    losses: dict[str, float]  # means of the epoch so far, weighted terms of equation 7
    seconds_left: float  # at most


@dataclass(frozen=True)
class Trained:
    """How a training ended."""

    folder: Path
    finished: bool  # False: stopped on demand, the checkpoint goes on from there
    epochs: int
    seconds: float
    step_ms: float  # median time of a training step, an image
    teacher_ms: float  # the teacher's pass that the bank saves each step, an image
    precision: str
    marks: Marks | None  # what the looks at damaged copies said; None for a training of fixed length

    @property
    def saved_share(self) -> float | None:
        """Share of a step's time that the bank saves, 0 to 1; None when no step was left to do."""
        if not self.step_ms:
            return None
        return self.teacher_ms / (self.teacher_ms + self.step_ms)


def train(
    images: np.ndarray,
    held_out: np.ndarray,
    settings: TrainSettings,
    folder: Path,
    options: TrainOptions = TrainOptions(),
    data_facts: dict[str, Any] | None = None,
    resume: Checkpoint | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stopping: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False),
    say: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train on `images`, uint8 RGB (N, 256, 256, 3), and leave checkpoint, log and loss picture in `folder`.

    `held_out` images are only measured and kept for the threshold. `stopping` is entered when the steps begin and gives the
    question that is asked after every step; when that says True the checkpoint is written and the training returns
    unfinished. Before the first step there is nothing to keep, and an interruption is one like any other. Raises
    TrainingError when the loss is no number or the memory dies (the last good checkpoint stays), ConfigError for a batch or
    device that cannot be.
    """
    check_images(settings.batch, len(images), len(held_out))
    device = choose_device(options.device)
    compute = Compute(device, choose_precision(options.precision, device))
    with deterministic(options.deterministic), full_fp32(), removing_bank(folder):
        trainer = Trainer(images, held_out, settings, options, folder, compute, data_facts or {}, resume, say)
        with stopping() as stop:
            return trainer.run(report, stop)


class Trainer:
    """One training: network, optimiser, the bank of teacher features, and where it stands."""

    def __init__(
        self,
        images: np.ndarray,
        held_out: np.ndarray,
        settings: TrainSettings,
        options: TrainOptions,
        folder: Path,
        compute: Compute,
        data_facts: dict[str, Any],
        resume: Checkpoint | None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.settings, self.options, self.folder, self.compute = settings, options, folder, compute
        self.say = say
        self.held_out = held_out
        self.position = (0, 0)  # epoch and step to do next
        self.sums: dict[str, float] = {}  # of the losses of this epoch
        self.seconds_before = 0.0
        if resume is None:
            self.start_afresh(images, data_facts)
        else:
            self.go_on(resume)
        settings = self.settings
        folder.mkdir(parents=True, exist_ok=True)
        self.network.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = build_optimiser(self.network, settings, compute.device)
        if resume is not None:
            restore_optimiser(self.optimiser, resume.optimiser)
        self.bank = self.fill(images)
        if resume is None and settings.model.memory_init != "uniform" and self.network.memory is not None:
            generator = torch.Generator().manual_seed(settings.seed)
            self.network.memory.remember(self.bank.maps[2], generator, settings.model.memory_init == "coreset")
        self.averaged = RunningMean(self.network, settings.ema_decay, None if resume is None else resume.averaged)
        self.best: dict[str, Tensor] = {} if resume is None else dict(resume.best)
        self.watch = self.start_watch(resume)
        self.branches = torch.compile(self.network.branches) if options.compile else self.network.branches
        self.steps_an_epoch = len(list(epoch_rows(len(self.bank.images), settings.batch, settings.seed, 0)))

    def start_afresh(self, images: np.ndarray, data_facts: dict[str, Any]) -> None:
        """Teacher, random students, an empty log, and the held-out images kept."""
        teacher = load_teacher(
            find_backbone(self.settings.model.backbone), self.options.teacher_weights, self.settings.seed
        )
        self.network = build_nnet(self.settings.model, teacher, self.settings.seed)
        self.facts: dict[str, Any] = {"data": data_facts, "teacher": facts_of_teacher(teacher)}
        for name in (CHECKPOINT, PICTURE):  # what an earlier training left; only now is it certain that this one starts
            (self.folder / name).unlink(missing_ok=True)
        self.log = TrainingLog(self.folder)
        self.log.write()
        write_held_out(self.folder, self.held_out)
        if self.settings.model.standardise:
            self.network.to(self.compute.device)
            measure_channels(self.network, images, self.compute.autocast)
        self.settings = self.settled(images)

    def settled(self, images: np.ndarray) -> TrainSettings:
        """The settings with the augmentation chosen and the length known, as the checkpoint keeps them."""
        settings = self.settings
        if settings.augmentation_copies:
            copies = settings.augmentation_copies if len(images) <= SMALL_SET else 1
            choice = choose_augmentation(
                self.network.to(self.compute.device).eval(), images, copies, settings.seed, self.compute.autocast
            )
            self.say(choice.sentence())
            settings = replace(settings, augmentation=choice.augmentation, augmentation_copies=0)
        return settings.with_length_for(len(images) * settings.augmentation.copies)

    def go_on(self, resume: Checkpoint) -> None:
        """Everything as the checkpoint left it."""
        self.settings = resume.settings
        self.network = resume.build_network()
        self.network.load_state_dict(resume.network)
        self.facts = {name: resume.facts[name] for name in ("data", "teacher")}
        self.position = (resume.epoch, resume.step)
        self.sums = dict(resume.facts["sums"])
        self.seconds_before = float(resume.facts["seconds"])
        self.log = read_log(self.folder, resume.epoch)

    def start_watch(self, resume: Checkpoint | None) -> Watch | None:
        """What says when to end, as the checkpoint left it; None for a training of fixed length."""
        if not self.settings.look_every:
            return None
        marks = None if resume is None else Marks.from_dict(resume.facts["marks"])
        return Watch(self.held_out, self.settings.look_every, self.settings.patience, self.settings.seed, marks)

    def fill(self, images: np.ndarray) -> FeatureBank:
        """The teacher's features of all images and their augmented copies."""
        augmented = augmented_copies(images, self.settings.augmentation, self.settings.seed)
        return fill_bank(
            self.network, augmented, self.compute.dtype, self.compute.autocast, self.folder, self.options.memory_limit
        )

    def run(self, report: Callable[[Progress], None], stop: Callable[[], bool]) -> Trained:
        """Train to the last epoch, or until the watch has seen enough, or until `stop` says so."""
        started = time.perf_counter()
        step_ms: list[float] = []
        first_epoch, first_step = self.position
        for epoch in range(first_epoch, self.settings.epochs):
            if self.is_enough:
                break
            epoch_started = time.perf_counter()
            self.network.train()
            for step, rows in enumerate(
                epoch_rows(len(self.bank.images), self.settings.batch, self.settings.seed, epoch)
            ):
                if epoch == first_epoch and step < first_step:
                    continue
                step_started = time.perf_counter()
                losses = self.train_step(rows, epoch, step)
                step_ms.append(1000 * (time.perf_counter() - step_started) / len(rows))
                self.position = (epoch, step + 1)
                for name, value in losses.items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                self.look(epoch, step)
                left = self.seconds_left(started, len(step_ms))
                report(
                    Progress(epoch + 1, self.settings.epochs, {k: v / (step + 1) for k, v in self.sums.items()}, left)
                )
                if self.is_enough:
                    break
                if stop():
                    self.save(started)
                    return self.ended(False, started, step_ms)
            self.end_epoch(epoch, step + 1, time.perf_counter() - epoch_started)
            if self.is_at_its_end and self.settings.model.exponent_power:
                self.settle_exponents()
            if self.is_time_to_save(epoch):
                self.save(started)
        self.log.draw()
        return self.ended(True, started, step_ms)

    def train_step(self, rows: np.ndarray, epoch: int, step: int) -> dict[str, float]:
        """One step of the optimiser on the images in `rows`; gives its losses."""
        set_rate(self.optimiser.param_groups, self.learning_rate(epoch, step))
        device = self.compute.device
        normalised = self.network.normalise(to_device(self.bank.images[rows], self.network))
        first, second, third = (values.to(device, non_blocking=True) for values in self.bank.features(rows))
        teacher = (first, second, third)
        with self.compute.autocast():
            branches = self.branches(normalised.contiguous(memory_format=torch.channels_last), teacher)
        terms = nnet_losses(branches, self.settings, epoch)
        loss = torch.stack(list(terms.values())).sum()
        self.check(float(loss.detach()), branches.memory_weights, epoch, step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.averaged.follow(self.steps_before(epoch) + step)
        return {"loss": float(loss.detach())} | {name: float(value.detach()) for name, value in terms.items()}

    def check(self, loss: float, memory_weights: Tensor | None, epoch: int, step: int) -> None:
        """Nothing, while the loss is a number and the memory lives. Raises TrainingError otherwise, before the step."""
        where = f"in step {step + 1} of epoch {epoch + 1}"
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} {where}; {self.last_good_checkpoint()}. "
                "Lower --learning-rate, or use --precision fp32"
            )
        if memory_weights is not None and (share := empty_row_share(memory_weights)) > MAX_EMPTY_ROWS:
            raise TrainingError(
                f"{share:.0%} of the memory's weights are all zero {where}, so it recalls nothing; at most "
                f"{MAX_EMPTY_ROWS:.0%} may be. Lower memory_lambda_times_slots (now "
                f"{self.settings.model.memory_lambda_times_slots}) or memory_temperature"
            )

    def learning_rate(self, epoch: int, step: int) -> float:
        """The rate of a step."""
        return learning_rate(self.settings, self.steps_before(epoch) + step, self.steps_before(self.settings.epochs))

    def steps_before(self, epoch: int) -> int:
        """Steps of all epochs before `epoch`."""
        return epoch * self.steps_an_epoch

    def look(self, epoch: int, step: int) -> None:
        """Mark the weights, when a look is due, and keep them when they are not clearly worse than the best so far."""
        before, shown = (self.shown(epoch, steps) for steps in (step, step + 1))
        if self.watch is None or not self.watch.is_due(before, shown):
            return
        weights = self.averaged.tensors or self.network.state_dict()
        if self.watch.look(self.network, weights, shown, self.compute):
            self.best = {name: value.detach().clone() for name, value in weights.items()}

    def shown(self, epoch: int, steps: int) -> int:
        """Images that the network has seen after so many steps of `epoch`."""
        batch, count = self.settings.batch, len(self.bank.images)
        of_an_epoch = count - (count % batch if count % batch < SMALLEST_BATCH else 0)
        return epoch * of_an_epoch + min(steps * batch, of_an_epoch)

    @property
    def is_enough(self) -> bool:
        """Whether the watch has seen enough."""
        return self.watch is not None and self.watch.is_enough

    def end_epoch(self, epoch: int, steps: int, seconds: float) -> None:
        """Write the epoch's row of the log and go to the next."""
        means = {name: value / steps for name, value in self.sums.items()}
        is_measured = self.is_time_to_save(epoch)
        row: dict[str, float | None] = {"epoch": epoch + 1, **means, "seconds": seconds}
        row["held_out"] = self.measure_held_out() if is_measured else None
        row["mark"] = self.watch.marks.looks[-1][1] if self.watch is not None and self.watch.marks.looks else None
        row["learning_rate"] = self.learning_rate(epoch, steps - 1)
        self.log.add(row)
        self.position, self.sums = (epoch + 1, 0), {}

    @property
    def is_at_its_end(self) -> bool:
        """Whether no step is left to do."""
        return self.is_enough or self.position[0] >= self.settings.epochs

    def settle_exponents(self) -> None:
        """Keep the exponents that suit the weights that are deployed."""
        deployed = copy.deepcopy(self.network).requires_grad_(False)
        deployed.load_state_dict(self.best or self.averaged.tensors or self.network.state_dict())
        exponents = choose_exponents(deployed.eval(), self.held_out, self.compute)
        if exponents != self.settings.model.scale_exponents:
            values = ", ".join(f"{value:g}" for value in exponents)
            self.say(f"exponents of strides 4, 8 and 16: {values}, by how steady each is over good parts")
        self.settings = replace(self.settings, model=replace(self.settings.model, scale_exponents=exponents))
        self.network.settings = self.settings.model

    def is_time_to_save(self, epoch: int) -> bool:
        """Whether this epoch ends with a checkpoint."""
        return (epoch + 1) % self.options.checkpoint_every == 0 or epoch + 1 == self.settings.epochs or self.is_enough

    @torch.no_grad()
    def measure_held_out(self) -> float:
        """Mean reverse loss (equation 2) over the held-out good images, with the weights as they are."""
        self.network.eval()
        losses = []
        for chunk in chunks(self.held_out):
            with self.compute.autocast():
                normalised = self.network.normalise(to_device(chunk, self.network))
                teacher = self.network.teacher_features(normalised)
                branches = self.network.branches(normalised, teacher)
            losses.append(float(nnet_losses(branches, self.settings, self.settings.epochs)["reverse"]) * len(chunk))
        self.network.train()
        return sum(losses) / len(self.held_out)

    def save(self, started: float) -> None:
        """Write the checkpoint. Raises TrainingError, and leaves the last one, when a weight is no number."""
        network = self.network.state_dict()
        broken = [name for name, value in network.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise TrainingError(
                f"the weights {broken[0]} are no numbers after epoch {self.position[0]}; {self.last_good_checkpoint()}. "
                "Lower --learning-rate, or use --precision fp32"
            )
        epoch, step = self.position
        seconds = self.seconds_before + time.perf_counter() - started
        position = {
            "epoch": epoch,
            "step": step,
            "sums": self.sums,
            "seconds": seconds,
            "precision": self.compute.precision,
            "marks": None if self.watch is None else self.watch.marks.as_dict(),
            "finished": self.is_at_its_end,
        }
        state = optimiser_tensors(self.optimiser)
        checkpoint = Checkpoint(self.settings, network, self.averaged.tensors, state, self.facts | position, self.best)
        write_checkpoint(self.folder, checkpoint)

    def last_good_checkpoint(self) -> str:
        """What is left when the training breaks, half a sentence."""
        kept = (self.folder / CHECKPOINT).is_file()
        return f"the last good checkpoint stays in {self.folder}" if kept else "there was no checkpoint yet"

    def seconds_left(self, started: float, steps_done: int) -> float:
        """An estimate from the mean time of the steps so far."""
        epoch, step = self.position
        steps_left = self.steps_before(self.settings.epochs) - self.steps_before(epoch) - step
        return steps_left * (time.perf_counter() - started) / steps_done

    def ended(self, finished: bool, started: float, step_ms: list[float]) -> Trained:
        """The report of this training."""
        seconds = self.seconds_before + time.perf_counter() - started
        median = float(np.median(step_ms)) if step_ms else 0.0
        return Trained(
            self.folder,
            finished,
            self.position[0],
            seconds,
            median,
            self.bank.teacher_ms,
            self.compute.precision,
            None if self.watch is None else self.watch.marks,
        )


def epoch_rows(count: int, batch: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The rows of each batch of an epoch, in an order drawn from (seed, epoch); a last batch of one image is dropped."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count, batch):
        rows = order[start : start + batch]
        if len(rows) >= SMALLEST_BATCH:
            yield rows


def check_images(batch: int, images: int, held_out: int) -> None:
    """Nothing. Raises ConfigError for a batch larger than the images to learn from, or when no image is held out."""
    if batch > images:
        raise ConfigError(
            f"a batch of {batch} is impossible with {images} images to learn from: give at most --batch {images}, or add images"
        )
    if held_out == 0:
        raise ConfigError(
            "no image is held out: the threshold is chosen on images that training never saw; hold some out"
        )
