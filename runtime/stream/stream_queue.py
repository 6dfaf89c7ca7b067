"""The queue of one stream in the frame buffer, and the exact counts of what became of its frames."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from nnet_edge.frame import Frame
from nnet_edge.settings.policy import Policy, When
from nnet_edge.settings.stream import BufferSettings

CAUSES = (
    "full", "stale", "paced", "paused", "removed", "stopped", "untriggered", "failed", "not_finite",
    "incomplete",  # packets of it were lost on the way from the camera
    "lost",  # the camera sent it, and nothing of it arrived, or there was no room for it
    "late", "double", "overlap", "no_answer",  # of a trigger, see triggers.py
    "recipe",  # captured before another recipe came
)  # fmt: skip


@dataclass(frozen=True)
class FrameCounts:
    """What became of a stream's frames."""

    captured: int = 0
    judged: int = 0
    dropped: Mapping[str, int] = field(
        default_factory=dict
    )  # cause of CAUSES -> frames; causes that never came are absent
    queued: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether every captured frame is accounted for."""
        return self.captured == self.judged + sum(self.dropped.values()) + self.queued

    def __add__(self, other: FrameCounts) -> FrameCounts:
        dropped = dict(Counter(self.dropped) + Counter(other.dropped))
        return FrameCounts(
            self.captured + other.captured, self.judged + other.judged, dropped, self.queued + other.queued
        )


class Tally:
    """The counts of one name; they go on when a stream of that name is removed and added again."""

    def __init__(self) -> None:
        self.captured = self.judged = 0
        self.in_hand = 0  # of the capture thread, which waits for room
        self.taken = 0  # and without a verdict yet
        self.dropped: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        """Frames that are neither waiting nor accounted for."""
        return self.in_hand + self.taken

    def counts(self, waiting: int) -> FrameCounts:
        """A copy of them; `waiting` frames lie in the queue."""
        return FrameCounts(self.captured, self.judged, dict(self.dropped), waiting + self.under_way)


class StreamQueue:
    """Frames of one stream that wait; only FrameBuffer touches it, under its lock."""

    def __init__(self, settings: BufferSettings, tally: Tally) -> None:
        self.tally = tally
        self.use(settings)
        self.frames: deque[tuple[float, Frame]] = deque()  # with the moment at which they came in
        self.is_paused = self.is_closed = False
        self.last_put_s = -float("inf")
        self.due_s = -float("inf")  # when the next frame of a paced queue may come
        self.served = 0  # the turn in which a frame was last taken; every frame has its own

    def use(self, settings: BufferSettings) -> None:
        """Apply these settings to the frames to come; what they leave open is as for a live source."""
        settings = settings.resolved(is_live=True, max_batch=1, crops=settings.weight)
        policy: Policy = settings.policy  # type: ignore[assignment]  # resolved
        self.pace_hz = policy.pace_hz
        self.waits = policy.when is When.EVERY_FRAME  # whether a frame waits for room, or for the end of a pause
        self.capacity: int = settings.capacity  # type: ignore[assignment]  # resolved
        self.staleness_s, self.weight = settings.staleness_s, settings.weight

    def has_room(self) -> bool:
        """Whether a waiting frame may come in."""
        return self.is_closed or not (self.is_paused or len(self.frames) >= self.capacity)

    def comes_too_soon(self, captured_s: float) -> bool:
        """Whether a frame of that moment is one too many for a paced stream; if not, the next one is due a period later."""
        if self.pace_hz is None:
            return False
        if captured_s < self.due_s:
            return True
        period_s = 1 / self.pace_hz
        self.due_s = max(self.due_s + period_s, captured_s + period_s / 2)
        return False

    def drop_all(self, cause: str) -> None:
        """Give up what waits."""
        if self.frames:
            self.tally.dropped[cause] += len(self.frames)
        self.frames.clear()

    def drop_stale(self, now_s: float) -> None:
        """Give up what is too old for the stream."""
        limit_s = self.staleness_s
        while limit_s is not None and self.frames and now_s - self.frames[0][1].captured_s > limit_s:
            self.frames.popleft()
            self.tally.dropped["stale"] += 1
