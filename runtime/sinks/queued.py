"""A sink with a queue and a thread of its own: slow or dead, it costs its own events only, counted and told.

    Delivery.write -> DeliveryQueue | sink's thread: Sink.write, again after a pause when it fails
    with must-deliver: Delivery.write -> Spool.append | sink's thread: Spool.peek -> Sink.send -> done

With must-deliver there is no queue in memory: a message lies in the spool when `write` returns, so a kill of the process
loses nothing that was written (a power cut: nothing older than the spool's `fsync_every_s`). It may arrive twice, with
the same id, and never out of order. What that costs the line is in the table of `benchmarks/sinks.py`; pictures cost most,
for they are encoded before `write` returns.

What is done for a sink: from the queue to the sink in its own thread, or into the spool at once and from there on.
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
from nnet_edge.runtime.sinks.base import Message, MessageSink, Sink
from nnet_edge.runtime.sinks.queue import DeliveryCounts, DeliveryQueue, DeliverySettings, Item
from nnet_edge.runtime.sinks.retry import LOOK_S, SinkHealth, Tries
from nnet_edge.runtime.sinks.spool import Spool, SpoolFullError

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

Observe = Callable[[Prediction | Event, float], None]


class Service:
    """The work on one sink; each `serve...` and `sync` is the whole life of a thread."""

    def __init__(
        self, sink: Sink, queue: DeliveryQueue, tries: Tries, health: SinkHealth, observe: Observe | None
    ) -> None:
        self._sink = sink
        self._queue = queue
        self._tries = tries
        self._health = health
        self._observe = observe

    def serve(self) -> None:
        """Hand queued items to the sink until the queue is closed and empty, or the time is over; then close the sink."""
        limit = self._sink.largest_batch if isinstance(self._sink, MessageSink) else 1
        try:
            while not self._tries.is_over and (items := self._queue.take(limit, LOOK_S)) is not None:
                if items:
                    self._hand_over(items)
                else:
                    self._health.caught_up()
                    self._tries.tick()
        finally:
            self._sink.__exit__(None, None, None)

    def keep(self, spool: Spool, sink: MessageSink, item: Item) -> None:
        """Put what is offered into the spool, in the caller's thread: once this returns, a kill does not lose it."""
        with self._queue.to_spool() as is_open:
            if not is_open:
                return
            try:
                message = message_of(sink, item.content)
            except Exception as error:
                self._tries.failed(error)
                self._lost(1, "refused", "refused")
                return
            try:
                spool.append(message)
            except SinkError as error:
                self._lost(1, "spool full" if isinstance(error, SpoolFullError) else "spool failed", str(error))
            else:
                self._observed(item)

    def sync(self, spool: Spool, every_s: float) -> None:
        """Bring the spool to the disk itself now and then, until the end: neither the line nor the sink waits for it."""
        while not self._tries.wait_for_end(every_s):
            spool.sync()

    def serve_spool(self, spool: Spool, sink: MessageSink) -> None:
        """Send what lies in the spool, in order, until the time is over; the rest stays for the next start."""
        try:
            while not self._tries.is_over:
                messages = self._peek(spool, sink.largest_batch)
                if messages:
                    count, cause = self._tries.deliver(lambda messages=messages: sink.send(messages))  # type: ignore[misc]
                    if count:
                        self._done(spool, count, cause)
                elif self._tries.is_ending and self._queue.is_settled and not spool.waiting:
                    break
                else:
                    self._health.caught_up()
                    self._tries.tick()
        finally:
            try:
                sink.__exit__(None, None, None)
            finally:
                while not self._queue.is_settled:  # what was let in before it was closed is still being written
                    time.sleep(0.01)
                spool.close()

    def _hand_over(self, items: Sequence[Item]) -> None:
        """Deliver or drop the items, in order; those that the time does not suffice for are stopped."""
        if isinstance(self._sink, MessageSink):
            sink, waiting = self._sink, self._encoded(self._sink, items)
            while waiting:
                messages = [message for _, message in waiting]
                outcome = self._tries.deliver(lambda messages=messages: sink.send(messages))  # type: ignore[misc]
                waiting = waiting[self._settled([item for item, _ in waiting], *outcome) :]
        else:
            while items:
                outcome = self._tries.deliver(lambda item=items[0]: self._write(item))  # type: ignore[misc]
                items = items[self._settled(items, *outcome) :]

    def _settled(self, items: Sequence[Item], count: int, cause: str | None) -> int:
        """How many of the items are off the queue's books now."""
        if count == 0:
            count, cause = len(items), "stopped"
        self._queue.settle(count, cause)
        if cause is None:
            for item in items[:count]:
                self._observed(item)
        elif cause != "stopped":
            self._health.lost(cause)
        return count

    def _write(self, item: Item) -> int:
        if isinstance(item.content, Event):
            self._sink.tell(item.content)
        else:
            self._sink.write(item.content)
        return 1

    def _encoded(self, sink: MessageSink, items: Sequence[Item]) -> list[tuple[Item, Message]]:
        """The items with their messages; one that cannot become a message is refused."""
        found = []
        for item in items:
            try:
                found.append((item, message_of(sink, item.content)))
            except Exception as error:
                self._tries.failed(error)
                self._settled([item], 1, "refused")
        return found

    def _peek(self, spool: Spool, limit: int) -> list[Message]:
        """The next messages; none, after a pause, when the disk cannot be read."""
        damaged_before = spool.damaged
        try:
            return spool.peek(limit, LOOK_S)
        except SinkError as error:
            self._tries.failed(error)
            self._tries.pause()
            return []
        finally:
            if spool.damaged > damaged_before:
                self._lost(spool.damaged - damaged_before, "spool failed", "messages in its spool cannot be read")

    def _done(self, spool: Spool, count: int, cause: str | None) -> None:
        if cause is None:
            self._queue.settle_spooled(count)
        else:
            self._lost(count, cause, cause)
        try:
            spool.done(count)
        except SinkError as error:
            log.warning("%s: what was delivered may arrive twice after a restart", error)

    def _lost(self, count: int, cause: str, reason: str) -> None:
        """So many messages of the spool are dropped."""
        self._queue.settle_spooled(count, cause)
        self._health.lost(reason)

    def _observed(self, item: Item) -> None:
        if self._observe is not None:
            self._observe(item.content, 1e3 * (time.monotonic() - item.put_s))


