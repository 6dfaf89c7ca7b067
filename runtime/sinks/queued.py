"""A sink with a queue and a thread of its own: slow or dead, it loses only its own verdicts and events, counted and told.

    QueuedSink.write -> SinkQueue.put | sink's thread: SinkQueue.take -> Sink.write, or to_message and send

With must-deliver the queue lies on a disk (`spooled.py`): a message is in the spool when `write` returns, so a kill of
the process loses nothing that was written (a power cut: nothing older than the spool's `fsync_every_s`). It may arrive
twice, with the same id, and never out of order. What that costs the line stands in docs/measurements.md; pictures cost most,
for they are encoded before `write` returns.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event, Tell
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks.base import MessageSink, Orders, Sink
from nnet_edge.runtime.sinks.queue import Item, QueueSettings, SinkCounts, SinkQueue
from nnet_edge.runtime.sinks.retry import LOOK_S, Retry, SinkHealth
from nnet_edge.settings.registry import SINKS
from nnet_edge.settings.sink import SinkSettings

if TYPE_CHECKING:  # a spool, and SQLite below it, is imported where something must be delivered
    from nnet_edge.runtime.sinks.spool import Spool, SpoolSettings
    from nnet_edge.runtime.sinks.spooled import Observe

log = logging.getLogger(__name__)

END_LIMIT_S = 10.0  # beyond the time to flush: a sink that hangs for longer is left behind, its thread ends by itself


def serve(settings: SinkSettings, observe: Observe | None = None, is_finite: bool = False) -> Sink:
    """The sink of the settings, with a queue and a thread of its own unless `queue` is 0. Raises ConfigError.

    `is_finite`: every source ends by itself, so that the line can wait for a spool without room, and end where that is in vain.
    """
    sink: Sink = SINKS.find(settings.kind).make(settings)
    if settings.queue == 0:
        if sink.wants_events:
            raise ConfigError(
                f"the sink {settings.label} takes events, which come from other threads, and has no queue: "
                "set events = false, or leave queue = 0 out"
            )
        return sink
    folder = settings.must_deliver
    spool: SpoolSettings | None = None
    if folder is not None:
        from nnet_edge.runtime.sinks.spool import SpoolSettings

        spool = SpoolSettings(folder, settings.spool_bytes)
    queue_settings = QueueSettings(
        settings.queue,
        waits=settings.every_frame or (is_finite and folder is not None),
        is_finite=is_finite,
        retry_s=settings.retry_s,
        ends_when_closed=settings.is_strict,
        must_deliver=spool,
    )
    return QueuedSink(sink, queue_settings, settings.label, observe)


class QueuedSink(Sink):
    """Gives one sink a queue; use it in a `with` statement, which opens and closes the sink as well.

    `observe` is given each thing delivered, and the milliseconds since it was put (with must-deliver: until it lay in
    the spool). Entering raises SinkError when the sink cannot be opened.
    """

    def __init__(
        self, sink: Sink, settings: QueueSettings | None = None, name: str | None = None, observe: Observe | None = None
    ) -> None:
        self.sink = sink
        self.name = name or sink.name
        self.wants_maps, self.wants_pixels, self.wants_events = sink.wants_maps, sink.wants_pixels, sink.wants_events
        self.settings = settings or QueueSettings()
        self.health = SinkHealth(self.name, self.settings, lambda: self._queue.losses())
        self._retry = Retry(sink, self.settings, self.health)
        self._observe = observe
        self._error: BaseException | None = None  # that ended the sink's thread
        self._left_unfinished = 0  # predictions in files that its sink never closed
        self._end_by_s: float | None = None  # beyond it a thread is left behind
        self._queue = SinkQueue(self.settings, self.health.lost)
        self._threads = [self._thread("sink", self._serve)]
        if self.settings.must_deliver is not None:
            from nnet_edge.runtime.sinks.spool import Spool
            from nnet_edge.runtime.sinks.spooled import SpooledQueue

            if not isinstance(sink, MessageSink):
                raise ConfigError(f"the sink {self.name} cannot be made to deliver: what it takes cannot lie on a disk")
            sink.require_deliverable()
            spool, every_s = Spool(self.settings.must_deliver), self.settings.must_deliver.fsync_every_s
            self._queue = SpooledQueue(self.settings, spool, self._retry, self.health.lost, self._encode, observe)
            if every_s:
                self._threads.append(self._thread("spool", lambda: self._sync(spool, every_s)))

    @property
    def outputs(self) -> tuple[Path, ...]:
        return self.sink.outputs

    def __enter__(self) -> QueuedSink:
        self.sink.__enter__()
        try:
            self._queue.open()
        except BaseException:
            self.sink.__exit__(None, None, None)
            raise
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self.end_soon()
        assert self._end_by_s is not None
        for thread in reversed(self._threads):
            thread.join(max(0.0, self._end_by_s - time.monotonic()))
            if thread.is_alive():
                log.error("%s hangs and is left behind", thread.name)
        self._give_up_unfinished()
        self._queue.abandon()
        if about[0] is None:
            self._raise_fault()

    def _give_up_unfinished(self) -> None:
        """Count what a sink that was left behind has in files without an end: they are lost."""
        count = self.sink.unfinished
        if self._threads[0].is_alive() and count:
            self._left_unfinished = count
            took_s = self.settings.flush_s + END_LIMIT_S
            self._error = SinkError(f"the sink {self.name} did not end within {took_s:g} s: {count} frames are lost")

    def end_soon(self) -> None:
        """Let nothing more in and begin to flush."""
        if self._end_by_s is None:
            self._end_by_s = time.monotonic() + self.settings.flush_s + END_LIMIT_S
            self._retry.end()
            self._queue.close()

    def stop_with(self, stop: threading.Event) -> None:
        self._queue.stop_with(stop)

    def expect(self, stream: str, rate_hz: float | None, is_live: bool = False) -> None:
        self.sink.expect(stream, rate_hz, is_live)

    def report_to(self, tell: Tell) -> None:
        self.health.tell = tell

    def obey(self, orders: Orders) -> None:
        self.sink.obey(orders)

    def write(self, prediction: Prediction) -> None:
        """Queue the prediction, and count what is lost by that; waits only where the settings say so.

        Raises the sink's first fault when the settings are strict.
        """
        sink = self.sink
        is_wanted = sink.wants_good or prediction.is_anomalous
        if is_wanted and sink.only_stream in (None, prediction.frame.stream):
            if not (sink.keeps_pixels(prediction) if sink.picks_pixels else sink.wants_pixels):
                prediction = prediction.without_pixels()
            maps_bytes = 0 if prediction.anomaly_map is None else prediction.anomaly_map.nbytes
            self._queue.put(Item(prediction, time.monotonic(), prediction.frame.image.nbytes + maps_bytes))
        self._raise_fault()

    def tell(self, event: Event) -> None:
        """Queue the event where the sink wants events; it never hears of itself. Waits for nothing."""
        if self.sink.wants_events and event.facts.get("sink") != self.name:
            self._queue.put(Item(event, time.monotonic(), 0))

    def flush(self, timeout_s: float) -> bool:
        """Whether everything queued was delivered, dropped or spooled within `timeout_s`."""
        return self._queue.wait_until_empty(timeout_s)

    def counts(self) -> SinkCounts:
        """A snapshot of what became of everything so far."""
        found, lost = self._queue.counts(self.name, self.health.state, self.health.reason), self.sink.lost
        found = replace(found, own=dict(self.sink.own_counts))
        more = {cause: count for cause, count in (("removed", lost), ("unfinished", self._left_unfinished)) if count}
        if not more:
            return found
        return replace(found, delivered=found.delivered - sum(more.values()), dropped={**found.dropped, **more})

    def _raise_fault(self) -> None:
        """Raise, once, what ended the sink's thread."""
        error, self._error = self._error or self._queue.fault, None
        self._queue.fault = None
        if error is not None:
            raise error

    # ---- the sink's thread

    def _thread(self, kind: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error
                self._queue.abandon()
                self.health.ended(error)

        return threading.Thread(target=guarded, name=f"{kind} {self.name}", daemon=True)

    def _serve(self) -> None:
        """Hand over what is queued until the queue is closed and empty, or the time to flush is over."""
        try:
            while not self._retry.is_over and self._deliver_next():
                pass
        finally:
            try:
                self.sink.__exit__(None, None, None)
            finally:
                self._queue.finish()

    def _deliver_next(self) -> bool:
        """Hand the oldest items to the sink, again where that helps; False when the queue is closed and empty."""
        sink, retry = self.sink, self._retry
        items = self._queue.take(sink.largest_batch, LOOK_S)
        if items is None:
            return False
        if not items:
            retry.tick()
        if isinstance(sink, MessageSink):
            refused = [item for item in items if not self._encode(item)]
            self._settle(refused, len(refused), "refused")
            items = [item for item in items if item.message is not None]
        while items and not retry.is_over:
            count, cause = 1, None
            try:
                if isinstance(sink, MessageSink):
                    count = sink.send([item.message for item in items])
                elif isinstance(items[0].content, Event):
                    sink.tell(items[0].content)
                else:
                    sink.write(items[0].content)
            except Exception as error:
                cause = retry.failed(error)
                count = 0 if cause is None else 1
            else:
                self.health.succeeded()
            self._settle(items, count, cause)
        self._settle(items, len(items), "stopped")
        return True

    def _encode(self, item: Item) -> bool:
        """Whether the item has its message; a fault of the encoding is told. Also called by a put into the spool."""
        assert isinstance(self.sink, MessageSink)
        try:
            if item.message is None:
                to_message = self.sink.event_message if isinstance(item.content, Event) else self.sink.to_message
                item.message = to_message(item.content)
        except Exception as error:
            self._retry.note(error)
        return item.message is not None

    def _settle(self, items: list[Item], count: int, cause: str | None) -> None:
        """Count the first items as delivered, or dropped for the cause, and take them off the list."""
        settled = items[:count]
        if not settled:
            return
        keeps_rest = self._queue.settle(count, cause)
        del items[: count if keeps_rest else len(items)]
        if cause is None:
            now_s = time.monotonic()
            for item in settled:
                if self._observe is not None and item.content is not None:
                    self._observe(item.content, 1e3 * (now_s - item.put_s))
        elif cause != "stopped":
            self.health.lost(cause)

    def _sync(self, spool: Spool, every_s: float) -> None:
        """Bring the spool to the disk itself now and then: neither the line nor the sink waits for that."""
        while not self._retry.ending.wait(every_s):
            spool.sync()
