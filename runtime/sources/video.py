"""Frames as OpenCV decodes them: video files, cameras, network streams, pipes, GStreamer pipelines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import cv2
import numpy as np

from nnet_edge.errors import MissingExtraError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.base import Source, SourceFacts
from nnet_edge.runtime.sources.opencv_video import CaptureSettings, has_gstreamer, open_capture

if TYPE_CHECKING:
    from typing_extensions import Self

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv")
PROMISE_KEPT = 0.9  # some containers only estimate their number of frames; a file that gives less is cut off
FALLBACK_HZ = 25.0  # of a video file that does not know its rate and is shown at its own


class VideoSource(Source):
    """A video file, a camera or a network stream, as OpenCV decodes it.

    `address` may hold a password and is never shown, `what` is. `at_own_rate` shows a file as a camera would.

    What a lost packet tore out of a coded picture is not seen: FFmpeg fills it from the picture before, and OpenCV passes
    it on without FFmpeg's flags. Options reach the demuxer (`discardcorrupt`), not the decoder: err_detect and skip_frame
    changed nothing on an RTSP stream with losses (OpenCV 5.0). RTSP over TCP, the default, loses no packet on its way; an
    HTTP camera's JPEGs are checked one by one.
    """

    def __init__(
        self,
        address: str | int,
        what: str,
        stream: str,
        is_live: bool,
        settings: CaptureSettings | None = None,
        at_own_rate: bool = False,
    ) -> None:
        super().__init__(stream)
        self._address = address
        self._what = what
        self._settings = settings or CaptureSettings()
        self._is_file = not is_live
        self._at_own_rate = at_own_rate and self._is_file
        self._capture: cv2.VideoCapture | None = None
        self._state: tuple[int, int, int] | None = None  # of the file when it was opened
        if self._is_file:
            with self:  # a file that cannot be read is told at once, and so is its rate
                self.rate_hz = self._fact(cv2.CAP_PROP_FPS)
        self.is_live = is_live

    def __enter__(self) -> Self:
        if self._settings.backend == "gstreamer" and not has_gstreamer():
            raise MissingExtraError(
                f"{self._what}: this OpenCV was built without GStreamer: use the system's OpenCV, or rtsp:// and http://"
            )
        self._state = self._file_state()
        self._capture = open_capture(self._address, self._settings)
        if not self._capture.isOpened():
            self._capture.release()
            self._capture = None
            raise SourceError(f"{self._what} cannot be opened: {self._advice()}")
        self.got = SourceFacts(
            height=whole(self._fact(cv2.CAP_PROP_FRAME_HEIGHT)),
            width=whole(self._fact(cv2.CAP_PROP_FRAME_WIDTH)),
            rate_hz=self._fact(cv2.CAP_PROP_FPS),
            pixel_format=four_letters(self._fact(cv2.CAP_PROP_FOURCC)),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def __iter__(self) -> Iterator[Frame]:
        if self._capture is None:
            raise SourceError(f"{self._what} is not open: use it in a `with` statement")
        index, start_s = 0, time.monotonic()
        while not self._interrupted.is_set():
            was_read, image = self._capture.read()
            if not was_read or image is None:
                break
            if self._at_own_rate:
                self._interrupted.wait(max(0.0, start_s + index / (self.rate_hz or FALLBACK_HZ) - time.monotonic()))
            yield Frame(image, index, time.monotonic(), self.stream)
            index += 1
        if not self._interrupted.is_set():
            self._require_whole(index)

    def describe(self) -> str:
        return self._what

    def _require_whole(self, frames: int) -> None:
        if not self._is_file:
            raise SourceError(f"{self._what} stopped after {frames} frames: is it switched on and connected?")
        if self._state != self._file_state():
            raise SourceError(
                f"{self._what} was replaced or altered while it was read, after {frames} frames: read it again"
            )
        promised = self._fact(cv2.CAP_PROP_FRAME_COUNT)
        if frames == 0 or (promised is not None and frames < PROMISE_KEPT * promised):
            of = f" of {promised:.0f}" if promised else ""
            raise SourceError(f"{self._what} ended after {frames}{of} frames: the file is cut off or damaged")

    def _file_state(self) -> tuple[int, int, int] | None:
        """What changes when somebody writes the file or puts another in its place; None for what is no file."""
        if not self._is_file or not isinstance(self._address, str) or not Path(self._address).exists():
            return None
        facts = os.stat(self._address)
        return facts.st_ino, facts.st_size, facts.st_mtime_ns

    def _fact(self, fact: int) -> float | None:
        """A property of the opened capture; None where OpenCV does not know it."""
        assert self._capture is not None
        value = self._capture.get(fact)
        return float(value) if np.isfinite(value) and value > 0 else None

    def _advice(self) -> str:
        if isinstance(self._address, int):
            return "no such camera, or another program uses it, or you may not; `nnet-edge doctor` lists what there is"
        return (
            "it is no video that OpenCV reads"
            if self._is_file
            else "is it switched on, reachable, and the address right?"
        )


def whole(value: float | None) -> int | None:
    """A number of pixels."""
    return None if value is None else round(value)


def four_letters(value: float | None) -> str | None:
    """The pixel format that OpenCV gives as a number; None when it is no four letters."""
    if value is None:
        return None
    letters = int(value).to_bytes(8, "little")[:4].decode("ascii", "replace")
    return letters if letters.isprintable() and len(letters.strip()) == 4 else None
