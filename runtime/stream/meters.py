"""Meters of a line: counts and latency percentiles of each stream, and who else hears every measurement.

A stage has one name everywhere: capture, queue, resize, inference, verdict, total (from capture to verdict) and sink.
Percentiles come from 1,400 logarithmic buckets from 1 microsecond to about 18 minutes, each 1.5 % wide: a percentile is
the geometric middle of its bucket, at most 0.75 % off, with the same few kilobytes after a week. Prometheus' histograms
are made where a page serves them (`runtime/web/metrics.py`), which listens here.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from nnet_edge.frame import Prediction

STAGES = ("queue", "resize", "inference", "verdict", "total")  # of each verdict, in Prediction.latencies_ms
TRIGGER = "trigger"  # of a triggered one, from the trigger to the verdict
SMALLEST_MS = 1e-3
GROWTH = 1.015
LOG_GROWTH = math.log(GROWTH)
BUCKETS = 1400  # 1.015 ** 1400 = 1.1e9: the last bucket lies at 18 minutes and takes what is longer


class LatencyHistogram:
    """Counts of latencies in logarithmic buckets, milliseconds; one thread at a time."""

    def __init__(self) -> None:
        self.count = 0
        self.total_ms = self.largest_ms = 0.0
        self._buckets: dict[int, int] = {}  # of the few hundred that are used

    def add(self, latency_ms: float) -> None:
        """Count one latency; shorter than 1 microsecond counts as 1 microsecond."""
        position = int(math.log(latency_ms / SMALLEST_MS) / LOG_GROWTH) if latency_ms > SMALLEST_MS else 0
        position = min(position, BUCKETS - 1)
        self._buckets[position] = self._buckets.get(position, 0) + 1
        self.count += 1
        self.total_ms += latency_ms
        self.largest_ms = max(self.largest_ms, latency_ms)

    def percentile_ms(self, percent: float) -> float | None:
        """The latency that `percent` of the counted ones do not exceed, within 0.75 %; None without any."""
        return self._percentiles_ms((percent,))[0]

    def _percentiles_ms(self, percents: Sequence[float]) -> list[float | None]:
        """Several at once: the buckets are summed up once for all of them."""
        if self.count == 0:
            return [None for _ in percents]
        used = sorted(self._buckets)
        seen = list(accumulate(self._buckets[position] for position in used))
        places = [bisect_left(seen, max(1, math.ceil(self.count * percent / 100))) for percent in percents]
        return [SMALLEST_MS * GROWTH ** (used[place] + 0.5) for place in places]

    def percentiles(self) -> Percentiles:
        """p50, p95, p99, mean and maximum of what was counted."""
        p50_ms, p95_ms, p99_ms = self._percentiles_ms((50, 95, 99))
        mean_ms = self.total_ms / self.count if self.count else None
        return Percentiles(self.count, p50_ms, p95_ms, p99_ms, mean_ms, self.largest_ms if self.count else None)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """p50, p95 and p99 of `count` latencies, milliseconds; None when nothing was counted."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mean_ms: float | None = None
    max_ms: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Count and percentiles, ready for JSON."""
        percentiles = {"p50_ms": self.p50_ms, "p95_ms": self.p95_ms, "p99_ms": self.p99_ms}
        return {"count": self.count, **percentiles, "max_ms": self.max_ms}


class Listener(Protocol):
    """What hears every measurement of a line, in the thread that makes it."""

    def judged(self, prediction: Prediction) -> None:
        """A verdict, with its latencies."""
        ...

    def took(self, stream: str, stage: str, latency_ms: float, sink: str = "") -> None:
        """A stage that belongs to no verdict: capture, or sink."""
        ...

    def batch(self, images: int) -> None:
        """A batch was computed."""
        ...


class LineMeters:
    """Where the measurements of one line come together."""

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.batches = self.images = 0  # computed so far, and the images in them
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str], LatencyHistogram] = {}  # stream and sink -> from trigger to answer

    def batch(self, images: int) -> None:
        """Count a batch."""
        self.batches += 1
        self.images += images
        if self.listener is not None:
            self.listener.batch(images)

    def took(self, stream: str, stage: str, latency_ms: float, sink: str = "") -> None:
        """Pass on what a stage took that belongs to no verdict."""
        if self.listener is not None:
            self.listener.took(stream, stage, latency_ms, sink)

    def answered(self, stream: str, sink: str, latency_ms: float) -> None:
        """Count what a sink's answer took, from the trigger on."""
        with self._lock:
            self._answers.setdefault((stream, sink), LatencyHistogram()).add(latency_ms)
        self.took(stream, "answer", latency_ms, sink)

    def answers(self, stream: str) -> dict[str, Percentiles]:
        """Sink -> what its answers took, from the trigger on."""
        with self._lock:
            return {sink: found.percentiles() for (name, sink), found in self._answers.items() if name == stream}


class StreamMeters:
    """Verdicts, rejects and the latencies of every stage of one stream; any thread may call any method."""

    def __init__(self, line: LineMeters) -> None:
        self._lock = threading.Lock()
        self._line = line
        self._histograms = {stage: LatencyHistogram() for stage in STAGES}
        self.verdicts = 0  # frames, or crops of frames
        self.rejected = 0
        self.low = 0  # with a score lower than any good part's
        self._first_s: float | None = None
        self._last_s = 0.0

    def add(self, prediction: Prediction, now_s: float) -> None:
        """Count one verdict; `now_s` is the moment, on the clock of Frame.captured_s."""
        with self._lock:
            self._first_s = prediction.frame.captured_s if self._first_s is None else self._first_s
            self._last_s = now_s
            self.verdicts += 1
            self.rejected += prediction.is_anomalous
            for stage, latency_ms in prediction.latencies_ms.items():
                self._histograms.setdefault(stage, LatencyHistogram()).add(latency_ms)
        if self._line.listener is not None:
            self._line.listener.judged(prediction)

    @property
    def seconds(self) -> float:
        """From the first captured frame to the last verdict."""
        return 0.0 if self._first_s is None else self._last_s - self._first_s

    def latencies(self, stages: Sequence[str] = STAGES) -> Mapping[str, Percentiles]:
        """Stage -> its percentiles, all of one moment."""
        with self._lock:
            return {stage: self._histograms.get(stage, LatencyHistogram()).percentiles() for stage in stages}
