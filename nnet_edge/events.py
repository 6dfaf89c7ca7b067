"""Events of a line beside its verdicts: a camera is lost, a bundle is swapped, a sink is late.

An event goes once to every subscriber, in the thread where it happened; the newest ones are kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nnet_edge.errors import ConfigError

log = logging.getLogger(__name__)

KINDS = (
    "source.connecting", "source.live", "source.stalled", "source.lost", "source.ended",
    "source.frozen", "source.moving", "machine.overloaded",
    "stream.added", "stream.removed", "stream.paused", "stream.resumed", "stream.failed",
    "regions.changed", "bundle.swapped", "threshold.changed", "drift.warning",
    "sink.late", "sink.dead", "sink.back", "frame.failed", "score.low",
    "camera.differs", "adapt.done", "adapt.refused", "adapt.dropped", "picture.differs",
    "trigger.failed", "recipe.changed", "recipe.refused",
    "clock.set",
)  # fmt: skip
KEPT = 1000  # newest events


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. Raises ConfigError for a kind that is not in KINDS."""

    kind: str
    stream: str | None = None  # None: it concerns the whole line
    at: float = field(default_factory=time.time)  # seconds since 1970: a time stamp, never subtracted
    facts: Mapping[str, object] = field(default_factory=dict)  # ready for JSON; without passwords

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"an event of the kind {self.kind!r} is unknown: it must be one of {', '.join(KINDS)}")

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {"kind": self.kind, "stream": self.stream, "at": self.at, "facts": dict(self.facts)}


Tell = Callable[[Event], None]


class Events:
    """Passes events to subscribers; any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscribers: list[Tell] = []
        self._newest: deque[Event] = deque(maxlen=KEPT)

    def subscribe(self, callback: Tell) -> None:
        """Call `callback` with every event to come, in the thread that tells it: it must not wait."""
        with self._lock:
            self._subscribers.append(callback)

    def unsubscribe(self, callback: Tell) -> None:
        """Stop calling `callback`; one that never subscribed is no error."""
        with self._lock:
            self._subscribers = [known for known in self._subscribers if known != callback]

    def tell(self, kind: str, stream: str | None = None, **facts: object) -> Event:
        """Tell an event that happens now; a subscriber that fails is logged and keeps its place."""
        event = Event(kind, stream, facts=facts)
        self.pass_on(event)
        return event

    def pass_on(self, event: Event) -> None:
        """Tell an event that was made elsewhere, for example by a sink."""
        with self._lock:
            self._newest.append(event)
            subscribers = tuple(self._subscribers)
        for callback in subscribers:
            try:
                callback(event)
            except Exception as error:
                log.warning("a subscriber failed at the event %s: %r", event.kind, error)

    def newest(self, limit: int = KEPT) -> list[Event]:
        """The newest `limit` events, oldest first."""
        with self._lock:
            return list(self._newest)[-limit:]
