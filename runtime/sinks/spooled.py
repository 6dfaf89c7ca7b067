"""The queue on a disk of a sink that must deliver: what `put` returned from is in the spool, and outlives the process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from nnet_edge.errors import SinkError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks.queue import LOOK_S, Item, QueueSettings, SinkQueue
from nnet_edge.runtime.sinks.retry import Retry
from nnet_edge.runtime.sinks.spool import Spool, SpoolFullError

log = logging.getLogger(__name__)

Observe = Callable[[Prediction | Event, float], None]  # what was delivered, and the milliseconds since it was put


class SpooledQueue(SinkQueue):
    """Messages in a spool between the line and a sink's thread; nothing waits in memory.

    `encode` gives an item its message, False when it cannot; `observe` is told how long each put took.
    """

    def __init__(self, settings: QueueSettings, spool: Spool, retry: Retry, lost: Callable[[str], None],
                 encode: Callable[[Item], bool], observe: Observe | None) -> None:  # fmt: skip
        super().__init__(settings, lost)
        self._spool, self._retry, self._encode, self._observe = spool, retry, encode, observe

    def open(self) -> None:
        self._spool.__enter__()
        with self._changed:
            self._recovered = self._spooled = self._spool.waiting

    def finish(self) -> None:
        """Close the spool, once what was let in before the queue was closed is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed and not self._being_written)
        self._spool.close()

    def put(self, item: Item) -> None:
        with self._changed:
            self._offered += 1
            if self._is_closed:
                self._book(1, "stopped")
                return
            self._being_written += 1
            self._spooled += 1  # from now on: it may be sent before `append` returns
        try:
            self._append(item)
        finally:
            with self._changed:
                self._being_written -= 1
                self._changed.notify_all()

    def _append(self, item: Item) -> None:
        if not self._encode(item):
            self._lose(1, "refused", "refused")
            return
        if (error := self._keep(item)) is not None:
            self._lose(1, "spool full" if isinstance(error, SpoolFullError) else "spool failed", str(error))
            if self._settings.is_finite and not (self._stop.is_set() or isinstance(item.content, Event)):
                waited = f"the line waited {self._settings.wait_limit_s:g} s for it"
                self.fault = SinkError(
                    f"{error}; {waited} and ends: make room where the spool lies, and start it again"
                )
            return
        if self._observe is not None:
            self._observe(item.content, 1e3 * (time.monotonic() - item.put_s))

    def _keep(self, item: Item) -> SinkError | None:
        """Append the item to the spool, once there is room where the settings wait for that; else why it was not kept."""
        end_s, has_told = time.monotonic() + self._settings.wait_limit_s, False
        waits = self._settings.waits and not isinstance(item.content, Event)
        while True:
            try:
                self._spool.append(item.message)
            except SinkError as error:
                if not waits or self._is_closed or (left_s := self._left_s(end_s)) <= 0:
                    return error
                if not has_told:
                    log.warning("the line waits: %s", error)
                has_told = True
                time.sleep(min(LOOK_S, left_s))
            else:
                return None

    def take(self, limit: int, timeout_s: float) -> list[Item] | None:
        with self._changed:
            if self._is_closed and not self._being_written and not self._spool.waiting:
                return None
        damaged = self._spool.damaged
        try:
            messages = self._spool.peek(limit, timeout_s)
        except SinkError as error:
            self._retry.note(error)
            self._retry.pause()
            messages = []
        if self._spool.damaged > damaged:
            self._lose(self._spool.damaged - damaged, "spool failed", "messages in its spool cannot be read")
        return [Item(None, message=message) for message in messages]

    def settle(self, count: int, cause: str | None = None) -> bool:
        """As in memory, but the rest is taken again, and what is stopped stays for the next start."""
        if cause == "stopped":
            return False
        with self._changed:
            self._spooled -= count
            self._book(count, cause)
        try:
            self._spool.done(count)
        except SinkError as error:
            log.warning("%s: what was delivered may arrive twice after a restart", error)
        return False

    def _lose(self, count: int, cause: str, reason: str) -> None:
        with self._changed:
            self._spooled -= count
            self._book(count, cause)
        self._lost(reason)
