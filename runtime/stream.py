"""The walk of a frame: camera -> lane | batch -> preprocess -> runner -> station -> sink; of a line, or of one source."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from nnet_edge.config import StreamSettings, WhenFull
from nnet_edge.runtime.line import Line
from nnet_edge.runtime.line_report import LineReport
from nnet_edge.runtime.meters import StreamReport
from nnet_edge.runtime.models import Model
from nnet_edge.runtime.runner import Runner
from nnet_edge.runtime.sinks import Sink
from nnet_edge.runtime.sources import Source
from nnet_edge.runtime.walk import View, Walk
from nnet_edge.stream_settings import (
    EVERY_FRAME,
    FRESHEST,
    CameraSettings,
    LaneSettings,
    LineStream,
    VerdictSettings,
)

SHOW_EVERY_S = 0.25


def run_line(
    line: Line,
    stop: threading.Event | None = None,
    show: Callable[[LineReport], None] | None = None,
    show_every_s: float = SHOW_EVERY_S,
) -> LineReport:
    """Judge the frames of every stream of `line` until its sources have ended or `stop` is set.

    A source that fails costs its own stream only, and the report names it; what breaks the whole line (a runner that
    judges nothing any more, a sink without a delivery of its own) is raised. `show` is given the report so far, and the last
    one in any case.
    """
    stop = stop or threading.Event()
    view = View(show, show_every_s, line.report)
    walk(line, stop, view)
    return view.close("stopped" if stop.is_set() else "sources ended")


def run(
    source: Source,
    runner: Runner,
    sinks: Sequence[Sink],
    settings: StreamSettings,
    stop: threading.Event | None = None,
    show: Callable[[StreamReport], None] | None = None,
    reopen: Callable[[], Source] | None = None,
) -> StreamReport:
    """Pass every frame of `source` to every sink; return when the source ends or `stop` is set, raise what broke.

    A line of one stream; opens and closes runner, source and sinks. A live source that is lost is made again by `reopen`,
    for ever; None: the source is opened once. `show` is given the report so far every `settings.show_every_s` and the last
    report in any case, also when something broke.
    """
    stop = stop or threading.Event()
    line = Line(Model(runner.name, None, runner, settings.threshold), sinks)
    stream = to_stream(source, settings, runner.max_batch)
    line.add_source(stream, source, reopen)
    view = View(show, settings.show_every_s, lambda ended: line.stream_report(stream.name, ended))
    try:
        walk(line, stop, view)
        for error in line.errors().values():
            raise error
    except BaseException as error:
        view.close(f"failed: {error or type(error).__name__}")
        raise
    return view.close("stopped" if stop.is_set() else "source ended")


def walk(line: Line, stop: threading.Event, view: View[StreamReport] | View[LineReport]) -> None:
    """Judge frames and hand the verdicts to the sinks."""
    with line.running(stop):
        for predictions in Walk(line.work, line.pacer).predictions(stop):
            for prediction in predictions:
                for sink in line.sinks:
                    sink.write(prediction)
            view.refresh()


def to_stream(source: Source, settings: StreamSettings, max_batch: int) -> LineStream:
    """One source with these settings as the stream of a line."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.stream).strip("-._")[:64] or "stream"
    is_waiting = settings.policy(source.is_live) is WhenFull.WAIT
    lane = LaneSettings(EVERY_FRAME if is_waiting else FRESHEST, settings.buffer_size(source.is_live, max_batch))
    verdict = VerdictSettings(threshold=settings.threshold, min_area=settings.min_area)
    return LineStream(name, CameraSettings(source.describe()), lane, verdict)


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
