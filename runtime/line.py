"""A line: cameras that share one model, sinks that share their verdicts, and the controls that people and pages use.

Every method may be called from any thread, before, while and after `run_line` runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.buckets import Buckets, MeterSnapshot
from nnet_edge.runtime.camera import Camera
from nnet_edge.runtime.lanes import LaneCounts
from nnet_edge.runtime.line_report import LineReport, StreamStatus
from nnet_edge.runtime.line_stream import Stream, lane_of
from nnet_edge.runtime.line_work import LineWork
from nnet_edge.runtime.meters import Meters, StreamReport
from nnet_edge.runtime.models import Model, Shelf
from nnet_edge.runtime.sinks import Sink
from nnet_edge.runtime.source import Source
from nnet_edge.runtime.sources import open_source_of
from nnet_edge.runtime.station import Station
from nnet_edge.runtime.walk import Pacer
from nnet_edge.stream_settings import LineStream, Polygon

log = logging.getLogger(__name__)

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
