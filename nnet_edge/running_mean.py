"""The running mean of a network's weights and of batch norm's statistics, which is what a training deploys."""

from __future__ import annotations

import torch
from torch import Tensor

from nnet_edge.model.nnet import NNet

WARM_UP_STEPS = 10  # early on the mean follows the weights closely


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
        share = 1 - min(self.decay, (1 + step) / (WARM_UP_STEPS + step))
        for name, value in self.network.state_dict().items():
            if name.startswith("teacher."):
                continue
            if value.dtype.is_floating_point:
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)
