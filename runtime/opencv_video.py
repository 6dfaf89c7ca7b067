"""How this program opens OpenCV's video readers and writers: quietly, with bounded waiting."""

from __future__ import annotations

import os

import cv2

OPEN_TIMEOUT_MS = 10_000  # a camera that has to wake up on a slow network
READ_TIMEOUT_MS = 5_000  # a live stream that is silent for so long is dead


def quieten_opencv() -> None:
    """Keep OpenCV and FFmpeg from writing to the terminal: this program says what is wrong, in one line.

    Who sets OPENCV_LOG_LEVEL or OPENCV_FFMPEG_LOGLEVEL wants to see them and does.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def open_capture(address: str | int) -> cv2.VideoCapture:
    """OpenCV's reader for a file, an address or a camera's number, open or not."""
    quieten_opencv()
    if isinstance(address, int):
        return cv2.VideoCapture(address)
    if cv2.CAP_FFMPEG not in cv2.videoio_registry.getStreamBackends():  # some boards' own OpenCV has GStreamer instead
        return cv2.VideoCapture(address)
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, timeouts)


def open_writer(path: str, codec: str, rate_hz: float, height: int, width: int) -> cv2.VideoWriter:
    """OpenCV's writer for a file of `height` x `width` pixels, open or not; `codec` is its four letters."""
    quieten_opencv()
    return cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*codec), rate_hz, (width, height))


def count_frames(path: str) -> int:
    """Frames that the file at `path` promises, 0 when it cannot be opened."""
    capture = open_capture(path)
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if capture.isOpened() else 0
    finally:
        capture.release()
