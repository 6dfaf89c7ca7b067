"""Exact counts in fixed buckets, as Prometheus keeps histograms, and the picture of a stream's meters at one moment."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LATENCY_BOUNDS_MS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0)
SCORE_BOUNDS = tuple(round(0.1 * step, 1) for step in range(1, 21))  # image score / threshold, 1.0 is the line
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)  # images


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram at one moment: `counts[i]` values lie above bounds[i - 1] and not above bounds[i], the last above all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]  # one more than bounds
    total: float  # sum of the values

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[float, int]]:
        """(bound, values not above it) of each bound, then (infinity, all): the buckets of Prometheus."""
        seen, pairs = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            pairs.append((bound, seen))
        return pairs


class BucketCounter:
    """Counts values; one thread at a time."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> Buckets:
        """The counts now."""
        return Buckets(self._bounds, tuple(self._counts), self._total)


@dataclass(frozen=True, slots=True)
class MeterSnapshot:
    """Everything that the meters of one stream know, counts since the start."""

    frames: int  # verdicts: frames, or crops of frames
    rejected: int
    stages_ms: Mapping[str, Buckets]  # capture, queue, resize, inference, verdict, total -> milliseconds
    scores: Buckets  # image score / threshold
