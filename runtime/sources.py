"""Where frames come from: image folders, video files, cameras, network streams, pictures made in memory.

A source is a context manager and iterable once. It never makes a frame up: what cannot be read is a SourceError, or,
for files of a folder and only when the user says so, counted in `skipped`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import cv2
import numpy as np

from nnet_edge.errors import DataError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.imaging import IMAGE_SUFFIXES, read_image
from nnet_edge.runtime.opencv_video import open_capture
from nnet_edge.runtime.picture_line import moving_line
from nnet_edge.runtime.source import Source

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv")
URL_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp")
SYNTHETIC_HZ = 25.0
PROMISE_KEPT = 0.9  # some containers only estimate their number of frames; a file that gives less is cut off


class ImageFileSource(Source):
    """Image files, read exactly as in training; one frame a file."""

    def __init__(self, paths: Sequence[Path], what: str, stream: str, skip_bad: bool = False) -> None:
        super().__init__(stream)
        self._paths = paths
        self._what = what
        self._skip_bad = skip_bad

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            try:
                image = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR)
            except DataError as error:
                if not self._skip_bad:
                    raise SourceError(f"{error}; or pass over such files with --skip-bad-images") from error
                self.skipped += 1
                log.warning("skipped: %s", error)
                continue
            yield Frame(image, index, time.monotonic(), self.stream, path.name)

    def describe(self) -> str:
        return f"{self._what}, {len(self._paths)} images"


class VideoSource(Source):
    """A video file, a camera or a network stream, as OpenCV decodes it."""

    def __init__(self, address: str | int, what: str, stream: str, is_live: bool) -> None:
        super().__init__(stream)
        self._address = address
        self._what = what
        self.is_live = is_live
        self._capture: cv2.VideoCapture | None = None
        if not is_live:
            with self:  # a file that cannot be read is told at once, and so is its rate
                self.rate_hz = self._fact(cv2.CAP_PROP_FPS)

    def __enter__(self) -> Self:
        self._capture = open_capture(self._address)
        if not self._capture.isOpened():
            self._capture.release()
            self._capture = None
            raise SourceError(f"{self._what} cannot be opened: {self._advice()}")
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
        index = 0
        while not self._interrupted.is_set():
            was_read, image = self._capture.read()
            captured_s = time.monotonic()
            if not was_read or image is None:
                break
            yield Frame(image, index, captured_s, self.stream)
            index += 1
        if not self._interrupted.is_set():
            self._require_whole(index)

    def describe(self) -> str:
        return self._what

    def _require_whole(self, frames: int) -> None:
        if self.is_live:
            raise SourceError(f"{self._what} stopped after {frames} frames: is it switched on and connected?")
        promised = self._fact(cv2.CAP_PROP_FRAME_COUNT)
        if frames == 0 or (promised is not None and frames < PROMISE_KEPT * promised):
            of = f" of {promised:.0f}" if promised else ""
            raise SourceError(f"{self._what} ended after {frames}{of} frames: the file is cut off or damaged")

    def _fact(self, fact: int) -> float | None:
        """A property of the opened capture; None where OpenCV does not know it."""
        assert self._capture is not None
        value = self._capture.get(fact)
        return float(value) if np.isfinite(value) and value > 0 else None

    def _advice(self) -> str:
        if isinstance(self._address, int):
            return "no such camera, or another program uses it, or you may not; `nnet-edge doctor` lists what there is"
        return (
            "is it switched on, reachable, and the address right?"
            if self.is_live
            else "it is no video that OpenCV reads"
        )


class SyntheticSource(Source):
    """Pictures made in memory as a camera would give them.

    `images` are uint8 BGR (H, W, 3). With `rate_hz` they come at that rate and the source is live; without it they come
    as fast as they are taken, and none is lost.
    """

    def __init__(self, images: Iterable[np.ndarray], rate_hz: float | None = None, stream: str = "synthetic") -> None:
        super().__init__(stream)
        if rate_hz is not None and not (np.isfinite(rate_hz) and rate_hz > 0):
            raise SourceError(f"a synthetic camera of {rate_hz} frames/s cannot be: give a rate above 0")
        self._images = images
        self.rate_hz = rate_hz
        self.is_live = rate_hz is not None

    def __iter__(self) -> Iterator[Frame]:
        start_s = time.monotonic()
        for index, image in enumerate(self._images):
            if self.rate_hz is not None:
                self._interrupted.wait(max(0.0, start_s + index / self.rate_hz - time.monotonic()))
            if self._interrupted.is_set():
                return
            yield Frame(image, index, time.monotonic(), self.stream)

    def describe(self) -> str:
        return "synthetic camera" if self.rate_hz is None else f"synthetic camera, {self.rate_hz:g} frames/s"


def open_source(text: str, skip_bad: bool = False, seed: int = 0) -> Source:
    """The source that `text` names: a folder of images, an image, a video file, a camera's number, an address, or
    "synthetic" (drawn parts without end, 25 a second; "synthetic:100" for 100 of them as fast as they are taken).

    Raises SourceError for what is unknown, absent, empty or no video.
    """
    if text == "synthetic" or text.startswith("synthetic:"):
        return synthetic_source(text, seed)
    if text.isdecimal():
        return VideoSource(int(text), f"camera {text}", f"camera-{text}", is_live=True)
    if (scheme := address_scheme(text)) is not None:
        if scheme not in URL_SCHEMES:
            raise SourceError(f"{redact(text)} has the unknown scheme {scheme}: use one of {', '.join(URL_SCHEMES)}")
        is_file = scheme in ("http", "https") and Path(urlsplit(text).path).suffix.lower() in VIDEO_SUFFIXES
        return VideoSource(text, redact(text), redact(text), is_live=not is_file)
    path = Path(text)
    if path.is_dir():
        return folder_source(path, skip_bad)
    if not path.exists():
        raise SourceError(
            f"there is no source {text!r}: give an image folder, an image or video file, a camera's number, "
            "an rtsp:// or http:// address, or synthetic"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFileSource([path], f"image {path}", path.stem, skip_bad)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoSource(str(path), f"video {path}", path.stem, is_live=False)
    raise SourceError(
        f"{path} is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video ({', '.join(VIDEO_SUFFIXES)})"
    )


def folder_source(folder: Path, skip_bad: bool = False) -> ImageFileSource:
    """The images directly in `folder`, in the natural order of their names (2 before 10). Raises SourceError."""
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    except OSError as error:
        raise SourceError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if not paths:
        raise SourceError(f"the folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): name the one that does")
    return ImageFileSource(
        sorted(paths, key=natural_order), f"folder {folder}", folder.resolve().name or "folder", skip_bad
    )


def synthetic_source(text: str, seed: int) -> SyntheticSource:
    """The source of "synthetic" or "synthetic:N". Raises SourceError for an N that is no number above 0."""
    if text == "synthetic":
        return SyntheticSource(moving_line(seed), SYNTHETIC_HZ)
    number = text.removeprefix("synthetic:")
    if not number.isdecimal() or int(number) == 0:
        raise SourceError(f"{text!r} names no number of pictures: write synthetic or, for 100 of them, synthetic:100")
    return SyntheticSource(islice(moving_line(seed), int(number)))


def address_scheme(text: str) -> str | None:
    """The scheme of a network address in lower case, None for a text that is no address."""
    return text.split("://", 1)[0].lower() if "://" in text else None


def redact(address: str) -> str:
    """`address` without user, password and query, which may hold a key."""
    parts = urlsplit(address)
    secret = "***@" if "@" in parts.netloc else ""
    query = "?***" if parts.query else ""
    return f"{parts.scheme}://{secret}{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts the numbers in a name by value: frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
