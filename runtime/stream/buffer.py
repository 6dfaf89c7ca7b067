"""Bounded frame buffer with drop policies: the one place where the cameras' threads and the line's meet.

Each stream has a queue of its own, and one batch is taken over all of them. Nothing is lost without a cause: of every stream

    captured = judged + dropped by cause + queued

holds at any moment; queued are the frames that wait and those that were taken and have no verdict yet.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Frame
from nnet_edge.runtime.stream.stream_queue import FrameCounts, StreamQueue, Tally
from nnet_edge.settings.stream import BufferSettings

LONGEST_WAIT_S = 1.0  # a wait without a time limit of its own looks around as often
ACTIVE_S = 1.0  # a queue that was silent for longer is not waited for
PAST_STREAMS = 256  # removed streams whose counts are kept by name


class FrameBuffer:
    """One bounded queue a stream; any thread may call any method. A name that has no queue is a ConfigError.

    With `keep_open` it does not end with its last source: streams may be added later.
    """

    def __init__(self, keep_open: bool = False) -> None:
        self.keep_open = keep_open
        self._lock = (
            threading.RLock()
        )  # of the condition; where a frame passes it is entered directly, without a Python call
        self._changed = threading.Condition(self._lock)
        self._queues: dict[str, StreamQueue] = {}
        self._tallies: dict[str, Tally] = {}  # of removed streams too
        self._earlier = FrameCounts()  # of removed streams whose names are forgotten
        self._turn = 0
        self._moved_s = time.monotonic()  # when a batch was last finished, or the first frame came that waits for one
        self._stopped = False

    def add(self, name: str, settings: BufferSettings) -> None:
        """Open a queue for the stream. Raises ConfigError for a name that is taken."""
        with self._changed:
            if name in self._queues:
                raise ConfigError(f"there is a stream called {name!r} already: give another name, or remove it first")
            tally = self._tallies.pop(name, None) or Tally()
            self._tallies[name] = tally  # youngest last
            self._queues[name] = StreamQueue(settings, tally)
            self._queues[name].is_closed = self._stopped
            self._forget_oldest()

    def put(self, frame: Frame, cause: str | None = None) -> bool:
        """Whether the stream is open for more; the frame is counted in any case, with `cause` as dropped for it.

        EVERY_FRAME waits for room. A frame that comes when its stream is gone or closed is dropped as removed or stopped.
        """
        with self._lock:
            queue = self._queues.get(frame.stream)
            if queue is None:
                tally = self._tallies.setdefault(frame.stream, Tally())
                tally.captured += 1
                tally.dropped["removed"] += 1
                return False
            queue.tally.captured += 1
            queue.last_put_s = time.monotonic()
            if cause is None and queue.waits and not queue.has_room():
                self._wait_for_room(queue)
            if cause is None:
                cause = self._refusal(queue, frame.stream, frame.captured_s)
            if cause is not None:
                queue.tally.dropped[cause] += 1
                return cause not in ("stopped", "removed")
            if not self._has_work():
                self._moved_s = queue.last_put_s
            queue.frames.append((time.monotonic(), frame))
            self._changed.notify_all()
            return True

    def lose(self, stream: str, cause: str, frames: int = 1) -> None:
        """Count frames that the camera sent and that did not arrive whole: captured, and dropped for a cause of CAUSES."""
        with self._lock:
            tally = self._tallies.setdefault(stream, Tally())
            tally.captured += frames
            tally.dropped[cause] += frames

    def _wait_for_room(self, queue: StreamQueue) -> None:
        """Wait until a frame may come in; it is in the capture thread's hand: captured, neither judged nor dropped."""
        queue.tally.in_hand += 1
        while not queue.has_room():
            self._changed.wait(LONGEST_WAIT_S)
        queue.tally.in_hand -= 1

    def _refusal(self, queue: StreamQueue, name: str, captured_s: float) -> str | None:
        """The cause for which a frame of that moment is dropped, None for one that comes in; makes room for it."""
        if queue.is_closed:
            return "stopped" if self._queues.get(name) is queue else "removed"
        if queue.is_paused:
            return "paused"
        if queue.comes_too_soon(captured_s):
            return "paced"
        if len(queue.frames) >= queue.capacity:
            queue.frames.popleft()
            queue.tally.dropped["full"] += 1
        return None

    def take(self, limit: int, deadline_s: float = 0.0, timeout_s: float = 1.0) -> list[Frame] | None:
        """Frames that fill a batch of `limit` images; None when `timeout_s` passed without one; [] at the end.

        It waits for a full batch, or one frame of each active stream, at most until `deadline_s` after the first came in.
        Streams that were served longest ago come first, of these the one with the oldest frame; a stream's frames stay in
        their order. A live stream gives one frame at most, so that a batch is no longer than it must be. Each frame taken
        is under way until `settle` names it.
        """
        end_s = time.monotonic() + timeout_s
        with self._lock:
            while True:
                now_s = time.monotonic()
                for queue in self._queues.values():
                    if queue.staleness_s is not None:
                        queue.drop_stale(now_s)
                ready_s = self._ready_at(limit, deadline_s, now_s)
                if ready_s is not None and ready_s <= now_s:
                    break
                if ready_s is None and self._has_ended():
                    return []
                wait_s = min(end_s, ready_s if ready_s is not None else end_s) - now_s
                if wait_s <= 0:
                    return None
                self._changed.wait(wait_s)
            taken = []
            for queue in self._turns(limit):
                _, frame = queue.frames.popleft()
                taken.append(frame)
            self._changed.notify_all()
            return taken

    def _ready_at(self, limit: int, deadline_s: float, now_s: float) -> float | None:
        """The moment at which what waits should be taken; None when nothing waits."""
        images, first_s, is_complete = 0, math.inf, True
        for queue in self._queues.values():
            if queue.frames:
                images += len(queue.frames) * queue.weight
                first_s = min(first_s, queue.frames[0][0])
            elif not (queue.is_closed or queue.is_paused) and now_s - queue.last_put_s < ACTIVE_S:
                is_complete = False  # an active stream's frame is on its way
        if not images:
            return None
        return now_s if is_complete or images >= limit else first_s + deadline_s

    def _turns(self, limit: int) -> list[StreamQueue]:
        """The queues that give a frame to the next batch, in their order; one that gives several stands there as often."""
        turns: list[StreamQueue] = []
        room = limit
        for given in range(limit):  # so many have those that are asked again
            # Of a live stream one frame a batch: its next may be a fresher one by then.
            ready = [q for q in self._queues.values() if len(q.frames) > given and (q.waits or not given)]
            if not ready:
                break
            if len(ready) > 1:
                ready.sort(key=lambda queue: (queue.served, queue.frames[given][1].captured_s))
            for queue in ready:
                if turns and queue.weight > room:
                    return turns  # who comes next does not fit: it is first in the next batch
                self._turn += 1
                queue.served = self._turn
                queue.tally.taken += 1
                turns.append(queue)
                room -= queue.weight
        return turns

    def _has_ended(self) -> bool:
        """Whether nothing waits and nothing will come."""
        is_over = all(queue.is_closed and not queue.frames for queue in self._queues.values())
        return is_over and (self._stopped or not self.keep_open)

    def settle(self, stream: str, cause: str | None = None) -> None:
        """A frame of the stream, which was taken, has its verdict, or will have none for that cause of CAUSES."""
        with self._lock:
            self._moved_s = time.monotonic()
            tally = self._tallies[stream]
            tally.taken -= 1
            if cause is None:
                tally.judged += 1
            else:
                tally.dropped[cause] += 1

    def pause(self, name: str) -> None:
        """Judge no frame of this stream: what waits and what comes is dropped as paused; files wait instead."""
        with self._changed:
            queue = self._queue(name)
            queue.is_paused = True
            if not queue.waits:
                queue.drop_all("paused")
            self._changed.notify_all()

    def resume(self, name: str) -> None:
        """End the pause."""
        with self._changed:
            self._queue(name).is_paused = False
            self._changed.notify_all()

    def change(self, name: str, settings: BufferSettings) -> None:
        """Other settings for what comes."""
        with self._changed:
            self._queue(name).use(settings)
            self._changed.notify_all()

    def close(self, name: str) -> None:
        """No frame comes any more; what waits can still be taken. A stream that was removed is no error."""
        with self._changed:
            if name in self._queues:
                self._queues[name].is_closed = True
            self._changed.notify_all()

    def remove(self, name: str) -> None:
        """Take the queue away; what waits in it is dropped as removed."""
        with self._changed:
            queue = self._queue(name)
            del self._queues[name]
            queue.is_closed = True
            queue.drop_all("removed")
            self._changed.notify_all()

    def stop(self) -> None:
        """End all queues; what waits is dropped as stopped, and so is what still comes."""
        with self._changed:
            self._stopped = True
            for queue in self._queues.values():
                queue.is_closed = True
                queue.drop_all("stopped")
            self._changed.notify_all()

    def give_up(self) -> None:
        """Count what was taken and has no verdict as stopped: nobody will judge it."""
        with self._changed:
            for tally in self._tallies.values():
                if tally.taken:
                    tally.dropped["stopped"] += tally.taken
                tally.taken = 0

    def is_paused(self, name: str) -> bool:
        """Whether the stream pauses."""
        with self._changed:
            return self._queue(name).is_paused

    def waiting(self) -> int:
        """Frames that can be taken at once."""
        with self._lock:
            return sum([len(queue.frames) for queue in self._queues.values()])

    def stalled_s(self) -> float | None:
        """Seconds since a batch was last finished while frames waited or were under way; None when there are none."""
        with self._changed:
            return time.monotonic() - self._moved_s if self._has_work() else None

    def _has_work(self) -> bool:
        return any(tally.taken for tally in self._tallies.values()) or any(
            queue.frames for queue in self._queues.values()
        )

    def has_ended(self, name: str) -> bool:
        """Whether the stream is closed, and nothing of it waits or is under way."""
        with self._changed:
            queue = self._queues.get(name)
            return queue is None or (queue.is_closed and not queue.frames and not queue.tally.under_way)

    def counts(self, name: str) -> FrameCounts:
        """What became of the frames of the stream `name`, which may have been removed."""
        with self._changed:
            if name not in self._tallies:
                raise ConfigError(unknown(name, self._queues))
            return self._counts(name)

    def all_counts(self) -> dict[str, FrameCounts]:
        """The counts of every stream, in the order in which they were added; removed ones too."""
        with self._changed:
            return {name: self._counts(name) for name in self._tallies}

    def total(self) -> FrameCounts:
        """The counts of all streams together."""
        with self._changed:
            return sum((self._counts(name) for name in self._tallies), self._earlier)

    def _counts(self, name: str) -> FrameCounts:
        queue = self._queues.get(name)
        return self._tallies[name].counts(0 if queue is None else len(queue.frames))

    def _queue(self, name: str) -> StreamQueue:
        queue = self._queues.get(name)
        if queue is None:
            raise ConfigError(unknown(name, self._queues))
        return queue

    def _forget_oldest(self) -> None:
        """Keep the memory of removed streams small; their counts stay in the total."""
        past = [
            name
            for name, tally in self._tallies.items()
            if name not in self._queues and not (tally.in_hand or tally.taken)
        ]
        for name in past[: max(0, len(past) - PAST_STREAMS)]:
            self._earlier += self._counts(name)
            del self._tallies[name]


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say of a name that no stream has."""
    return f"there is no stream called {name!r}: there are {', '.join(known) or 'none'}"
