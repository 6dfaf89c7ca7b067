"""What the walk asks and tells of a line: which station judges a frame and with which model, and who hears of its verdict."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from nnet_edge.events import Events
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.batch import Job
from nnet_edge.runtime.buckets import BATCH_BOUNDS, BucketCounter, Buckets
from nnet_edge.runtime.lanes import Lanes
from nnet_edge.runtime.line_stream import Stream, Subscribers, Swap
from nnet_edge.runtime.models import Model, Shelf
from nnet_edge.runtime.runner import Runner
from nnet_edge.runtime.sinks import Sink

log = logging.getLogger(__name__)


class LineWork:
    """The streams of a line at work; obeys `Work` of runtime/walk.py. `lock` guards `streams`, `model` and `shelf`."""

    def __init__(self, model: Model, shelf: Shelf, sinks: Sequence[Sink], keep_open: bool) -> None:
        self.events = Events()
        self.lanes = Lanes(keep_open)
        self.sinks = tuple(sinks)
        self.lock = threading.RLock()
        self.streams: dict[str, Stream] = {}
        self.model, self.shelf = model, shelf
        self.is_watched = False  # whether a page wants maps of good frames too
        self.subscribers = Subscribers()
        self._swaps: list[Swap] = []
        self._has_unused = False  # a model, whose runner is left in the next gap
        self._batches = BucketCounter(BATCH_BOUNDS)

    def ask_to_swap(self, new: Model, stream: Stream | None) -> Swap:
        """Let `new` wait for the gap between two batches; it is meant for `stream`, None: for all that judge by the line's."""
        with self.lock:
            old, names = (self.model, None) if stream is None else (stream.model, [stream.settings.name])
            swap = Swap(old, new, names)
            self.shelf.enter(new)
            self._swaps.append(swap)
            return swap

    def must_switch(self) -> bool:
        """Whether a bundle waits to be swapped in, or out."""
        return self._has_unused or bool(self._swaps)

    def withdraw(self, swap: Swap) -> bool:
        """Whether the swap still waited: then it will never happen."""
        with self.lock:
            if swap not in self._swaps:
                return False
            self._swaps.remove(swap)
            self._leave_unused()
            return True

    def let_go(self, model: Model) -> None:
        """Leave the runner of a model in the next gap between two batches, unless a stream judges by it."""
        with self.lock:
            self._has_unused = model is not self.model and all(one.model is not model for one in self.streams.values())

    def switch(self) -> None:
        """Swap in what waits, and leave what is not used any more; no batch is under way."""
        with self.lock:
            swaps, self._swaps, self._has_unused = self._swaps, [], False
            meant = [self._switch_one(swap) for swap in swaps]
            self._leave_unused()
        for swap, names in zip(swaps, meant, strict=True):
            self.events.tell("bundle.swapped", None, old=swap.old.facts(), new=swap.new.facts(), streams=names)
            swap.is_done.set()

    def _switch_one(self, swap: Swap) -> list[str]:
        names = swap.switch(self.streams)
        if swap.streams is None:
            self.model = swap.new
        return names

    def _leave_unused(self) -> None:
        """Leave the runners of models that judge nothing and wait for nothing."""
        used = [self.model, *(stream.model for stream in self.streams.values()), *(swap.new for swap in self._swaps)]
        self.shelf.leave_all_but(used)

    def runners(self) -> list[Runner]:
        """Those that judge the streams which have not ended."""
        with self.lock:
            models = {name: stream.model for name, stream in self.streams.items()}
        return [model.runner for name, model in models.items() if not self.lanes.has_ended(name)]

    def job_of(self, frame: Frame) -> Job | None:
        """How to judge the frame; None when its stream is gone. Raises ConfigError for crops that do not fit it."""
        stream = self.streams.get(frame.stream)
        if stream is None or stream.camera.session != frame.session:
            return None
        return Job(frame, stream.station.parts(frame), stream.model.runner, stream.station)

    def wants_maps(self) -> bool:
        """Whether a sink or a page wants maps of good frames too."""
        return self.is_watched or any(sink.wants_maps for sink in self.sinks)

    def largest_batch(self) -> int:
        """Images of a full batch."""
        return self.model.runner.max_batch

    def note_batch(self, images: int) -> None:
        """Count a batch."""
        with self.lock:
            self._batches.add(images)

    def note_failure(self, frame: Frame, error: Exception) -> None:
        """Tell that a frame could not be judged."""
        log.warning("frame %s has no verdict: %s", frame.id, error)
        self.events.tell("frame.failed", frame.stream, frame=frame.id, reason=str(error) or type(error).__name__)

    def note(self, job: Job, predictions: Sequence[Prediction]) -> None:
        """Keep and pass on the verdicts on one frame."""
        stream = self.streams.get(job.frame.stream)
        now_s = time.monotonic()
        if stream is not None and stream.station is job.station:
            stream.newest, stream.frame = tuple(predictions), job.frame
            for prediction in predictions:
                stream.meters.add(prediction, now_s)
        for prediction in predictions:
            self.subscribers.pass_on(prediction)

    def batches(self) -> Buckets:
        """How many images the batches had."""
        with self.lock:
            return self._batches.snapshot()
