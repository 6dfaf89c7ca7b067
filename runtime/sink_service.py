"""What is done for a sink: from the queue to the sink in its own thread, or into the spool at once and from there on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from nnet_edge.errors import SinkError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.delivery_queue import DeliveryQueue, Item
from nnet_edge.runtime.sink_health import SinkHealth
from nnet_edge.runtime.sink_tries import LOOK_S, Tries
from nnet_edge.runtime.sinks.base import Message, MessageSink, Sink
from nnet_edge.runtime.spool import Spool, SpoolFullError

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
