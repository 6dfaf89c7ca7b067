"""OpenCV's video readers and writers, opened quietly and with time limits."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import cv2

from nnet_edge.errors import SinkError, SourceError, StreamError
from nnet_edge.settings.camera import CommonSettings

OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # the only way to give FFmpeg options; OpenCV reads it when it opens
USERS_OPTIONS = os.environ.get(OPTIONS)  # the user's own, which are kept


def quieten_opencv() -> None:
    """Keep OpenCV and FFmpeg from writing to the terminal, unless OPENCV_LOG_LEVEL or OPENCV_FFMPEG_LOGLEVEL is set."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def has_gstreamer() -> bool:
    """Whether this OpenCV opens GStreamer pipelines."""
    return bool(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER))


def require_utf_8(text: str, refusal: type[StreamError]) -> None:
    """Raise `refusal` for a path that is not UTF-8: OpenCV's module for Python (5.0) crashes where it is given one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal(
            f"{text} cannot be opened: its name is not UTF-8, and OpenCV opens no such file: rename it"
        ) from error


def for_ffmpeg(address: str) -> str:
    """The address, a path from the root: FFmpeg takes what stands before a colon for a protocol, and no path with a slash."""
    return os.path.abspath(address) if os.path.exists(address) else address


def open_capture(
    address: str | int, settings: CommonSettings, transport: str | None = None, ca_file: Path | None = None
) -> cv2.VideoCapture:
    """OpenCV's reader for a file, an address, a camera's number or device, open or not.

    `transport` is that of rtsp; certificates are compared with those in `ca_file`, and not at all without it.
    """
    quieten_opencv()
    require_utf_8(str(address), SourceError)
    if isinstance(address, int) or address.startswith("/dev/"):
        capture = cv2.VideoCapture(address)
        ask(capture, settings)
        return capture
    if ca_file is not None and (
        USERS_OPTIONS is not None or cv2.CAP_FFMPEG not in cv2.videoio_registry.getStreamBackends()
    ):
        raise SourceError(f"ca_file needs an OpenCV with FFmpeg, and no {OPTIONS} in the environment: unset it")
    if cv2.CAP_FFMPEG not in cv2.videoio_registry.getStreamBackends():  # some boards' own OpenCV has GStreamer instead
        return cv2.VideoCapture(address)
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(1e3 * settings.open_timeout_s)]
    timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(1e3 * settings.read_timeout_s)]
    with GATE.opening(options_of(transport, ca_file), settings.open_timeout_s):
        return cv2.VideoCapture(for_ffmpeg(address), cv2.CAP_FFMPEG, timeouts)


def open_pipeline(pipeline: str) -> cv2.VideoCapture:
    """OpenCV's reader for a GStreamer pipeline, open or not."""
    quieten_opencv()
    require_utf_8(pipeline, SourceError)
    return cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)


class KnowsFacts(Protocol):
    """A reader of video that is asked by OpenCV's numbers."""

    def get(self, number: int, /) -> float:
        """The fact of that number, cv2.CAP_PROP_FPS for one."""


def property_of(capture: KnowsFacts, name: str) -> float | None:
    """A property of the opened capture, FPS for one; None where OpenCV does not know it."""
    value = float(capture.get(getattr(cv2, f"CAP_PROP_{name}")))
    return value if math.isfinite(value) and value > 0 else None


def codec_setup(path: str) -> bytes:
    """What the codec of the file wrote before its first picture, for H.264 its parameter sets; empty where it is not known."""
    quieten_opencv()
    capture = cv2.VideoCapture(for_ffmpeg(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])  # coded packets as they are
    try:
        index = capture.get(cv2.CAP_PROP_CODEC_EXTRADATA_INDEX) if capture.isOpened() else 0
        was_read, data = capture.retrieve(flag=int(index)) if index > 0 else (False, None)
        return data.tobytes() if was_read and data is not None else b""
    finally:
        capture.release()


def packet_times_s(path: str) -> list[float]:
    """The times of the coded pictures in a file, here or behind an address, in its order, with those that an edit leaves out.

    None is decoded.
    """
    quieten_opencv()
    capture = cv2.VideoCapture(for_ffmpeg(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    times_s = []
    try:
        while capture.isOpened() and capture.grab():
            times_s.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)
    finally:
        capture.release()
    return times_s


def ask(capture: cv2.VideoCapture, settings: CommonSettings) -> None:
    """Ask a camera for pixel format, size and rate, in the order that drivers need; they give what they can."""
    if settings.pixel_format is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*settings.pixel_format))
    if settings.width is not None and settings.height is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, settings.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, settings.height)
    if settings.rate_hz is not None:
        capture.set(cv2.CAP_PROP_FPS, settings.rate_hz)


def ffmpeg_options(transport: str | None, ca_file: Path | None) -> dict[str, str]:
    """FFmpeg's options for a stream. It does not compare a certificate's name with the address."""
    options = {} if transport is None else {"rtsp_transport": transport, "fflags": "discardcorrupt"}
    return options | ({} if ca_file is None else {"tls_verify": "1", "ca_file": str(ca_file)})


def options_of(transport: str | None, ca_file: Path | None) -> str | None:
    """The same as OpenCV takes them; None for none."""
    return "|".join(f"{name};{value}" for name, value in ffmpeg_options(transport, ca_file).items()) or None


class OptionsGate:
    """Lets streams of the same options open at the same time, and those of others after them.

    FFmpeg's options are in the process's environment, so others cannot open at once. A stream that waits goes before
    later ones of other options, so it waits at most one time limit of opening.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._value: str | None = None
        self._waiting = 0

    @contextmanager
    def opening(self, value: str | None, limit_s: float) -> Iterator[None]:
        """Set the options `value` for FFmpeg within the block. Raises SourceError when others take too long."""
        if value is None or USERS_OPTIONS is not None:
            yield
            return
        with self._changed:
            self._waiting += 1
            is_in = self._changed.wait_for(
                lambda: self._inside == 0 or (self._value == value and self._waiting == 1), 2 * limit_s
            )
            self._waiting -= 1
            if not is_in:
                raise SourceError(f"other cameras took more than {2 * limit_s:g} s to open: this one is tried again")
            if self._inside == 0:
                self._value = value
                os.environ[OPTIONS] = value
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if self._inside == 0:
                    os.environ.pop(OPTIONS, None)
                self._changed.notify_all()


GATE = OptionsGate()


def open_writer(path: str, codec: str, rate_hz: float, height: int, width: int) -> cv2.VideoWriter:
    """OpenCV's writer for a file of `height` x `width` pixels, open or not; `codec` is its four letters."""
    quieten_opencv()
    require_utf_8(path, SinkError)
    return cv2.VideoWriter(os.path.abspath(path), cv2.VideoWriter.fourcc(*codec), rate_hz, (width, height))


def count_frames(path: str) -> int:
    """Frames that the header of the file at `path` promises, 0 when it cannot be opened."""
    capture = open_capture(path, CommonSettings(path))
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if capture.isOpened() else 0
    finally:
        capture.release()
