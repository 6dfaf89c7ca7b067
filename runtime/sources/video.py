"""Frames as OpenCV decodes them: live video, video files here or behind http://, GStreamer pipelines."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.errors import MissingExtraError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.addresses import address_scheme, path_suffix
from nnet_edge.runtime.sources.base import Source, SourceFacts, file_mode
from nnet_edge.runtime.sources.colour import MATRICES, ColourOptions, Colours, choose_colours, is_tagged, to_709
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, Flag, SourceKind
from nnet_edge.text import printable

if TYPE_CHECKING:  # OpenCV is imported where something is opened
    import cv2

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv")
PIPELINE = "gstreamer:"  # before a pipeline that ends in an appsink
PROMISE_KEPT = 0.9  # some containers only estimate their number of frames; a file that gives less is cut off
LONGEST_GAP_S = 60.0  # between two frames of a file; a longer one is a leap of its clock
FALLBACK_HZ = 25.0  # of a video file that does not know its rate and is shown at its own


class VideoSource(Source):
    """A camera or a network stream, as OpenCV decodes it. `address` may hold a password and is never shown, `what` is.

    What a lost packet tore out of a coded picture is not seen: FFmpeg fills it from the picture before, and OpenCV passes
    it on without FFmpeg's flags. Options reach the demuxer (`discardcorrupt`), not the decoder: err_detect and skip_frame
    changed nothing on an RTSP stream with losses (OpenCV 5.0). RTSP over TCP, the default, loses no packet on its way; an
    HTTP camera's JPEGs are checked one by one.
    """

    is_live = True
    advice = "is it switched on, reachable, and the address right?"  # when it cannot be opened
    ca_file: Path | None = None  # PEM: whom a certificate may come from; None: it is not looked at

    def __init__(
        self, address: str | int, what: str, stream: str, settings: CommonSettings, transport: str | None = None,
        colour_matrix: str = MATRICES[0],
    ) -> None:  # fmt: skip
        super().__init__(stream)
        self._matrix, self._colours = colour_matrix, Colours()
        self._address, self._what, self._settings, self._transport = address, printable(what), settings, transport
        self._pace_hz: float | None = None  # of frames that do not know their times; None: shown as fast as they come
        self._capture: cv2.VideoCapture | None = None

    def __enter__(self) -> VideoSource:
        self._capture = self._open()
        if not self._capture.isOpened():
            self._capture.release()
            self._capture = None
            raise SourceError(f"{self._what} cannot be opened: {self.advice}")
        height, width = (self._fact(name) for name in ("FRAME_HEIGHT", "FRAME_WIDTH"))
        self.got = SourceFacts(
            None if height is None else round(height),
            None if width is None else round(width),
            self._fact("FPS"),
            four_letters(self._fact("FOURCC")),
        )
        self._colours = choose_colours(self._matrix, self.got.height, self._is_tagged(self.got.pixel_format))
        return self

    def __exit__(self, *error: object) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def __iter__(self) -> Iterator[Frame]:
        if self._capture is None:
            raise SourceError(f"{self._what} is not open: use it in a `with` statement")
        index, due_s, shown_ms = 0, time.monotonic(), None
        while not self._interrupted.is_set():
            was_read, image = self._capture.read()
            if not was_read or image is None:
                break
            if self._colours.is_converted and image.ndim == 3:
                image = to_709(image)
            time_ms = None if self.is_live else self._fact("POS_MSEC") or 0.0
            if self._pace_hz is not None and time_ms is not None:
                due_s += 0.0 if index == 0 else gap_s(shown_ms, time_ms, self._pace_hz)
                shown_ms = time_ms
                self._interrupted.wait(max(0.0, due_s - time.monotonic()))
            in_file_s = None if time_ms is None else time_ms / 1e3
            yield Frame(image, index, time.monotonic(), self.stream, in_file_s=in_file_s)
            index += 1
        if not self._interrupted.is_set():
            self._require_whole(index)

    def describe(self) -> str:
        return self._what + self._colours.words

    def _is_tagged(self, codec: str | None) -> bool | None:
        """Whether the video names its colour matrix; None where that cannot be known."""
        return None

    def _open(self) -> cv2.VideoCapture:
        from nnet_edge.runtime.opencv_video import open_capture

        return open_capture(self._address, self._settings, self._transport, self.ca_file)

    def _require_whole(self, frames: int) -> None:
        """Raise SourceError unless the source may end after so many frames."""
        raise SourceError(f"{self._what} stopped after {frames} frames: is it switched on and connected?")

    def _fact(self, name: str) -> float | None:
        """A property of the opened capture, FPS for one; None where OpenCV does not know it."""
        from nnet_edge.runtime.opencv_video import property_of

        assert self._capture is not None
        return property_of(self._capture, name)


class VideoFileSource(VideoSource):
    """A video file, whole; `at_own_rate` shows each frame at its own time, as a camera would."""

    is_live = False
    advice = "it is not a video that OpenCV reads"

    def __init__(
        self, address: str, what: str, stream: str, settings: CommonSettings, options: VideoOptions,
        ca_file: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(address, what, stream, settings, None, options.colour_matrix)
        self._path, self.ca_file = address, ca_file
        with self:  # a file that cannot be read is an error at once, and its rate is known from here on
            self.rate_hz = self._fact("FPS")
        self._pace_hz = (self.rate_hz or FALLBACK_HZ) if options.at_own_rate else None
        self.may_be_silent = options.at_own_rate  # for as long as its frames are apart

    def _open(self) -> cv2.VideoCapture:
        self._state = self._file_state()
        return super()._open()

    def _is_tagged(self, codec: str | None) -> bool | None:
        from nnet_edge.runtime.opencv_video import codec_setup

        path = Path(self._path)
        return is_tagged(path, codec, lambda: codec_setup(self._path)) if path.is_file() else None

    def _require_whole(self, frames: int) -> None:
        if self._state != self._file_state():
            altered = f"was replaced or altered while it was read, after {frames} frames: read it again"
            raise SourceError(f"{self._what} {altered}")
        promised = self._fact("FRAME_COUNT")
        if frames == 0 or (promised is not None and frames < PROMISE_KEPT * promised):
            of = f" of {promised:.0f}" if promised else ""
            raise SourceError(f"{self._what} ended after {frames}{of} frames: the file is cut off or damaged")

    def _file_state(self) -> tuple[int, int, int] | None:
        """What changes when somebody writes the file or puts another in its place; None for an address."""
        if not Path(self._path).exists():
            return None
        facts = os.stat(self._path)
        return facts.st_ino, facts.st_size, facts.st_mtime_ns


class PipelineSource(VideoSource):
    """A GStreamer pipeline that ends in an appsink."""

    def _open(self) -> cv2.VideoCapture:
        from nnet_edge.runtime.opencv_video import has_gstreamer, open_pipeline

        if not has_gstreamer():
            advice = "use the system's OpenCV, or rtsp:// and http://"
            raise MissingExtraError(f"{self._what}: this OpenCV was built without GStreamer: {advice}")
        return open_pipeline(str(self._address))


def four_letters(value: float | None) -> str | None:
    """The pixel format that OpenCV gives as a number; None when it is not four letters."""
    if value is None:
        return None
    letters = int(value).to_bytes(8, "little")[:4].decode("ascii", "replace")
    return letters if letters.isprintable() and len(letters.strip()) == 4 else None


def gap_s(before_ms: float | None, now_ms: float, rate_hz: float) -> float:
    """Seconds between two frames, by their own times; by the rate where these do not advance, or leap."""
    gap = 0.0 if before_ms is None else (now_ms - before_ms) / 1e3
    return gap if 0 < gap <= LONGEST_GAP_S else 1 / rate_hz


@dataclass(frozen=True)
class VideoOptions(ColourOptions):
    """What only video files have."""

    at_own_rate: bool = False  # as a camera would show it


def is_video_file(address: str) -> bool:
    return stat.S_ISREG(file_mode(address)) and Path(address).suffix.lower() in VIDEO_SUFFIXES


def is_http_video(address: str) -> bool:
    """Whether a video file is behind the address; a camera is behind others."""
    return address_scheme(address) in ("http", "https") and path_suffix(address) in VIDEO_SUFFIXES


def open_file(settings: CommonSettings, options: VideoOptions) -> VideoFileSource:
    path = Path(settings.address)
    return VideoFileSource(str(path), f"video {path}", path.stem, settings, options)


def open_pipeline(settings: CommonSettings, options: None) -> PipelineSource:
    return PipelineSource(settings.address.removeprefix(PIPELINE), "GStreamer pipeline", "gstreamer", settings)


MATRIX_HELP = "Of video whose file names no colour matrix: bt601 (default), bt709, or auto: bt709 from 720 lines on."
MATRIX_FLAG = Flag("--colour-matrix", MATRIX_HELP, lambda typed, asked: {"colour_matrix": typed}, "text", "MATRIX")
SOURCES.register(
    SourceKind(
        "video",
        "a video file",
        is_video_file,
        open_file,
        VideoOptions,
        flags=(MATRIX_FLAG,),
        is_path=True,
        order=20,
        suffixes=VIDEO_SUFFIXES,
    )
)
SOURCES.register(
    SourceKind(
        "gstreamer",
        "gstreamer:PIPELINE",
        lambda text: text.startswith(PIPELINE),
        open_pipeline,
        page="pipeline",
        opencv="gstreamer",
    )
)
