"""A line: cameras that share one model, sinks that share their verdicts, and the controls that people and pages use.

Every method may be called from any thread, before, while and after `run_line` runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.events import Events
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.batch import Job
from nnet_edge.runtime.buckets import BATCH_BOUNDS, BucketCounter, Buckets, MeterSnapshot
from nnet_edge.runtime.camera import Camera
from nnet_edge.runtime.lanes import LaneCounts, Lanes
from nnet_edge.runtime.line_report import LineReport, StreamStatus
from nnet_edge.runtime.meters import Meters, StreamReport
from nnet_edge.runtime.models import Model, Shelf
from nnet_edge.runtime.sinks import Sink
from nnet_edge.runtime.source import Source
from nnet_edge.runtime.sources import open_source_of
from nnet_edge.runtime.station import Station
from nnet_edge.runtime.walk import Pacer
from nnet_edge.stream_settings import EVERY_FRAME, FRESHEST, LaneSettings, LineStream, Polygon

log = logging.getLogger(__name__)

SWAP_LIMIT_S = 30.0  # a batch takes no longer; what does is broken


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


@dataclass
class Swap:
    """A loaded bundle that waits for the gap between two batches."""

    old: Model
    new: Model
    streams: Sequence[str] | None  # None: all that the old one judges
    is_done: threading.Event = field(default_factory=threading.Event)


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
        self.events = Events()
        self.lanes = Lanes(keep_open)
        self.sinks = tuple(sinks)
        self.is_watched = False  # whether a page wants maps of good frames too
        self._model, self._shelf = model, Shelf(load)
        self._lock = threading.RLock()
        self._streams: dict[str, Stream] = {}
        self._reports: dict[str, Stream] = {}  # removed ones too, while the lanes remember them
        self._swaps: list[Swap] = []
        self._is_running = False
        self._began_s = time.monotonic()
        self._ended_s: float | None = None
        self._batches = BucketCounter(BATCH_BOUNDS)
        self._subscribers: tuple[Callable[[Prediction], None], ...] = ()
        self.pacer = Pacer(deadline_s, model.batch_s)

    # ---- streams

    def add(self, settings: LineStream) -> None:
        """Take in a stream; its camera starts at once when the line runs.

        Raises ConfigError for a name that is taken or settings that cannot be meant, SourceError for a source that is
        absent, BundleError for a bundle of its own that cannot be loaded.
        """
        source = open_source_of(settings.camera, settings.name)
        reopen = (lambda: open_source_of(settings.camera, settings.name)) if source.is_live else None
        self.add_source(settings, source, reopen)

    def add_source(self, settings: LineStream, source: Source, reopen: Callable[[], Source] | None = None) -> None:
        """Take in a stream with a source that is made already; see Camera for `reopen`."""
        name, meters, path = settings.name, Meters(), settings.bundle
        if name in self._streams:
            raise ConfigError(f"there is a stream called {name!r} already: give another name, or remove it first")
        own = None if path is None else self._shelf.find(path) or self._shelf.load(path)
        with self._lock:
            model = own or self._model
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

    # ---- what is known

    def streams(self) -> list[StreamStatus]:
        """Each stream now, in the order in which they were added."""
        with self._lock:
            return [self._status(stream) for stream in self._streams.values()]

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
        with self._lock:
            return self._batches.snapshot()

    def model(self, name: str | None = None) -> Model:
        """The model of the stream, None: of the line."""
        return self._model if name is None else self._stream(name).model

    def subscribe(self, callback: Callable[[Prediction], None]) -> None:
        """Call `callback` with every prediction, in the line's thread: it must not wait. Events: `line.events`."""
        with self._lock:
            self._subscribers = (*self._subscribers, callback)

    def unsubscribe(self, callback: Callable[[Prediction], None]) -> None:
        """Call `callback` no more; one that never subscribed is no error."""
        with self._lock:
            self._subscribers = tuple(known for known in self._subscribers if known != callback)

    # ---- another bundle

    def swap(self, path: Path, name: str | None = None, timeout_s: float = SWAP_LIMIT_S) -> Model:
        """Load and warm the bundle at `path` beside the old one, then judge by it, all streams or the one named.

        Returns once it judges; not a frame is lost. Raises BundleError when it cannot be loaded: the old one stays.
        """
        old = self._model if name is None else self._stream(name).model
        swap = Swap(old, self._shelf.load(path), None if name is None else [name])
        with self._lock:
            self._shelf.enter(swap.new)
            self._swaps.append(swap)
            is_running = self._is_running
        if not is_running:
            self.switch()
        if not swap.is_done.wait(timeout_s):
            raise StreamError(
                f"the bundle {path} waits for more than {timeout_s:g} s for its turn: does the runner hang?"
            )
        return swap.new

    # ---- what the walk asks and tells: see Work in runtime/walk.py

    def must_switch(self) -> bool:
        """Whether a bundle waits to be swapped in."""
        return bool(self._swaps)

    def switch(self) -> None:
        """Swap in what waits; no batch is under way."""
        with self._lock:
            swaps, self._swaps = self._swaps, []
            meant = [self._switch_one(swap) for swap in swaps]
        for swap, names in zip(swaps, meant, strict=True):
            self.events.tell("bundle.swapped", None, old=swap.old.facts(), new=swap.new.facts(), streams=names)
            swap.is_done.set()

    def _switch_one(self, swap: Swap) -> list[str]:
        names = [name for name, stream in self._streams.items()
                 if (stream.model is swap.old if swap.streams is None else name in swap.streams)]  # fmt: skip
        for name in names:
            self._streams[name].model = swap.new
            self._streams[name].station.use_bundle(swap.new.threshold)
        if swap.streams is None:
            self._model = swap.new
        self._shelf.leave_all_but([self._model, *(stream.model for stream in self._streams.values())])
        return names

    def job_of(self, frame: Frame) -> Job | None:
        """How to judge the frame; None when its stream is gone. Raises ConfigError for crops that do not fit it."""
        stream = self._streams.get(frame.stream)
        if stream is None or stream.camera.session != frame.session:
            return None
        return Job(frame, stream.station.parts(frame), stream.model.runner, stream.station)

    def wants_maps(self) -> bool:
        """Whether a sink or a page wants maps of good frames too."""
        return self.is_watched or any(sink.wants_maps for sink in self.sinks)

    def largest_batch(self) -> int:
        """Images of a full batch."""
        return self._model.runner.max_batch

    def note_batch(self, images: int) -> None:
        """Count a batch."""
        with self._lock:
            self._batches.add(images)

    def note_failure(self, frame: Frame, error: Exception) -> None:
        """Tell that a frame could not be judged."""
        log.warning("frame %s has no verdict: %s", frame.id, error)
        self.events.tell("frame.failed", frame.stream, frame=frame.id, reason=str(error) or type(error).__name__)

    def note(self, job: Job, predictions: Sequence[Prediction]) -> None:
        """Keep and pass on the verdicts on one frame."""
        stream = self._streams.get(job.frame.stream)
        now_s = time.monotonic()
        if stream is not None and stream.station is job.station:
            stream.newest, stream.frame = tuple(predictions), job.frame
            for prediction in predictions:
                stream.meters.add(prediction, now_s)
        for callback in self._subscribers:
            for prediction in predictions:
                try:
                    callback(prediction)
                except Exception as error:
                    log.warning("a subscriber failed at frame %s: %r", prediction.id, error)

    # ---- running

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runners and sinks open and cameras reading, for as long as the block takes; everything ended behind it."""
        with ExitStack() as stack:
            stack.callback(self._shelf.leave_all_but)
            self._shelf.enter(self._model)
            for sink in self.sinks:
                stack.enter_context(sink)
                sink.report_to(self.events.pass_on)
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
        self.switch()

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
            return LineReport(reports, self.lanes.total(), self._batches.snapshot(), seconds, ended, errors)

    def stream_report(self, name: str, ended: str = "running", counts: LaneCounts | None = None) -> StreamReport:
        """What became of one stream's frames so far."""
        counts = counts or self.lanes.counts(name)
        stream = self._reports[name]
        skipped = stream.camera.status().skipped
        return stream.meters.report(sum(counts.dropped.values()), skipped, ended, counts)

    def _status(self, stream: Stream) -> StreamStatus:
        name, station = stream.settings.name, stream.station
        return StreamStatus(
            name=name,
            what=stream.source.describe(),
            camera=stream.camera.status(),
            is_paused=self.lanes.is_paused(name),
            threshold=station.threshold,
            bundle_threshold=station.bundle_threshold,
            bundle=stream.model.name,
            settings=replace(stream.settings, verdict=station.settings),
            counts=self.lanes.counts(name),
            rejected=stream.meters.rejected,
        )

    def _stream(self, name: str) -> Stream:
        stream = self._streams.get(name)
        if stream is None:
            known = ", ".join(self._streams) or "none"
            raise ConfigError(f"there is no stream called {name!r}: there are {known}")
        return stream


def lane_of(settings: LineStream, is_live: bool, max_batch: int) -> LaneSettings:
    """The lane that the settings ask for; else files wait in two batches, and of a live source the newest frames."""
    lane = settings.lane or LaneSettings(FRESHEST if is_live else EVERY_FRAME, 2 if is_live else 2 * max_batch)
    return replace(lane, weight=max(1, len(settings.verdict.crops)))
