"""Frames as OpenCV decodes them: live video, video files here or behind http://, GStreamer pipelines."""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nnet_edge.errors import ConfigError, MissingExtraError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.addresses import address_scheme, path_suffix
from nnet_edge.runtime.sources.base import Source, SourceFacts, file_mode
from nnet_edge.runtime.sources.colour import CodedOptions, Colours, choose_colours, is_tagged, to_709
from nnet_edge.runtime.sources.containers import is_cut_off, picture_s
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, Flag, SourceKind
from nnet_edge.text import printable

if TYPE_CHECKING:  # OpenCV is imported where something is opened
    import cv2

    from nnet_edge.runtime.pyav_video import PyavVideo

log = logging.getLogger(__name__)

HTTP_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv")  # cameras have others
CAMCORDER_SUFFIXES = (
    ".mts", ".m2ts", ".m2t", ".tod", ".mod", ".vob", ".flv", ".f4v", ".3gp", ".3g2", ".asf", ".mxf",
    ".divx", ".dv", ".ogv", ".wtv")  # fmt: skip
RAW_SUFFIXES = (".h264", ".264", ".avc", ".hevc", ".h265", ".265", ".m1v", ".m2v", ".mjpg", ".mjpeg")
VIDEO_SUFFIXES = (*HTTP_SUFFIXES, *CAMCORDER_SUFFIXES, *RAW_SUFFIXES)
PIPE_SUFFIXES = (".mjpg", ".mjpeg")  # an absent file of this name may become a camera's pipe
PIPELINE = "gstreamer:"  # before a pipeline that ends in an appsink
PROMISE_KEPT = 0.9  # of the frames, or the time, that a file promises; one that gives less is damaged
LONGEST_GAP_S = 60.0  # between two frames of a file; a longer one is a leap of its clock
FALLBACK_HZ = 25.0  # of a video file that does not know its rate and is shown at its own


