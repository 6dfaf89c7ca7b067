"""The walk of a frame: camera -> lane | batch -> preprocess -> runner -> station -> sink; of a line, or of one source.

One stream of a line: camera, station, meters and model, what is known of it, and who hears of its verdicts.

What the walk asks and tells of a line: which station judges a frame and with which model, and who hears of its verdict.

A line: cameras that share one model, sinks that share their verdicts, and the controls that people and pages use.

Every method may be called from any thread, before, while and after `run_line` runs.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.events import Events
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.sinks import Sink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.camera import Camera
from nnet_edge.runtime.sources.open import open_source_of
from nnet_edge.runtime.stream.buffer import LaneCounts, Lanes
from nnet_edge.runtime.stream.judge import Station
from nnet_edge.runtime.stream.loop import Job, Pacer, View, Walk
from nnet_edge.runtime.stream.meters import BATCH_BOUNDS, BucketCounter, Buckets, Meters, MeterSnapshot, StreamReport
from nnet_edge.runtime.stream.model import Model, Shelf
from nnet_edge.runtime.stream.report import LineReport, StreamStatus
from nnet_edge.settings.runner import StreamSettings, WhenFull
from nnet_edge.settings.stream import (
    EVERY_FRAME,
    FRESHEST,
    CameraSettings,
    LaneSettings,
    LineStream,
    Polygon,
    VerdictSettings,
)

log = logging.getLogger(__name__)


@dataclass
class Stream:
    """What a line holds of one stream."""

    settings: LineStream
    source: Source
    model: Model
    station: Station
    meters: Meters
    camera: Camera
    error: BaseException | None = None
    newest: tuple[Prediction, ...] = ()  # of its newest judged frame, one a crop
    frame: Frame | None = None  # that frame, whole

    def status(self, lanes: Lanes) -> StreamStatus:
        """The stream now."""
        name, station = self.settings.name, self.station
        return StreamStatus(
            name=name,
            what=self.source.describe(),
            camera=self.camera.status(),
            is_paused=lanes.is_paused(name),
            threshold=station.threshold,
            bundle_threshold=station.bundle_threshold,
            bundle=self.model.name,
            settings=replace(self.settings, verdict=station.settings),
            counts=lanes.counts(name),
            rejected=self.meters.rejected,
        )

    def report(self, ended: str, counts: LaneCounts) -> StreamReport:
        """What became of its frames so far."""
        return self.meters.report(sum(counts.dropped.values()), self.camera.status().skipped, ended, counts)


@dataclass(eq=False)
class Swap:
    """A loaded bundle that waits for the gap between two batches."""

    old: Model
    new: Model
    streams: Sequence[str] | None  # None: all that the old one judges
    is_done: threading.Event = field(default_factory=threading.Event)

    def switch(self, streams: Mapping[str, Stream]) -> list[str]:
        """Let the streams that are meant judge by the new bundle; gives their names."""
        names = [name for name, stream in streams.items()
                 if (stream.model is self.old if self.streams is None else name in self.streams)]  # fmt: skip
        for name in names:
            streams[name].model = self.new
            streams[name].station.use_bundle(self.new.threshold)
        return names


class Subscribers:
    """Who is called with every prediction; one that fails is logged and stays. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: tuple[Callable[[Prediction], None], ...] = ()

    def add(self, callback: Callable[[Prediction], None]) -> None:
        """Call it from now on."""
        with self._lock:
            self._callbacks = (*self._callbacks, callback)

    def remove(self, callback: Callable[[Prediction], None]) -> None:
        """Call it no more; one that is unknown is no error."""
        with self._lock:
            self._callbacks = tuple(known for known in self._callbacks if known != callback)

    def pass_on(self, prediction: Prediction) -> None:
        """Call all of them."""
        for callback in self._callbacks:
            try:
                callback(prediction)
            except Exception as error:
                log.warning("a subscriber failed at frame %s: %r", prediction.id, error)


