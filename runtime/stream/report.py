"""What became of a line's frames: a report of each stream and of the whole, and each stream's status."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nnet_edge.runtime.sources.camera import CameraStatus
from nnet_edge.runtime.sources.controls import automatic_words
from nnet_edge.runtime.stream.first_frames import Adapting
from nnet_edge.runtime.stream.meters import Percentiles
from nnet_edge.runtime.stream.stream_queue import FrameCounts
from nnet_edge.runtime.stream.triggers import TriggerCounts
from nnet_edge.settings.stream import LineStream


@dataclass(frozen=True, slots=True)
class StreamReport:
    """What became of a stream's frames, and how long they took."""

    frames: int  # verdicts: frames, or crops of frames
    rejected: int  # of those, above the threshold
    skipped: int  # pictures that could not be read and were passed over
    seconds: float  # from the first captured frame to the last verdict
    counts: FrameCounts
    latencies: Mapping[str, Percentiles] = field(default_factory=dict)  # stage -> its percentiles
    ended: str = "running"  # "running", "source ended", "stopped", or "failed: " and the reason
    low: int = 0  # verdicts with a score lower than any good part's
    adapting: Adapting | None = None  # how far it is with a threshold of its own; None: none was asked for
    other_size: str = ""  # how its pictures differ in size or shape from those that were learned from; empty: not seen
    triggers: TriggerCounts | None = None  # None: every frame is judged
    answers: Mapping[str, Percentiles] = field(
        default_factory=dict
    )  # sink -> from the trigger until it took the verdict
    camera: CameraStatus | None = None  # as it was last

    @property
    def dropped(self) -> int:
        """Frames that were captured and never judged."""
        return sum(self.counts.dropped.values())

    @property
    def frames_per_s(self) -> float | None:
        """Verdicts a second; None before two moments can be told apart."""
        return self.frames / self.seconds if self.seconds > 0 else None

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {
            "frames": self.frames, "rejected": self.rejected, "dropped": self.dropped, "skipped": self.skipped,
            "captured": self.counts.captured, "judged": self.counts.judged, "queued": self.counts.queued,
            "drops": dict(self.counts.dropped), "seconds": self.seconds, "frames_per_s": self.frames_per_s,
            "latencies": {stage: numbers.as_dict() for stage, numbers in self.latencies.items()}, "ended": self.ended,
            "low_scores": self.low, "adapting": None if self.adapting is None else self.adapting.as_dict(),
            "other_size": self.other_size or None, "triggers": None if self.triggers is None else self.triggers.as_dict(),
            "answers": {sink: numbers.as_dict() for sink, numbers in self.answers.items()}, **self._camera_facts(),
        }  # fmt: skip

    def _camera_facts(self) -> dict[str, object]:
        """What was asked of the camera, what it took, and what it counts."""
        camera = self.camera
        if camera is None:
            return {"asked": None, "got": None, "source_counts": {}}
        got = None if camera.got is None else camera.got.as_dict()
        return {"asked": camera.asked.as_dict(), "got": got, "source_counts": dict(camera.counts)}

    def _automatic_words(self) -> str:
        """That the camera changes its picture by itself, and what; empty where it does not, or that is not known."""
        got = None if self.camera is None else self.camera.got
        return automatic_words(got.automatic) if got is not None and got.automatic else ""

    def lines(self, in_detail: bool = True) -> list[str]:
        """The report as a person reads it, one fact a line; latencies only `in_detail`."""
        low = f", {self.low} with a score lower than any good part's" if self.low else ""
        skipped = f", {self.skipped} unreadable files skipped" if self.skipped else ""
        adapting = "" if self.adapting is None else f"; {self.adapting.text}"
        causes = ", ".join(f"{count} {cause}" for cause, count in self.counts.dropped.items())
        why = f" ({causes})" if causes else ""
        return [
            f"{self.ended}: {self.frames} frames in {self.seconds:.1f} s, {rate_text(self.frames_per_s)}; "
            f"{self.rejected} rejected, {self.dropped} dropped{why}{skipped}{low}{adapting}",
            *([] if self.triggers is None else [str(self.triggers)]),
            *(f"{stage} latency {latency_text(numbers)}" for stage, numbers in self.latencies.items() if in_detail),
            *(
                f"trigger to {sink} latency {latency_text(numbers)}"
                for sink, numbers in self.answers.items()
                if in_detail
            ),
            *(f"note: {words}" for words in (self.other_size, self._automatic_words()) if words),
        ]


