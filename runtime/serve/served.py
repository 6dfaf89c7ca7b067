"""One loaded bundle of the server: requests wait in the line's own frame buffer, and one thread judges them in batches.

A request's picture is decoded and resized in its own thread; what waits is the input. While a batch is computed the next one
gathers: batches grow with the load, and nothing waits for a fuller one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nnet_edge.errors import NotFiniteError, StreamError
from nnet_edge.frame import Frame, Outputs, Prediction, new_session
from nnet_edge.runtime.stream.buffer import FrameBuffer
from nnet_edge.runtime.stream.judge import BatchTimes, Judge, PartOutputs
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.stream_queue import FrameCounts
from nnet_edge.settings.policy import EVERY_FRAME
from nnet_edge.settings.stream import BufferSettings, VerdictSettings

log = logging.getLogger(__name__)

LOOK_S = 0.5  # how often a wait for requests looks around
CLOSE_S = 30.0  # for what is under way when a bundle is closed


class Listener(Protocol):
    """Who counts what is done: the server's metrics."""

    def batch(self, model: str, images: int, seconds: float) -> None: ...

    def took(self, model: str, stage: str, seconds: float) -> None: ...


@dataclass(frozen=True)
class Judged:
    """What a request is answered from."""

    prediction: Prediction
    anomaly_map: np.ndarray  # of the input, float32 (height, width); that of the prediction is of the picture


@dataclass(frozen=True)
class Waiting:
    """An image that waits for its turn."""

    image: np.ndarray  # as the runner takes it
    future: Future[Judged]


