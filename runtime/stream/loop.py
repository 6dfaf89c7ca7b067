"""The line's thread: frames are taken in batches, computed, judged and handed to the sinks.

    Source.__iter__ -> Stream.put -> FrameBuffer.put | FrameBuffer.take -> Batch (preprocess, Runner.start)
    -> Judge.judge -> Sink.write (QueuedSink.write | its thread: Sink.send)

Left of `|` are the cameras' threads, right of it is the caller's. Two batches are under way, and more of a runner that computes
several images at once: until there is one image more than that, so that what it computes next lies ready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from nnet_edge.errors import NotFiniteError, StreamError
from nnet_edge.events import Events
from nnet_edge.frame import Frame, FrameOutputs, Outputs, Prediction, Triggered
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.imaging import to_input
from nnet_edge.runtime.runners.base import Runner, at_once, is_frame_runner
from nnet_edge.runtime.sinks.base import Sink
from nnet_edge.runtime.stream.buffer import FrameBuffer
from nnet_edge.runtime.stream.judge import BatchTimes, PartOutputs
from nnet_edge.runtime.stream.meters import TRIGGER, LineMeters
from nnet_edge.runtime.stream.model import ModelPool
from nnet_edge.runtime.stream.report import View
from nnet_edge.runtime.stream.stream import Stream

log = logging.getLogger(__name__)

STOP_LOOK_S = 0.1  # how often a wait for frames looks whether it should stop
FAILURES_IN_A_ROW = 8  # frames of one runner that cannot be judged even alone; with so many it is not the frame
DEADLINE_SHARE = 0.25  # of what a batch takes: waiting longer for a fuller one costs more than it saves
LONGEST_DEADLINE_S = 0.02


def preprocess(frames: Sequence[Frame], geometry: Geometry = DEFAULT) -> np.ndarray:
    """The frames' images as the graph takes them: uint8 RGB (N, height, width, 3)."""
    images = np.empty((len(frames), *geometry.shape), np.uint8)
    for image, frame in zip(images, frames, strict=True):
        to_input(frame.image, image, geometry)
    return images


class Pacer:
    """How long the first frame of a batch waits for others: a quarter of what batches took lately, at most 20 ms."""

    def __init__(self, fixed_s: float | None, batch_s: float | None) -> None:
        self._fixed_s = fixed_s
        self._batch_s = batch_s

    def add(self, batch_s: float) -> None:
        """Take notice of a batch."""
        self._batch_s = batch_s if self._batch_s is None else 0.9 * self._batch_s + 0.1 * batch_s

    @property
    def deadline_s(self) -> float:
        """Seconds."""
        if self._fixed_s is not None:
            return self._fixed_s
        return min(DEADLINE_SHARE * (self._batch_s or 0.0), LONGEST_DEADLINE_S)


class Batch:
    """Frames on their way through one runner, each as its parts: itself, or its crops. Making one starts it."""

    def __init__(
        self, frames: Sequence[tuple[Stream, Frame, Sequence[Frame]]], runner: Runner, is_retry: bool = False
    ) -> None:
        self.frames, self.runner, self.is_retry = frames, runner, is_retry
        parts = [part for _, _, of_frame in frames for part in of_frame]
        self.images, geometry = len(parts), frames[0][0].model.geometry
        self._error: Exception | None = None
        self._waits: list[Callable[[], Outputs | FrameOutputs]] = []
        self._outputs: list[Outputs | FrameOutputs] = []
        self.started_s = self.prepared_s = time.monotonic()
        pieces = [parts[start : start + runner.max_batch] for start in range(0, len(parts), runner.max_batch)]
        try:
            if is_frame_runner(runner):  # resizes on the GPU: what the processor does is the copy there
                self._waits.extend(runner.start_frames(piece) for piece in pieces)
                self.prepared_s = time.monotonic()
            else:
                images = [preprocess(piece, geometry) for piece in pieces]
                self.prepared_s = time.monotonic()
                self._waits.extend(runner.start(array) for array in images)
        except Exception as error:  # whatever a runner raises comes out of `wait`, in the batch's turn
            self._error = error

    def wait(self) -> None:
        """Wait until everything is computed; raises what the runner raised first, now or when the batch was started."""
        for wait in self._waits:  # all of them: what nobody waits for stays under way
            try:
                self._outputs.append(wait())
            except Exception as error:
                self._error = self._error or error
        self.times = BatchTimes(self.started_s, self.prepared_s, time.monotonic())
        if self._error is not None:
            raise self._error

    def outputs(self, first: int, count: int) -> list[PartOutputs]:
        """What the runner gave for the parts from number `first` on."""
        places = [divmod(number, self.runner.max_batch) for number in range(first, first + count)]
        return [PartOutputs(self._outputs[piece], index) for piece, index in places]


