"""Adam with a rate for each group of parameters, the learning-rate schedule, and the EMA of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nnet_edge.methods.base import MethodSettings
from nnet_edge.methods.network import Network

WARM_UP_STEPS = 20
LEAST_RATE = 2e-4  # share of the learning rate at the end of the cosine schedule
EMA_WARM_UP_STEPS = 10  # early on the average follows the weights closely


def build_optimiser(
    network: Network, settings: MethodSettings, shares: Mapping[str, float], device: str, captured: bool = False
) -> torch.optim.Adam:
    """Adam, in one pass over each parameter and its moments; `shares` as in `parameter_groups`.

    `captured`: its steps can be a part of a CUDA graph, which asks for a GPU.
    """
    return torch.optim.Adam(
        parameter_groups(network, shares),
        settings.learning_rate,
        settings.betas,
        fused=device in ("cpu", "cuda") or None,
        capturable=captured,
    )


def parameter_groups(network: Network, shares: Mapping[str, float]) -> list[dict[str, Any]]:
    """All trained parameters, those whose names begin with a prefix of `shares` with that share of the learning rate."""
    groups: dict[str, list[torch.nn.Parameter]] = {"": [], **{prefix: [] for prefix in shares}}
    for name, value in network.named_parameters():
        if not name.startswith("teacher."):
            groups[next((prefix for prefix in shares if name.startswith(prefix)), "")].append(value)
    return [{"params": params, "share": shares.get(prefix, 1.0)} for prefix, params in groups.items()]


def set_rate(groups: Iterable[dict[str, Any]], rate: float) -> None:
    """Let every group learn at its share of `rate`."""
    for group in groups:
        group["lr"] = rate * group["share"]


def learning_rate(settings: MethodSettings, step: int, steps: int) -> float:
    """The rate of a step (from 0) of so many: constant, or falling as a half cosine after a short warm-up."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        rate *= warm_up * max(0.5 * (1 + math.cos(math.pi * step / steps)), LEAST_RATE)
    return rate


def learn(
    optimiser: torch.optim.Optimizer, terms: Mapping[str, Tensor], check: Callable[[float], None]
) -> dict[str, float]:
    """One step on the sum of the `terms` of a loss; gives it as "loss", and each of them.

    `check` is told the loss before anything is changed, and raises where it must not go on.
    """
    loss = torch.stack(list(terms.values())).sum()
    # one transfer for all of them: a GPU is waited for once in a step
    values: list[float] = torch.stack([loss, *terms.values()]).detach().tolist()
    check(values[0])
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return dict(zip(("loss", *terms), values, strict=True))


class ExponentialMovingAverage:
    """EMA of the weights and of batch norm's statistics, which a training deploys.

    `tensors` has the names of the network's state; it is empty when `decay` is 0 and no average is kept.
    """

    def __init__(self, network: Network, decay: float, start: dict[str, Tensor] | None) -> None:
        """From the network's present weights, or from `start`, the average that a checkpoint kept."""
        self.network, self.decay = network, decay
        self.tensors: dict[str, Tensor] = {}
        if decay:
            weights = network.state_dict()
            found = weights if start is None else start
            self.tensors = {name: torch.empty_like(value).copy_(found[name]) for name, value in weights.items()}

    def share(self, step: int) -> float:
        """Of the present values, after step number `step` (from 0) of the training."""
        return 1 - min(self.decay, (1 + step) / (EMA_WARM_UP_STEPS + step))

    def follow(self, step: int) -> None:
        """Move towards the present values, after step number `step` (from 0) of the training."""
        self.move(self.share(step))

    @torch.no_grad()
    def move(self, share: float | Tensor) -> None:
        """Move by `share` towards the present values."""
        if not self.decay:
            return
        for name, value in self.network.state_dict().items():
            if name.startswith("teacher."):
                continue
            if value.dtype.is_floating_point:
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)
