"""How long verdicts took to arrive: a histogram for each sink and stream, from the put to the sink's answer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.buckets import LATENCY_BOUNDS_MS, BucketCounter, Buckets

MOST = 4096  # histograms; beyond them the one goes that was silent for longest


class SinkTimes:
    """Counts deliveries; any thread may call any method. Give `hear` to `line.events`, so that removed streams go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: OrderedDict[tuple[str, str], BucketCounter] = OrderedDict()  # longest silent first

    def observer(self, sink: str) -> Callable[[Prediction | Event, float], None]:
        """What a Delivery of that name calls with each thing delivered and the milliseconds it took."""

        def observe(content: Prediction | Event, took_ms: float) -> None:
            stream = content.frame.stream if isinstance(content, Prediction) else content.stream or "line"
            with self._lock:
                counter = self._counters.get((sink, stream))
                if counter is None:
                    counter = self._counters[sink, stream] = BucketCounter(LATENCY_BOUNDS_MS)
                counter.add(took_ms)
                self._counters.move_to_end((sink, stream))
                if len(self._counters) > MOST:
                    self._counters.popitem(last=False)

        return observe

    def hear(self, event: Event) -> None:
        """Forget a stream that was removed; what a sink still has of it counts anew."""
        if event.kind == "stream.removed":
            with self._lock:
                for key in [key for key in self._counters if key[1] == event.stream]:
                    del self._counters[key]

    def snapshot(self) -> dict[tuple[str, str], Buckets]:
        """(sink, stream) -> milliseconds."""
        with self._lock:
            return {key: counter.snapshot() for key, counter in self._counters.items()}
