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
from nnet_edge.jpeg import NEEDS
from nnet_edge.runtime.sources.base import file_mode
from nnet_edge.runtime.sources.decoding import DecodeOptions
from nnet_edge.runtime.sources.jpegs import JpegCutter, JpegSource
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, SourceKind
from nnet_edge.text import printable

log = logging.getLogger(__name__)

LOOK_S = 0.1  # how often a wait looks whether it should end
READ_BYTES = 1 << 16  # what a pipe of Linux holds


class PipeSource(JpegSource):
    """The pipe at `path`. Iterating waits for a writer, and raises SourceError when it is silent for `read_timeout_s`."""

    stray_bytes = 0  # between its pictures, as some programs pad

    def __init__(self, path: Path, stream: str, read_timeout_s: float, gpu: int | None = None) -> None:
        super().__init__(stream, gpu)
        self._path, self._read_timeout_s = path, read_timeout_s
        self._pipe: int | None = None

    def __enter__(self) -> PipeSource:
        try:
            self._pipe = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{self.describe()} cannot be opened: {error.strerror}") from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def __iter__(self) -> Iterator[Frame]:
        cutter = JpegCutter()
        try:
            while (data := self._read()) is not None:
                yield from self.frames_of(cutter.feed(data))
                self._tell_between(cutter.between)
            yield from self.frames_of(filter(None, [cutter.rest()]))
        except DataError as error:
            fault = f"does not carry JPEGs, one after the other ({error}): write them with ffmpeg -f mjpeg"
            raise SourceError(f"{self.describe()} {fault}") from error
        if not self._interrupted.is_set():
            stray = f", {self.stray_bytes} bytes between pictures" if self.stray_bytes else ""
            raise SourceError(f"{self.so_far}{stray}: its writer has ended")

    def _tell_between(self, between: int) -> None:
        """Count the bytes between pictures, and say once that there are some."""
        if between and not self.stray_bytes:
            log.warning("%s carries bytes between its pictures: they are passed over and counted", self.describe())
        self.stray_bytes = between

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


def open_pipe(settings: CommonSettings, options: DecodeOptions) -> PipeSource:
    path = Path(settings.address)
    return PipeSource(path, path.name, settings.read_timeout_s, options.gpu)


def is_pipe(address: str) -> bool:
    return stat.S_ISFIFO(file_mode(address))


SOURCES.register(SourceKind("pipe", "a pipe", is_pipe, open_pipe, DecodeOptions, is_path=True, needs=NEEDS))
