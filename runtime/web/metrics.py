"""Prometheus metrics of a line, read at each scrape; the only file that imports prometheus_client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Histogram, core, exposition

from nnet_edge import __version__
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sources.camera import STATES
from nnet_edge.runtime.stream.report import StreamStatus
from nnet_edge.runtime.web.gallery import Gallery
from nnet_edge.runtime.web.state import of_each

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.line import Line

PREFIX = "nnet_edge_"
LATENCY_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SCORE_BOUNDS = tuple(round(0.1 * step, 1) for step in range(1, 21))  # image score / threshold; 1.0 is the threshold
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)  # images
Family = Any  # prometheus_client.core.Metric


def make_exposition(line: Line, gallery: Gallery) -> Callable[[], tuple[bytes, str]]:
    """A function that gives the metrics now as text, and their content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LineCollector(line, gallery))
    return lambda: (exposition.generate_latest(registry), exposition.CONTENT_TYPE_PLAIN_0_0_4)


class Histograms:
    """Prometheus' histograms of one line, made while it runs; any thread may call any method."""

    def __init__(self, line: Line) -> None:
        self._lock = threading.Lock()
        registry = CollectorRegistry(auto_describe=False)
        self._latency = Histogram(
            f"{PREFIX}latency_seconds",
            "Time of each stage; total: from capture to verdict.",
            ["stream", "stage", "sink"],
            buckets=LATENCY_BOUNDS_S,
            registry=registry,
        )
        self._scores = Histogram(
            f"{PREFIX}relative_score",
            "Image score divided by the threshold; 1 is the line.",
            ["stream"],
            buckets=SCORE_BOUNDS,
            registry=registry,
        )
        self._batches = Histogram(
            f"{PREFIX}batch_images", "Images in a batch.", buckets=BATCH_BOUNDS, registry=registry
        )
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
            known = self._of_stream.pop(stream, {})
            for stage, sink in known:
                if stage == "score":
                    self._scores.remove(stream)
                else:
                    self._latency.remove(stream, stage, sink)

    def _find(self, stream: str, stage: str, sink: str = "") -> Any:
        """The histogram; None for a stream that was removed."""
        known = self._of_stream.get(stream)
        if known is None:
            return None
        found = known.get((stage, sink))
        if found is None:
            with self._lock:
                if self._of_stream.get(stream) is not known:
                    return None
                found = known[stage, sink] = self._latency.labels(stream, stage, sink)
        return found

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
        """Count a batch."""
        self._batches.observe(images)

    def collect(self) -> Iterator[Family]:
        """The families as Prometheus reads them, without the moments at which they were made."""
        for histogram in (self._latency, self._scores, self._batches):
            for family in histogram.collect():
                family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
                yield family


