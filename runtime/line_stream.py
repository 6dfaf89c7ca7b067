"""One stream of a line: camera, station, meters and model, what is known of it, and who hears of its verdicts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.camera import Camera
from nnet_edge.runtime.lanes import LaneCounts, Lanes
from nnet_edge.runtime.line_report import StreamStatus
from nnet_edge.runtime.meters import Meters, StreamReport
from nnet_edge.runtime.models import Model
from nnet_edge.runtime.source import Source
from nnet_edge.runtime.station import Station
from nnet_edge.stream_settings import EVERY_FRAME, FRESHEST, LaneSettings, LineStream

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
