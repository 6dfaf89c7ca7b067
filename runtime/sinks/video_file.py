"""One file of an annotated video, under a name of its own until it is whole."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.errors import SinkError
from nnet_edge.runtime.sources.opencv_video import count_frames, open_writer

log = logging.getLogger(__name__)

CODECS = {".mp4": ("vp09", "mp4v"), ".avi": ("MJPG",)}  # browsers play VP9; an OpenCV without it writes MPEG-4


class VideoFile:
    """Pictures on their way into `part`. All get the size of the first; one of other proportions gets a dark border."""

    def __init__(self, part: Path, rate_hz: float, first: np.ndarray) -> None:
        self._part = part
        self._size = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2  # height, width; codecs want even sides
        self._written = 0
        self._began_s = time.monotonic()
        self._writer = self._open(rate_hz)

    def write(self, picture: np.ndarray) -> None:
        """Add a picture, uint8 BGR (H, W, 3)."""
        self._writer.write(fit(picture, *self._size))
        self._written += 1

    @property
    def age_s(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self._began_s

    @property
    def size_bytes(self) -> int:
        """Bytes on the disk so far; the newest pictures may be missing in it. Raises OSError."""
        return self._part.stat().st_size

    def close(self, target: Path) -> int:
        """Read it back, give it its name, and say how many bytes it has. Raises SinkError when it is not whole, OSError.

        OpenCV does not say when a write fails, so the frames are counted.
        """
        self._writer.release()
        try:
            found = count_frames(str(self._part))
            if found < self._written:
                raise SinkError(
                    f"the video {target} holds {found} of {self._written} frames: is the disk full? It was taken away"
                )
            size_bytes = self.size_bytes
            self._part.replace(target)
            return size_bytes
        finally:
            self._part.unlink(missing_ok=True)

    def _open(self, rate_hz: float) -> cv2.VideoWriter:
        codecs = CODECS[self._part.suffix]
        for codec in codecs:
            writer = open_writer(str(self._part), codec, rate_hz, *self._size)
            if writer.isOpened():
                log.info("%s is written as %s", self._part, codec)
                return writer
        raise SinkError(f"this OpenCV cannot write {self._part} ({' or '.join(codecs)}): try another suffix")


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