class LineCollector:
    """Collects a line; Prometheus' registry calls `collect`."""

    def __init__(self, line: Line, gallery: Gallery) -> None:
        self._line, self._gallery, self._histograms = line, gallery, Histograms(line)

    def describe(self) -> Iterable[Family]:
        """Nothing: names follow from the line."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Every family, from one snapshot of the streams."""
        streams = of_each(self._line, lambda status: (self._line.stream(status.name), status)[1])  # those still there
        yield from self._counters(streams)
        yield from self._gauges(streams)
        yield from self._histograms.collect()
        yield from self._sinks()
        stalled = "Seconds since a batch was finished while frames wait or are under way; 0 when none does."
        yield self._family("Gauge", "stalled_seconds", stalled, [], [([], self._line.stalled_s() or 0.0)])
        facts = self._line.model().facts()
        labels = {name: str(facts[name]) for name in ("bundle", "runner", "precision")}
        yield self._family(
            "Info", "build", "Version, bundle and runner.", [], [([], {"version": __version__} | labels)]
        )

    def _counters(self, streams: list[StreamStatus]) -> Iterator[Family]:
        one = ["stream"]
        yield self._family("Counter", "captured_frames", "Frames taken from the camera.", one,
                           [([status.name], status.counts.captured) for status in streams])  # fmt: skip
        yield self._family("Counter", "judged_frames", "Frames with a verdict.", one,
                           [([status.name], status.counts.judged) for status in streams])  # fmt: skip
        yield self._family("Counter", "verdicts", "Verdicts; a frame has one for each of its crops.", one,
                           [([status.name], status.verdicts) for status in streams])  # fmt: skip
        yield self._family("Counter", "rejects", "Verdicts that are anomalous.", one,
                           [([status.name], status.rejected) for status in streams])  # fmt: skip
        yield self._family("Counter", "skipped_pictures", "Pictures that came damaged or could not be read: no frames.", one,
                           [([status.name], status.camera.skipped) for status in streams])  # fmt: skip
        dropped = [([one.name, cause], n) for one in streams for cause, n in one.counts.dropped.items()]
        yield self._family(
            "Counter", "dropped_frames", "Frames without a verdict, by cause.", ["stream", "cause"], dropped
        )
        yield self._family("Counter", "reconnects", "Times that the source came back.", one,
                           [([status.name], status.camera.reconnects) for status in streams])  # fmt: skip

    def _gauges(self, streams: list[StreamStatus]) -> Iterator[Family]:
        one = ["stream"]
        yield self._family("Gauge", "queued_frames", "Frames that wait or are under way.", one,
                           [([status.name], status.counts.queued) for status in streams])  # fmt: skip
        yield self._family("Gauge", "source_state", "1 for the state that the source is in.", ["stream", "state"],
                           [([status.name, state], float(status.camera.state == state))
                            for status in streams for state in STATES])  # fmt: skip
        yield self._family("Gauge", "paused", "1 while the stream is paused.", one,
                           [([status.name], float(status.is_paused)) for status in streams])  # fmt: skip
        yield self._family("Gauge", "threshold", "Image score above which a frame is anomalous.", one,
                           [([status.name], status.threshold) for status in streams])  # fmt: skip
        drifts = [(status.name, self._gallery.drift.now(status.name)) for status in streams]
        known = [(name, drift) for name, drift in drifts if drift is not None]
        yield self._family("Gauge", "drift_psi", "Population stability index of good scores against the bundle's.", one,
                           [([name], drift.psi) for name, drift in known if drift.psi is not None])  # fmt: skip
        yield self._family("Gauge", "drift_mean_shift", "Shift of the mean good score, in standard deviations.", one,
                           [([name], drift.mean_shift) for name, drift in known if drift.mean_shift is not None])  # fmt: skip
        yield self._family("Gauge", "drifted", "1 while good scores count as drifted.", one,
                           [([name], float(drift.is_drifted)) for name, drift in known])  # fmt: skip

    def _sinks(self) -> Iterator[Family]:
        found = [sink.counts() for sink in self._line.sinks if hasattr(sink, "counts")]
        yield self._family("Counter", "sink_delivered", "Verdicts and events that the sink took.", ["sink"],
                           [([counts.name], counts.delivered) for counts in found])  # fmt: skip
        yield self._family("Counter", "sink_dropped", "Verdicts and events that the sink lost, by cause.", ["sink", "cause"],
                           [([counts.name, cause], n) for counts in found for cause, n in counts.dropped.items()])  # fmt: skip
        yield self._family("Gauge", "sink_queued", "Verdicts and events that wait for the sink in memory.", ["sink"],
                           [([counts.name], counts.queued) for counts in found])  # fmt: skip
        yield self._family("Gauge", "sink_spooled", "Messages that wait for the sink on disk.", ["sink"],
                           [([counts.name], counts.spooled) for counts in found])  # fmt: skip
        yield self._family("Gauge", "sink_state", "1 for the state that the sink is in.", ["sink", "state"],
                           [([counts.name, state], float(counts.state == state))
                            for counts in found for state in ("ok", "late", "dead")])  # fmt: skip

    def _family(
        self, kind: str, name: str, text: str, labels: list[str], values: Iterable[tuple[list[str], Any]]
    ) -> Family:
        family = getattr(core, f"{kind}MetricFamily")(f"{PREFIX}{name}", text, labels=labels)
        for label_values, value in values:
            family.add_metric(label_values, value)
        return family