@dataclass(frozen=True)
class StreamStatus:
    """One stream of a line at one moment."""

    name: str
    what: str  # the source, for people; without passwords
    camera: CameraStatus
    is_paused: bool
    threshold: float
    bundle_threshold: float
    bundle: str
    settings: LineStream  # as they are now: regions and threshold may differ from those it was added with
    counts: FrameCounts
    verdicts: int
    rejected: int
    low: int = 0  # verdicts with a score lower than any good part's
    threshold_from: str = "bundle"  # as in predictions
    adapting: Adapting | None = None  # how far it is with a threshold of its own
    triggers: TriggerCounts | None = None  # None: every frame is judged


@dataclass(frozen=True)
class LineReport:
    """What became of a line's frames; removed streams are counted in `total` and named while they are remembered."""

    streams: Mapping[str, StreamReport]
    total: FrameCounts
    seconds: float  # since the line began
    ended: str = "running"  # "running", "source ended", "sources ended", "stopped", or "failed: " and the reason
    errors: Mapping[str, str] = field(default_factory=dict)  # stream -> why it failed

    @property
    def frames_per_s(self) -> float | None:
        """Judged frames of all streams a second; None before two moments can be told apart."""
        return self.total.judged / self.seconds if self.seconds > 0 else None

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {
            "streams": {name: report.as_dict() for name, report in self.streams.items()},
            "captured": self.total.captured, "judged": self.total.judged, "drops": dict(self.total.dropped),
            "queued": self.total.queued, "seconds": self.seconds, "frames_per_s": self.frames_per_s, "ended": self.ended,
            "errors": dict(self.errors),
        }  # fmt: skip

    def lines(self, in_detail: bool = True) -> list[str]:
        """The report as a person reads it: that of a line's only stream, else the whole, then a line for each stream."""
        if len(self.streams) == 1:
            (report,) = self.streams.values()
            return report.lines(in_detail)
        dropped = sum(self.total.dropped.values())
        return [
            f"{self.ended}: {self.total.judged} frames of {len(self.streams)} streams in {self.seconds:.1f} s, "
            f"{rate_text(self.frames_per_s)}; {self.total.captured} captured, {dropped} dropped, "
            f"{self.total.queued} queued",
            *(f"{name}: {report.lines()[0]}" for name, report in self.streams.items()),
            *(f"{name} failed: {error}" for name, error in self.errors.items()),
        ]


class View:
    """Shows the report so far, not more often than asked, and the last one once."""

    def __init__(
        self, show: Callable[[LineReport], None] | None, every_s: float, report: Callable[[str], LineReport]
    ) -> None:
        self._show, self._every_s, self._report = show, every_s, report
        self._next_s = 0.0

    def refresh(self) -> None:
        """Show the report if it is time."""
        now_s = time.monotonic()
        if self._show is not None and now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            self._show(self._report("running"))

    def close(self, ended: str) -> LineReport:
        """The last report, shown."""
        report = self._report(ended)
        if self._show is not None:
            self._show(report)
        return report


def rate_text(frames_per_s: float | None) -> str:
    """Frames a second for people."""
    return "no rate" if frames_per_s is None else f"{frames_per_s:.1f} frames/s"


def latency_text(numbers: Percentiles) -> str:
    """p50 / p95 / p99 and the maximum as one short text."""
    if numbers.p50_ms is None or numbers.p95_ms is None or numbers.p99_ms is None:
        return "p50 / p95 / p99: no frame yet"
    values = " / ".join(f"{value:.3g}" for value in (numbers.p50_ms, numbers.p95_ms, numbers.p99_ms))
    largest = "" if numbers.max_ms is None else f", max {numbers.max_ms:.3g} ms"
    return f"p50 / p95 / p99: {values} ms{largest} ({numbers.count} frames)"
