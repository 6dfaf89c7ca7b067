"""Running a line: made of its settings, judged until its sources end, stopped by a signal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from nnet_edge.errors import ConfigError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.sinks.base import Sink
from nnet_edge.runtime.sinks.queued import serve
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.open import open_source_of
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.meters import LineMeters
from nnet_edge.runtime.stream.model import Model, load_model, open_model
from nnet_edge.runtime.stream.report import LineReport, StreamReport, View
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.line import LineSettings
from nnet_edge.settings.stream import BufferSettings, LineStream, VerdictSettings, plain_name

SHOW_EVERY_S = 0.25


def open_line(
    settings: LineSettings, sources: Sequence[Source] | None = None, more_sinks: Sequence[Sink] = (),
    model: Model | None = None,
) -> Line:  # fmt: skip
    """The line that the settings ask for, loaded and with its sources found. Nothing runs yet: see `run_line`.

    `sources` are those of `settings.streams` where they were made already; None: they are made here, and one that may be a
    camera may be absent. `more_sinks` are given every verdict behind those of the settings; `model` is that of `open_model`,
    where it was opened before.
    Raises ConfigError, SourceError, BundleError, MissingExtraError.
    """
    meters = LineMeters()
    written, settings = settings, settings.under(settings.recipe)
    if sources is None:
        sources = [open_source_of(stream.camera, stream.name, may_be_absent=True) for stream in settings.streams]
    is_finite = settings.web is None and not any(source.is_live or source.never_ends for source in sources)
    served = [(sink, serve(sink, observer_of(sink.label, meters), is_finite)) for sink in settings.sinks]
    # What must be delivered is on disk before anybody else hears of it, and a picture before the line that refers to it.
    served.sort(key=lambda pair: (pair[0].must_deliver is None, not pair[1].wants_pixels))
    sinks = [*(sink for _, sink in served), *more_sinks]

    def load(path: Path) -> Model:
        return load_model(path, settings.runner, settings.precision)

    line = Line(
        model or open_model(settings), sinks, load, settings.web is not None, settings.deadline_s, meters, written
    )
    paused = next((recipe.paused for recipe in settings.recipes if recipe.name == settings.recipe), ())
    for plain, stream, source in zip(written.streams, settings.streams, sources, strict=True):
        line.add(stream, source, plain)
        if stream.name in paused:
            line.pause(stream.name)
    return line


def observer_of(sink: str, meters: LineMeters) -> Callable[[Prediction | Event, float], None]:
    """What the queue of that sink calls with everything delivered, and the milliseconds that it took."""

    def observe(content: Prediction | Event, took_ms: float) -> None:
        stream = content.frame.stream if isinstance(content, Prediction) else content.stream or "line"
        meters.took(stream, "sink", took_ms, sink)
        if isinstance(content, Prediction) and content.frame.trigger is not None:
            meters.answered(stream, sink, 1e3 * (time.monotonic() - content.frame.trigger.at_s))

    return observe


def run_line(
    line: Line,
    stop: threading.Event | None = None,
    show: Callable[[LineReport], None] | None = None,
    show_every_s: float = SHOW_EVERY_S,
) -> LineReport:
    """Judge the frames of every stream of `line` until its sources have ended or `stop` is set.

    A source that fails costs its own stream only, and the report names it; what breaks the whole line (a runner that
    judges nothing any more, a sink without a queue of its own) is raised. `show` is given the report so far, and the last
    one in any case, also when something broke.
    """
    stop = stop or threading.Event()
    view = View(show, show_every_s, line.report)
    try:
        with line.running(stop):
            line.judge(stop, view)
    except BaseException as error:
        view.close(f"failed: {error or type(error).__name__}")
        raise
    return view.close("stopped" if stop.is_set() else ending_of(line))


def ending_of(line: Line) -> str:
    """How a line that was not stopped has ended, for its report."""
    errors, streams = line.errors(), line.streams()
    if errors and len(errors) == len(streams):
        error = next(iter(errors.values()))
        return f"failed: {error or type(error).__name__}"
    return "source ended" if len(streams) == 1 else "sources ended"


def run(
    source: Source,
    runner: Runner,
    sinks: Sequence[Sink],
    verdict: VerdictSettings,
    stop: threading.Event | None = None,
    show: Callable[[LineReport], None] | None = None,
    reopen: Callable[[], Source] | None = None,
    buffer: BufferSettings | None = None,
    show_every_s: float = SHOW_EVERY_S,
) -> StreamReport:
    """Pass every frame of `source` to every sink; return when the source ends or `stop` is set, raise what broke.

    A line of one stream; opens and closes runner, source and sinks. `verdict` names the threshold. A live source that is
    lost is made again by `reopen` until it is back; None: the source is opened once.
    """
    if verdict.threshold is None:
        raise ConfigError("a runner without a bundle has no threshold of its own: give VerdictSettings one")
    line = Line(Model(runner.name, None, runner, verdict.threshold), sinks)
    name = plain_name(source.stream)
    line.add_source(
        LineStream(name, CameraSettings(source.describe()), buffer or BufferSettings(), verdict), source, reopen
    )
    report = run_line(line, stop, show, show_every_s)
    for error in line.errors().values():
        raise error
    return report.streams[name]


@contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that `run_line` ends with a report; the second kills as usual.

    In the main thread: no other is given signals, so there nothing sets it.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
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
