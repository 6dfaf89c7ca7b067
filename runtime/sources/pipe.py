"""Frames from a named pipe: JPEGs one after the other, as `ffmpeg -f mjpeg` or a camera's own program writes them."""

from __future__ import annotations

import logging
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from nnet_edge.errors import DataError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.base import Source, SourceFacts, file_mode
from nnet_edge.runtime.sources.jpeg import END, LARGEST_PICTURE, NEEDS, START, whole_picture
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, SourceKind
from nnet_edge.text import printable

log = logging.getLogger(__name__)

LOOK_S = 0.1  # how often a wait looks whether it should end
READ_BYTES = 1 << 16  # what a pipe of Linux holds


class PipeSource(Source):
    """The pipe at `path`. Iterating waits for a writer, and raises SourceError when it is silent for `read_timeout_s`."""

    is_live = True

    def __init__(self, path: Path, stream: str, read_timeout_s: float) -> None:
        super().__init__(stream)
        self._path, self._read_timeout_s = path, read_timeout_s
        self._pipe: int | None = None

    def __enter__(self) -> PipeSource:
        try:
            self._pipe = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{self.describe()} cannot be opened: {error.strerror}") from error
        self.got = SourceFacts(pixel_format="MJPG")
        return self

    def __exit__(self, *error: object) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def __iter__(self) -> Iterator[Frame]:
        index, rest = 0, bytearray()
        while (data := self._read()) is not None:
            rest += data
            for picture in take_pictures(rest):
                try:
                    image = whole_picture(picture)
                except DataError as error:
                    self.skipped += 1
                    log.warning("%s gave a picture of %d bytes, passed over: %s", self.describe(), len(picture), error)
                    continue
                yield Frame(image, index, time.monotonic(), self.stream)
                index += 1
            if len(rest) > LARGEST_PICTURE or (len(rest) >= len(START) and not rest.startswith(START)):
                fault = "does not carry JPEGs, one after the other: write them with ffmpeg -f mjpeg"
                raise SourceError(f"{self.describe()} {fault}")
        if not self._interrupted.is_set():
            raise SourceError(f"{self.describe()} stopped after {index} frames: its writer has ended")

    def describe(self) -> str:
        return printable(f"pipe {self._path}")

    def _read(self) -> bytes | None:
        """What came, at least a byte; None when the writer has ended. Raises SourceError when it is silent."""
        if self._pipe is None:
            raise SourceError(f"{self.describe()} is not open: use it in a `with` statement")
        silent_s, start_s = 0.0, time.monotonic()
        while not self._interrupted.is_set() and silent_s <= self._read_timeout_s:
            ready, _, _ = select.select([self._pipe], [], [], LOOK_S)
            silent_s = time.monotonic() - start_s
            if ready:
                return os.read(self._pipe, READ_BYTES) or None
        if self._interrupted.is_set():
            return None
        raise SourceError(f"{self.describe()} has been silent for {silent_s:.1f} s")


def take_pictures(rest: bytearray) -> Iterator[bytes]:
    """Take the pictures out of `rest`, from its first byte on.

    A picture whose end marker is missing counts when another begins after it.
    """
    while rest.startswith(START):
        end, following = rest.find(END, len(START)), rest.find(START, len(START))
        if end < 0 and following < 0:
            return
        cut = following if end < 0 or 0 <= following < end else end + len(END)
        yield bytes(rest[:cut])
        del rest[:cut]


def open_pipe(settings: CommonSettings, options: None) -> PipeSource:
    path = Path(settings.address)
    return PipeSource(path, path.name, settings.read_timeout_s)


SOURCES.register(
    SourceKind(
        "pipe",
        "a pipe",
        lambda text: stat.S_ISFIFO(file_mode(text)),
        open_pipe,
        is_path=True,
        needs=NEEDS,
    )
)
