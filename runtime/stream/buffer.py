"""The one place where threads meet: each camera puts frames into its own lane, and one batch is taken over all of them.

A lane is bounded and drops by a named policy. Nothing is lost without a cause: of every stream

    captured = judged + dropped by cause + queued

holds at any moment; queued are the frames that wait in the lane and those that were taken and have no verdict yet.

One stream's frames that wait, and the exact counts of what became of all of them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Frame
from nnet_edge.settings.stream import LaneSettings, When

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


__all__ = ["CAUSES", "LaneCounts", "Lanes"]

LONGEST_WAIT_S = 1.0  # a wait without a time limit of its own looks around as often
ACTIVE_S = 1.0  # a lane that was silent for longer is not waited for
PAST_STREAMS = 256  # removed streams whose counts are kept by name


class Lanes:
    """One bounded lane a stream; any thread may call any method. A name that has no lane is a ConfigError.

    With `keep_open` it does not end with its last source: streams may be added later.
    """

    def __init__(self, keep_open: bool = False) -> None:
        self.keep_open = keep_open
        self._changed = threading.Condition()
        self._lanes: dict[str, Lane] = {}
        self._tallies: dict[str, Tally] = {}  # of removed streams too
        self._earlier = LaneCounts()  # of removed streams whose names are forgotten
        self._under_way: dict[tuple[str, str, int], Tally] = {}
        self._turn = 0
        self._moved_s = time.monotonic()  # when a batch was last finished, or the first frame came that waits for one
        self._stopped = False

    def add(self, name: str, settings: LaneSettings) -> None:
        """Open a lane. Raises ConfigError when there is one of that name."""
        with self._changed:
            if name in self._lanes:
                raise ConfigError(f"there is a stream called {name!r} already: give another name, or remove it first")
            tally = self._tallies.pop(name, None) or Tally()
            self._tallies[name] = tally  # youngest last
            self._lanes[name] = Lane(settings, tally)
            self._lanes[name].is_closed = self._stopped
            self._forget_oldest()

    def put(self, frame: Frame, cause: str | None = None) -> bool:
        """Whether the lane is open for more; the frame is counted in any case, with `cause` as dropped for it.

        EVERY_FRAME waits for room. A frame that comes when the lane is gone or closed is dropped as removed or stopped.
        """
        with self._changed:
            lane = self._lanes.get(frame.stream)
            if lane is None:
                tally = self._tallies.setdefault(frame.stream, Tally())
                tally.captured += 1
                tally.dropped["removed"] += 1
                return False
            lane.tally.captured += 1
            lane.last_put_s = time.monotonic()
            if cause is None:
                cause = self._enter(lane, frame)
            if cause is not None:
                lane.tally.dropped[cause] += 1
            return cause not in ("stopped", "removed")

    def _enter(self, lane: Lane, frame: Frame) -> str | None:
        """Put the frame into its lane; gives the cause for which it was not."""
        if lane.waits and not lane.has_room():
            lane.tally.under_way += 1  # it is in the capture thread's hand: captured, neither judged nor dropped
            while not lane.has_room():
                self._changed.wait(LONGEST_WAIT_S)
            lane.tally.under_way -= 1
        if lane.is_closed:
            return "stopped" if self._lanes.get(frame.stream) is lane else "removed"
        if lane.is_paused:
            return "paused"
        pace_hz = lane.settings.policy.pace_hz
        if pace_hz is not None:
            if frame.captured_s < lane.due_s:
                return "paced"
            period_s = 1 / pace_hz
            lane.due_s = max(lane.due_s + period_s, frame.captured_s + period_s / 2)
        if len(lane.frames) >= lane.settings.capacity:
            lane.frames.popleft()
            lane.tally.dropped["full"] += 1
        if not self._has_work():
            self._moved_s = time.monotonic()
        lane.frames.append((time.monotonic(), frame))
        self._changed.notify_all()
        return None

    def take(self, limit: int, deadline_s: float = 0.0, timeout_s: float = 1.0) -> list[Frame] | None:
        """Frames that fill a batch of `limit` images; None when `timeout_s` passed without one; [] at the end.

        It waits for a full batch, or one frame of each active stream, at most until `deadline_s` after the first came in.
        Lanes that were served longest ago come first, of these the one with the oldest frame; a lane's frames stay in
        their order. A live lane gives one frame at most, so that a batch is no longer than it must be. Each frame taken is
        under way until `judged` or `failed` names it.
        """
        end_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                now_s = time.monotonic()
                for lane in self._lanes.values():
                    lane.drop_stale(now_s)
                ready_s = self._ready_at(limit, deadline_s, now_s)
                if ready_s is not None and ready_s <= now_s:
                    return self._pick(limit)
                if ready_s is None and self._has_ended():
                    return []
                wait_s = min(end_s, ready_s if ready_s is not None else end_s) - now_s
                if wait_s <= 0:
                    return None
                self._changed.wait(wait_s)

    def _ready_at(self, limit: int, deadline_s: float, now_s: float) -> float | None:
        """The moment at which what waits should be taken; None when nothing waits."""
        waiting = [lane for lane in self._lanes.values() if lane.frames]
        if not waiting:
            return None
        active = [
            lane
            for lane in self._lanes.values()
            if not (lane.is_closed or lane.is_paused) and now_s - lane.last_put_s < ACTIVE_S
        ]
        images = sum(len(lane.frames) * lane.settings.weight for lane in waiting)
        if images >= limit or all(lane.frames for lane in active):
            return now_s
        return min(lane.frames[0][0] for lane in waiting) + deadline_s

    def _pick(self, limit: int) -> list[Frame]:
        """The frames whose turn it is."""
        taken: list[Frame] = []
        room, is_full = limit, False
        while not is_full:
            ready = [lane for lane in self._lanes.values() if lane.frames and (lane.waits or not taken)]
            if not ready:
                break  # of a live lane one frame a batch: its next may be a fresher one by then
            for lane in sorted(ready, key=lambda lane: (lane.served, lane.frames[0][1].captured_s)):
                if taken and lane.settings.weight > room:
                    is_full = True  # who comes next does not fit: it is first in the next batch
                    break
                _, frame = lane.frames.popleft()
                self._turn += 1
                lane.served = self._turn
                lane.tally.under_way += 1
                self._under_way[key_of(frame)] = lane.tally
                taken.append(frame)
                room -= lane.settings.weight
        self._changed.notify_all()
        return taken

    def _has_ended(self) -> bool:
        """Whether nothing waits and nothing will come."""
        is_over = all(lane.is_closed and not lane.frames for lane in self._lanes.values())
        return is_over and (self._stopped or not self.keep_open)

    def judged(self, frames: Iterable[Frame]) -> None:
        """These frames have their verdicts."""
        with self._changed:
            self._moved_s = time.monotonic()
            for frame in frames:
                tally = self._under_way.pop(key_of(frame))
                tally.under_way -= 1
                tally.judged += 1

    def failed(self, frames: Iterable[Frame], cause: str = "failed") -> None:
        """These frames were taken and will have no verdict."""
        with self._changed:
            self._moved_s = time.monotonic()
            for frame in frames:
                tally = self._under_way.pop(key_of(frame))
                tally.under_way -= 1
                tally.dropped[cause] += 1

    def pause(self, name: str) -> None:
        """Judge no frame of this stream: what waits and what comes is dropped as paused; files wait instead."""
        with self._changed:
            lane = self._lane(name)
            lane.is_paused = True
            if not lane.waits:
                lane.drop_all("paused")
            self._changed.notify_all()

    def resume(self, name: str) -> None:
        """End the pause."""
        with self._changed:
            self._lane(name).is_paused = False
            self._changed.notify_all()

    def change(self, name: str, settings: LaneSettings) -> None:
        """Other settings for what comes."""
        with self._changed:
            self._lane(name).settings = settings
            self._changed.notify_all()

    def close(self, name: str) -> None:
        """No frame comes any more; what waits can still be taken. A stream that was removed is no error."""
        with self._changed:
            if name in self._lanes:
                self._lanes[name].is_closed = True
            self._changed.notify_all()

    def remove(self, name: str) -> None:
        """Take the lane away; what waits in it is dropped as removed."""
        with self._changed:
            lane = self._lane(name)
            del self._lanes[name]
            lane.is_closed = True
            lane.drop_all("removed")
            self._changed.notify_all()

    def stop(self) -> None:
        """End all lanes; what waits is dropped as stopped, and so is what still comes."""
        with self._changed:
            self._stopped = True
            for lane in self._lanes.values():
                lane.is_closed = True
                lane.drop_all("stopped")
            self._changed.notify_all()

    def give_up(self) -> None:
        """Count what was taken and has no verdict as stopped: nobody will judge it."""
        with self._changed:
            for tally in self._under_way.values():
                tally.under_way -= 1
                tally.dropped["stopped"] += 1
            self._under_way.clear()

    def is_paused(self, name: str) -> bool:
        """Whether the stream pauses."""
        with self._changed:
            return self._lane(name).is_paused

    def waiting(self) -> int:
        """Frames that can be taken at once."""
        with self._changed:
            return sum(len(lane.frames) for lane in self._lanes.values())

    def stalled_s(self) -> float | None:
        """Seconds since a batch was last finished while frames waited or were under way; None when there are none."""
        with self._changed:
            return time.monotonic() - self._moved_s if self._has_work() else None

    def _has_work(self) -> bool:
        return bool(self._under_way) or any(lane.frames for lane in self._lanes.values())

    def has_ended(self, name: str) -> bool:
        """Whether the stream is closed, and nothing of it waits or is under way."""
        with self._changed:
            lane = self._lanes.get(name)
            return lane is None or (lane.is_closed and not lane.frames and lane.tally.under_way == 0)

    def counts(self, name: str) -> LaneCounts:
        """What became of the frames of the stream `name`, which may have been removed."""
        with self._changed:
            if name not in self._tallies:
                raise ConfigError(unknown(name, self._lanes))
            return self._counts(name)

    def all_counts(self) -> dict[str, LaneCounts]:
        """The counts of every stream, in the order in which they were added; removed ones too."""
        with self._changed:
            return {name: self._counts(name) for name in self._tallies}

    def total(self) -> LaneCounts:
        """The counts of all streams together."""
        with self._changed:
            return sum((self._counts(name) for name in self._tallies), self._earlier)

    def _counts(self, name: str) -> LaneCounts:
        lane = self._lanes.get(name)
        return self._tallies[name].counts(0 if lane is None else len(lane.frames))

    def _lane(self, name: str) -> Lane:
        lane = self._lanes.get(name)
        if lane is None:
            raise ConfigError(unknown(name, self._lanes))
        return lane

    def _forget_oldest(self) -> None:
        """Keep the memory of removed streams small; their counts stay in the total."""
        past = [name for name, tally in self._tallies.items() if name not in self._lanes and not tally.under_way]
        for name in past[: max(0, len(past) - PAST_STREAMS)]:
            self._earlier += self._counts(name)
            del self._tallies[name]


def key_of(frame: Frame) -> tuple[str, str, int]:
    """What tells this frame from every other, whatever crop of it is meant."""
    return frame.stream, frame.session, frame.index


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say of a name that no stream has."""
    return f"there is no stream called {name!r}: there are {', '.join(known) or 'none'}"
