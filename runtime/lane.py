"""One stream's frames that wait, and the exact counts of what became of all of them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from nnet_edge.frame import Frame
from nnet_edge.stream_settings import LaneSettings, When

CAUSES = ("full", "stale", "paced", "paused", "removed", "stopped", "untriggered", "failed")


@dataclass(frozen=True)
class LaneCounts:
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

    def __add__(self, other: LaneCounts) -> LaneCounts:
        dropped = dict(Counter(self.dropped) + Counter(other.dropped))
        return LaneCounts(
            self.captured + other.captured, self.judged + other.judged, dropped, self.queued + other.queued
        )


class Tally:
    """The counts of one name; they go on when a stream of that name is removed and added again."""

    def __init__(self) -> None:
        self.captured = self.judged = self.under_way = 0
        self.dropped: Counter[str] = Counter()

    def counts(self, waiting: int) -> LaneCounts:
        """A copy of them; `waiting` frames lie in the lane."""
        return LaneCounts(self.captured, self.judged, dict(self.dropped), waiting + self.under_way)


class Lane:
    """Frames of one stream that wait; only Lanes touches it, under its lock."""

    def __init__(self, settings: LaneSettings, tally: Tally) -> None:
        self.settings, self.tally = settings, tally
        self.frames: deque[tuple[float, Frame]] = deque()  # with the moment at which they came in
        self.is_paused = self.is_closed = False
        self.last_put_s = -float("inf")
        self.due_s = -float("inf")  # when the next frame of a paced lane may come
        self.served = 0  # the turn in which a frame was last taken; every frame has its own

    @property
    def waits(self) -> bool:
        """Whether a frame waits for room, or for the end of a pause."""
        return self.settings.policy.when is When.EVERY_FRAME

    def has_room(self) -> bool:
        """Whether a waiting frame may come in."""
        return self.is_closed or not (self.is_paused or len(self.frames) >= self.settings.capacity)

    def drop_all(self, cause: str) -> None:
        """Give up what waits."""
        if self.frames:
            self.tally.dropped[cause] += len(self.frames)
        self.frames.clear()

    def drop_stale(self, now_s: float) -> None:
        """Give up what is older than the stream bears."""
        limit_s = self.settings.staleness_s
        while limit_s is not None and self.frames and now_s - self.frames[0][1].captured_s > limit_s:
            self.frames.popleft()
            self.tally.dropped["stale"] += 1