class VideoSource(Source):
    """A camera or a network stream, as OpenCV decodes it. `address` may hold a password and is never shown, `what` is.

    What a lost packet tore out of a coded picture is seen where PyAV decodes (`decode` is checked or a GPU) and not by OpenCV,
    which passes it on without FFmpeg's flags. Options reach the demuxer (`discardcorrupt`), not the decoder: err_detect and
    skip_frame changed nothing on an RTSP stream with losses (OpenCV 5.0). RTSP over TCP, the default, loses no packet on its
    way; an HTTP camera's JPEGs are checked one by one.
    """

    is_live = True
    advice = "is it switched on, reachable, and the address right?"  # when it cannot be opened
    ca_file: Path | None = None  # PEM: whom a certificate may come from; None: it is not looked at

    def __init__(
        self, address: str | int, what: str, stream: str, settings: CommonSettings, coded: CodedOptions | None = None,
        transport: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(stream)
        coded = CodedOptions() if coded is None else coded
        self._matrix, self._colours = coded.colour_matrix, Colours()
        self._gpu, self._is_checked = coded.gpu, coded.is_checked
        self._address, self._what, self._settings, self._transport = address, printable(what), settings, transport
        self._pace_hz: float | None = None  # of frames that do not know their times; None: shown as fast as they come
        self._capture: cv2.VideoCapture | PyavVideo | None = None
        self._first_s: float | None = None  # the time in its file of the first frame, and of the newest
        self._time_s: float | None = None

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
        index = 0
        while True:
            first = index
            for frame in self._one_run(first):
                yield frame
                index += 1
            if self._interrupted.is_set():
                return
            self._require_whole(index - first)
            if not self._began_again():
                return

    def _one_run(self, index: int) -> Iterator[Frame]:
        """The frames from here to the end, numbered from `index` on."""
        assert self._capture is not None
        due_s, shown_ms = time.monotonic(), None
        self._first_s = self._time_s = None
        while not self._interrupted.is_set():
            was_read, image = self._capture.read()
            if not was_read or image is None:
                break
            if self._colours.is_converted and image.ndim == 3:
                image = to_709(image)
            time_ms = None if self.is_live else self._fact("POS_MSEC") or 0.0
            if time_ms is not None:
                self._time_s = self._own_time_s(time_ms / 1e3)
            if self._pace_hz is not None and time_ms is not None:
                due_s += 0.0 if shown_ms is None else gap_s(shown_ms, time_ms, self._pace_hz)
                shown_ms = time_ms
                self._interrupted.wait(max(0.0, due_s - time.monotonic()))
            yield Frame(image, index, time.monotonic(), self.stream, in_file_s=self._time_s)
            index += 1

    def _own_time_s(self, time_s: float) -> float:
        """The next frame's time in its file; raw video has none, and goes on by its rate."""
        if self._time_s is None:
            self._first_s = time_s
        elif time_s <= self._time_s:
            return self._time_s + 1 / (self.rate_hz or FALLBACK_HZ)
        return time_s

    def _began_again(self) -> bool:
        """Whether the source starts anew at its end."""
        return False

    def describe(self) -> str:
        return self._what + self._colours.words

    def _is_tagged(self, codec: str | None) -> bool | None:
        """Whether the video names its colour matrix; None where that cannot be known."""
        return None

    def _open(self) -> cv2.VideoCapture | PyavVideo:
        if self._gpu is not None:
            try:
                return self._opened_on(self._gpu)
            except (ConfigError, MissingExtraError) as error:
                log.warning("%s: decoded on the processor, not on GPU %d: %s", self._what, self._gpu, error)
                self._gpu = None
        if self._is_checked:
            return self._opened_by_pyav(None)
        from nnet_edge.runtime.opencv_video import open_capture

        return open_capture(self._address, self._settings, self._transport, self.ca_file)

    def _opened_on(self, gpu: int) -> PyavVideo:
        """The reader on that GPU, open or not. Raises ConfigError where it does not decode this video, MissingExtraError."""
        from nnet_edge.runtime.pyav_video import require_decoder

        require_decoder(gpu)
        video = self._opened_by_pyav(gpu)
        if video.isOpened() and not video.is_on_gpu:
            video.release()
            raise ConfigError(f"NVDEC knows no such {video.codec}")
        return video

    def _opened_by_pyav(self, gpu: int | None) -> PyavVideo:
        """The reader that tells torn pictures, open or not. Raises MissingExtraError."""
        from nnet_edge.runtime.pyav_video import PyavVideo

        def lose() -> None:
            self.lose("incomplete", 1)

        return PyavVideo(str(self._address), gpu, self._what, self._settings, self._transport, self.ca_file, lose)

    def _require_whole(self, frames: int) -> None:
        """Raise SourceError unless the source may end after so many frames."""
        raise SourceError(f"{self._what} stopped after {frames} frames: is it switched on and connected?")

    def _fact(self, name: str) -> float | None:
        """A property of the opened capture, FPS for one; None where OpenCV does not know it."""
        from nnet_edge.runtime.opencv_video import property_of

        assert self._capture is not None
        return property_of(self._capture, name)


class VideoFileSource(VideoSource):
    """A video file, whole; `at_own_rate` shows each frame at its own time, as a camera would, `loop` again and again."""

    is_live = False
    advice = "it is not a video that OpenCV reads"

    def __init__(
        self, address: str, what: str, stream: str, settings: CommonSettings, options: VideoOptions,
        ca_file: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(address, what, stream, settings, options)
        self._path, self.ca_file = address, ca_file
        with self:  # a file that cannot be read is an error at once, and its rate is known from here on
            self.rate_hz = self._fact("FPS")
        self.never_ends = options.loop
        self._pace_hz = (self.rate_hz or FALLBACK_HZ) if options.at_own_rate else None
        self.may_be_silent = options.at_own_rate  # for as long as its frames are apart

    def _open(self) -> cv2.VideoCapture | PyavVideo:
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
        is_short = promised is not None and frames < PROMISE_KEPT * promised
        with self._bytes() as file:
            is_cut = file is not None and is_cut_off(file)
            is_damaged = frames == 0 or (is_short and not (file is not None and self._gave_all(file, frames)))
        if is_cut or is_damaged:
            of = f" of {promised:.0f}" if promised and is_short else ""
            what = "cut off" if is_cut else "cut off or damaged"
            raise SourceError(f"{self._what} ended after {frames}{of} frames: the file is {what}")

    def _bytes(self) -> AbstractContextManager[BinaryIO | None]:
        """The file itself; None where only FFmpeg reads it."""
        return Path(self._path).open("rb") if Path(self._path).is_file() else nullcontext()

    def _gave_all(self, file: BinaryIO, frames: int) -> bool:
        """Whether these are all frames, though more were promised: that is estimated, or counts what an edit leaves out."""
        from nnet_edge.runtime.opencv_video import packet_times_s

        first_s, last_s = self._first_s or 0.0, self._time_s or 0.0
        times_s = packet_times_s(self._path)
        end_s = max(times_s, default=0.0)
        shown = sum(end_s - time_s <= last_s - first_s + 1e-3 for time_s in times_s)
        lasts_s = picture_s(file) or end_s
        return frames >= PROMISE_KEPT * shown and last_s + 1 / (self.rate_hz or FALLBACK_HZ) >= PROMISE_KEPT * lasts_s

    def _began_again(self) -> bool:
        if self.never_ends:
            self.__exit__()
            self.__enter__()
        return self.never_ends

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
class VideoOptions(CodedOptions):
    """What only video files have."""

    at_own_rate: bool = False  # as a camera would show it
    loop: bool = False  # from its end back to its start, for ever


def is_video_file(address: str) -> bool:
    return stat.S_ISREG(file_mode(address)) and Path(address).suffix.lower() in VIDEO_SUFFIXES


def is_http_video(address: str) -> bool:
    """Whether a video file is behind the address; a camera is behind others."""
    return address_scheme(address) in ("http", "https") and path_suffix(address) in HTTP_SUFFIXES


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
        suffixes=tuple(suffix for suffix in VIDEO_SUFFIXES if suffix not in PIPE_SUFFIXES),
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
