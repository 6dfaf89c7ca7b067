"""A system in a precision: planned, opened for a batch, or missing with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnet_edge.runtime.runner import Runner

BareModel = Callable[[np.ndarray], object]  # uint8 RGB (N, 256, 256, 3) -> layer maps, wherever they lie


@dataclass(frozen=True)
class Plan:
    """A system and the precision that it is to compute in."""

    system: str
    precision: str

    @property
    def name(self) -> str:
        """As tables and plots write it."""
        return f"{self.system} {self.precision}"


@dataclass(frozen=True)
class Missing:
    """What was asked for and cannot be measured here, and why."""

    system: str
    precision: str
    scope: str | None  # or "memory"; None: none of them
    reason: str


@dataclass(frozen=True)
class Opened:
    """A system that is ready for batches of one size: everything is loaded."""

    plan: Plan
    batch: int
    runner: Runner
    bare: BareModel | None  # None where the bare model was not asked for
    threshold: float
    artefact: Path  # the file that it computes
    hint: str  # "latency", "throughput", or "" where the system knows no hints
