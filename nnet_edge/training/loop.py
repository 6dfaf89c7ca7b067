"""Training loop, from good images to one checkpoint.

Everything random is drawn from (seed, epoch), so a training that goes on from its checkpoint is, on the CPU, bit for bit the
one that was never interrupted.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnet_edge.data.synthetic import PairSynthesis
from nnet_edge.errors import TrainingError
from nnet_edge.methods.base import METHODS, Batch, MethodSettings, PairSettings
from nnet_edge.methods.compute import (
    Compute,
    choose_device,
    choose_precision,
    chunks,
    compiled,
    deterministic,
    full_fp32,
    to_device,
)
from nnet_edge.methods.network import Network
from nnet_edge.training.augmentation import augmented_copies
from nnet_edge.training.captured import CapturedSteps, fits
from nnet_edge.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    optimiser_tensors,
    restore_optimiser,
    write_checkpoint,
)
from nnet_edge.training.compression import Compression
from nnet_edge.training.early_stopping import EarlyStopping, ValidationScores
from nnet_edge.training.feature_cache import fill_cache, removing_cache
from nnet_edge.training.heap import keeping_memory
from nnet_edge.training.optimiser import ExponentialMovingAverage, build_optimiser, learn, learning_rate, set_rate
from nnet_edge.training.pairs import Pairs, pairs_ahead
from nnet_edge.training.settling import GoodImages, Settled, settle, settle_fusion, settle_levels
from nnet_edge.training.start import (
    Learned,
    check_images,
    held_out_inputs,
    learned_inputs,
    one_by_one,
    start_afresh,
    start_from,
)

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 30.0  # at least between two checkpoints, each of which takes half a second
SMALLEST_BATCH = 2  # batch norm has no variance over one image of FPM's pooled rows


@dataclass(frozen=True)
class TrainOptions:
    """How a training is computed; nothing here changes what is learned, but for rounding."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "auto"  # auto | fp32 | bf16: BF16 autocast where the processor multiplies it in hardware
    compile: bool = False  # torch.compile
    deterministic: bool = False  # only kernels whose sums have a fixed order (slower on CUDA)
    checkpoint_every: int | None = None  # epochs; None: after the first, then where CHECKPOINT_SECONDS have passed
    memory_limit: int = 4 << 30  # bytes of teacher features kept in memory
    teacher_weights: str | None = None
    on_row: Callable[[Mapping[str, float | None]], None] = lambda row: None  # told each row of the log, old ones first


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    epoch: int  # from 1
    epochs: int  # at most
    losses: dict[str, float]  # means of the epoch so far, weighted terms of the loss
    seconds_left: float  # at most
    afterwards: str = ""  # what is done once the passes are over, to show: "making it small" or "learning on"


@dataclass(frozen=True)
class Trained:
    """How a training ended."""

    folder: Path
    finished: bool  # False: stopped on demand, the checkpoint goes on from there
    epochs: int
    seconds: float
    step_ms: float  # time of a training step, an image: the median, of captured steps the mean
    teacher_ms: float  # the teacher's pass that the feature cache saves each step, an image
    precision: str
    validation: ValidationScores | None  # None for a training of fixed length
    learned_on: int = 0  # images, of a trained network that learned on or was made small

    @property
    def saved_share(self) -> float | None:
        """Share of a step's time that the feature cache saves, 0 to 1; None when no step was left to do."""
        if not self.step_ms:
            return None
        return self.teacher_ms / (self.teacher_ms + self.step_ms)


def train(
    images: np.ndarray,
    held_out: np.ndarray,
    settings: MethodSettings,
    folder: Path,
    options: TrainOptions = TrainOptions(),
    data_facts: dict[str, Any] | None = None,
    resume: Checkpoint | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stopping: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False),
    say: Callable[[str], None] = lambda line: None,
    learned: Learned | None = None,
) -> Trained:
    """Train on `images`, uint8 RGB (N, H, W, 3), and leave checkpoint, log and loss picture in `folder`.

    Where the settings have tiles, it learns from those, whatever their place. `held_out` images are only measured and kept for
    the threshold. With `learned` it goes on from those weights. `stopping` is entered when the steps begin and gives the
    question that is asked after every step; when that says True the checkpoint is written and the training returns
    unfinished. Before the first step there is nothing to keep, and an interruption is one like any other. Raises
    TrainingError when the loss is NaN or infinite or the method sees a fault (the last good checkpoint stays), ConfigError for
    an invalid batch or device.
    """
    images = learned_inputs(images, settings)
    check_images(settings.batch, len(images), len(held_out))
    device = choose_device(options.device)
    compute = Compute(device, choose_precision(options.precision, device))
    with deterministic(options.deterministic), full_fp32(), removing_cache(folder), keeping_memory():
        trainer = Trainer(images, held_out, settings, options, folder, compute, data_facts or {}, resume, say, learned)
        with stopping() as stop:
            return trainer.run(report, stop)