def message_of(sink: MessageSink, content: Prediction | Event) -> Message:
    """What the sink sends for it. Raises SinkError, or ValueError for a score that is no number."""
    return sink.event_message(content) if isinstance(content, Event) else sink.to_message(content)


END_LIMIT_S = 10.0  # beyond the time to flush: a sink that hangs for longer is left behind, its thread ends by itself
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class Delivery(Sink):
    """Serves one sink; use it in a `with` statement, which opens and closes the sink as well.

    `observe` is given each thing delivered, and the milliseconds since it was put (with must-deliver: until it lay in
    the spool). Entering raises SinkError when the sink cannot be opened.
    """

    def __init__(
        self,
        sink: Sink,
        settings: DeliverySettings | None = None,
        name: str | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.sink = sink
        self.name = name or sink.name
        self.wants_maps, self.wants_events = sink.wants_maps, sink.wants_events
        self.settings = settings or DeliverySettings()
        self._queue = DeliveryQueue(self.settings)
        self.health = SinkHealth(self.name, self.settings, lambda: sum(self._queue.books().dropped.values()))
        self._tries = Tries(sink, self.settings, self.health)
        self._service = Service(sink, self._queue, self._tries, self.health, observe)
        self._error: BaseException | None = None
        self._end_by_s: float | None = None  # beyond it a thread is left behind
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
        self._threads = self._make_threads()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_by_s = self._begin_to_end()
        for thread in reversed(self._threads):
            thread.join(max(0.0, end_by_s - time.monotonic()))
            if thread.is_alive():
                log.error("%s hangs and is left behind", thread.name)
        self._queue.abandon()
        if self._error is not None and kind is None:
            raise self._error

    def _begin_to_end(self) -> float:
        """Let nothing more in and flush; gives the moment by which the threads have ended. Once only."""
        if self._end_by_s is None:
            self._end_by_s = time.monotonic() + self.settings.flush_s + END_LIMIT_S
            self._tries.end()
            self._queue.close()
        return self._end_by_s

    def end_soon(self) -> None:
        self._begin_to_end()

    def stop_with(self, stop: threading.Event) -> None:
        self._queue.stop_with(stop)

    def report_to(self, tell: Tell) -> None:
        self.health.tell_to(tell)

    def wants(self, prediction: Prediction) -> bool:
        return self.sink.wants(prediction)

    def write(self, prediction: Prediction) -> None:
        """Queue the prediction, and count what is lost by that; waits only where the settings say so.

        Raises the sink's first fault when the settings are strict.
        """
        self._raise_if_strict()
        if not self.sink.wants(prediction):
            return
        if not self.sink.wants_pixels:
            prediction = replace(prediction, frame=replace(prediction.frame, image=NO_PIXELS), anomaly_map=None)
        maps_bytes = 0 if prediction.anomaly_map is None else prediction.anomaly_map.nbytes
        self._put(prediction, prediction.frame.image.nbytes + maps_bytes)

    def tell(self, event: Event) -> None:
        """Queue the event where the sink wants events; it never hears of itself. Waits for nothing."""
        if self.sink.wants_events and event.facts.get("sink") != self.name:
            self._put(event, 0)

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

    def _put(self, content: Prediction | Event, size_bytes: int) -> None:
        if self._spool is not None and isinstance(self.sink, MessageSink):
            self._service.keep(self._spool, self.sink, Item(content, time.monotonic(), size_bytes))
            return
        is_whole = self._queue.put(Item(content, time.monotonic(), size_bytes))
        if not is_whole and not self._tries.is_ending:
            self._raise_if_strict()
            self.health.lost(f"its queue of {self.settings.queue_items} is full")

    def _make_threads(self) -> list[threading.Thread]:
        """The thread of the sink, then the one that brings its spool to the disk now and then, where that is asked for."""

        def thread(kind: str, work: Callable[[], None]) -> threading.Thread:
            return threading.Thread(target=self._guarded, args=(work,), name=f"{kind} {self.name}", daemon=True)

        service, sink, spool, settings = self._service, self.sink, self._spool, self.settings.must_deliver
        if spool is None or settings is None or not isinstance(sink, MessageSink):
            return [thread("sink", service.serve)]
        threads = [thread("sink", lambda: service.serve_spool(spool, sink))]
        if every_s := settings.fsync_every_s:
            threads.append(thread("spool", lambda: service.sync(spool, every_s)))
        return threads

    def _raise_if_strict(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _guarded(self, work: Callable[[], None]) -> None:
        """The whole life of a thread: its work, and the reason when it ends before its time."""
        try:
            work()
        except BaseException as error:
            self._error = error
            self._queue.abandon()
            self.health.ended(error)
