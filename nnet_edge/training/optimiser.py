"""The running mean of a network's weights and of batch norm's statistics, which is what a training deploys.

How the weights move: Adam over all trained parameters, some of them with rates of their own, and the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nnet_edge.methods.nnet.network import NNet
from nnet_edge.methods.nnet.settings import TrainSettings

WARM_UP_STEPS = 20
LEAST_RATE = 2e-4  # share of the learning rate at the end of the cosine schedule


def build_optimiser(network: NNet, settings: TrainSettings, device: str) -> torch.optim.Adam:
    """Adam; on a CPU in one pass over each parameter and its moments."""
    return torch.optim.Adam(
        parameter_groups(network, settings), settings.learning_rate, settings.betas, fused=device == "cpu" or None
    )


def parameter_groups(network: NNet, settings: TrainSettings) -> list[dict[str, Any]]:
    """All trained parameters, those of memory and projections with rates of their own (the spec's open point A-12).

    Projections are a group apart only where their rate differs: an optimiser's state counts parameters by group.
    """
    shares = {"memory.": settings.memory_rate}
    if settings.projection_rate != 1:
        shares |= dict.fromkeys(("teacher_projections.", "student_projections."), settings.projection_rate)
    groups: dict[str, list[torch.nn.Parameter]] = {"": [], **{prefix: [] for prefix in shares}}
    for name, value in network.named_parameters():
        if not name.startswith("teacher."):
            groups[next((prefix for prefix in shares if name.startswith(prefix)), "")].append(value)
    return [{"params": params, "share": shares.get(prefix, 1.0)} for prefix, params in groups.items()]


def set_rate(groups: Iterable[dict[str, Any]], rate: float) -> None:
    """Let every group learn at its share of `rate`."""
    for group in groups:
        group["lr"] = rate * group["share"]


def learning_rate(settings: TrainSettings, step: int, steps: int) -> float:
    """The rate of a step (from 0) of so many: constant, or falling as a half cosine after a short warm-up."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        rate *= warm_up * max(0.5 * (1 + math.cos(math.pi * step / steps)), LEAST_RATE)
    return rate


MEAN_WARM_UP_STEPS = 10  # early on the mean follows the weights closely


class RunningMean:
    """`tensors`, by the names of the network's state; empty when `decay` is 0 and no mean is kept."""

    def __init__(self, network: NNet, decay: float, start: dict[str, Tensor] | None) -> None:
        """From the network's present weights, or from `start`, the mean that a checkpoint kept."""
        self.network, self.decay = network, decay
        self.tensors: dict[str, Tensor] = {}
        if decay:
            weights = network.state_dict()
            found = weights if start is None else start
            self.tensors = {name: torch.empty_like(value).copy_(found[name]) for name, value in weights.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move towards the present values, after step number `step` (from 0) of the training."""
        if not self.decay:
            return
        share = 1 - min(self.decay, (1 + step) / (MEAN_WARM_UP_STEPS + step))
        for name, value in self.network.state_dict().items():
            if name.startswith("teacher."):
                continue
            if value.dtype.is_floating_point:
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)
