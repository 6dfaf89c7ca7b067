"""A line: cameras that share one model, sinks that share their verdicts, and the controls that people and pages use.

Every method may be called from any thread, before, while and after `run` runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.events import Event, Events
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.batch import Job
from nnet_edge.runtime.buckets import BATCH_BOUNDS, BucketCounter, Buckets, MeterSnapshot
from nnet_edge.runtime.camera import Camera
from nnet_edge.runtime.lanes import LaneCounts, Lanes
from nnet_edge.runtime.line_report import LineReport, StreamStatus
from nnet_edge.runtime.meters import Meters, StreamReport
from nnet_edge.runtime.models import Model
from nnet_edge.runtime.sinks import Sink
from nnet_edge.runtime.source import Source
from nnet_edge.runtime.sources import open_source_of
from nnet_edge.runtime.station import Station
from nnet_edge.runtime.walk import Pacer, View, Walk
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
    """Streams, the model that judges them, and sinks. `run` does the work; see `runtime/walk.py`.

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
        self._model, self._load = model, load
        self._lock = threading.RLock()
        self._streams: dict[str, Stream] = {}
        self._reports: dict[str, Stream] = {}  # removed ones too, while the lanes remember them
        self._entered: list[Model] = []
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
        if settings.name in self._streams:
            raise ConfigError(f"there is a stream called {settings.name!r} already: give another name, or remove it first")
        model = self._model if settings.bundle is None else self._loaded(settings.bundle)
        name, meters = settings.name, Meters()
        with self._lock:
            station = Station(settings.verdict, model.threshold)
            camera = Camera(name, source, settings.camera, lambda frame: self._put(name, station, frame),
                            lambda kind, **facts: self.events.tell(kind, name, **facts),
                            lambda error: self._source_ended(name, camera, error), reopen, meters.add_capture)  # fmt: skip
            self.lanes.add(name, lane_of(settings, source.is_live, model.runner.max_batch))
            stream = Stream(settings, source, model, station, meters, camera)
            self._streams[name] = self._reports[name] = stream
            self._enter(model)
            self.events.tell("stream.added", name, what=source.describe(), bundle=model.name)
            if self._is_running:
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
        if self._load is None:
            raise ConfigError("this line was made without a way to load bundles: give Line its `load`")
        old = self._model if name is None else self._stream(name).model
        swap = Swap(old, self._load(path), None if name is None else [name])
        with self._lock:
            self._enter(swap.new)
            self._swaps.append(swap)
            if not self._is_running:
                self.switch()
        if not swap.is_done.wait(timeout_s):
            raise StreamError(f"the bundle {path} waits for the batch under way for more than {timeout_s:g} s: is the runner stuck?")
        return swap.new

    def must_switch(self) -> bool:
        """Whether a bundle waits to be swapped in."""
        return bool(self._swaps)

    def switch(self) -> None:
        """Swap in what waits; the walk calls it between two batches."""
        with self._lock:
            swaps, self._swaps = self._swaps, []
            for swap in swaps:
                names = [name for name, stream in self._streams.items() if self._is_meant(swap, name, stream)]
                for name in names:
                    self._streams[name].model = swap.new
                    self._streams[name].station.use_bundle(swap.new.threshold)
                if swap.streams is None:
                    self._model = swap.new
                self._leave_unused()
                self.events.tell("bundle.swapped", None, old=swap.old.facts(), new=swap.new.facts(), streams=names)
                swap.is_done.set()

    def _is_meant(self, swap: Swap, name: str, stream: Stream) -> bool:
        return stream.model is swap.old if swap.streams is None else name in swap.streams

    def _loaded(self, path: Path) -> Model:
        with self._lock:
            for model in self._entered:
                if model.path == path:
                    return model
        if self._load is None:
            raise ConfigError("this line was made without a way to load bundles: give Line its `load`")
        return self._load(path)

    def _enter(self, model: Model) -> None:
        if not any(model is known for known in self._entered):
            model.runner.__enter__()
            self._entered.append(model)

    def _leave_unused(self) -> None:
        used = [self._model, *(stream.model for stream in self._streams.values())]
        for model in [model for model in self._entered if not any(model is other for other in used)]:
            self._entered.remove(model)
            model.runner.__exit__(None, None, None)
