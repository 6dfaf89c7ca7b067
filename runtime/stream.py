"""The walk of a frame, with one thread boundary: source -> buffer | preprocess -> infer -> postprocess -> sinks."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType

from nnet_edge.config import StreamSettings
from nnet_edge.frame import Frame, FrameOutputs, Outputs, Prediction
from nnet_edge.runtime.buffer import FrameBuffer
from nnet_edge.runtime.meters import Meters, StreamReport
from nnet_edge.runtime.processing import postprocess, preprocess
from nnet_edge.runtime.runner import FrameRunner, Runner
from nnet_edge.runtime.sinks import Sink
from nnet_edge.runtime.sources import Source

log = logging.getLogger(__name__)

STOP_LOOK_S = 0.1  # how often a wait for frames looks whether it should stop
JOIN_LIMIT_S = 0.5  # a capture that its driver has not given back by then is left behind; it ends itself


def run(
    source: Source,
    runner: Runner,
    sinks: Sequence[Sink],
    settings: StreamSettings,
    stop: threading.Event | None = None,
    show: Callable[[StreamReport], None] | None = None,
) -> StreamReport:
    """Pass every frame of `source` to every sink; return when the source ends or `stop` is set, raise what broke.

    Opens and closes runner, source and sinks. `show` is given the report so far every `settings.show_every_s` and the
    last report in any case, also when something broke.
    """
    stop = stop or threading.Event()
    buffer = FrameBuffer(settings.buffer_size(source.is_live, runner.max_batch), settings.policy(source.is_live))
    meters = Meters()
    view = View(show, settings.show_every_s, lambda ended: meters.report(buffer.dropped, source.skipped, ended))
    try:
        with runner, ExitStack() as open_sinks:
            for sink in sinks:
                open_sinks.enter_context(sink)
            with capturing(source, buffer):
                for predictions in judged(buffer, runner, settings, stop, any(sink.wants_maps for sink in sinks)):
                    for prediction in predictions:
                        for sink in sinks:
                            sink.write(prediction)
                        meters.add(prediction, time.monotonic())
                    view.refresh()
    except BaseException as error:
        view.close(f"failed: {error or type(error).__name__}")
        raise
    return view.close("stopped" if stop.is_set() else "source ended")


def judged(
    buffer: FrameBuffer, runner: Runner, settings: StreamSettings, stop: threading.Event, wants_maps: bool = True
) -> Iterator[list[Prediction]]:
    """The predictions of batch after batch, in order; while one is computed, the next is taken and resized."""
    under_way: Batch | None = None
    while True:
        if under_way is not None and not len(buffer):
            yield under_way.predictions(settings, wants_maps)  # a verdict never waits for a later frame
            under_way = None
        frames = take(buffer, runner.max_batch, stop)
        following = Batch(frames, runner) if frames else None
        if under_way is not None:
            yield under_way.predictions(settings, wants_maps)
        if following is None:
            return
        under_way = following


class Batch:
    """Frames that a runner computes, and the time that each stage took; a batch's stages count for each of its frames."""

    def __init__(self, frames: Sequence[Frame], runner: Runner) -> None:
        self._frames = frames
        self._taken_s = time.monotonic()
        self._outputs: Callable[[], Outputs | FrameOutputs]
        if isinstance(runner, FrameRunner):  # resizes on the GPU: what the processor does is the copy there
            self._outputs = runner.start_frames(frames)
            self._prepared_s = time.monotonic()
        else:
            images = preprocess(frames)
            self._prepared_s = time.monotonic()
            self._outputs = runner.start(images)

    def predictions(self, settings: StreamSettings, wants_maps: bool) -> list[Prediction]:
        """One prediction a frame, in their order; waits until they are computed."""
        outputs = self._outputs()
        inferred_s = time.monotonic()
        found = postprocess(self._frames, outputs, settings.threshold, settings.min_area, wants_maps)
        judged_s = time.monotonic()
        batch_ms = {
            "preprocess": 1e3 * (self._prepared_s - self._taken_s),
            "infer": 1e3 * (inferred_s - self._prepared_s),
            "postprocess": 1e3 * (judged_s - inferred_s),
        }
        return [
            replace(
                prediction,
                latencies_ms={
                    "waiting": 1e3 * (self._taken_s - frame.captured_s),
                    **batch_ms,
                    "total": 1e3 * (judged_s - frame.captured_s),
                },
            )
            for frame, prediction in zip(self._frames, found, strict=True)
        ]


def take(buffer: FrameBuffer, limit: int, stop: threading.Event) -> list[Frame]:
    """The oldest 1 to `limit` frames; an empty list at the end of the source or soon after `stop` was set."""
    while not stop.is_set():
        frames = buffer.take(limit, STOP_LOOK_S)
        if frames is not None:
            return frames
    return []


@contextmanager
def capturing(source: Source, buffer: FrameBuffer) -> Iterator[None]:
    """A thread that opens `source`, puts its frames into `buffer` and closes it; ended on the way out."""

    def capture() -> None:
        error: BaseException | None = None
        try:
            with source:
                for frame in source:
                    if not buffer.put(frame):
                        break
        except BaseException as caught:
            error = caught
        finally:
            buffer.close(error)  # take() gives what is left, then raises `error` in the caller's thread

    thread = threading.Thread(target=capture, name=f"capture of {source.describe()}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        buffer.abandon()
        source.interrupt()
        thread.join(JOIN_LIMIT_S)
        if thread.is_alive():
            log.warning("%s does not answer: it is left to end by itself", source.describe())


@contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that `run` ends with a report; the second kills as usual.

    Use it in the main thread: no other thread is given signals.
    """
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number in numbers:
            signal.signal(number, previous[number])

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        restore()
        stop.set()

    for number in numbers:
        signal.signal(number, ask_to_stop)
    try:
        yield stop
    finally:
        restore()


class View:
    """Shows the report so far, not more often than asked, and the last one once."""

    def __init__(
        self, show: Callable[[StreamReport], None] | None, every_s: float, report: Callable[[str], StreamReport]
    ) -> None:
        self._show = show
        self._every_s = every_s
        self._report = report
        self._next_s = 0.0

    def refresh(self) -> None:
        """Show the report if it is time."""
        now_s = time.monotonic()
        if self._show is not None and now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            self._show(self._report("running"))

    def close(self, ended: str) -> StreamReport:
        """The last report, shown."""
        report = self._report(ended)
        if self._show is not None:
            self._show(report)
        return report
