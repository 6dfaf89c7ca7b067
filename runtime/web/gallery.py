"""Gallery of rejects, newest scores of each stream, and drift: what the page keeps of a line.

The line's thread only appends numbers and queues rejects; pictures are encoded in a thread of their own. Everything has
a bound; a reject that meets a full queue is counted.
"""

from __future__ import annotations

import itertools
import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2

from nnet_edge.errors import ConfigError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import to_fields
from nnet_edge.runtime.sinks.overlay import annotate
from nnet_edge.runtime.stream.drift import DriftWatches, reference_of
from nnet_edge.runtime.web.pictures import lower_priority
from nnet_edge.scoring import GoodScores
from nnet_edge.settings.web import DriftSettings, WebSettings

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.line import Line

log = logging.getLogger(__name__)

WAITING_REJECTS = 16  # that have no pictures yet
REJECTS_A_STREAM = 60
JPEG_QUALITY = 85
JOIN_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Score:
    """One verdict as the chart shows it."""

    number: int  # of the page, ascending over all streams
    score: float
    is_anomalous: bool
    crop: str | None = None  # of the frame


@dataclass(frozen=True, slots=True)
class Reject:
    """An anomalous frame with its pictures."""

    key: str  # made here, without a name from outside
    fields: Mapping[str, object]  # as the JSON lines have them
    original: bytes  # PNG
    overlay: bytes  # JPEG
    thumbnail: bytes  # JPEG

    @property
    def size_bytes(self) -> int:
        return len(self.original) + len(self.overlay) + len(self.thumbnail)


class Gallery:
    """Keeps scores and rejects of a line from `with` to its end. Any thread may read."""

    def __init__(self, line: Line, settings: WebSettings, drift: DriftSettings) -> None:
        self._line, self._settings = line, settings
        self.run = secrets.token_hex(8)  # numbers and keys of another run mean something else
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._scores: dict[str, deque[Score]] = {}
        self._firsts: dict[str, int] = {}  # of each stream, the number that its scores begin with again
        self._streams: set[str] = set()  # of the line now: a frame of a removed one may still be under way
        self._rejects: OrderedDict[str, Reject] = OrderedDict()  # oldest first
        self._bytes = 0
        self._waiting: queue.Queue[Prediction] = queue.Queue(WAITING_REJECTS)
        self.missed_rejects = 0  # that met a full queue
        self._thread = threading.Thread(target=self._work, name="reject gallery", daemon=True)
        self._stop = threading.Event()
        self.drift = DriftWatches(drift, self._reference, line.events.tell)

    def __enter__(self) -> Gallery:
        self._thread.start()
        self._line.events.subscribe(self._hear)
        self._streams |= {status.name for status in self._line.streams()}
        self._line.subscribe(self._take)
        return self

    def __exit__(self, *error: object) -> None:
        self._line.unsubscribe(self._take)
        self._line.events.unsubscribe(self._hear)
        self._stop.set()
        self._thread.join(JOIN_LIMIT_S)

    def scores(self, after: int = 0) -> dict[str, list[Score]]:
        """The newest scores of each stream with a number above `after`, oldest first, one snapshot."""
        with self._lock:
            return {name: [score for score in kept if score.number > after] for name, kept in self._scores.items()}

    def first(self, stream: str) -> int:
        """The first number whose scores are comparable with the newest: of the same bundle and regions."""
        with self._lock:
            return self._firsts.get(stream, 0)

    def rejects(self, stream: str | None = None) -> list[Reject]:
        """The rejects that are kept, newest first."""
        with self._lock:
            found = list(self._rejects.values())[::-1]
        return [reject for reject in found if stream in (None, reject.fields["stream"])]

    def reject(self, key: str) -> Reject | None:
        """The reject of that key, None when it was deleted."""
        with self._lock:
            return self._rejects.get(key)

    def _reference(self, stream: str) -> GoodScores | None:
        """The good scores of the bundle that judges the stream; None once the stream is gone."""
        try:
            return reference_of(self._line.model(stream).manifest)
        except ConfigError:
            return None

    def _take(self, prediction: Prediction) -> None:
        """Keep a verdict's score, and queue a reject; called in the line's thread."""
        stream, crop = prediction.frame.stream, prediction.frame.crop
        name = None if crop is None else crop.name
        score = Score(next(self._numbers), prediction.image_score, prediction.is_anomalous, name)
        with self._lock:
            if stream not in self._streams:
                return
            self._scores.setdefault(stream, deque(maxlen=self._settings.kept_scores)).append(score)
        self.drift.add(prediction)
        if prediction.is_anomalous and prediction.anomaly_map is not None and not prediction.is_untaught:
            try:
                self._waiting.put_nowait(prediction)
            except queue.Full:
                self.missed_rejects += 1

    def _hear(self, event: Event) -> None:
        """Forget what an event has made obsolete."""
        stream = event.stream
        if event.kind in ("bundle.swapped", "recipe.changed"):
            swapped = event.facts.get("streams")
            for name in swapped if isinstance(swapped, Sequence) else ():
                self._begin_again(str(name))
        elif event.kind == "regions.changed" and stream is not None:
            self._begin_again(stream)
        elif event.kind == "stream.added" and stream is not None:
            with self._lock:
                self._streams.add(stream)
        elif event.kind == "stream.removed" and stream is not None:
            with self._lock:
                self._streams.discard(stream)
                self._scores.pop(stream, None)
                self._firsts.pop(stream, None)
            self.drift.forget(stream)

    def _begin_again(self, stream: str) -> None:
        """Forget the scores of a stream that now has another bundle or other regions."""
        self.drift.restart(stream)
        with self._lock:
            self._scores.pop(stream, None)
            if stream in self._streams:
                self._firsts[stream] = next(self._numbers)

    def _work(self) -> None:
        lower_priority()
        while not self._stop.is_set():
            try:
                prediction = self._waiting.get(timeout=0.5)
            except queue.Empty:
                continue
            start_s = time.thread_time()
            try:
                self._keep(self._to_reject(prediction))
            except Exception as error:
                log.warning("no picture of the reject %s: %s", prediction.id, error)
            used_s = time.thread_time() - start_s
            self._stop.wait(min(used_s * (1 / self._settings.picture_share - 1), 5.0))

    def _to_reject(self, prediction: Prediction) -> Reject:
        overlay = annotate(prediction)
        scale = 240 / max(1, overlay.shape[1])
        small = cv2.resize(overlay, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        return Reject(
            str(next(self._numbers)),
            to_fields(prediction),
            cv2.imencode(".png", prediction.frame.image, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes(),
            cv2.imencode(".jpg", overlay, quality)[1].tobytes(),
            cv2.imencode(".jpg", small, quality)[1].tobytes(),
        )

    def _keep(self, reject: Reject) -> None:
        """Keep it, and delete the oldest: of its stream beyond REJECTS_A_STREAM, of all beyond gallery_bytes."""
        with self._lock:
            self._rejects[reject.key] = reject
            self._bytes += reject.size_bytes
            of_stream = [key for key, kept in self._rejects.items() if kept.fields["stream"] == reject.fields["stream"]]
            for key in of_stream[: max(0, len(of_stream) - REJECTS_A_STREAM)]:
                self._bytes -= self._rejects.pop(key).size_bytes
            while self._bytes > self._settings.gallery_bytes and self._rejects:
                self._bytes -= self._rejects.popitem(last=False)[1].size_bytes
