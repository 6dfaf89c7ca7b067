"""Pictures of the newest verdicts for the page, drawn and encoded in a thread of their own.

A picture of a stream is made once for all viewers, only while somebody looks, at most so many times a second, and with
at most a small share of one core: after t seconds of processor time the thread rests for t (1 / share - 1). Where the
system has priorities for threads, this thread has a low one, so that the inspection goes first.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.imaging import to_rgb
from nnet_edge.runtime.sinks.overlay import FONT, GREEN, RED, SCALE_END
from nnet_edge.settings.web import WebSettings

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.line import Line


log = logging.getLogger(__name__)

LEAST_SHARE = 0.35  # of the threshold, below which the map is not painted: a good part looks as the camera sees it
HEAT_SHARE = 0.6  # of the colour where the map is at twice the threshold and above
DIMMED = 0.35  # brightness of what is not inspected
SHARES = np.arange(256) / 255  # of twice the threshold
WEIGHTS = np.where(SHARES > LEAST_SHARE / SCALE_END, HEAT_SHARE * np.sqrt(SHARES), 0).astype(np.float32)
LOOK_S = 0.5  # how often an idle thread looks for work
NICE = 5  # of Linux, where 19 is the lowest priority: with a lower one, a busy line would leave no picture at all
JOIN_LIMIT_S = 2.0


def last_verdict(parts: Sequence[Prediction]) -> dict[str, object] | None:
    """The verdict of the newest frame: the worst of its crops; None before the first."""
    if not parts:
        return None
    worst = max(parts, key=lambda part: (part.is_anomalous, part.relative_score))
    return {
        "id": worst.id, "score": worst.image_score, "threshold": worst.threshold, "is_anomalous": worst.is_anomalous,
        "regions": len(worst.regions), "name": worst.frame.name,
    }  # fmt: skip


def draw_view(frame: Frame, parts: Sequence[Prediction], width: int, has_overlay: bool) -> np.ndarray:
    """The frame as uint8 BGR (h, w, 3), not wider than `width`; with an overlay, `parts` are drawn where they lie."""
    rows, columns = frame.image.shape[:2]
    scale = min(1.0, width / columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    picture = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA if scale <= 0.5 else cv2.INTER_LINEAR)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        picture = cv2.cvtColor(to_rgb(picture), cv2.COLOR_RGB2BGR)
    if has_overlay:
        for part in parts:
            draw_part(picture, part, size[0] / columns, size[1] / rows)
    return picture


def draw_part(picture: np.ndarray, part: Prediction, across: float, down: float) -> None:
    """Paint a prediction into `picture`, whose pixels are `across` and `down` times those of the camera."""
    height, width = part.frame.image.shape[:2]
    crop = part.frame.crop
    left, top = (0, 0) if crop is None else (crop.x, crop.y)
    x, y = round(left * across), round(top * down)
    panel = picture[y : round((top + height) * down), x : round((left + width) * across)]
    if panel.size == 0:
        return
    size = panel.shape[1], panel.shape[0]
    if part.inspected is not None:
        seen = cv2.resize(part.inspected.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
        panel[:] = np.where(seen[..., None], panel, cv2.convertScaleAbs(panel, alpha=DIMMED))
    if part.anomaly_map is not None:
        blend_heat(panel, part.anomaly_map, part.threshold)
    for region in part.regions:
        corner = x + round(region.x * across), y + round(region.y * down)
        opposite = corner[0] + round(region.width * across) - 1, corner[1] + round(region.height * down) - 1
        cv2.rectangle(picture, corner, opposite, RED, 2)
        text_at = corner[0], max(12, corner[1] - 5)
        cv2.putText(picture, f"{region.peak / part.threshold:.2f}", text_at, FONT, 0.45, RED, 1, cv2.LINE_AA)
    if crop is not None:
        tone = RED if part.is_anomalous else GREEN
        cv2.rectangle(picture, (x, y), (x + size[0] - 1, y + size[1] - 1), tone, 1)
        cv2.putText(picture, crop.name, (x + 4, y + 14), FONT, 0.45, tone, 1, cv2.LINE_AA)


def blend_heat(panel: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> None:
    """Colour `panel`, uint8 BGR (h, w, 3), where the map is of interest, the more the stranger it is.

    The map is enlarged as 8 bits, as `overlay.colour` has it, and blended in one pass: people look on all day.
    """
    share = anomaly_map * (255 / (SCALE_END * threshold))
    shares = cv2.resize(np.clip(share, 0, 255).astype(np.uint8), panel.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if not WEIGHTS[shares.max()]:
        return  # weights ascend: nothing is of interest
    weight = cv2.LUT(shares, WEIGHTS)
    panel[:] = cv2.blendLinear(cv2.applyColorMap(shares, cv2.COLORMAP_TURBO), panel, weight, 1 - weight)


@dataclass(frozen=True, slots=True)
class View:
    """A stream as a viewer sees it, with or without the overlay."""

    stream: str
    has_overlay: bool


@dataclass(frozen=True, slots=True)
class Picture:
    key: str  # changes with the picture
    verdict: Mapping[str, object] | None  # what it shows, ready for JSON
    jpeg: bytes


class PictureMaker:
    """Makes pictures of a line's views that are watched, in a `with` statement. Any thread may watch and read."""

    def __init__(self, line: Line, settings: WebSettings) -> None:
        self._line, self._settings = line, settings
        self._lock = threading.Lock()
        self._watched: dict[View, int] = {}
        self._pictures: dict[View, Picture] = {}
        self._due_s: dict[View, float] = {}
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="pictures of the page", daemon=True)
        self.made = 0
        self.busy_s = 0.0  # of processor time, spent on drawing and encoding

    def __enter__(self) -> PictureMaker:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(JOIN_LIMIT_S)

    def watch(self, view: View) -> None:
        """Make pictures of the view until `unwatch` has been called as often."""
        with self._lock:
            self._watched[view] = self._watched.get(view, 0) + 1
            self._line.is_watched = any(known.has_overlay for known in self._watched)
        self._wake.set()

    def unwatch(self, view: View) -> None:
        """Note that one viewer less watches the view."""
        with self._lock:
            left = self._watched.get(view, 0) - 1
            if left > 0:
                self._watched[view] = left
            else:
                for known in (self._watched, self._pictures, self._due_s):
                    known.pop(view, None)
            self._line.is_watched = any(known.has_overlay for known in self._watched)

    def picture(self, view: View) -> Picture | None:
        """The newest picture of the view, None before the first."""
        with self._lock:
            return self._pictures.get(view)

    def _work(self) -> None:
        lower_priority()
        while not self._stop.is_set():
            view, wait_s = self._next()
            if view is None:
                self._wake.wait(wait_s)
                self._wake.clear()
                continue
            start_s, used_s = time.monotonic(), time.thread_time()
            try:
                was_made = self._make(view)
            except ConfigError:  # a stream that is gone, or never was: pages may name any
                was_made = False
            except Exception as error:
                log.warning("no picture of %s: %s", view.stream, error)
                was_made = False
            used_s = time.thread_time() - used_s
            with self._lock:
                if view in self._watched:
                    self._due_s[view] = start_s + 1 / self._settings.picture_hz
            if was_made:
                self.made += 1
                self.busy_s += used_s
                self._stop.wait(used_s * (1 / self._settings.picture_share - 1))

    def _next(self) -> tuple[View | None, float]:
        """The view whose picture has been due longest; else how long to wait for one."""
        now_s = time.monotonic()
        with self._lock:
            if not self._watched:
                return None, LOOK_S
            view = min(self._watched, key=lambda view: self._due_s.get(view, 0.0))
            wait_s = self._due_s.get(view, 0.0) - now_s
        return (view, 0.0) if wait_s <= 0 else (None, min(wait_s, LOOK_S))

    def _make(self, view: View) -> bool:
        """Make a picture, unless the newest frame has one already."""
        frame, parts = self._line.latest_frame(view.stream), self._line.latest_parts(view.stream)
        if frame is None:
            return False
        with self._lock:
            before = self._pictures.get(view)
        verdict = last_verdict(parts)
        key = f"{frame.id} {verdict}"
        if before is not None and before.key == key:
            return False
        picture = draw_view(frame, parts, self._settings.picture_width, view.has_overlay)
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self._settings.picture_quality])
        with self._lock:
            if view in self._watched:
                self._pictures[view] = Picture(key, verdict, data.tobytes())
        return True


def lower_priority() -> None:
    """Lower the priority of this thread, where the system can."""
    if sys.platform == "linux":
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        except OSError as error:
            log.info("the page's pictures keep their priority: %s", error.strerror)
