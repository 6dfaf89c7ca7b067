"""How long verdicts took to arrive: a histogram for each sink and stream, from the put to the sink's answer.

Exact counts in fixed buckets, as Prometheus keeps histograms, and the picture of a stream's meters at one moment.

How long frames take and what became of them: histograms of fixed size, however long a stream runs.

A latency falls into one of 1,400 logarithmic buckets from 1 microsecond to about 18 minutes, each 1.5 % wide, and a
percentile is the geometric middle of its bucket: at most 0.75 % off, with the same few kilobytes after a week.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.stream.buffer import LaneCounts

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


SMALLEST_MS = 1e-3
GROWTH = 1.015
BUCKETS = 1400  # 1.015 ** 1400 = 1.1e9: the last bucket lies at 18 minutes and takes what is longer
STAGES = ("waiting", "preprocess", "infer", "postprocess", "total")
PUBLIC_STAGES = {  # in verdicts -> in histograms
    "waiting": "queue",
    "preprocess": "resize",
    "infer": "inference",
    "postprocess": "verdict",
    "total": "total",
}


class LatencyHistogram:
    """Counts of latencies in logarithmic buckets, milliseconds."""

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0] * BUCKETS

    def add(self, latency_ms: float) -> None:
        """Count one latency; shorter than 1 microsecond counts as 1 microsecond."""
        position = int(math.log(max(latency_ms, SMALLEST_MS) / SMALLEST_MS) / math.log(GROWTH))
        self._buckets[min(position, BUCKETS - 1)] += 1
        self.count += 1

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


@dataclass(frozen=True, slots=True)
class Percentiles:
    """p50, p95 and p99 of `count` latencies, milliseconds; None when nothing was counted."""

    count: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None

    def as_dict(self) -> dict[str, float | int | None]:
        """The four numbers, ready for JSON."""
        return {"count": self.count, "p50_ms": self.p50_ms, "p95_ms": self.p95_ms, "p99_ms": self.p99_ms}


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What became of a stream's frames, and how long they took."""

    frames: int  # that were judged
    rejected: int  # of those, above the threshold
    dropped: int  # captured and never judged
    skipped: int  # files that could not be read and were passed over because the user said so
    seconds: float  # from the first captured frame to the last verdict
    latencies: Mapping[str, Percentiles] = field(default_factory=dict)  # stage of STAGES -> its percentiles
    ended: str = "running"  # "running", "source ended", "stopped", or "failed: " and the reason
    captured: int = 0  # = judged + dropped + queued
    judged: int = 0  # frames; fewer than `frames` where a frame has several crops
    queued: int = 0  # wait, or have no verdict yet
    drops: Mapping[str, int] = field(default_factory=dict)  # cause -> frames

    @property
    def frames_per_s(self) -> float | None:
        """Judged frames a second; None before two moments can be told apart."""
        return self.frames / self.seconds if self.seconds > 0 else None

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {
            "frames": self.frames,
            "rejected": self.rejected,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "captured": self.captured,
            "judged": self.judged,
            "queued": self.queued,
            "drops": dict(self.drops),
            "seconds": self.seconds,
            "frames_per_s": self.frames_per_s,
            "latencies": {stage: numbers.as_dict() for stage, numbers in self.latencies.items()},
            "ended": self.ended,
        }

    def lines(self) -> list[str]:
        """The report as a person reads it, one fact a line."""
        rate = "no rate" if self.frames_per_s is None else f"{self.frames_per_s:.1f} frames/s"
        skipped = f", {self.skipped} unreadable files skipped" if self.skipped else ""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.drops.items())
        why = f" ({causes})" if causes else ""
        return [
            f"{self.ended}: {self.frames} frames in {self.seconds:.1f} s, {rate}; "
            f"{self.rejected} rejected, {self.dropped} dropped{why}{skipped}",
            *(f"{stage} latency {latency_text(numbers)}" for stage, numbers in self.latencies.items()),
        ]


def latency_text(numbers: Percentiles) -> str:
    """p50 / p95 / p99 as one short text."""
    if numbers.p50_ms is None or numbers.p95_ms is None or numbers.p99_ms is None:
        return "p50 / p95 / p99: no frame yet"
    values = " / ".join(f"{value:.3g}" for value in (numbers.p50_ms, numbers.p95_ms, numbers.p99_ms))
    return f"p50 / p95 / p99: {values} ms ({numbers.count} frames)"


