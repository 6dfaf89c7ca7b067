"""An annotated video: every frame with its verdict, whole or not there."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Prediction
from nnet_edge.runtime.opencv_video import count_frames, open_writer
from nnet_edge.runtime.overlay import annotate
from nnet_edge.runtime.sinks.base import Sink

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

CODECS = {".mp4": ("vp09", "mp4v"), ".avi": ("MJPG",)}  # browsers play VP9; an OpenCV without it writes MPEG-4
NO_RATE_HZ = 10.0  # frames a second of a video whose source has no rate


class VideoSink(Sink):
    """Writes an annotated video, .mp4 or .avi. It gets its name when it is whole, read back and counted.

    All frames get the size of the first; one of other proportions gets a dark border.
    """

    name = "video"

    def __init__(self, path: Path, rate_hz: float | None = None) -> None:
        if path.suffix.lower() not in CODECS:
            raise ConfigError(f"{path} has no suffix of a video that can be written: use {', '.join(CODECS)}")
        if rate_hz is not None and not (np.isfinite(rate_hz) and rate_hz > 0):
            raise ConfigError(f"a video of {rate_hz} frames/s cannot be: give a rate above 0")
        self._path = path
        self._part = path.with_name(f".{path.stem}.part{path.suffix.lower()}")
        self._rate_hz = rate_hz or NO_RATE_HZ
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)  # height, width
        self._written = 0

    def __enter__(self) -> Self:
        self._written = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._part.write_bytes(b"")
        except OSError as error:
            raise SinkError(f"cannot write the video {self._path}: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.release()
                self._writer = None
                self._require_whole()
                self._part.replace(self._path)
        except OSError as fault:
            raise SinkError(f"cannot write the video {self._path}: {fault.strerror or fault}") from fault
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, prediction: Prediction) -> None:
        picture = annotate(prediction)
        if self._writer is None:
            self._size = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2  # codecs want even sides
            self._writer = self._open()
        self._writer.write(fit(picture, *self._size))
        self._written += 1

    def _open(self) -> cv2.VideoWriter:
        codecs = CODECS[self._part.suffix]
        for codec in codecs:
            writer = open_writer(str(self._part), codec, self._rate_hz, *self._size)
            if writer.isOpened():
                log.info("%s is written as %s", self._path, codec)
                return writer
        raise SinkError(f"this OpenCV cannot write {self._path} ({' or '.join(codecs)}): try another suffix")

    def _require_whole(self) -> None:
        """OpenCV does not say when a write fails, so the frames are counted."""
        found = count_frames(str(self._part))
        if found < self._written:
            raise SinkError(
                f"the video {self._path} holds {found} of {self._written} frames: is the disk full? It was taken away"
            )


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """`picture` at `height` x `width`: as it is, but for a row or a column, or shrunk or enlarged on a dark ground."""
    if picture.shape[0] - height in (0, 1) and picture.shape[1] - width in (0, 1):
        return np.ascontiguousarray(picture[:height, :width])
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner_height = min(height, max(1, round(picture.shape[0] * scale)))
    inner_width = min(width, max(1, round(picture.shape[1] * scale)))
    ground = np.zeros((height, width, 3), np.uint8)
    ground[:inner_height, :inner_width] = cv2.resize(picture, (inner_width, inner_height))
    return ground
