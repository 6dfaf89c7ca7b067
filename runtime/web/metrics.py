"""Prometheus metrics of a line, read at each scrape; the only file that imports prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, core, exposition

from nnet_edge import __version__
from nnet_edge.runtime.sources.camera import STATES
from nnet_edge.runtime.stream.report import StreamStatus
from nnet_edge.runtime.web.gallery import Gallery

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.line import Line

PREFIX = "nnet_edge_"
Family = Any  # prometheus_client.core.Metric


def make_exposition(line: Line, gallery: Gallery) -> Callable[[], tuple[bytes, str]]:
    """A function that gives the metrics now as text, and their content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LineCollector(line, gallery))
    return lambda: (exposition.generate_latest(registry), exposition.CONTENT_TYPE_PLAIN_0_0_4)


class LineCollector:
    """Collects a line; Prometheus' registry calls `collect`."""

    def __init__(self, line: Line, gallery: Gallery) -> None:
        self._line, self._gallery = line, gallery

    def describe(self) -> Iterable[Family]:
        """Nothing: names follow from the line."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Every family, from one snapshot of the streams."""
        streams = self._line.streams()
        yield from self._counters(streams)
        yield from self._gauges(streams)
        yield from self._line.meters.collect()
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
