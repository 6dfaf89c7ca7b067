"""Prometheus metrics of a line, read at each scrape; the only file that imports prometheus_client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Histogram, core, exposition

from nnet_edge import __version__
from nnet_edge.errors import ConfigError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks.queue import SinkCounts
from nnet_edge.runtime.sources.camera import STATES
from nnet_edge.runtime.stream.drift import Drift
from nnet_edge.runtime.stream.meters import TRIGGER
from nnet_edge.runtime.stream.report import StreamStatus
from nnet_edge.runtime.stream.triggers import TriggerCounts
from nnet_edge.runtime.web.gallery import Gallery
from nnet_edge.runtime.web.state import of_each

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.line import Line

PREFIX = "nnet_edge_"
LATENCY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SCORE_BOUNDS = tuple(round(0.1 * step, 1) for step in range(1, 21))  # image score / threshold; 1.0 is the threshold
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)  # images
Family = Any  # prometheus_client.core.Metric
Row = tuple[tuple[str, ...], Any]  # the labels' values, and the value
OF_STREAM: tuple[tuple[str, str, str, Callable[[StreamStatus], float]], ...] = (
    ("Counter", "captured_frames", "Frames taken from the camera.", lambda one: one.counts.captured),
    ("Counter", "judged_frames", "Frames with a verdict.", lambda one: one.counts.judged),
    ("Counter", "verdicts", "Verdicts; a frame has one for each of its crops.", lambda one: one.verdicts),
    ("Counter", "rejects", "Verdicts that are anomalous.", lambda one: one.rejected),
    ("Counter", "low_scores", "Verdicts with a score lower than any good part's.", lambda one: one.low),
    ("Counter", "skipped_pictures", "Pictures that came damaged or could not be read: no frames.",
     lambda one: one.camera.skipped),
    ("Counter", "reconnects", "Times that the source came back.", lambda one: one.camera.reconnects),
    ("Gauge", "queued_frames", "Frames that wait or are under way.", lambda one: one.counts.queued),
    ("Gauge", "paused", "1 while the stream is paused.", lambda one: float(one.is_paused)),
    ("Gauge", "frozen_seconds", "For how long the picture has not changed, once that is a fault; else 0.",
     lambda one: one.camera.frozen_s or 0.0),
    ("Gauge", "threshold", "Image score above which a frame is anomalous.", lambda one: one.threshold),
)  # fmt: skip
OF_TRIGGERS: tuple[tuple[str, str, str, Callable[[TriggerCounts], float]], ...] = (
    ("Counter", "triggers", "Triggers that came.", lambda counts: counts.triggers),
    ("Counter", "triggered_verdicts", "Triggers with a verdict.", lambda counts: counts.verdicts),
    ("Gauge", "open_triggers", "Triggers without a verdict or another outcome yet.", lambda counts: counts.open),
)
OF_DRIFT: tuple[tuple[str, str, Callable[[Drift], float | None]], ...] = (
    ("drift_psi", "Population stability index of good scores against the bundle's.", lambda drift: drift.psi),
    ("drift_mean_shift", "Shift of the mean good score, in standard deviations.", lambda drift: drift.mean_shift),
    ("drifted", "1 while good scores count as drifted.", lambda drift: float(drift.is_drifted)),
)
OF_SINK: tuple[tuple[str, str, str, Callable[[SinkCounts], float]], ...] = (
    ("Counter", "sink_delivered", "Verdicts and events that the sink took.", lambda counts: counts.delivered),
    ("Gauge", "sink_queued", "Verdicts and events that wait for the sink in memory.", lambda counts: counts.queued),
    ("Gauge", "sink_spooled", "Messages that wait for the sink on disk.", lambda counts: counts.spooled),
)


def make_exposition(line: Line, gallery: Gallery) -> Callable[[], tuple[bytes, str]]:
    """A function that gives the metrics now as text, and their content type."""
    return exposition_of(LineCollector(line, gallery))


def exposition_of(collector: Any) -> Callable[[], tuple[bytes, str]]:
    """A function that gives what `collector.collect()` gives as text, and its content type."""
    registry = CollectorRegistry()
    registry.register(collector)
    return lambda: (exposition.generate_latest(registry), exposition.CONTENT_TYPE_PLAIN_0_0_4)


def family(kind: str, name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Family:
    """A Counter, Gauge or Info with its samples, as Prometheus' registry takes it."""
    found = getattr(core, f"{kind}MetricFamily")(f"{PREFIX}{name}", text, labels=labels)
    for label_values, value in rows:
        found.add_metric(label_values, value)
    return found


