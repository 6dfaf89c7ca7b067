"""Retries with growing pauses, and the health of a sink: ok, late or dead, told once when it changes."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from nnet_edge.errors import SinkError
from nnet_edge.events import Event, Tell
from nnet_edge.runtime.sinks.base import ClosedError, RefusedError, Sink
from nnet_edge.runtime.sinks.queue import QueueSettings

log = logging.getLogger(__name__)

JITTER = 0.2  # a pause is up to so much shorter or longer, so that sinks do not come back all at once
LOOK_S = 0.2  # how long a thread waits before it looks around
TICK_S = 1.0  # between two ticks of an idle sink


class SinkHealth:
    """Hears of every attempt and every loss; tells `sink.late`, `sink.dead` and `sink.back`. Any thread may call it."""

    def __init__(self, name: str, settings: QueueSettings, losses: Callable[[], int]) -> None:
        self._name = name
        self._settings = settings
        self.tell: Tell | None = None  # takes the events to come
        self._losses = losses  # how many items the sink has lost so far
        self._lock = threading.Lock()
        self._failing_since_s: float | None = None
        self._bad_since_s = 0.0
        self._losses_before = 0
        self._failures = 0  # in a row
        self._asked_s = 0.0  # to be left alone, by the receiver
        self._has_told_loss = False
        self.state = "ok"
        self.reason: str | None = None

    def succeeded(self) -> None:
        """An attempt went well: a dead sink is back."""
        if self.state == "ok" and self._failing_since_s is None:
            return  # nearly always; without the lock
        with self._lock:
            self._failing_since_s, self._failures = None, 0
            if self.state == "ok":
                self.reason = None
        self._is_back_from("dead")

    def caught_up(self) -> None:
        """Nothing waits any more: a late sink is back."""
        self._is_back_from("late")

    def failed(self, error: Exception) -> None:
        """An attempt failed; a sink that fails for `dead_after_s` is dead."""
        if not isinstance(error, SinkError):
            log.error("a sink broke", exc_info=error)
            error = SinkError(f"the sink broke: {error!r}")
        now_s = time.monotonic()
        with self._lock:
            self.reason = str(error)
            self._failures += 1
            self._asked_s = error.wait_s
            self._failing_since_s = self._failing_since_s or now_s
            is_news = self.state != "dead" and self.failing_s >= self._settings.dead_after_s
        if is_news:
            self._change("dead", str(error))

    def lost(self, reason: str) -> None:
        """Something was dropped: a sink that is ok is late from now on, and of a dead one it is told once as well."""
        with self._lock:
            is_news, self._has_told_loss = not self._has_told_loss, True
        if self.state == "ok":
            self._change("late", reason)
        elif is_news and self.state == "dead":
            log.warning("the dead sink %s loses what it is given: %s", self._name, reason)
            self._say("sink.late", {"reason": reason, "dropped": self._losses()})

    def ended(self, error: BaseException) -> None:
        """The sink's thread ends with this error: it is dead for good."""
        self._change("dead", str(error) or type(error).__name__)

    @property
    def failing_s(self) -> float:
        """For how long every attempt has failed, 0 when the last one went well."""
        since_s = self._failing_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def pause_s(self) -> float:
        """How long to wait before the next attempt."""
        settings = self._settings
        doubled_s = settings.first_pause_s * 2.0 ** min(max(self._failures - 1, 0), 30)
        return max(min(doubled_s, settings.longest_pause_s) * (1 + JITTER * random.uniform(-1, 1)), self._asked_s)

    def _change(self, state: str, reason: str) -> None:
        with self._lock:
            if self.state == state:
                return
            if self.state == "ok":
                self._bad_since_s = time.monotonic() - (self.failing_s if state == "dead" else 0.0)
                self._losses_before = self._losses()
            self.state, self.reason = state, reason
        log.warning("the sink %s is %s: %s", self._name, state, reason)
        self._say(f"sink.{state}", {"reason": reason, "dropped": self._losses()})

    def _is_back_from(self, state: str) -> None:
        with self._lock:
            if self.state != state:
                return
            self.state, self.reason, self._has_told_loss = "ok", None, False
            outage_s, lost = time.monotonic() - self._bad_since_s, self._losses() - self._losses_before
        log.warning("the sink %s is back after %.1f s", self._name, outage_s)
        self._say("sink.back", {"outage_s": round(outage_s, 3), "lost": lost})

    def _say(self, kind: str, facts: dict[str, object]) -> None:
        if self.tell is not None:
            self.tell(Event(kind, facts={"sink": self._name, **facts}))


class Retry:
    """Whether and when a sink's thread tries again; `end` may be called from any thread."""

    def __init__(self, sink: Sink, settings: QueueSettings, health: SinkHealth) -> None:
        self._sink = sink
        self._settings = settings
        self._health = health
        self.ending = threading.Event()  # set by `end`
        self._end_by_s = float("inf")
        self._tick_at_s = 0.0
        self._has_tick_failed = False

    def end(self) -> None:
        """Try no longer than `flush_s` from now."""
        self._end_by_s = time.monotonic() + self._settings.flush_s
        self.ending.set()

    @property
    def is_over(self) -> bool:
        """Whether the time to flush has passed."""
        return time.monotonic() >= self._end_by_s

    def failed(self, error: Exception) -> str | None:
        """Tell a failed attempt and pause; gives the cause for which its first item is dropped, None: try again.

        With must-deliver it is tried until the end, else for `retry_s`. Raises `error` when the settings are strict.
        """
        if isinstance(error, RefusedError) and not self._settings.is_strict:
            log.warning("%s", error)
            self._health.succeeded()
            return "refused"
        self.note(error)
        if not self._sink.can_repeat:
            return "failed"
        is_given_up = self._settings.must_deliver is None and self._health.failing_s >= self._settings.retry_s
        self.pause()
        return "undelivered" if is_given_up else None

    def note(self, error: Exception) -> None:
        """Tell a fault of the sink, or of its spool. Raises it when the settings are strict."""
        if self._settings.is_strict or (self._settings.ends_when_closed and isinstance(error, ClosedError)):
            raise error
        self._health.failed(error)

    def pause(self) -> None:
        """Wait before the next attempt, at most until the time is over."""
        until_s = time.monotonic() + self._health.pause_s()
        while (left_s := min(until_s, self._end_by_s) - time.monotonic()) > 0:
            if self.ending.is_set():
                time.sleep(min(LOOK_S, left_s))
            else:
                self.ending.wait(left_s)

    def tick(self) -> None:
        """Let the idle sink do what is due; a fault is told like that of an attempt."""
        self._health.caught_up()
        if self.ending.is_set() or time.monotonic() < self._tick_at_s:
            return
        try:
            self._sink.tick()
        except Exception as error:
            self.note(error)
            self._has_tick_failed = True
            self._tick_at_s = time.monotonic() + self._health.pause_s()
        else:
            if self._has_tick_failed:  # only then: an idle file that works says nothing about its disk
                self._health.succeeded()
            self._has_tick_failed = False
            self._tick_at_s = time.monotonic() + TICK_S