class Served:
    """A model with its buffer and thread, from construction to `close`. Any thread may call `judge`."""

    def __init__(
        self, name: str, model: Model, settings: VerdictSettings, listener: Listener, capacity: int, tally: ServedTally
    ) -> None:
        self.name, self.model, self._listener, self.tally = name, model, listener, tally
        self._judge = Judge(settings, model.threshold, model.judged_by, model.geometry)
        self._session = new_session()
        self._lock = threading.Lock()
        self._waiting: dict[int, Waiting] = {}
        self._next = 0
        self._buffer = FrameBuffer(keep_open=True)
        self._buffer.add(name, BufferSettings(EVERY_FRAME, capacity))
        model.runner.__enter__()
        self._thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)
        self._thread.start()

    @property
    def threshold(self) -> float:
        """The image score above which a picture is anomalous."""
        return self._judge.threshold

    def counts(self) -> FrameCounts:
        """What became of the images since the bundle was loaded."""
        return self._buffer.counts(self.name)

    def judge(self, image: np.ndarray, size: tuple[int, int], name: str | None = None) -> Future[Judged]:
        """The prediction to come for an input of the runner, of a picture of that (height, width)."""
        future: Future[Judged] = Future()
        future.set_running_or_notify_cancel()  # who waits may give up; nobody takes it out of a batch
        with self._lock:
            index, self._next = self._next, self._next + 1
            self._waiting[index] = Waiting(image, future)
        shape_only = np.broadcast_to(np.uint8(0), (*size, 3))  # the picture's size, without its memory
        frame = Frame(shape_only, index, time.monotonic(), self.name, name, self._session)
        if not self._buffer.put(frame):
            self._give(frame, StreamError(f"the bundle {self.name} is being closed: ask again"))
        return future

    def close(self) -> None:
        """Judge what waits, then let the runner go."""
        self._buffer.close(self.name)
        self._buffer.keep_open = False
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("%s: its runner does not answer: it is left to end by itself", self.name)
            return
        self.tally.add(self.counts())
        self.model.runner.__exit__(None, None, None)

    def _run(self) -> None:
        try:
            self._judge_all()
        except BaseException as error:  # a fault of ours: nobody waits for what will not come
            log.exception("%s: its thread ended", self.name)
            self._buffer.stop()
            with self._lock:
                left, self._waiting = self._waiting, {}
            for waiting in left.values():
                waiting.future.set_exception(StreamError(f"the bundle {self.name} judges nothing any more: {error!r}"))

    def _judge_all(self) -> None:
        under_way: tuple[list[Frame], float, Callable[[], Outputs]] | None = None
        frames: list[Frame] | None = None
        while frames != []:
            if under_way is not None and not self._buffer.waiting():
                self._finish(*under_way)
                under_way = None
            frames = self._buffer.take(self.model.runner.max_batch, timeout_s=LOOK_S)
            following = self._start(frames) if frames else None
            if under_way is not None:
                self._finish(*under_way)
            under_way = following
        if under_way is not None:
            self._finish(*under_way)

    def _start(self, frames: list[Frame]) -> tuple[list[Frame], float, Callable[[], Outputs]]:
        """The frames on their way; what the runner raises comes when they are waited for."""
        started_s = time.monotonic()
        try:
            wait = self.model.runner.start(np.stack([self._waiting[frame.index].image for frame in frames]))
        except Exception as error:
            failed = error

            def wait() -> Outputs:
                raise failed

        return frames, started_s, wait

    def _finish(self, frames: Sequence[Frame], started_s: float, wait: Callable[[], Outputs]) -> None:
        """Give each frame its prediction; those of a batch that fails are tried once more, each alone."""
        try:
            outputs = wait()
        except Exception as error:
            if len(frames) > 1:
                log.warning("%s: a batch of %d images failed (%s): each is tried alone", self.name, len(frames), error)
                for frame in frames:
                    self._finish(*self._start([frame]))
            else:
                self._give(frames[0], error, is_taken=True)
            return
        times = BatchTimes(started_s, started_s, time.monotonic())
        self._listener.batch(self.name, len(frames), times.inferred_s - started_s)
        self.tally.batch(len(frames), times.inferred_s - started_s)
        for number, frame in enumerate(frames):
            try:
                (prediction,) = self._judge.judge(frame, [frame], [PartOutputs(outputs, number)], times, True)
            except Exception as error:
                self._give(frame, error, is_taken=True)
                continue
            for stage, took_ms in prediction.latencies_ms.items():
                self._listener.took(self.name, stage, 1e-3 * took_ms)
            self.tally.judged(prediction)
            self._give(frame, Judged(prediction, outputs.anomaly_map[number]), is_taken=True)

    def _give(self, frame: Frame, found: Judged | Exception, is_taken: bool = False) -> None:
        with self._lock:
            future = self._waiting.pop(frame.index).future
        if isinstance(found, Judged):
            self._buffer.settle(self.name)
            future.set_result(found)
            return
        if is_taken:
            self._buffer.settle(self.name, "not_finite" if isinstance(found, NotFiniteError) else "failed")
        self.tally.failed += 1
        future.set_exception(found)


class ServedTally:
    """What a bundle did since the server started, over all its loadings; written by its thread."""

    def __init__(self) -> None:
        self.past = FrameCounts()  # of loadings that ended
        self.failed = 0
        self.rejects = 0
        self.last_s = 0.0  # time.time() of its newest verdict
        self.stages: Counter[str] = Counter()  # stage -> nanoseconds, of all verdicts
        self.verdicts = 0
        self.batches: Counter[int] = Counter()  # images -> batches
        self.batch_ns: Counter[int] = Counter()
        self.loads = self.closed = 0
        self.bytes = 0  # of memory that its loading took, the most that was seen

    def add(self, counts: FrameCounts) -> None:
        """A loading ended."""
        self.past = self.past + counts

    def batch(self, images: int, seconds: float) -> None:
        """A batch was computed."""
        self.batches[images] += 1
        self.batch_ns[images] += round(1e9 * seconds)

    def judged(self, prediction: Prediction) -> None:
        """A verdict was given."""
        self.verdicts += 1
        self.rejects += prediction.is_anomalous
        self.last_s = time.time()
        for stage, took_ms in prediction.latencies_ms.items():
            self.stages[stage] += round(1e6 * took_ms)
