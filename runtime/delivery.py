"""A sink with a queue and a thread of its own: slow or dead, it costs its own events only, counted and told.

    Delivery.write -> DeliveryQueue | sink's thread: Sink.write, again after a pause when it fails
    with must-deliver: DeliveryQueue | spooling thread: Spool.append | sink's thread: Spool.peek -> Sink.send -> done

With must-deliver every message lies on the disk before the first try, so it outlives the process; it may arrive twice,
with the same id, and never out of order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event, Tell
from nnet_edge.frame import Prediction
from nnet_edge.runtime.delivery_queue import DeliveryQueue, Item
from nnet_edge.runtime.delivery_settings import DeliveryCounts, DeliverySettings
from nnet_edge.runtime.sink_health import SinkHealth
from nnet_edge.runtime.sinks.base import Message, MessageSink, RefusedError, Sink
from nnet_edge.runtime.spool import Spool, SpoolFullError

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

LOOK_S = 0.2  # how long a thread waits before it looks around
TICK_S = 1.0  # between two ticks of an idle sink
END_LIMIT_S = 10.0  # beyond the time to flush: a sink that hangs for longer is left behind, its thread ends by itself
SPOOL_BATCH = 64
NO_PIXELS = np.empty((0, 0, 3), np.uint8)
Observe = Callable[[Prediction | Event, float], None]


class Delivery:
    """Serves one sink; use it in a `with` statement, which opens and closes the sink as well.

    `tell` is given the sink's own events, `observe` each thing delivered and the milliseconds since it was put (with
    must-deliver: until it lay in the spool). Entering raises SinkError when the sink cannot be opened.
    """

    def __init__(
        self,
        sink: Sink,
        settings: DeliverySettings | None = None,
        name: str | None = None,
        tell: Tell | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.sink = sink
        self.name = name or sink.name
        self.settings = settings or DeliverySettings()
        self._observe = observe
        self._queue = DeliveryQueue(self.settings)
        self.health = SinkHealth(self.name, self.settings, tell, lambda: sum(self._queue.books().dropped.values()))
        self._error: BaseException | None = None
        self._ending = threading.Event()
        self._end_by_s = float("inf")
        self._ticked_s = 0.0
        self._threads: list[threading.Thread] = []
        self._spool: Spool | None = None
        if self.settings.must_deliver is not None:
            if not isinstance(sink, MessageSink):
                raise ConfigError(f"the sink {self.name} cannot be made to deliver: what it takes cannot lie on a disk")
            sink.require_deliverable()
            self._spool = Spool(self.settings.must_deliver)

    def __enter__(self) -> Self:
        self.sink.__enter__()
        try:
            if self._spool is not None:
                self._spool.__enter__()
                self._queue.recover(self._spool.waiting)
        except BaseException:
            self.sink.__exit__(None, None, None)
            raise
        works = [self._serve] if self._spool is None else [self._serve_spool, self._fill_spool]
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"{kind} {self.name}", daemon=True)
            for work, kind in zip(works, ("sink", "spool"), strict=False)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_by_s = time.monotonic() + self.settings.flush_s
        self._ending.set()
        self._queue.close()
        limit_s = time.monotonic() + self.settings.flush_s + END_LIMIT_S
        for thread in reversed(self._threads):
            thread.join(max(0.0, limit_s - time.monotonic()))
            if thread.is_alive():
                log.error("%s hangs and is left behind", thread.name)
        self._queue.abandon()
        if self._error is not None and kind is None:
            raise self._error

    def write(self, prediction: Prediction) -> bool:
        """Queue the prediction; False when it, or an older one, was lost by that. Waits only where the settings say so.

        Raises the sink's first fault when the settings are strict.
        """
        self._raise_if_strict()
        if not self.sink.wants(prediction):
            return True
        if not self.sink.wants_pixels:
            prediction = replace(prediction, frame=replace(prediction.frame, image=NO_PIXELS), anomaly_map=None)
        maps_bytes = 0 if prediction.anomaly_map is None else prediction.anomaly_map.nbytes
        return self._put(prediction, prediction.frame.image.nbytes + maps_bytes)

    def tell(self, event: Event) -> bool:
        """Queue the event where the sink wants events; it never hears of itself."""
        if not self.sink.wants_events or event.facts.get("sink") == self.name:
            return True
        return self._put(event, 0)

    def flush(self, timeout_s: float) -> bool:
        """Whether everything queued was delivered, dropped or spooled within `timeout_s`."""
        return self._queue.wait_until_empty(timeout_s)

    def counts(self) -> DeliveryCounts:
        """What became of everything so far."""
        books = self._queue.books()
        return DeliveryCounts(
            self.name,
            self.health.state,
            self.health.reason,
            books.offered,
            books.recovered,
            books.delivered,
            books.dropped,
            books.queued,
            books.spooled,
        )

    def _put(self, content: Prediction | Event, size_bytes: int) -> bool:
        is_whole = self._queue.put(Item(content, time.monotonic(), size_bytes))
        if not is_whole and not self._ending.is_set():
            self._raise_if_strict()
            self.health.lost(f"its queue of {self.settings.queue_items} is full")
        return is_whole

    def _raise_if_strict(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _guarded(self, work: Callable[[], None]) -> None:
        """The whole life of a thread: its work, and a reason when it ends before its time."""
        try:
            work()
        except BaseException as error:
            self._error = error
            self._queue.abandon()
            if not self.settings.is_strict:
                log.exception("the sink %s ended", self.name)

    def _serve(self) -> None:
        """Hand queued items to the sink until the queue is closed and empty, or the time to flush has passed."""
        limit = self.sink.largest_batch if isinstance(self.sink, MessageSink) else 1
        try:
            while (items := self._queue.take(limit, LOOK_S)) is not None:
                if time.monotonic() > self._end_by_s:
                    break
                if items:
                    self._hand_over(items)
                else:
                    self.health.caught_up()
                    self._tick()
        finally:
            self.sink.__exit__(None, None, None)

    def _hand_over(self, items: Sequence[Item]) -> None:
        """Deliver or drop every one of the items, in order."""
        if not isinstance(self.sink, MessageSink):
            for item in items:
                self._settle([item], *self._try(lambda item=item: self._write(item), 1))  # type: ignore[misc]
            return
        sink, waiting = self.sink, self._encoded(items)
        while waiting:
            messages = [message for _, message in waiting]
            count, cause = self._try(lambda messages=messages: sink.send(messages), 1)  # type: ignore[misc]
            self._settle([item for item, _ in waiting[:count]], count, cause)
            waiting = waiting[count:]

    def _settle(self, items: Sequence[Item], count: int, cause: str | None) -> None:
        self._queue.settle(count, cause)
        if cause is not None:
            self.health.lost(f"{cause}: {self.health.reason}" if self.health.reason else cause)
        elif self._observe is not None:
            now_s = time.monotonic()
            for item in items:
                self._observe(item.content, 1e3 * (now_s - item.put_s))

    def _write(self, item: Item) -> int:
        if isinstance(item.content, Event):
            self.sink.tell(item.content)
        else:
            self.sink.write(item.content)
        return 1

    def _encoded(self, items: Sequence[Item]) -> list[tuple[Item, Message]]:
        """The items with their messages; one that cannot become a message is refused."""
        assert isinstance(self.sink, MessageSink)
        found = []
        for item in items:
            try:
                is_event = isinstance(item.content, Event)
                found.append((item, self.sink.event_message(item.content) if is_event else self.sink.to_message(item.content)))  # type: ignore[arg-type]  # fmt: skip
            except Exception as error:
                self._strictly(error)
                log.warning("the sink %s cannot make a message: %r", self.name, error)
                self._settle([item], 1, "refused")
        return found

    def _try(self, send: Callable[[], int], refused: int) -> tuple[int, str | None]:
        """How many items `send` took care of, and the cause when they were dropped; tries as long as the settings say."""
        while True:
            try:
                arrived = send()
            except RefusedError as error:
                self._strictly(error)
                log.warning("%s", error)
                self.health.succeeded()
                return refused, "refused"
            except Exception as error:
                self._strictly(error)
                self._told_failure(error)
                if not self.sink.can_repeat:
                    return 1, "failed"
                is_patient = self._spool is not None or self.health.failing_s < self.settings.retry_s
                if not self._pause():
                    return (0, None) if self._spool is not None else (1, "stopped")
                if not is_patient:
                    return 1, "undelivered"
            else:
                self.health.succeeded()
                return arrived, None

    def _strictly(self, error: Exception) -> None:
        """Raise the error where the settings are strict: it ends the thread, and `write` raises it."""
        if self.settings.is_strict:
            raise error

    def _told_failure(self, error: Exception) -> None:
        if not isinstance(error, SinkError):
            log.error("the sink %s broke", self.name, exc_info=error)
            error = SinkError(f"the sink {self.name} broke: {error!r}")
        self.health.failed(error)

    def _pause(self) -> bool:
        """Wait before the next try; False when the time to flush has passed instead."""
        until_s = time.monotonic() + self.health.pause_s()
        while (now_s := time.monotonic()) < min(until_s, self._end_by_s):
            if self._ending.is_set():
                time.sleep(min(LOOK_S, max(0.0, min(until_s, self._end_by_s) - now_s)))
            else:
                self._ending.wait(until_s - now_s)
        return time.monotonic() < self._end_by_s

    def _tick(self) -> None:
        """Let the idle sink do what is due; its fault is told like that of a try, and waited for."""
        now_s = time.monotonic()
        if self._ending.is_set() or now_s - self._ticked_s < TICK_S:
            return
        self._ticked_s = now_s
        try:
            self.sink.tick()
        except Exception as error:
            self._strictly(error)
            self._told_failure(error)
            self._ticked_s = now_s + self.health.pause_s() - TICK_S
        else:
            self.health.succeeded()

    def _fill_spool(self) -> None:
        """Put queued items into the spool until the queue is closed and empty."""
        assert self._spool is not None
        while (items := self._queue.take(SPOOL_BATCH, LOOK_S)) is not None:
            for item, message in self._encoded(items):
                try:
                    self._spool.append(message)
                except SinkError as error:
                    cause = "spool full" if isinstance(error, SpoolFullError) else "spool failed"
                    self._queue.settle(1, cause)
                    self.health.lost(str(error))
                else:
                    self._queue.to_spool(1)
                    if self._observe is not None:
                        self._observe(item.content, 1e3 * (time.monotonic() - item.put_s))

    def _serve_spool(self) -> None:
        """Send what lies in the spool, in order, until the line ends; the rest stays for the next start."""
        assert self._spool is not None
        assert isinstance(self.sink, MessageSink)
        sink, spool = self.sink, self._spool
        filling = self._threads[1]
        try:
            while time.monotonic() < self._end_by_s:
                messages = spool.peek(sink.largest_batch, LOOK_S)
                if messages:
                    count, cause = self._try(lambda messages=messages: sink.send(messages), 1)  # type: ignore[misc]
                    if count:
                        spool.done(count)
                        self._queue.settle_spooled(count, cause)
                elif self._ending.is_set() and not filling.is_alive() and not spool.waiting:
                    break
                else:
                    self.health.caught_up()
                    self._tick()
        finally:
            filling.join()
            self.sink.__exit__(None, None, None)
            spool.close()
