"""What a line knows of itself: each stream now, and the whole at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nnet_edge.runtime.sources.camera import CameraStatus
from nnet_edge.runtime.stream.buffer import LaneCounts
from nnet_edge.runtime.stream.meters import Buckets, StreamReport
from nnet_edge.settings.stream import LineStream


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
    settings: LineStream  # as they hold now: regions and threshold may differ from those it was added with
    counts: LaneCounts
    rejected: int


@dataclass(frozen=True)
class LineReport:
    """What became of a line's frames; removed streams are counted in `total` and named while they are remembered."""

    streams: Mapping[str, StreamReport]
    total: LaneCounts
    batches: Buckets  # images in each batch
    seconds: float  # since the line began
    ended: str = "running"  # "running", "sources ended", "stopped", or "failed: " and the reason
    errors: Mapping[str, str] = field(default_factory=dict)  # stream -> why it failed

    @property
    def frames_per_s(self) -> float | None:
        """Judged frames of all streams a second; None before two moments can be told apart."""
        return self.total.judged / self.seconds if self.seconds > 0 else None

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {
            "streams": {name: report.as_dict() for name, report in self.streams.items()},
            "captured": self.total.captured,
            "judged": self.total.judged,
            "drops": dict(self.total.dropped),
            "queued": self.total.queued,
            "seconds": self.seconds,
            "frames_per_s": self.frames_per_s,
            "ended": self.ended,
            "errors": dict(self.errors),
        }

    def lines(self) -> list[str]:
        """The report as a person reads it: the whole, then a line for each stream."""
        rate = "no rate" if self.frames_per_s is None else f"{self.frames_per_s:.1f} frames/s"
        dropped = sum(self.total.dropped.values())
        first = (
            f"{self.ended}: {self.total.judged} frames of {len(self.streams)} streams in {self.seconds:.1f} s, {rate}"
        )
        return [
            f"{first}; {self.total.captured} captured, {dropped} dropped, {self.total.queued} queued",
            *(f"{name}: {report.lines()[0]}" for name, report in self.streams.items()),
            *(f"{name} failed: {error}" for name, error in self.errors.items()),
        ]
