"""Compression at the end of a training: a smaller network learns to do what the trained one does.

A method says what becomes smaller and which losses the small network has; here are its steps. Each batch has good images, with
their cached features, and some with a painted anomaly. Everything is drawn from the seed of the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import nn

from nnet_edge.data.painted import anomalous_copies
from nnet_edge.errors import TrainingError
from nnet_edge.methods.backbone import Features
from nnet_edge.methods.base import METHODS, Batch, MethodSettings
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.network import Network
from nnet_edge.training.feature_cache import FeatureCache
from nnet_edge.training.optimiser import ExponentialMovingAverage, build_optimiser, learn, learning_rate, set_rate

EMA_DECAY = 0.95  # of the small network's weights: a compression has a hundred steps


@dataclass(frozen=True)
class Compressed:
    """The small network, in evaluation mode, and its settings, which ask for no compression."""

    network: Network
    settings: MethodSettings
    facts: dict[str, float]  # images shown and the mean of each loss, for the manifest


class Compression:
    """The steps of one compression of `whole`, a trained network in evaluation mode that does not learn any more."""

    def __init__(self, whole: Network, settings: MethodSettings, cache: FeatureCache, compute: Compute) -> None:
        self.whole, self.settings, self.cache, self.compute = whole, settings, cache, compute
        compressor = METHODS.find(settings.method).compressor(settings)
        assert compressor is not None  # the training asked
        self.compressor, self.steps = compressor, max(1, compressor.images // compressor.batch)
        self.small, self.small_settings = compressor.begin(whole, cache.images, compute)
        self.learning = [part for part in self.small.children() if learns(part)]
        self.optimiser = build_optimiser(self.small, settings, {}, compute.device)
        self.ema = ExponentialMovingAverage(self.small, EMA_DECAY, None)
        self.sums: dict[str, float] = {}

    def run(self, tell: Callable[[int, dict[str, float]], None], stop: Callable[[], bool]) -> Compressed | None:
        """The compressed network; None when `stop` said so. `tell` hears of each step, and of the means of the losses so far.

        Raises TrainingError when a loss is not finite.
        """
        for part in self.learning:
            part.train()
        falling = replace(self.settings, schedule="cosine")
        for step, rows in enumerate(self.rows()):
            set_rate(self.optimiser.param_groups, learning_rate(falling, step, self.steps))
            for name, value in self.take_step(step, rows).items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            tell(step + 1, self.means(step + 1))
            if stop():
                return None
        self.small.load_state_dict(self.ema.tensors)
        facts = {"images": self.steps * self.compressor.batch} | self.means(self.steps)
        return Compressed(self.small.eval().requires_grad_(False), self.small_settings, facts)

    def means(self, steps: int) -> dict[str, float]:
        """Of each loss over the first `steps` steps."""
        return {name: value / steps for name, value in self.sums.items()}

    def rows(self) -> Iterator[np.ndarray]:
        """The rows of each batch: all images in turn, each time in another order."""
        count, wanted = len(self.cache.images), self.steps * self.compressor.batch
        rng = np.random.default_rng([self.settings.seed, 6])
        order = np.concatenate([rng.permutation(count) for _ in range(math.ceil(wanted / count))])[:wanted]
        yield from np.split(order, self.steps)

    def take_step(self, step: int, rows: np.ndarray) -> dict[str, float]:
        """One step of the optimiser on the images in `rows`; gives its losses."""
        batch = self.batch_of(step, rows)
        with self.compute.autocast():
            terms = self.compressor.losses(self.small, self.whole, batch)
        losses = learn(self.optimiser, terms, partial(require_finite, step))
        self.ema.follow(step)
        return losses

    def batch_of(self, step: int, rows: np.ndarray) -> Batch:
        """The images in `rows`, the first of them with an anomaly."""
        images, anomalous = self.cache.images[rows].copy(), self.compressor.anomalous
        good = self.cache.features(rows[anomalous:], self.compute.device)
        if not anomalous:
            return Batch(self.whole.student_images(images), good)
        seed, window = self.settings.seed, self.settings.input.network.window
        images[:anomalous], _ = anomalous_copies(images[:anomalous], anomalous, seed, 6, step, window=window)
        normalised = self.whole.student_images(images)
        with torch.no_grad(), self.compute.autocast():
            strange = self.whole.teacher_features(normalised[:anomalous])
        features = [torch.cat([one.to(other.dtype), other]) for one, other in zip(strange, good, strict=True)]
        return Batch(normalised, cast(Features, tuple(features)))


def require_finite(step: int, loss: float) -> None:
    """Raise TrainingError for a loss of step `step` (from 0) that is NaN or infinite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} in step {step + 1} of the compression: lower --learning-rate, or use --precision fp32"
        )


def learns(part: nn.Module) -> bool:
    """Whether a part of a network has weights that learn."""
    return any(value.requires_grad for value in part.parameters())
