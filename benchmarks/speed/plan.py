"""What a speed measurement measures: systems, precisions, scopes, batches; planned, opened for a batch, or missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnet_edge.errors import ConfigError
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.settings.runner import require_between, require_choice

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


SYSTEMS = ("torch", "torch.compile", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SCOPES = ("model", "map", "camera")
LARGEST_BATCH = 256
LONGEST_TURN_S = 60.0


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured and how often. Raises ConfigError for an invalid setting."""

    systems: tuple[str, ...] = SYSTEMS
    precisions: tuple[str, ...] = PRECISIONS
    scopes: tuple[str, ...] = SCOPES
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 5  # rounds; every candidate is measured in each
    turn_s: float = 0.5  # seconds of a candidate in a round, the call that is under way included; at least two calls
    threads: int | None = None  # of every candidate alike; None: one a usable core
    with_memory: bool = True  # a process of its own for every system and precision, which loads it and infers

    def __post_init__(self) -> None:
        for what, values, known in (("system", self.systems, SYSTEMS), ("precision", self.precisions, PRECISIONS),
                                    ("scope", self.scopes, SCOPES)):  # fmt: skip
            for value in values:
                require_choice(what, value, known)
            if not values:
                raise ConfigError(f"there is nothing to measure: give a {what}, one of {', '.join(known)}")
        if not self.batches:
            raise ConfigError("there is nothing to measure: give a batch")
        for batch in self.batches:
            require_between("batch", batch, 1, LARGEST_BATCH)
        if len(set(self.batches)) < len(self.batches):
            raise ConfigError(f"batches are {self.batches}: give each once")
        require_between("repeats", self.repeats, 1, 1000)
        if not (math.isfinite(self.turn_s) and 0 < self.turn_s <= LONGEST_TURN_S):
            raise ConfigError(f"seconds of a turn are {self.turn_s}: above 0, at most {LONGEST_TURN_S:g}")
        if self.threads is not None:
            require_between("threads", self.threads, 1, 1024)


DEFAULTS = SpeedSettings()