def lane_of(settings: LineStream, is_live: bool, max_batch: int) -> LaneSettings:
    """The lane that the settings ask for; else files wait in two batches, and of a live source the newest frames."""
    lane = settings.lane or LaneSettings(FRESHEST if is_live else EVERY_FRAME, 2 if is_live else 2 * max_batch)
    return replace(lane, weight=max(1, len(settings.verdict.crops)))


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


SWAP_LIMIT_S = 30.0  # a batch takes no longer; what does is broken


class Line:
    """Streams, the model that judges them, and sinks. `run_line` in `runtime/stream.py` does the work.

    `load(path)` makes a model of a bundle, for streams with one of their own and for `swap`. With `keep_open` the line
    waits for streams to be added when its sources have ended. `deadline_s` fixes how long a batch waits for more frames.
    The line enters and leaves the runners of its models.
    """

    def __init__(
        self,
        model: Model,
        sinks: Sequence[Sink] = (),
        load: Callable[[Path], Model] | None = None,
        keep_open: bool = False,
        deadline_s: float | None = None,
    ) -> None:
        self._shelf = Shelf(load)
        self.work = LineWork(model, self._shelf, sinks, keep_open)
        self.events, self.lanes, self.sinks = self.work.events, self.work.lanes, self.work.sinks
        self._lock, self._streams = self.work.lock, self.work.streams
        self._reports: dict[str, Stream] = {}  # removed ones too, while the lanes remember them
        self._is_running = False
        self._began_s = time.monotonic()
        self._ended_s: float | None = None
        self.pacer = Pacer(deadline_s, model.batch_s)

    # ---- streams

    def add(self, settings: LineStream, source: Source | None = None) -> None:
        """Take in a stream; its camera starts at once when the line runs, and a live one is tried for ever.

        `source` is what `open_source_of` made of the same settings, None: it is made here. Raises ConfigError for a name that
        is taken or settings that cannot be meant, SourceError for a source that is absent, BundleError for a bundle of its
        own that cannot be loaded.
        """
        source = source or open_source_of(settings.camera, settings.name)
        self.add_source(settings, source, (lambda: self._open_again(settings)) if source.is_live else None)

    def _open_again(self, settings: LineStream) -> Source:
        """The source anew; where something was absent there may be a folder now, and of files every frame counts."""
        source = open_source_of(settings.camera, settings.name)
        if not source.is_live:
            with suppress(ConfigError):  # the stream was removed in this moment
                self.lanes.change(settings.name, lane_of(settings, False, self.work.model.runner.max_batch))
        return source

    def add_source(self, settings: LineStream, source: Source, reopen: Callable[[], Source] | None = None) -> None:
        """Take in a stream with a source that is made already; see Camera for `reopen`."""
        name, meters, path = settings.name, Meters(), settings.bundle
        if name in self._streams:
            raise ConfigError(f"there is a stream called {name!r} already: give another name, or remove it first")
        known = None if path is None else self._shelf.find(path)
        own = known or (None if path is None else self._shelf.load(path))
        with self._lock:
            if path is not None and known is not None and self._shelf.find(path) is not known:
                own = self._shelf.load(path)  # it was let go in this moment
            model = own or self.work.model
            station = Station(settings.verdict, model.threshold)
            camera = Camera(
                name,
                source,
                settings.camera,
                put=lambda frame: self._put(station, frame),
                tell=lambda kind, **facts: self.events.tell(kind, name, **facts),
                ended=lambda error: self._source_ended(stream, error),
                reopen=reopen,
                captured=meters.add_capture,
            )
            stream = Stream(settings, source, model, station, meters, camera)
            self.lanes.add(name, lane_of(settings, source.is_live, model.runner.max_batch))
            self._shelf.enter(model)
            self._streams[name] = self._reports[name] = stream
            is_running = self._is_running
        self.events.tell("stream.added", name, what=source.describe(), bundle=model.name)
        if is_running:
            camera.start()

    def remove(self, name: str) -> None:
        """Take a stream out; its waiting frames are dropped as removed."""
        with self._lock:
            stream = self._stream(name)
            self.lanes.remove(name)
            del self._streams[name]
            known = self.lanes.all_counts()
            self._reports = {name: stream for name, stream in self._reports.items() if name in known}
        stream.camera.ask_to_stop()
        self.work.let_go(stream.model)
        if self._is_running:
            stream.camera.join()
        self.events.tell("stream.removed", name)

    def pause(self, name: str) -> None:
        """Judge no frame of this stream until `resume`; its camera stays connected."""
        self.lanes.pause(name)
        self.events.tell("stream.paused", name)

    def resume(self, name: str) -> None:
        """End the pause."""
        self.lanes.resume(name)
        self.events.tell("stream.resumed", name)

    def set_threshold(self, name: str, value: float | None) -> float:
        """Judge by this threshold from the next frame on, None: by the bundle's; gives it. Raises ConfigError."""
        station = self._stream(name).station
        before = station.threshold
        threshold = station.set_threshold(value)
        self.events.tell("threshold.changed", name, old=before, new=threshold)
        return threshold

    def set_regions_of_interest(self, name: str, polygons: Sequence[Polygon]) -> None:
        """Inspect only inside these polygons, pixels of the camera; none: everywhere. Raises ConfigError."""
        self._stream(name).station.set_regions(regions_of_interest=polygons)
        self.events.tell("regions.changed", name, regions_of_interest=[list(polygon) for polygon in polygons])

    def set_ignored(self, name: str, polygons: Sequence[Polygon]) -> None:
        """Leave these polygons out, pixels of the camera. Raises ConfigError."""
        self._stream(name).station.set_regions(ignored=polygons)
        self.events.tell("regions.changed", name, ignored=[list(polygon) for polygon in polygons])

    @property
    def is_watched(self) -> bool:
        """Whether a page wants maps of good frames too."""
        return self.work.is_watched

    @is_watched.setter
    def is_watched(self, is_watched: bool) -> None:
        self.work.is_watched = is_watched

    # ---- what is known

    def streams(self) -> list[StreamStatus]:
        """Each stream now, in the order in which they were added."""
        with self._lock:
            return [stream.status(self.lanes) for stream in self._streams.values()]

    def latest(self, name: str) -> Prediction | None:
        """The newest prediction of the stream, of its last crop; None before the first."""
        newest = self._stream(name).newest
        return newest[-1] if newest else None

    def latest_parts(self, name: str) -> tuple[Prediction, ...]:
        """The predictions of the newest judged frame, one a crop."""
        return self._stream(name).newest

    def latest_frame(self, name: str) -> Frame | None:
        """The newest judged frame, whole; None before the first."""
        return self._stream(name).frame

    def scores(self, name: str) -> list[float]:
        """The newest 1000 image scores of the stream, oldest first: what another threshold would have rejected."""
        return self._stream(name).station.scores()

    def meters(self, name: str) -> MeterSnapshot:
        """The stream's histograms, counts since it was added."""
        return self._stream(name).meters.snapshot()

    def batches(self) -> Buckets:
        """How many images the batches had."""
        return self.work.batches()

    def stalled_s(self) -> float | None:
        """Seconds since a batch was last finished while frames waited or were under way; None when nothing waits."""
        return self.lanes.stalled_s()

    def model(self, name: str | None = None) -> Model:
        """The model of the stream, None: of the line."""
        return self.work.model if name is None else self._stream(name).model

    def subscribe(self, callback: Callable[[Prediction], None]) -> None:
        """Call `callback` with every prediction, in the line's thread: it must not wait. Events: `line.events`."""
        self.work.subscribers.add(callback)

    def unsubscribe(self, callback: Callable[[Prediction], None]) -> None:
        """Call `callback` no more; one that never subscribed is no error."""
        self.work.subscribers.remove(callback)

    # ---- another bundle

    def swap(self, path: Path, name: str | None = None, timeout_s: float = SWAP_LIMIT_S) -> Model:
        """Load and warm the bundle at `path` beside the old one, then judge by it, all streams or the one named.

        Returns once it judges; not a frame is lost. Raises BundleError when it cannot be loaded, StreamError when its turn
        did not come in `timeout_s`: the old one stays.
        """
        stream = None if name is None else self._stream(name)
        new = self._shelf.load(path)
        swap = self.work.ask_to_swap(new, stream)
        if not self._is_running:
            self.work.switch()
        if not swap.is_done.wait(timeout_s) and self.work.withdraw(swap):
            raise StreamError(
                f"the bundle {path} waited for {timeout_s:g} s for its turn and was put back: does the runner hang?"
            )
        return new

    # ---- running

    @contextmanager
    def running(self, stop: threading.Event | None = None) -> Iterator[None]:
        """Runners and sinks open and cameras reading, for as long as the block takes; everything ended behind it.

        Once `stop` is set nothing in the block waits for a sink.
        """
        with ExitStack() as stack:
            stack.callback(self._shelf.leave_all_but)
            self._shelf.enter(self.work.model)
            for sink in self.sinks:
                stack.enter_context(sink)
                sink.report_to(self.events.pass_on)
                if stop is not None:
                    sink.stop_with(stop)
                if sink.wants_events:
                    self.events.subscribe(sink.tell)
                    stack.callback(self.events.unsubscribe, sink.tell)
            with self._lock:
                self._is_running, self._began_s = True, time.monotonic()
                cameras = [stream.camera for stream in self._streams.values()]
            for camera in cameras:
                camera.start()
            try:
                yield
            finally:
                self._end()
                for sink in self.sinks:
                    sink.end_soon()

    def _end(self) -> None:
        """End lanes, cameras and swaps that still wait."""
        with self._lock:
            self._is_running, self._ended_s = False, time.monotonic()
            cameras = [stream.camera for stream in self._streams.values()]
        self.lanes.stop()
        for camera in cameras:
            camera.ask_to_stop()
        for camera in cameras:
            with suppress(RuntimeError):  # one that was added in this moment never started
                camera.join()
        self.lanes.give_up()
        self.work.switch()

    def _put(self, station: Station, frame: Frame) -> bool:
        """Count a captured frame and let it wait for its turn; in the capture thread."""
        return self.lanes.put(frame, None if station.admit(frame) else "untriggered")

    def _source_ended(self, stream: Stream, error: BaseException | None) -> None:
        """Close the lane of a source that gives no more; in the camera's thread."""
        name = stream.settings.name
        stream.error = error
        if self._streams.get(name) is stream:
            self.lanes.close(name)
            if error is None:
                self.events.tell("source.ended", name)
            else:
                self.events.tell("stream.failed", name, reason=str(error) or type(error).__name__)

    def errors(self) -> dict[str, BaseException]:
        """Stream -> why its source cannot go on."""
        with self._lock:
            return {name: stream.error for name, stream in self._streams.items() if stream.error is not None}

    def report(self, ended: str = "running") -> LineReport:
        """What became of every frame so far."""
        with self._lock:
            counts = self.lanes.all_counts()
            reports = {name: self.stream_report(name, ended, counts[name]) for name in self._reports if name in counts}
            seconds = (self._ended_s or time.monotonic()) - self._began_s
            errors = {name: str(error) for name, error in self.errors().items()}
            return LineReport(reports, self.lanes.total(), self.work.batches(), seconds, ended, errors)

    def stream_report(self, name: str, ended: str = "running", counts: LaneCounts | None = None) -> StreamReport:
        """What became of one stream's frames so far."""
        return self._reports[name].report(ended, counts or self.lanes.counts(name))

    def _stream(self, name: str) -> Stream:
        stream = self._streams.get(name)
        if stream is None:
            known = ", ".join(self._streams) or "none"
            raise ConfigError(f"there is no stream called {name!r}: there are {known}")
        return stream


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