def answering(stream: Stream, trigger: Triggered, predictions: list[Prediction]) -> list[Prediction] | None:
    """The predictions with what the trigger is answered; None: it is too late, and has another outcome."""
    now_s = time.monotonic()
    if stream.triggers is None or not stream.triggers.claim(trigger, now_s):
        return None
    is_bad, took_ms = any(one.is_anomalous for one in predictions), {TRIGGER: 1e3 * (now_s - trigger.at_s)}
    return [replace(one, part_verdict=is_bad, latencies_ms={**one.latencies_ms, **took_ms}) for one in predictions]


def is_full(under_way: Sequence[Sequence[Batch]]) -> bool:
    """Whether another batch would only wait: there are two, with more images than their runner computes at once."""
    batches = [batch for taken in under_way for batch in taken]
    return len(under_way) > 1 and sum(batch.images for batch in batches) > min(at_once(one.runner) for one in batches)


class Loop:
    """Batch after batch, in order; while one is computed, the next is taken and resized. One thread runs it."""

    def __init__(
        self, buffer: FrameBuffer, streams: Mapping[str, Stream], models: ModelPool, meters: LineMeters, events: Events
    ) -> None:
        self._buffer, self._streams, self._models, self._meters, self._events = buffer, streams, models, meters, events
        self.sinks: Sequence[Sink] = ()
        self.subscribers: tuple[Callable[[Prediction], None], ...] = ()
        self.is_watched = False  # whether a page wants maps of good frames too
        self._failures: dict[int, int] = {}  # id of a runner -> its failures in a row
        self._last_failure: Exception | None = None
        self._judged = 0

    def run(self, stop: threading.Event, view: View, largest_batch: Callable[[], int], pacer: Pacer) -> None:
        """Judge until the sources have ended, or soon after `stop` was set. Raises StreamError when no runner judges
        anything any more, and what a sink without a queue raises.
        """
        under_way: deque[list[Batch]] = deque()  # oldest first
        frames: list[Frame] | None = None
        while frames != []:
            if under_way and (self._models.is_due or not self._buffer.waiting()):
                self._finish(under_way.popleft(), pacer)  # a verdict never waits for a later frame
                view.refresh()
                continue
            if self._models.is_due:
                self._models.switch()
                self._failures.clear()  # another runner, another chance
            deadline_s = 0.0 if under_way else pacer.deadline_s
            frames = [] if stop.is_set() else self._buffer.take(largest_batch(), deadline_s, STOP_LOOK_S)
            if following := self._start(frames or ()):
                under_way.append(following)
            if not following or is_full(under_way):
                self._finish(under_way.popleft() if under_way else (), pacer)
                view.refresh()
        for batches in under_way:
            self._finish(batches, pacer)
        view.refresh()
        if self._last_failure is not None and not self._judged:
            self._give_up(self._last_failure)

    def _start(self, frames: Sequence[Frame]) -> list[Batch]:
        """The frames on their way, a batch for each runner; those that cannot be judged are counted."""
        by_runner: dict[int, list[tuple[Stream, Frame, Sequence[Frame]]]] = {}
        for frame in frames:
            stream = self._streams.get(frame.stream)
            if stream is None or stream.camera.session != frame.session:
                self._buffer.settle(frame.stream, "removed")
                if stream is not None:
                    stream.fail_trigger(frame, "not_judged", "its camera was opened anew")
                continue
            if frame.recipe != stream.recipe:
                self._buffer.settle(frame.stream, "recipe")
                stream.fail_trigger(frame, "not_judged", "it was captured before another recipe came")
                continue
            try:
                if frame.image.dtype == np.uint16:
                    frame = stream.scaled(frame)
                parts = stream.judge.parts(frame)
            except Exception as error:
                self._fail(frame, error, None)
                continue
            by_runner.setdefault(id(stream.model.runner), []).append((stream, frame, parts))
        return [Batch(same, same[0][0].model.runner) for same in by_runner.values()]

    def _finish(self, batches: Sequence[Batch], pacer: Pacer) -> None:
        """Wait for the batches, judge their frames and hand the verdicts on; a frame of one that fails is tried once more."""
        for batch in batches:
            try:
                batch.wait()
            except Exception as error:
                self._once_more(batch, error, pacer)
                continue
            self._meters.batch(batch.images)
            pacer.add(batch.times.inferred_s - batch.started_s)
            first, wants_maps = 0, self.wants_maps
            for stream, frame, parts in batch.frames:
                outputs = batch.outputs(first, len(parts))
                first += len(parts)
                try:
                    predictions = stream.judge.judge(frame, parts, outputs, batch.times, wants_maps)
                except Exception as error:
                    if isinstance(error, NotFiniteError):
                        stream.first.refuse(str(error))
                    self._fail(frame, error, batch.runner)
                    continue
                answered = predictions if frame.trigger is None else answering(stream, frame.trigger, predictions)
                self._buffer.settle(frame.stream, "no_answer" if answered is None else None)
                if answered is None:
                    continue
                predictions = answered
                self._failures.pop(id(batch.runner), None)
                self._judged += 1
                stream.newest, stream.frame = tuple(predictions), frame
                if stream.first.is_due and self._streams.get(stream.name) is stream:
                    self._look(stream, predictions)
                now_s = time.monotonic()
                if stream.learned_sizes is not None:
                    for part in parts:
                        stream.look_at_size(part)
                for prediction in predictions:
                    if self._streams.get(stream.name) is stream:
                        stream.meters.add(prediction, now_s)
                        if prediction.image_score >= stream.too_low * (
                            prediction.bundle_threshold or prediction.threshold
                        ):
                            stream.low_in_a_row = 0
                        else:
                            stream.tell_low(prediction)
                    for callback in self.subscribers:
                        self._call(callback, prediction)
                    for sink in self.sinks:
                        sink.write(prediction)

    def _look(self, stream: Stream, predictions: Sequence[Prediction]) -> None:
        """Let the stream look at its first frames; what fails there costs no verdict."""
        try:
            stream.first.look(predictions)
        except Exception as error:
            log.warning("%s: its first frames could not be looked at: %r", stream.name, error)

    def _once_more(self, batch: Batch, error: Exception, pacer: Pacer) -> None:
        """Try each frame of a batch that failed alone; what fails alone has no verdict."""
        if len(batch.frames) == 1 and batch.is_retry:
            _, frame, _ = batch.frames[0]
            self._fail(frame, error, batch.runner)
            return
        if len(batch.frames) > 1:
            log.warning("a batch of %d frames failed (%s): each is tried once more, alone", len(batch.frames), error)
        for one in batch.frames:
            self._finish([Batch([one], batch.runner, is_retry=True)], pacer)

    def _call(self, subscriber: Callable[[Prediction], None], prediction: Prediction) -> None:
        try:
            subscriber(prediction)
        except Exception as error:
            log.warning("a subscriber failed at frame %s: %r", prediction.id, error)

    @property
    def wants_maps(self) -> bool:
        """Whether a sink or a page wants maps of good frames too."""
        return self.is_watched or any(sink.wants_maps for sink in self.sinks)

    def _fail(self, frame: Frame, error: Exception, runner: Runner | None) -> None:
        """Count and tell a frame that has no verdict; raise when it is one of too many of every runner."""
        count = self._failures[id(runner)] = self._failures.get(id(runner), 0) + 1
        runners = [one.model.runner for name, one in list(self._streams.items()) if not self._buffer.has_ended(name)]
        is_over = all(self._failures.get(id(one), 0) >= FAILURES_IN_A_ROW for one in runners)
        self._buffer.settle(frame.stream, "not_finite" if isinstance(error, NotFiniteError) else "failed")
        if (stream := self._streams.get(frame.stream)) is not None:
            stream.fail_trigger(frame, "not_judged", str(error) or type(error).__name__)
        self._last_failure = error
        if count < FAILURES_IN_A_ROW or count & (count - 1) == 0:  # then the 8th, 16th, 32nd: a log is no place for all
            log.warning("frame %s has no verdict: %s", frame.id, error)
            self._events.tell("frame.failed", frame.stream, frame=frame.id, reason=str(error) or type(error).__name__)
        if is_over and count >= FAILURES_IN_A_ROW:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        count = max(self._failures.values(), default=1)
        raise StreamError(f"{count} frames in a row could not be judged, the last one: {error}") from error
