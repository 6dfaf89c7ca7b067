"""Meters of a line: Prometheus histograms of stages, scores and batches, and percentiles of each stream's latencies.

A stage has one name everywhere: capture, queue, resize, inference, verdict, total (from capture to verdict) and sink.
Percentiles come from 1,400 logarithmic buckets from 1 microsecond to about 18 minutes, each 1.5 % wide: a percentile is
the geometric middle of its bucket, at most 0.75 % off, with the same few kilobytes after a week.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Histogram

from nnet_edge.events import Event
from nnet_edge.frame import Prediction

STAGES = ("queue", "resize", "inference", "verdict", "total")  # of each verdict, in Prediction.latencies_ms
LATENCY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SCORE_BOUNDS = tuple(round(0.1 * step, 1) for step in range(1, 21))  # image score / threshold; 1.0 is the threshold
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)  # images
SMALLEST_MS = 1e-3
GROWTH = 1.015
LOG_GROWTH = math.log(GROWTH)
BUCKETS = 1400  # 1.015 ** 1400 = 1.1e9: the last bucket lies at 18 minutes and takes what is longer


class LatencyHistogram:
    """Counts of latencies in logarithmic buckets, milliseconds; one thread at a time."""

    def __init__(self) -> None:
        self.count = 0
        self.total_ms = 0.0
        self._buckets = [0] * BUCKETS

    def add(self, latency_ms: float) -> None:
        """Count one latency; shorter than 1 microsecond counts as 1 microsecond."""
        position = int(math.log(max(latency_ms, SMALLEST_MS) / SMALLEST_MS) / LOG_GROWTH)
        self._buckets[min(position, BUCKETS - 1)] += 1
        self.count += 1
        self.total_ms += latency_ms

    def percentile_ms(self, percent: float) -> float | None:
        """The latency that `percent` of the counted ones do not exceed, within 0.75 %; None without any."""
        if self.count == 0:
            return None
        wanted, seen = max(1, math.ceil(self.count * percent / 100)), 0
        for position, number in enumerate(self._buckets):
            seen += number
            if seen >= wanted:
                return SMALLEST_MS * GROWTH ** (position + 0.5)
        raise AssertionError("the buckets hold fewer latencies than were counted")

    def percentiles(self) -> Percentiles:
        """p50, p95, p99 and mean of what was counted."""
        p50_ms, p95_ms, p99_ms = (self.percentile_ms(percent) for percent in (50, 95, 99))
        mean_ms = self.total_ms / self.count if self.count else None
        return Percentiles(self.count, p50_ms, p95_ms, p99_ms, mean_ms)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """p50, p95 and p99 of `count` latencies, milliseconds; None when nothing was counted."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mean_ms: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Count and percentiles, ready for JSON."""
        return {"count": self.count, "p50_ms": self.p50_ms, "p95_ms": self.p95_ms, "p99_ms": self.p99_ms}


class LineMeters:
    """Prometheus' histograms of one line, in a registry of its own; any thread may call any method."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.latency = Histogram(
            "nnet_edge_latency_seconds",
            "Time of each stage; total: from capture to verdict.",
            ["stream", "stage", "sink"],
            buckets=LATENCY_BOUNDS_S,
            registry=self.registry,
        )
        self.scores = Histogram(
            "nnet_edge_relative_score",
            "Image score divided by the threshold; 1 is the line.",
            ["stream"],
            buckets=SCORE_BOUNDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "nnet_edge_batch_images", "Images in a batch.", buckets=BATCH_BOUNDS, registry=self.registry
        )
        self._lock = threading.Lock()
        self._sinks: dict[tuple[str, str], Any] = {}  # (sink, stream) -> its histogram
        self._streams = {"line"}  # that are measured; what concerns no stream counts as "line"

    def collect(self) -> Iterable[Any]:
        """The metric families as Prometheus reads them, without the moments at which they were made."""
        for histogram in (self.latency, self.scores, self.batches):
            for family in histogram.collect():
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family

    def sink_observer(self, sink: str) -> Callable[[Prediction | Event, float], None]:
        """What the queue of that sink calls with everything delivered, and the milliseconds that it took.

        What belongs to a stream that was removed is not counted any more.
        """

        def observe(content: Prediction | Event, took_ms: float) -> None:
            stream = content.frame.stream if isinstance(content, Prediction) else content.stream or "line"
            histogram = self._sinks.get((sink, stream))
            if histogram is None:
                with self._lock:
                    if stream not in self._streams:
                        return
                    histogram = self._sinks[sink, stream] = self.latency.labels(stream, "sink", sink)
            histogram.observe(1e-3 * took_ms)

        return observe

    def of_stream(self, stream: str) -> StreamMeters:
        """The meters of a stream that was added, at zero."""
        with self._lock:
            self._streams.add(stream)
        return StreamMeters(self, stream)

    def forget(self, stream: str) -> None:
        """Drop the histograms of a stream that was removed."""
        with self._lock:
            self._streams.discard(stream)
            sinks = [key for key in self._sinks if key[1] == stream]
            for key in sinks:
                del self._sinks[key]
        for stage, sink in [*((stage, "") for stage in ("capture", *STAGES)), *(("sink", sink) for sink, _ in sinks)]:
            with suppress(KeyError):
                self.latency.remove(stream, stage, sink)
        with suppress(KeyError):
            self.scores.remove(stream)


class StreamMeters:
    """Verdicts, rejects, scores and the latencies of every stage of one stream; any thread may call any method."""

    def __init__(self, line: LineMeters, stream: str) -> None:
        self._lock = threading.Lock()
        self._line, self._stream = line, stream
        self._histograms = {stage: LatencyHistogram() for stage in STAGES}
        self._stages: dict[str, Any] = {}  # stage -> Prometheus' histogram, made with its first value
        self._scores = line.scores.labels(stream)
        self.verdicts = 0  # frames, or crops of frames
        self.rejected = 0
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
                self._histograms[stage].add(latency_ms)
                self._stage(stage).observe(1e-3 * latency_ms)
        self._scores.observe(prediction.relative_score)

    def add_capture(self, latency_ms: float) -> None:
        """Count what the source took to give one frame, milliseconds."""
        self._stage("capture").observe(1e-3 * latency_ms)

    def _stage(self, stage: str) -> Any:
        if stage not in self._stages:
            self._stages[stage] = self._line.latency.labels(self._stream, stage, "")
        return self._stages[stage]

    @property
    def seconds(self) -> float:
        """From the first captured frame to the last verdict."""
        return 0.0 if self._first_s is None else self._last_s - self._first_s

    def latencies(self, stages: Sequence[str] = STAGES) -> Mapping[str, Percentiles]:
        """Stage -> its percentiles, all of one moment."""
        with self._lock:
            return {stage: self._histograms[stage].percentiles() for stage in stages}
