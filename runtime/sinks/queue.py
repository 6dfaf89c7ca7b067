"""The bounded queue before a sink, which also keeps the books: nothing goes in or out without being counted.

How a sink is served, and what became of what it was given.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from nnet_edge.errors import ConfigError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks.spool import SpoolSettings
from nnet_edge.settings.runner import WhenFull, require_between, require_seconds

CAUSES = (
    "queue full",  # the sink was slower than the line, or dead for too long
    "undelivered",  # the sink failed for `retry_s`
    "failed",  # a sink that takes everything once (a callback, a video) could not
    "refused",  # the receiver is well and will never take it, or it cannot be written as a message
    "spool full",  # with must-deliver: its bytes were used up
    "spool failed",  # with must-deliver: its disk took nothing, or gave back what cannot be read
    "stopped",  # still waiting when the line ended and the time to flush had passed
)


@dataclass(frozen=True)
class DeliverySettings:
    """Queue, patience and spool of one sink. Raises ConfigError for a setting that cannot be meant."""

    queue_items: int = 256  # predictions and events that wait in memory
    queue_bytes: int = 256 << 20  # of their images and maps, where the sink wants them
    when_full: WhenFull = WhenFull.DROP_OLDEST  # WAIT for files, where every frame counts
    wait_limit_s: float = 30.0  # with WAIT: after this a new prediction is dropped, so that a dead sink ends nothing
    retry_s: float = 60.0  # a sink that fails for longer costs what it was given; with must-deliver nothing, ever
    first_pause_s: float = 0.1  # between two tries; doubles up to the longest
    longest_pause_s: float = 10.0
    dead_after_s: float = 2.0  # a sink that fails for so long is called dead
    flush_s: float = 5.0  # at the end: what then waits in memory is dropped, what lies in the spool stays
    is_strict: bool = False  # True: the first fault of the sink is raised in the caller's thread instead of all this
    must_deliver: SpoolSettings | None = None

    def __post_init__(self) -> None:
        require_between("items of a sink's queue", self.queue_items, 1, 1_000_000)
        require_between("bytes of a sink's queue", self.queue_bytes, 1, 1 << 40)
        for what, value in (
            ("seconds that a put may wait", self.wait_limit_s),
            ("seconds of retries", self.retry_s),
            ("seconds until a sink is called dead", self.dead_after_s),
            ("seconds to flush", self.flush_s),
        ):
            require_seconds(what, value)
        require_seconds("seconds of the first pause", self.first_pause_s, above=0.0)
        require_seconds("seconds of the longest pause", self.longest_pause_s, above=0.0)
        if self.longest_pause_s < self.first_pause_s:
            raise ConfigError(f"the longest pause, {self.longest_pause_s:g} s, is shorter than the first")
        if self.is_strict and self.must_deliver is not None:
            raise ConfigError("a sink that must deliver goes on after a fault, a strict one does not: choose one")


@dataclass(frozen=True)
class DeliveryCounts:
    """What became of everything that a sink was given; `is_balanced` at any moment."""

    name: str
    state: str  # "ok", "late" (it loses what it cannot take in time) or "dead" (it fails)
    reason: str | None  # of the newest fault since it was last ok
    offered: int  # predictions and events that the sink wants and was given
    recovered: int  # messages of an earlier run that lay in the spool
    delivered: int
    dropped: Mapping[str, int] = field(
        default_factory=dict
    )  # cause of CAUSES -> items; causes that never came are absent
    queued: int = 0  # in memory, the ones being written included
    spooled: int = 0  # on the disk, waiting

    @property
    def is_balanced(self) -> bool:
        """Whether everything is accounted for."""
        there = self.delivered + sum(self.dropped.values()) + self.queued + self.spooled
        return self.offered + self.recovered == there

    def losses(self) -> str | None:
        """What was lost, as a person reads it; None when nothing was."""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.dropped.items())
        return (
            f"the sink {self.name} lost {sum(self.dropped.values())} verdicts and events: {causes}" if causes else None
        )


LOOK_S = 0.1  # how often a put that waits looks whether the line stops
STOP_WAIT_S = 1.0  # that puts wait, all together, once it does: a sink that is well takes what it was given
EVENTS_ROOM = 64  # events never wait: where predictions do, so many lie beside a full queue of them


@dataclass(frozen=True, slots=True)
class Item:
    """A prediction or an event on its way to a sink."""

    content: Prediction | Event
    put_s: float  # time.monotonic()
    size_bytes: int  # of its image and map


@dataclass(frozen=True, slots=True)
class Books:
    """The counts of a queue at one moment."""

    offered: int
    recovered: int
    delivered: int
    dropped: Mapping[str, int]
    queued: int
    spooled: int


class DeliveryQueue:
    """Items between the line and a sink's thread; any thread may call any method."""

    def __init__(self, settings: DeliverySettings) -> None:
        self._settings = settings
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._stopped_s: float | None = None  # when a put saw that it is set
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._is_closed = self._is_abandoned = False
        self._offered = self._recovered = self._delivered = self._under_way = self._spooled = 0
        self._being_written = 0  # into the spool, whose answer is still out
        self._dropped: Counter[str] = Counter()

    def stop_with(self, stop: threading.Event) -> None:
        """Once `stop` is set, puts wait for a moment at most."""
        self._stop = stop

    def put(self, item: Item) -> bool:
        """Take the item in; False when it, or an older one in its place, was dropped. Never raises; an event never waits."""
        with self._changed:
            self._offered += 1
            if self._settings.when_full is WhenFull.WAIT and not isinstance(item.content, Event):
                self._wait_for_room(item)
            if self._is_closed:
                self._dropped["stopped"] += 1
                return False
            is_whole = True
            while not self._has_room(item):
                is_whole = False
                self._dropped["queue full"] += 1
                if self._settings.when_full is WhenFull.WAIT:
                    return False
                self._bytes -= self._items.popleft().size_bytes
            self._items.append(item)
            self._bytes += item.size_bytes
            self._changed.notify_all()
            return is_whole

    def _wait_for_room(self, item: Item) -> None:
        """Wait as long as the settings say, or until the line has been stopping for long enough."""
        end_s = time.monotonic() + self._settings.wait_limit_s
        while not (self._is_closed or self._has_room(item)):
            now_s = time.monotonic()
            if self._stop.is_set():
                self._stopped_s = self._stopped_s or now_s
                end_s = min(end_s, self._stopped_s + STOP_WAIT_S)
            if now_s >= end_s:
                return
            self._changed.wait(min(LOOK_S, end_s - now_s))

    def take(self, limit: int, timeout_s: float) -> list[Item] | None:
        """The oldest 1 to `limit` items; none when there is none in time; None when it is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._is_closed, timeout_s)
            if self._is_closed and not self._items:
                return None
            taken = [self._items.popleft() for _ in range(min(limit, len(self._items)))]
            self._bytes -= sum(item.size_bytes for item in taken)
            self._under_way += len(taken)
            self._changed.notify_all()
            return taken

    def settle(self, count: int, cause: str | None = None) -> None:
        """So many taken items were delivered, or dropped for a cause of CAUSES."""
        with self._changed:
            count = min(count, self._under_way)  # 0 after `abandon`: they were counted there
            self._under_way -= count
            self._book(count, cause)

    @contextmanager
    def to_spool(self) -> Iterator[bool]:
        """Something is offered and written to the disk in the block; it counts as spooled from the start, for it may be sent
        at once. Gives False when nothing is let in any more: it was dropped as stopped.
        """
        with self._changed:
            self._offered += 1
            is_open = not self._is_closed
            if is_open:
                self._spooled += 1
                self._being_written += 1
            else:
                self._book(1, "stopped")
        try:
            yield is_open
        finally:
            with self._changed:
                self._being_written -= is_open
                self._changed.notify_all()

    @property
    def is_settled(self) -> bool:
        """Whether it is closed and nothing is being written to the spool."""
        with self._changed:
            return self._is_closed and not self._being_written

    def recover(self, count: int) -> None:
        """So many messages of an earlier run lie on the disk."""
        with self._changed:
            self._recovered += count
            self._spooled += count

    def settle_spooled(self, count: int, cause: str | None = None) -> None:
        """So many messages of the disk were delivered, or dropped for a cause of CAUSES."""
        with self._changed:
            self._spooled -= count
            self._book(count, cause)

    def close(self) -> None:
        """Let nothing more in; what lies here can still be taken."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Close, and count what lies here and what is under way as stopped: nobody will deliver it."""
        with self._changed:
            self._is_closed = True
            self._book(len(self._items) + self._under_way, "stopped")
            self._items.clear()
            self._bytes = self._under_way = 0
            self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Whether nothing lies here, is under way or being written to the spool, within `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while self._items or self._under_way or self._being_written:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(min(left_s, 0.1))
            return True

    def books(self) -> Books:
        """All counts of one moment."""
        with self._changed:
            queued = len(self._items) + self._under_way
            return Books(self._offered, self._recovered, self._delivered, dict(self._dropped), queued, self._spooled)

    def _has_room(self, item: Item) -> bool:
        """Whether the item fits; into an empty queue any does."""
        is_aside = self._settings.when_full is WhenFull.WAIT and isinstance(item.content, Event)
        are_few = len(self._items) < self._settings.queue_items + (EVENTS_ROOM if is_aside else 0)
        return not self._items or (are_few and self._bytes + item.size_bytes <= self._settings.queue_bytes)

    def _book(self, count: int, cause: str | None) -> None:
        if cause is None:
            self._delivered += count
        elif count:
            self._dropped[cause] += count