class Histograms:
    """Prometheus' histograms of one line, made while it runs; any thread may call any method."""

    def __init__(self, line: Line) -> None:
        self._lock = threading.Lock()
        text, labels = "Time of each stage; total: from capture to verdict.", ("stream", "stage", "sink")
        self._latency = histogram("latency_seconds", text, labels, LATENCY_BOUNDS_S)
        text = "Image score divided by the threshold; 1 is the line."
        self._scores = histogram("relative_score", text, ("stream",), SCORE_BOUNDS)
        self._batches = histogram("batch_images", "Images in a batch.", (), BATCH_BOUNDS)
        self._of_stream: dict[str, dict[tuple[str, str], Any]] = {"line": {}}  # stream -> (stage, sink) -> histogram
        line.events.subscribe(self.hear)
        line.meters.listener = self
        for status in line.streams():
            self._add(status.name)

    def hear(self, event: Event) -> None:
        """Begin and end with the streams."""
        if event.kind == "stream.added" and event.stream is not None:
            self._add(event.stream)
        elif event.kind == "stream.removed" and event.stream is not None:
            self._remove(event.stream)

    def _add(self, stream: str) -> None:
        with self._lock:
            self._of_stream.setdefault(stream, {("score", ""): self._scores.labels(stream)})

    def _remove(self, stream: str) -> None:
        with self._lock:
            for stage, sink in self._of_stream.pop(stream, {}):
                if stage == "score":
                    self._scores.remove(stream)
                else:
                    self._latency.remove(stream, stage, sink)

    def _find(self, stream: str, stage: str, sink: str = "") -> Any:
        """The histogram; None for a stream that was removed."""
        known = self._of_stream.get(stream)
        if known is None:
            return None
        if (stage, sink) not in known:
            with self._lock:
                if self._of_stream.get(stream) is not known:
                    return None
                known[stage, sink] = self._latency.labels(stream, stage, sink)
        return known[stage, sink]

    def judged(self, prediction: Prediction) -> None:
        """Count the latencies and the score of a verdict."""
        stream = prediction.frame.stream
        if (scores := self._find(stream, "score")) is not None:
            scores.observe(prediction.relative_score)
            for stage, latency_ms in prediction.latencies_ms.items():
                self.took(stream, stage, latency_ms)

    def took(self, stream: str, stage: str, latency_ms: float, sink: str = "") -> None:
        """Count what a stage took; of a stream that was removed nothing is counted any more."""
        if (histogram := self._find(stream, stage, sink)) is not None:
            histogram.observe(1e-3 * latency_ms)

    def batch(self, images: int) -> None:
        self._batches.observe(images)

    def collect(self) -> Iterator[Family]:
        """The families as Prometheus reads them, without the moments at which they were made."""
        for histogram in (self._latency, self._scores, self._batches):
            for family in histogram.collect():
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family


