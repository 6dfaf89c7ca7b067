"""Rounds: every candidate is measured once a round, and medians, ranges and ratios come from what the rounds gave.

Whatever slows the machine down then slows all candidates. Each round begins with another candidate, and a ratio is taken
inside each round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from nnet_edge.errors import NnetEdgeError

NS_PER_S, NS_PER_MS = 1e9, 1e6
PERCENTS = (50, 95, 99)
Name = TypeVar("Name", bound=Hashable)
Found = TypeVar("Found")
Say = Callable[[str], None]


def quiet(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Spread:
    """A median and the range that it comes from."""

    median: float
    smallest: float
    largest: float

    def text(self, digits: int) -> str:
        """Median (smallest..largest)."""
        return f"{self.median:.{digits}f} ({self.smallest:.{digits}f}..{self.largest:.{digits}f})"

    def as_dict(self) -> dict[str, float]:
        """The three numbers."""
        return {"median": self.median, "min": self.smallest, "max": self.largest}


def spread(values: Sequence[float]) -> Spread:
    """Median and range of `values`."""
    return Spread(float(np.median(values)), min(values), max(values))


def ratios(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """The ratio of each round, `values` over `baseline`."""
    return spread([one / other for one, other in zip(values, baseline, strict=True)])


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p95 and p99."""
    p50, p95, p99 = np.percentile(values, PERCENTS)
    return float(p50), float(p95), float(p99)


def run_rounds(
    candidates: Mapping[Name, Callable[[], Found]],
    rounds: int,
    say: Say = quiet,
    lose: Callable[[Name, NnetEdgeError, int], None] | None = None,
) -> dict[Name, list[Found]]:
    """What each candidate measured in every round; each round begins with another one.

    One that fails is left out, and `lose` is told its name, the error and the round; without `lose` the error is raised.
    """
    names = list(candidates)
    found: dict[Name, list[Found]] = {name: [] for name in names}
    began_s = time.monotonic()
    for number in range(rounds):
        left_s = (time.monotonic() - began_s) * (rounds - number) / number if number else 0.0
        say(f"round {number + 1} of {rounds}{f', about {left_s:.0f} s left' if number else ''}")
        first = number % max(len(names), 1)
        for name in (*names[first:], *names[:first]):
            if name not in found:
                continue
            try:
                found[name].append(candidates[name]())
            except NnetEdgeError as error:
                if lose is None:
                    raise
                del found[name]
                lose(name, error, number + 1)
    return found


def between(
    candidate: Callable[[], float], baseline: Callable[[], float], rounds: int, enough_s: float = math.inf
) -> tuple[list[float], list[float]]:
    """The candidate in every round, and the mean of the baseline just before and just after it.

    From time.monotonic() `enough_s` on no further round begins; there is one at least.
    """
    taken, beside, before = [], [], baseline()
    for _ in range(rounds):
        taken.append(candidate())
        after = baseline()
        beside.append((before + after) / 2)
        before = after
        if time.monotonic() > enough_s:
            break
    return taken, beside


def repeated(measure: Callable[[], float], rounds: int, warm_ups: int) -> Spread:
    """One candidate alone, after measurements that are not counted."""
    for _ in range(warm_ups):
        measure()
    return spread([measure() for _ in range(rounds)])


@dataclass(frozen=True)
class Took:
    """Seconds of one call."""

    clock_s: float
    processor_s: float  # of this process, all its threads together: other programs disturb it least


def took(work: Callable[[], object], calls: int = 1) -> Took:
    """What a call of `work` takes, the mean of `calls`."""
    clock_s, processor_s = time.perf_counter(), time.process_time()
    for _ in range(calls):
        work()
    return Took((time.perf_counter() - clock_s) / calls, (time.process_time() - processor_s) / calls)


@dataclass(frozen=True)
class Round:
    """What one candidate did in one round."""

    frames: int
    seconds: float
    latencies_ms: tuple[float, ...]  # of each call (model, map); of each picture alone (camera at batch 1)
    calls: int  # of the runner: frames / calls is the batch that was met
    joules: float | None = None  # of the whole card or module
    rejected: int | None = None  # frames above the threshold; a reject costs the search for its regions

    @property
    def frames_per_s(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


@dataclass(frozen=True)
class Timed:
    """All rounds of one candidate."""

    rounds: tuple[Round, ...]

    @property
    def rates(self) -> list[float]:
        """Frames a second of each round, in the order they ran."""
        return [one.frames_per_s for one in self.rounds]

    @property
    def frames_per_s(self) -> Spread:
        """Over the rounds."""
        return spread(self.rates)

    @property
    def latencies_ms(self) -> tuple[float, float, float] | None:
        """p50, p95 and p99 over all rounds together; None where none were measured: a full buffer waits for itself."""
        values = [value for one in self.rounds for value in one.latencies_ms]
        return percentiles(values) if values else None

    @property
    def latency_count(self) -> int:
        """How many latencies those are of."""
        return sum(len(one.latencies_ms) for one in self.rounds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `rounds` are frames a second in the order they ran."""
        known = self.latencies_ms
        percents = None if known is None else dict(zip(("p50", "p95", "p99"), known, strict=True))
        return {
            "frames_per_s": self.frames_per_s.as_dict(),
            "rounds": self.rates,
            "latency_ms": None if percents is None else percents | {"count": self.latency_count},
        }
