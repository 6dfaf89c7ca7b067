"""Training steps that run on a GPU by themselves: images and features lie there, and a whole step is one CUDA graph.

A step of a small network is a thousand kernels of microseconds, which Python launches more slowly than a GPU runs them. Here
everything that differs from step to step (the rows of the batch, the learning rate, the share of the EMA) is a value in memory
that stays in its place, the losses are summed up where they arise, and nobody waits for them but every LOOK_EVERY steps. The
first steps run as they are written, on a stream of their own; then a step is recorded once for each phase of the loss and
replayed. A batch of another size, the last of an epoch, runs as it is written.

On a processor the same steps can run unrecorded: so they are tested against the plain ones. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nnet_edge.methods.backbone import Features
from nnet_edge.methods.base import Batch, Method, MethodSettings
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.network import Network
from nnet_edge.training.feature_cache import FeatureCache
from nnet_edge.training.optimiser import ExponentialMovingAverage

LOOK_EVERY = 25  # steps between two looks at the losses
UNRECORDED = 3  # steps before a recording: they make Adam's moments and let libraries choose their kernels
SHARE_OF_MEMORY = 0.5  # of a GPU's free memory that images and features may take


@dataclass(frozen=True)
class Seen:
    """The losses since the last look."""

    losses: dict[str, float]  # sums over the steps, the whole first
    steps: int
    compared: Any  # what the last step compared


@dataclass(frozen=True)
class Recorded:
    """A step that is replayed."""

    graph: torch.cuda.CUDAGraph
    compared: Any  # in the graph's memory, overwritten by each replay


class CapturedSteps:
    """Steps of one training on the device of `network`; `records` says whether they become CUDA graphs."""

    def __init__(self, method: Method[Any, Any], network: Network, settings: MethodSettings, optimiser: torch.optim.Adam,
                 ema: ExponentialMovingAverage, cache: FeatureCache, compute: Compute, records: bool) -> None:  # fmt: skip
        self._method, self._network, self._settings, self._ema = method, network, settings, ema
        self._optimiser, self._compute, self._records = optimiser, compute, records
        device = network.mean.device
        self._images = torch.from_numpy(np.ascontiguousarray(cache.images)).to(device)
        self._maps = tuple(values.to(device) for values in cache.maps)
        self._rows = torch.zeros(settings.batch, dtype=torch.int64, device=device)
        self._share = torch.zeros((), device=device)  # of the weights in their average
        self._rates = torch.zeros(len(optimiser.param_groups), device=device)
        for group, rate in zip(optimiser.param_groups, self._rates.unbind(), strict=True):
            group["lr"] = rate  # a view: written in one transfer
        self._names: dict[int, tuple[str, ...]] = {}  # phase -> its losses
        self._sums: dict[int, Tensor] = {}
        self._summed: set[int] = set()  # phases with steps since the last look
        self._recorded: dict[int, Recorded] = {}
        self._stream = torch.cuda.Stream() if records else None
        self._done = 0
        self.pending = 0  # steps since the last look
        self._compared: Any = None

    def step(self, rows: np.ndarray, rate: float, number: int, epoch: int) -> None:
        """Step number `number` (from 0) of the training on the images in `rows`, queued and not waited for."""
        phase = self._method.phase(self._settings, epoch)
        shares = [rate * group["share"] for group in self._optimiser.param_groups]
        self._rates.copy_(torch.tensor(shares), non_blocking=True)
        self._share.fill_(self._ema.share(number))
        self.pending += 1
        self._summed.add(phase)
        if not self._records or len(rows) != len(self._rows):
            self._compared = self._run(torch.from_numpy(rows).to(self._rows.device, non_blocking=True), phase, epoch)
            return
        self._rows.copy_(torch.from_numpy(rows), non_blocking=True)
        if phase in self._recorded:
            self._recorded[phase].graph.replay()
        elif self._done < UNRECORDED or phase not in self._sums:
            self._compared = self._aside(lambda: self._run(self._rows, phase, epoch))
        else:
            self._record(phase, epoch)
        self._done += 1
        if phase in self._recorded:
            self._compared = self._recorded[phase].compared

    def look(self) -> Seen:
        """The losses since the last look; waits for the device. Nothing is summed up twice."""
        losses: dict[str, float] = {}
        for phase, sums in self._sums.items():
            if phase not in self._summed:
                continue
            for name, value in zip(self._names[phase], sums.tolist(), strict=True):
                losses[name] = losses.get(name, 0.0) + value
            sums.zero_()
        self._summed.clear()
        seen, self.pending = Seen(losses, self.pending, self._compared), 0
        return seen

    @property
    def is_due(self) -> bool:
        """Whether so many steps have gone by that somebody should look."""
        return self.pending >= LOOK_EVERY

    def _run(self, rows: Tensor, phase: int, epoch: int) -> Any:
        """A step as it is written, every value on the device; gives what its losses compared."""
        normalised = self._network.normalise(self._images[rows]).contiguous(memory_format=torch.channels_last)
        batch = Batch(normalised, cast(Features, tuple(values[rows] for values in self._maps)))
        with self._compute.autocast():
            compared = self._method.forward(self._network, batch, self._settings)
        terms = self._method.losses(compared, self._settings, epoch)
        loss = torch.stack(list(terms.values())).sum()
        values = torch.stack([loss, *terms.values()]).detach()
        if phase not in self._sums:
            self._names[phase] = ("loss", *terms)
            self._sums[phase] = torch.zeros_like(values)
        self._sums[phase] += values
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        self._ema.move(self._share)
        return compared

    def _aside(self, run: Callable[[], Any]) -> Any:
        """What `run` gives, on a stream of its own, as a step before a recording has to run."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            found = run()
        torch.cuda.current_stream().wait_stream(self._stream)
        return found

    def _record(self, phase: int, epoch: int) -> None:
        """Record a step of this phase, and run it once."""
        graph = torch.cuda.CUDAGraph()
        self._optimiser.zero_grad(set_to_none=True)  # gradients are born in the graph's own memory
        with torch.cuda.graph(graph, stream=self._stream):
            compared = self._run(self._rows, phase, epoch)
        self._recorded[phase] = Recorded(graph, compared)
        graph.replay()


def fits(cache: FeatureCache, device: torch.device) -> bool:
    """Whether images and features find room on the GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return cache.images.nbytes + cache.bytes <= SHARE_OF_MEMORY * free