class Trainer:
    """One training: network, optimiser, feature cache, and where it stands."""

    def __init__(self, images: np.ndarray, kept: np.ndarray, settings: MethodSettings, options: TrainOptions,
                 folder: Path, compute: Compute, data_facts: dict[str, Any], resume: Checkpoint | None,
                 say: Callable[[str], None] = lambda line: None, learned: Learned | None = None) -> None:  # fmt: skip
        self.options, self.folder, self.compute, self.say = options, folder, compute, say
        self.learned, self.held_out = images, held_out_inputs(kept, settings)
        if resume is None:
            start = start_afresh(
                images, kept, settings, folder, compute, options.teacher_weights, data_facts, say, learned
            )
        else:
            start = start_from(resume, folder)
        self.settings, self.network, self.facts, self.log = start.settings, start.network, start.facts, start.log
        self.position, self.sums, self.seconds_before = start.position, start.sums, start.seconds
        self.goes_on = learned is not None and start.position[0] > 0  # from what is trained already
        self.method = METHODS.find(self.settings.method)
        folder.mkdir(parents=True, exist_ok=True)
        self.network.to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rates = self.method.parameter_groups(self.settings)
        may_capture = compute.device == "cuda" and not options.compile and self.method.can_capture(self.settings)
        self.optimiser = build_optimiser(self.network, self.settings, rates, compute.device, may_capture)
        if resume is not None:
            restore_optimiser(self.optimiser, resume.optimiser)
        window = self.settings.input.network.window
        augmented = augmented_copies(images, self.settings.augmentation, self.settings.seed, window)
        self.cache = fill_cache(self.network, augmented, compute, folder, options.memory_limit)
        self.synthesis: PairSynthesis | None = None
        if self.method.needs_pairs(self.settings):
            assert isinstance(self.settings, PairSettings)
            self.synthesis = PairSynthesis(self.settings.synthesis, self.settings.seed, self.cache.images, window)
        if resume is None and learned is None:
            self.method.prepare_students(self.network, self.cache.maps, self.settings)
        averaged = None if resume is None else resume.averaged
        self.ema = ExponentialMovingAverage(self.network, self.settings.ema_decay, averaged)
        self.best: dict[str, Tensor] = {} if resume is None else dict(resume.best)
        self.stopping: EarlyStopping | None = None
        if self.settings.look_every:  # else the training has a fixed length
            scores = None if resume is None else ValidationScores.from_dict(resume.facts["marks"])
            self.stopping = EarlyStopping(self.method, self.held_out, self.settings, scores)
        self.saved_at = -math.inf  # seconds of the monotonic clock; none was written yet
        self.captured = self.capture(True) if may_capture and self.synthesis is None else None
        self.forward = compiled(self.method.forward) if options.compile else self.method.forward
        self.steps_an_epoch = len(list(self.rows_of(0)))

    def rows_of(self, epoch: int) -> Iterator[np.ndarray]:
        """The rows of each batch of an epoch."""
        return epoch_rows(len(self.cache.images), self.settings.batch, self.settings.seed, epoch)

    def capture(self, records: bool) -> CapturedSteps | None:
        """Steps that run on the GPU by themselves; None where images and features find no room there."""
        if records and not fits(self.cache, self.network.mean.device):
            log.info("images and features do not fit the GPU: each step brings its own, one after the other")
            return None
        return CapturedSteps(
            self.method, self.network, self.settings, self.optimiser, self.ema, self.cache, self.compute, records
        )

    def run(self, report: Callable[[Progress], None], stop: Callable[[], bool]) -> Trained:
        """Train to the last epoch, or until early stopping or `stop` says so."""
        started = time.perf_counter()
        step_ms: list[float] = []
        for known in self.log.rows:
            self.options.on_row(known)
        for epoch in range(self.position[0], self.settings.epochs):
            if self.should_stop:
                break
            if not self.run_epoch(epoch, started, step_ms, report, stop):
                self.save(started)
                return self.ended(False, started, step_ms)
            if self.is_at_its_end and not self.is_to_compress:
                self.settle()
            if self.is_time_to_save(epoch):
                self.save(started)
        if self.is_to_compress and not self.compress(started, report, stop):
            return self.ended(False, started, step_ms)
        self.log.draw()
        return self.ended(True, started, step_ms)

    def run_epoch(self, epoch: int, started: float, step_ms: list[float], report: Callable[[Progress], None],
                  stop: Callable[[], bool]) -> bool:  # fmt: skip
        """The steps of an epoch that are left to do; False when `stop` said so before its end."""
        epoch_started = time.perf_counter()
        self.network.train()
        self.method.begin_epoch(self.network, self.settings, epoch)
        with closing(self.batches_of(epoch, self.position[1])) as batches:
            for step, rows, pairs in batches:
                step_started = time.perf_counter()
                self.take_step(rows, epoch, step, pairs)
                step_ms.append(1000 * (time.perf_counter() - step_started) / len(rows))
                self.position = (epoch, step + 1)
                self.validate(epoch, step)
                counted = step + 1 - (0 if self.captured is None else self.captured.pending)
                means = {name: value / counted for name, value in self.sums.items()}
                report(Progress(epoch + 1, self.settings.epochs, means, self.seconds_left(started, len(step_ms))))
                if self.should_stop:
                    break
                if stop():
                    self.look()
                    return False
        self.look()
        self.end_epoch(epoch, self.position[1], time.perf_counter() - epoch_started)
        return True

    def batches_of(self, epoch: int, first_step: int) -> Generator[tuple[int, np.ndarray, Pairs | None], None, None]:
        """Step, rows and, where the method asks for them, pairs of each batch of an epoch, from `first_step` on."""
        batches = list(enumerate(self.rows_of(epoch)))[first_step:]
        if self.synthesis is None:
            yield from ((step, rows, None) for step, rows in batches)
            return
        before = self.steps_before(epoch)
        with closing(pairs_ahead(self.synthesis, ((before + step, rows) for step, rows in batches))) as ahead:
            for (step, rows), pairs in zip(batches, ahead, strict=True):
                yield step, rows, pairs

    def take_step(self, rows: np.ndarray, epoch: int, step: int, pairs: Pairs | None) -> None:
        """One step on the images in `rows`, its losses summed up, now or at the next look."""
        if self.captured is None:
            for name, value in self.train_step(rows, epoch, step, pairs).items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            return
        number = self.steps_before(epoch) + step
        self.captured.step(rows, self.rate_of(number), number, epoch)
        if self.captured.is_due:
            self.look()

    def look(self) -> None:
        """Sum up what captured steps lost since the last look. Raises TrainingError as a step does."""
        if self.captured is None or not self.captured.pending:
            return
        seen = self.captured.look()
        self.check(seen.losses["loss"], seen.compared, f"in one of {seen.steps} steps of epoch {self.position[0] + 1}")
        for name, value in seen.losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def rate_of(self, number: int) -> float:
        """The learning rate of step `number` (from 0) of the training."""
        return learning_rate(self.settings, number, self.steps_before(self.settings.epochs))

    def train_step(self, rows: np.ndarray, epoch: int, step: int, pairs: Pairs | None) -> dict[str, float]:
        """One step of the optimiser on the images in `rows`; gives its losses."""
        set_rate(self.optimiser.param_groups, self.rate_of(self.steps_before(epoch) + step))
        batch = self.batch_of(rows, self.steps_before(epoch) + step, pairs)
        with self.compute.autocast():
            compared = self.forward(self.network, batch, self.settings)
        terms = self.method.losses(compared, self.settings, epoch)
        where = f"in step {step + 1} of epoch {epoch + 1}"
        losses = learn(self.optimiser, terms, lambda loss: self.check(loss, compared, where))
        self.ema.follow(self.steps_before(epoch) + step)
        return losses

    def batch_of(self, rows: np.ndarray, step: int, pairs: Pairs | None) -> Batch:
        """The batch of these rows, with the synthetic anomalies of `pairs`."""
        device = self.compute.device
        images = self.network.student_images(self.cache.images[rows])
        batch = Batch(images, self.cache.features(rows, device), draw=(self.settings.seed, step))
        if pairs is None:
            return batch
        masks = torch.from_numpy(pairs.masks[:, None]).to(device)
        return replace(batch, anomalous=self.network.student_images(pairs.anomalous), masks=masks)

    def check(self, loss: float, compared: Any, where: str) -> None:
        """Raise TrainingError, before the step, when the loss is not finite or the method sees a fault."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} {where}; {self.last_good_checkpoint()}. "
                "Lower --learning-rate, or use --precision fp32"
            )
        if fault := self.method.check(compared, self.settings, where):
            raise TrainingError(fault)

    def steps_before(self, epoch: int) -> int:
        """Steps of all epochs before `epoch`."""
        return epoch * self.steps_an_epoch

    def deployable(self) -> dict[str, Tensor]:
        """The weights as they would be deployed now, had early stopping no say."""
        return self.ema.tensors or self.network.state_dict()

    def validate(self, epoch: int, step: int) -> None:
        """Score the weights, when a check is due, and keep them when they are not clearly worse than the best so far."""
        before, shown = (self.shown(epoch, steps) for steps in (step, step + 1))
        if self.stopping is None or epoch < self.method.validates_from(self.settings):
            return
        if not self.stopping.is_due(before, shown):
            return
        self.look()  # weights that are not finite are no candidates
        weights = self.deployable()
        if self.stopping.check(self.network, weights, shown, self.compute):
            self.best = {name: value.detach().clone() for name, value in weights.items()}

    def shown(self, epoch: int, steps: int) -> int:
        """Images that the network has seen after so many steps of `epoch`."""
        batch, count = self.settings.batch, len(self.cache.images)
        of_an_epoch = count - (count % batch if count % batch < SMALLEST_BATCH else 0)
        return epoch * of_an_epoch + min(steps * batch, of_an_epoch)

    @property
    def should_stop(self) -> bool:
        """Whether early stopping ends the training."""
        return self.stopping is not None and self.stopping.should_stop

    @property
    def is_to_compress(self) -> bool:
        """Whether a smaller network is still to be made of this one, or it is still to learn on."""
        return self.method.compressor(self.settings) is not None

    @property
    def is_at_its_end(self) -> bool:
        """Whether no step is left to do."""
        return self.should_stop or self.position[0] >= self.settings.epochs

    def is_time_to_save(self, epoch: int) -> bool:
        """Whether this epoch ends with a checkpoint."""
        if epoch + 1 == self.settings.epochs or self.should_stop:
            return True
        if self.options.checkpoint_every is None:
            return time.perf_counter() - self.saved_at >= CHECKPOINT_SECONDS
        return (epoch + 1) % self.options.checkpoint_every == 0

    def end_epoch(self, epoch: int, steps: int, seconds: float) -> None:
        """Write the epoch's row of the log and go to the next."""
        row: dict[str, float | None] = {"epoch": epoch + 1, "seconds": seconds}
        row |= {name: value / steps for name, value in self.sums.items()}
        is_measured = self.options.checkpoint_every is None or self.is_time_to_save(epoch)
        row["held_out"] = self.held_out_loss() if is_measured else None
        checks = [] if self.stopping is None else self.stopping.scores.checks
        row["mark"] = checks[-1][1] if checks else None
        row["learning_rate"] = self.rate_of(self.steps_before(epoch) + steps - 1)
        self.log.add(row)
        self.options.on_row(row)
        self.position, self.sums = (epoch + 1, 0), {}

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean of the method's validated loss over the held-out good images, with the weights as they are."""
        self.network.eval()
        losses = []
        held_out = one_by_one(self.held_out)
        for chunk in chunks(held_out):
            with self.compute.autocast():
                normalised = self.network.normalise(to_device(chunk, self.network.mean.device))
                batch = Batch(normalised, self.network.teacher_features(normalised))
                compared = self.method.forward(self.network, batch, self.settings)
            terms = self.method.losses(compared, self.settings, self.settings.epochs)
            losses.append(float(terms[self.method.validated_loss]) * len(chunk))
        self.network.train()
        return sum(losses) / len(held_out)

    def settle(self) -> None:
        """Keep what suits the weights that are deployed: the fusion, the place level, the global distance."""
        deployed = self.deployed()
        settled = settle(deployed, self.settings, self.good_images, self.compute)
        self.keep(settled, deployed)
        for weights in (self.best, self.ema.tensors):
            if weights:
                weights |= {name: value.clone() for name, value in settled.weights.items()}

    def compress(self, started: float, report: Callable[[Progress], None], stop: Callable[[], bool]) -> bool:
        """Go on with a smaller network, or let this one learn on, and write its checkpoint; False when `stop` said so: the
        last one stays.

        The fusion is that of the network as it was trained, for the new one's maps are to be the same.
        """
        whole = self.deployed()
        settings = settle_fusion(whole, self.settings, self.held_out, self.compute)
        steps = Compression(whole, settings, self.cache, self.compute)
        if not (self.folder / CHECKPOINT).exists():  # of a training that learns on: --resume begins here
            self.save(started)
        words = steps.compressor.words
        self.say(f"{words.aim}: {steps.steps} steps of {steps.compressor.batch} images")
        began = time.perf_counter()

        def tell(done: int, losses: dict[str, float]) -> None:
            left = (steps.steps - done) * (time.perf_counter() - began) / done
            report(Progress(self.position[0], self.settings.epochs, losses, left, words.shown))

        found = steps.run(tell, stop)
        if found is None:
            return False
        self.settings, self.network = found.settings, found.network
        self.facts = self.facts | {words.fact: found.facts}
        self.best, self.ema = {}, ExponentialMovingAverage(self.network, 0.0, None)
        self.optimiser = build_optimiser(self.network, self.settings, {}, self.compute.device)  # of no step
        self.keep(settle_levels(self.network, self.settings, self.good_images, self.compute), self.network)
        self.save(started)
        return True

    def deployed(self) -> Network:
        """A copy of the network with the weights to deploy, in evaluation mode."""
        copied = copy.deepcopy(self.network).requires_grad_(False)
        copied.load_state_dict(self.best or self.deployable())
        return copied.eval()

    @property
    def good_images(self) -> GoodImages:
        """What is known of good parts."""
        return GoodImages(self.learned, self.cache.images, self.held_out)

    def keep(self, settled: Settled, network: Network) -> None:
        """Take over what was chosen for `network`, which has it."""
        self.settings, self.facts = settled.settings, self.facts | settled.facts
        self.network.settings = network.settings
        self.network.place_factors, self.network.global_distance = network.place_factors, network.global_distance

    def save(self, started: float) -> None:
        """Write the checkpoint. Raises TrainingError, and leaves the last one, when a weight is not finite."""
        network = self.network.state_dict()
        broken = [name for name, value in network.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise TrainingError(
                f"the weights {broken[0]} hold NaN or infinite values after epoch {self.position[0]}; "
                f"{self.last_good_checkpoint()}. Lower --learning-rate, or use --precision fp32"
            )
        epoch, step = self.position
        facts = self.facts | {
            "epoch": epoch, "step": step, "sums": self.sums, "seconds": self.seconds_since(started),
            "precision": self.compute.precision,
            "marks": None if self.stopping is None else self.stopping.scores.as_dict(),
            "finished": self.is_at_its_end and not self.is_to_compress,
        }  # fmt: skip
        state = optimiser_tensors(self.optimiser)
        write_checkpoint(self.folder, Checkpoint(self.settings, network, self.ema.tensors, state, facts, self.best))
        self.saved_at = time.perf_counter()

    def last_good_checkpoint(self) -> str:
        """What is left when the training breaks, half a sentence."""
        kept = (self.folder / CHECKPOINT).is_file()
        return f"the last good checkpoint stays in {self.folder}" if kept else "there was no checkpoint yet"

    def seconds_since(self, started: float) -> float:
        """Seconds trained in all, before a stop too."""
        return self.seconds_before + time.perf_counter() - started

    def seconds_left(self, started: float, steps_done: int) -> float:
        """An estimate from the mean time of the steps so far."""
        epoch, step = self.position
        steps_left = self.steps_before(self.settings.epochs) - self.steps_before(epoch) - step
        if (compressor := self.method.compressor(self.settings)) is not None:
            steps_left += compressor.images // self.settings.batch  # by images: its steps have a batch of their own
        return steps_left * (time.perf_counter() - started) / steps_done

    def ended(self, finished: bool, started: float, step_ms: list[float]) -> Trained:
        """The report of this training."""
        # a captured step is queued, and now and then one waits for all before it
        middle = np.median if self.captured is None else np.mean
        shown = self.facts.get("learning_on") or (self.facts.get("compression", {}) if self.goes_on else {})
        return Trained(
            self.folder, finished, self.position[0], self.seconds_since(started),
            float(middle(step_ms)) if step_ms else 0.0, self.cache.teacher_ms, self.compute.precision,
            None if self.stopping is None else self.stopping.scores, shown.get("images", 0),
        )  # fmt: skip


def epoch_rows(count: int, batch: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The rows of each batch of an epoch, in an order drawn from (seed, epoch); a last batch of one image is dropped."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count, batch):
        rows = order[start : start + batch]
        if len(rows) >= SMALLEST_BATCH:
            yield rows
