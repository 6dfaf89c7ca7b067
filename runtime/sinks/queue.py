"""The bounded queue before a sink, which counts everything that goes in and comes out."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event
from nnet_edge.settings.runner import require_between, require_seconds

if TYPE_CHECKING:
    from nnet_edge.runtime.sinks.spool import SpoolSettings

CAUSES = (
    "queue full",  # the sink was slower than the line, or dead for too long
    "undelivered",  # the sink failed for `retry_s`
    "failed",  # a sink that takes everything once (a callback, a video) could not
    "refused",  # the receiver works and will never take it, or it cannot be written as a message
    "spool full",  # with must-deliver: its bytes were used up
    "spool failed",  # with must-deliver: its disk took nothing, or gave back what cannot be read
    "removed",  # taken, and lost with the file that somebody removed while it was written
    "unfinished",  # taken, and lost with a file that the sink did not finish in the time to flush
    "stopped",  # still waiting when the line ended and the time to flush had passed
)
LOOK_S = 0.1  # how often a put that waits looks whether the line stops
STOP_WAIT_S = 1.0  # that puts wait, all together, once it does: a sink that works takes what it was given
EVENTS_ROOM = 64  # events never wait: where predictions do, so many lie beside a full queue of them


@dataclass(frozen=True)
class QueueSettings:
    """Queue, retries and spool of one sink. Raises ConfigError for an invalid setting."""

    queue_items: int = 256  # predictions and events that wait in memory
    queue_bytes: int = 256 << 20  # of their images and maps, where the sink wants them
    waits: bool = False  # True: a put waits at a full queue, for files; False: the oldest is dropped
    wait_limit_s: float = 30.0  # after this a new prediction is dropped, so that a dead sink blocks nobody
    retry_s: float = 60.0  # a sink that fails for longer loses what it was given; with must-deliver nothing, ever
    first_pause_s: float = 0.1  # between two attempts; doubles up to the longest
    longest_pause_s: float = 10.0
    dead_after_s: float = 2.0  # a sink that fails for so long is called dead
    flush_s: float = 5.0  # at the end: what then waits in memory is dropped, what lies in the spool stays
    is_strict: bool = False  # True: the first fault of the sink is raised in the caller's thread instead of all this
    ends_when_closed: bool = False  # True: only that its receiver closed for good is raised there
    must_deliver: SpoolSettings | None = None
    is_finite: bool = False  # with must-deliver, True: a put that waited in vain for room in the spool ends the line

    def __post_init__(self) -> None:
        require_between("items of a sink's queue", self.queue_items, 1, 1_000_000)
        require_between("bytes of a sink's queue", self.queue_bytes, 1, 1 << 40)
        require_seconds("seconds that a put may wait", self.wait_limit_s)
        require_seconds("seconds of retries", self.retry_s)
        require_seconds("seconds until a sink is called dead", self.dead_after_s)
        require_seconds("seconds to flush", self.flush_s)
        require_seconds("seconds of the first pause", self.first_pause_s, above=0.0)
        require_seconds("seconds of the longest pause", self.longest_pause_s, above=0.0)
        if self.longest_pause_s < self.first_pause_s:
            raise ConfigError(f"the longest pause, {self.longest_pause_s:g} s, is shorter than the first")
        if self.is_strict and self.must_deliver is not None:
            raise ConfigError("a sink that must deliver goes on after a fault, a strict one does not: choose one")


@dataclass(frozen=True)
class SinkCounts:
    """What became of everything that a sink was given; `is_balanced` at any moment."""

    name: str
    state: str  # "ok", "late" (it loses what it cannot take in time) or "dead" (it fails)
    reason: str | None  # of the newest fault since it was last ok
    offered: int  # predictions and events that the sink wants and was given
    recovered: int  # messages of an earlier run that lay in the spool
    delivered: int
    dropped: Mapping[str, int] = field(default_factory=dict)  # cause of CAUSES -> items; absent causes never came
    queued: int = 0  # in memory, the ones being written included
    spooled: int = 0  # on the disk, waiting
    own: Mapping[str, int] = field(default_factory=dict)  # what the sink counts itself, as answers that no PLC took

    @property
    def is_balanced(self) -> bool:
        """Whether everything is accounted for."""
        became = self.delivered + sum(self.dropped.values()) + self.queued + self.spooled
        return self.offered + self.recovered == became

    def losses(self) -> str | None:
        """What was lost, as a person reads it; None when nothing was."""
        if not self.dropped:
            return None
        causes = ", ".join(f"{count} {cause}" for cause, count in self.dropped.items())
        return f"the sink {self.name} lost {sum(self.dropped.values())} verdicts and events: {causes}"

    def waiting(self) -> str | None:
        """What lies in the spool, as a person reads it; None when nothing does."""
        if not self.spooled:
            return None
        why = f": {self.reason}" if self.reason else ""
        return f"the sink {self.name} has {self.spooled} messages in its spool, the next start delivers them{why}"


@dataclass(slots=True)
class Item:
    """A prediction or an event on its way to a sink."""

    content: Any  # Prediction or Event; None: a message of the spool
    put_s: float = 0.0  # time.monotonic()
    size_bytes: int = 0  # of its image and map
    message: Any = None  # Message, that a MessageSink sends for it


class SinkQueue:
    """Items in memory between the line and a sink's thread; any thread may call any method.

    `lost` is told why an item was dropped at a full queue.
    """

    def __init__(self, settings: QueueSettings, lost: Callable[[str], None]) -> None:
        self._settings = settings
        self._lost = lost
        self._lock = threading.RLock()  # of the condition; `put` enters it directly, without a Python call
        self._changed = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._stopped_s: float | None = None  # when a put saw that it is set
        self.fault: SinkError | None = None  # that ends the line
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._is_closed = False
        self._offered = self._recovered = self._delivered = self._spooled = 0
        self._under_way = 0  # taken and not settled
        self._being_written = 0  # into the spool, which has not answered yet
        self._dropped: Counter[str] = Counter()

    def open(self) -> None:
        """Find what an earlier run left; in memory nothing."""

    def finish(self) -> None:
        """Close what the queue has open, once nothing is taken any more."""

    def stop_with(self, stop: threading.Event) -> None:
        """Once `stop` is set, puts wait for a moment at most."""
        self._stop = stop

    def put(self, item: Item) -> None:
        """Take the item in, and count what is dropped by that. Never raises; an event never waits."""
        with self._lock:
            self._offered += 1
            if self._settings.waits and not isinstance(item.content, Event):
                self._wait_for_room(item)
            if self._is_closed:
                self._dropped["stopped"] += 1
                return
            is_full = not self._has_room(item)
            if is_full and self._settings.waits:
                self._dropped["queue full"] += 1
            else:
                while not self._has_room(item):
                    self._bytes -= self._items.popleft().size_bytes
                    self._dropped["queue full"] += 1
                self._items.append(item)
                self._bytes += item.size_bytes
                self._changed.notify_all()
        if is_full:
            self._lost(f"its queue of {self._settings.queue_items} is full")

    def _wait_for_room(self, item: Item) -> None:
        """Wait as long as the settings say, or until the line has been stopping for long enough."""
        end_s = time.monotonic() + self._settings.wait_limit_s
        while not (self._is_closed or self._has_room(item)) and (left_s := self._left_s(end_s)) > 0:
            self._changed.wait(min(LOOK_S, left_s))

    def _left_s(self, end_s: float) -> float:
        """Seconds that a put may wait on until `end_s`, or until the line has been stopping for long enough."""
        now_s = time.monotonic()
        if self._stop.is_set():
            self._stopped_s = self._stopped_s or now_s
            end_s = min(end_s, self._stopped_s + STOP_WAIT_S)
        return end_s - now_s

    def take(self, limit: int, timeout_s: float) -> list[Item] | None:
        """The oldest 1 to `limit` items; none when there is none in time; None when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_closed, timeout_s)
            if self._is_closed and not self._items:
                return None
            taken = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
            self._bytes -= sum(item.size_bytes for item in taken)
            self._under_way += len(taken)
            self._changed.notify_all()
            return taken

    def settle(self, count: int, cause: str | None = None) -> bool:
        """Count so many taken items as delivered, or dropped for a cause of CAUSES; whether the rest stays taken."""
        with self._changed:
            settled = min(count, self._under_way)  # 0 after `abandon`: they were counted there
            self._under_way -= settled
            self._book(settled, cause)
        return True

    def close(self) -> None:
        """Let nothing more in; what lies here can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Close, and count what lies here and what is under way as stopped: nobody will deliver it."""
        with self._changed:
            self._is_closed = True
            self._book(self._queued, "stopped")
            self._items.clear()
            self._bytes = self._under_way = 0

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Whether nothing lies here, is under way or being written to the spool, within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._being_written or self._queued), timeout_s)

    def losses(self) -> int:
        """Items that were dropped so far."""
        with self._changed:
            return sum(self._dropped.values())

    def counts(self, name: str, state: str, reason: str | None) -> SinkCounts:
        """A snapshot of all counts."""
        with self._changed:
            given = self._offered, self._recovered, self._delivered
            return SinkCounts(name, state, reason, *given, dict(self._dropped), self._queued, self._spooled)

    @property
    def _queued(self) -> int:
        return len(self._items) + self._under_way

    def _has_room(self, item: Item) -> bool:
        """Whether the item fits; into an empty queue any does."""
        is_aside = self._settings.waits and isinstance(item.content, Event)
        are_few = len(self._items) < self._settings.queue_items + (EVENTS_ROOM if is_aside else 0)
        return not self._items or (are_few and self._bytes + item.size_bytes <= self._settings.queue_bytes)

    def _book(self, count: int, cause: str | None) -> None:
        if cause is None:
            self._delivered += count
        elif count:
            self._dropped[cause] += count
        self._changed.notify_all()
