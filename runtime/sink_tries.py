"""Handing things to a sink, again and again where that makes sense, with pauses that grow; every fault is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from nnet_edge.errors import SinkError
from nnet_edge.runtime.delivery_settings import DeliverySettings
from nnet_edge.runtime.sink_health import SinkHealth
from nnet_edge.runtime.sinks.base import RefusedError, Sink

log = logging.getLogger(__name__)

LOOK_S = 0.2  # how long a thread waits before it looks around
TICK_S = 1.0  # between two ticks of an idle sink


class Tries:
    """The tries of one sink, all in its own thread; `end` may be called from any."""

    def __init__(self, sink: Sink, settings: DeliverySettings, health: SinkHealth) -> None:
        self._sink = sink
        self._settings = settings
        self._health = health
        self._ending = threading.Event()
        self._end_by_s = float("inf")
        self._tick_at_s = 0.0
        self._has_tick_failed = False

    def end(self) -> None:
        """Try no longer than `flush_s` from now."""
        self._end_by_s = time.monotonic() + self._settings.flush_s
        self._ending.set()

    def wait_for_end(self, timeout_s: float) -> bool:
        """Whether `end` was called, within `timeout_s`."""
        return self._ending.wait(timeout_s)

    @property
    def is_ending(self) -> bool:
        """Whether `end` was called."""
        return self._ending.is_set()

    @property
    def is_over(self) -> bool:
        """Whether the time to flush has passed."""
        return time.monotonic() >= self._end_by_s

    def deliver(self, send: Callable[[], int]) -> tuple[int, str | None]:
        """How many things `send` took care of, and the cause when they were dropped; none when the time was over.

        With must-deliver it tries until the end, else for `retry_s`. Raises the first fault when the settings are strict.
        """
        while not self.is_over:
            try:
                arrived = send()
            except RefusedError as error:
                self._raise_if_strict(error)
                log.warning("%s", error)
                self._health.succeeded()
                return 1, "refused"
            except Exception as error:
                self.failed(error)
                if not self._sink.can_repeat:
                    return 1, "failed"
                is_given_up = self._settings.must_deliver is None and self._health.failing_s >= self._settings.retry_s
                self.pause()
                if is_given_up:
                    return 1, "undelivered"
            else:
                self._health.succeeded()
                return arrived, None
        return 0, None

    def failed(self, error: Exception) -> None:
        """Tell a fault of the sink, or of its spool. Raises it when the settings are strict."""
        self._raise_if_strict(error)
        if not isinstance(error, SinkError):
            log.error("a sink broke", exc_info=error)
            error = SinkError(f"the sink broke: {error!r}")
        self._health.failed(error)

    def pause(self) -> None:
        """Wait before the next try, at most until the time is over."""
        until_s = time.monotonic() + self._health.pause_s()
        while (left_s := min(until_s, self._end_by_s) - time.monotonic()) > 0:
            if self._ending.is_set():
                time.sleep(min(LOOK_S, left_s))
            else:
                self._ending.wait(left_s)

    def tick(self) -> None:
        """Let the idle sink do what is due; a fault is told like that of a try."""
        if self._ending.is_set() or time.monotonic() < self._tick_at_s:
            return
        try:
            self._sink.tick()
        except Exception as error:
            self.failed(error)
            self._has_tick_failed = True
            self._tick_at_s = time.monotonic() + self._health.pause_s()
        else:
            if self._has_tick_failed:  # only then: an idle file that is well says nothing about its disk
                self._health.succeeded()
            self._has_tick_failed = False
            self._tick_at_s = time.monotonic() + TICK_S

    def _raise_if_strict(self, error: Exception) -> None:
        if self._settings.is_strict:
            raise error