class Meters:
    """Counts verdicts, rejects, scores and the latencies of every stage of one stream; any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histograms = {stage: LatencyHistogram() for stage in STAGES}
        self._buckets = {stage: BucketCounter(LATENCY_BOUNDS_MS) for stage in ("capture", *PUBLIC_STAGES.values())}
        self._scores = BucketCounter(SCORE_BOUNDS)
        self._frames = 0
        self._rejected = 0
        self._first_s: float | None = None
        self._last_s = 0.0

    def add(self, prediction: Prediction, now_s: float) -> None:
        """Count one verdict; `now_s` is the moment, on the clock of Frame.captured_s."""
        with self._lock:
            self._first_s = prediction.frame.captured_s if self._first_s is None else self._first_s
            self._last_s = now_s
            self._frames += 1
            self._rejected += prediction.is_anomalous
            self._scores.add(prediction.relative_score)
            for stage, latency_ms in prediction.latencies_ms.items():
                self._histograms[stage].add(latency_ms)
                self._buckets[PUBLIC_STAGES[stage]].add(latency_ms)

    def add_capture(self, latency_ms: float) -> None:
        """Count what the source took to give one frame, milliseconds."""
        with self._lock:
            self._buckets["capture"].add(latency_ms)

    @property
    def rejected(self) -> int:
        """Verdicts that were rejects."""
        return self._rejected

    def snapshot(self) -> MeterSnapshot:
        """The histograms in fixed buckets, all of one moment."""
        with self._lock:
            stages_ms = {stage: buckets.snapshot() for stage, buckets in self._buckets.items()}
            return MeterSnapshot(self._frames, self._rejected, stages_ms, self._scores.snapshot())

    def report(
        self, dropped: int, skipped: int = 0, ended: str = "running", counts: LaneCounts | None = None
    ) -> StreamReport:
        """The counts so far; `counts` says what became of the frames that have no verdict."""
        counts = counts or LaneCounts()
        with self._lock:
            return StreamReport(
                frames=self._frames,
                rejected=self._rejected,
                dropped=dropped,
                skipped=skipped,
                seconds=0.0 if self._first_s is None else self._last_s - self._first_s,
                latencies={stage: percentiles_of(histogram) for stage, histogram in self._histograms.items()},
                ended=ended,
                captured=counts.captured,
                judged=counts.judged,
                queued=counts.queued,
                drops=counts.dropped,
            )


def percentiles_of(histogram: LatencyHistogram) -> Percentiles:
    """p50, p95 and p99 of what the histogram counted."""
    p50_ms, p95_ms, p99_ms = (histogram.percentile_ms(percent) for percent in (50, 95, 99))
    return Percentiles(histogram.count, p50_ms, p95_ms, p99_ms)


MOST = 4096  # histograms; beyond them the one goes that was silent for longest


class SinkTimes:
    """Counts deliveries; any thread may call any method. Give `hear` to `line.events`, so that removed streams go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: OrderedDict[tuple[str, str], BucketCounter] = OrderedDict()  # longest silent first

    def observer(self, sink: str) -> Callable[[Prediction | Event, float], None]:
        """What a queued sink of that name calls with each thing delivered and the milliseconds it took."""

        def observe(content: Prediction | Event, took_ms: float) -> None:
            stream = content.frame.stream if isinstance(content, Prediction) else content.stream or "line"
            with self._lock:
                counter = self._counters.get((sink, stream))
                if counter is None:
                    counter = self._counters[sink, stream] = BucketCounter(LATENCY_BOUNDS_MS)
                counter.add(took_ms)
                self._counters.move_to_end((sink, stream))
                if len(self._counters) > MOST:
                    self._counters.popitem(last=False)

        return observe

    def hear(self, event: Event) -> None:
        """Forget a stream that was removed; what a sink still has of it counts anew."""
        if event.kind == "stream.removed":
            with self._lock:
                for key in [key for key in self._counters if key[1] == event.stream]:
                    del self._counters[key]

    def snapshot(self) -> dict[tuple[str, str], Buckets]:
        """(sink, stream) -> milliseconds."""
        with self._lock:
            return {key: counter.snapshot() for key, counter in self._counters.items()}