def histogram(name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> Histogram:
    """A histogram that belongs to no registry: its line's collector gives it."""
    return Histogram(f"{PREFIX}{name}", text, labels, buckets=bounds, registry=None)


class LineCollector:
    """Collects a line; Prometheus' registry calls `collect`."""

    def __init__(self, line: Line, gallery: Gallery) -> None:
        self._line, self._gallery, self._histograms = line, gallery, Histograms(line)

    def collect(self) -> Iterator[Family]:
        """Every family, from one snapshot of the streams."""
        yield from self._streams()
        yield from self._histograms.collect()
        yield from self._sinks()
        stalled = "Seconds since a batch was finished while frames wait or are under way; 0 when none does."
        yield family("Gauge", "stalled_seconds", stalled, (), [((), self._line.stalled_s() or 0.0)])
        facts = self._line.model().facts()
        build = {"version": __version__} | {name: str(facts[name]) for name in ("bundle", "runner", "precision")}
        yield family("Info", "build", "Version, bundle and runner.", (), [((), build)])

    def _streams(self) -> Iterator[Family]:
        streams = of_each(self._line, lambda status: (self._line.stream(status.name), status)[1])  # those still there
        for kind, name, text, value in OF_STREAM:
            yield family(kind, name, text, ("stream",), [((one.name,), value(one)) for one in streams])
        dropped = [((one.name, cause), n) for one in streams for cause, n in one.counts.dropped.items()]
        yield family("Counter", "dropped_frames", "Frames without a verdict, by cause.", ("stream", "cause"), dropped)
        own = [((one.name, what), n) for one in streams for what, n in one.camera.counts.items()]
        text = "What the source counts itself, as packets of an industrial camera."
        yield family("Counter", "source_counts", text, ("stream", "what"), own)
        triggered = [(one.name, one.triggers) for one in streams if one.triggers is not None]
        for kind, name, text, count in OF_TRIGGERS:
            yield family(kind, name, text, ("stream",), [((stream,), count(found)) for stream, found in triggered])
        outcomes = [((stream, outcome), n) for stream, found in triggered for outcome, n in found.outcomes.items()]
        lost = "Triggers without a verdict, by what became of them."
        yield family("Counter", "trigger_outcomes", lost, ("stream", "outcome"), outcomes)
        longest = [((name,), 1e-3 * took_ms) for name, took_ms in self._longest(triggered)]
        text = "The longest time from a trigger to its verdict so far."
        yield family("Gauge", "trigger_latency_max_seconds", text, ("stream",), longest)
        states = [((one.name, state), float(one.camera.state == state)) for one in streams for state in STATES]
        yield family("Gauge", "source_state", "1 for the state that the source is in.", ("stream", "state"), states)
        drifts = [(one.name, drift) for one in streams if (drift := self._gallery.drift.now(one.name)) is not None]
        for name, text, measure in OF_DRIFT:
            found = [((stream,), measure(drift)) for stream, drift in drifts]
            yield family("Gauge", name, text, ("stream",), [row for row in found if row[1] is not None])

    def _longest(self, triggered: list[tuple[str, TriggerCounts]]) -> Iterator[tuple[str, float]]:
        for name, _ in triggered:
            with suppress(ConfigError):  # it was removed meanwhile
                yield name, self._line.stream(name).meters.latencies((TRIGGER,))[TRIGGER].max_ms or 0.0

    def _sinks(self) -> Iterator[Family]:
        sinks = [sink.counts() for sink in self._line.sinks if hasattr(sink, "counts")]
        for kind, name, text, value in OF_SINK:
            yield family(kind, name, text, ("sink",), [((one.name,), value(one)) for one in sinks])
        dropped = [((one.name, cause), n) for one in sinks for cause, n in one.dropped.items()]
        lost = "Verdicts and events that the sink lost, by cause."
        yield family("Counter", "sink_dropped", lost, ("sink", "cause"), dropped)
        own = [((one.name, what), n) for one in sinks for what, n in one.own.items()]
        yield family(
            "Counter", "sink_counts", "What the sink counts itself, as answers that no PLC took.", ("sink", "what"), own
        )
        states = [((one.name, state), float(one.state == state)) for one in sinks for state in ("ok", "late", "dead")]
        yield family("Gauge", "sink_state", "1 for the state that the sink is in.", ("sink", "state"), states)
