"""Annotated videos: every frame with its verdict, each file whole or not there; one file, or pieces for weeks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks.base import Sink
from nnet_edge.runtime.sinks.overlay import annotate
from nnet_edge.runtime.sinks.pictures import safe_name
from nnet_edge.runtime.sinks.rotation import next_turned
from nnet_edge.runtime.sinks.video_file import CODECS, VideoFile
from nnet_edge.settings.runner import require_between, require_seconds

if TYPE_CHECKING:
    from typing_extensions import Self

NO_RATE_HZ = 10.0  # frames a second of a video whose source has no rate
SMALLEST_BYTES = 1 << 16


@dataclass(frozen=True)
class VideoSettings:
    """How a video that goes on for weeks becomes files. Raises ConfigError for what cannot be meant."""

    piece_s: float | None = None  # an older file is closed, and a new one begun; None: never
    piece_bytes: int | None = None  # a larger one too
    budget_bytes: int | None = None  # of all pieces: the oldest go first; None: no limit
    by_stream: bool = False  # True: numbered pieces of each stream; False: one stream alone
    stream: str | None = None  # only this one is shown; None: all

    def __post_init__(self) -> None:
        if self.piece_s is not None:
            require_seconds("seconds of a piece of a video", self.piece_s, above=0.0)
        if self.piece_bytes is not None:
            require_between("bytes of a piece of a video", self.piece_bytes, SMALLEST_BYTES, 1 << 50)
        if self.budget_bytes is not None:
            require_between("bytes of all pieces of a video", self.budget_bytes, self.piece_bytes or 1, 1 << 50)


class VideoSink(Sink):
    """Writes annotated videos, .mp4 or .avi. A file gets its name when it is whole, read back and counted.

    One stream becomes the file `path`; cut into pieces it is `line.000001.mp4` and so on, and of several streams
    `line.left.000001.mp4`. The numbers go on after a restart; what a kill leaves is one piece that is not whole, and goes.
    """

    name = "video"

    def __init__(self, path: Path, rate_hz: float | None = None, settings: VideoSettings | None = None) -> None:
        if path.suffix.lower() not in CODECS:
            raise ConfigError(f"{path} has no suffix of a video that can be written: use {', '.join(CODECS)}")
        if rate_hz is not None and not (np.isfinite(rate_hz) and rate_hz > 0):
            raise ConfigError(f"a video of {rate_hz} frames/s cannot be: give a rate above 0")
        self._path = path
        self._rate_hz = rate_hz or NO_RATE_HZ
        self._settings = settings or VideoSettings()
        self._files: dict[str, VideoFile] = {}  # stream -> what is being written of it
        self._is_cut = self._settings.by_stream  # whether files have numbers
        self._stream: str | None = None  # of a video that is not by stream

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for part in self._path.parent.glob(f".{escape(self._path.stem)}.*part{self._path.suffix.lower()}"):
                part.unlink(missing_ok=True)  # a kill left it
            probe = self._part(self._path.stem)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise self._fault(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faults = []
        for stream in list(self._files):
            try:
                self._close(stream)
            except SinkError as fault:
                faults.append(fault)
        if faults:
            raise faults[0]

    def wants(self, prediction: Prediction) -> bool:
        return self._settings.stream in (None, prediction.frame.stream)

    def write(self, prediction: Prediction) -> None:
        if not self.wants(prediction):
            return
        self.tick()
        stream, picture = prediction.frame.stream, annotate(prediction)
        if stream not in self._files:
            self._files[stream] = self._begin(stream, picture)
        self._files[stream].write(picture)

    def tick(self) -> None:
        """Close the pieces that are old or large enough, also those of a stream that gives no frames any more."""
        for stream in [stream for stream, file in self._files.items() if self._is_full(file)]:
            self._is_cut = True
            self._close(stream)

    def _begin(self, stream: str, picture: np.ndarray) -> VideoFile:
        if not self._settings.by_stream:
            self._stream = self._stream or stream
            if stream != self._stream:
                raise SinkError(f"the video {self._path} shows {self._stream}, not {stream}: keep videos by stream")
        return VideoFile(self._part(self._stem(stream)), self._rate_hz, picture)

    def _is_full(self, file: VideoFile) -> bool:
        piece_s, piece_bytes = self._settings.piece_s, self._settings.piece_bytes
        try:
            is_large = piece_bytes is not None and file.size_bytes >= piece_bytes
        except OSError as error:
            raise self._fault(error) from error
        return is_large or (piece_s is not None and file.age_s >= piece_s)

    def _close(self, stream: str) -> None:
        """Finish the file of the stream; room is made for it in the budget."""
        target = self._path.with_name(f"{self._stem(stream)}{self._path.suffix}")
        try:
            target = next_turned(target) if self._is_cut else target
            self._files.pop(stream).close(target)
            self._keep_to_budget(target)
        except OSError as error:
            raise self._fault(error) from error

    def _keep_to_budget(self, newest: Path) -> None:
        """Take the oldest pieces away, whatever stream they show, until the rest is small enough."""
        if self._settings.budget_bytes is None:
            return
        piece = re.compile(re.escape(self._path.stem) + r"\.(?:.+\.)?\d{6,}" + re.escape(self._path.suffix))
        found = [(path.stat(), path) for path in self._path.parent.iterdir() if piece.fullmatch(path.name)]
        found.sort(key=lambda entry: (entry[0].st_mtime_ns, entry[1].name))
        used_bytes = sum(facts.st_size for facts, _ in found)
        for facts, path in found:
            if used_bytes <= self._settings.budget_bytes or path == newest:
                return
            path.unlink(missing_ok=True)
            used_bytes -= facts.st_size

    def _stem(self, stream: str) -> str:
        return f"{self._path.stem}.{safe_name(stream)}" if self._settings.by_stream else self._path.stem

    def _part(self, stem: str) -> Path:
        return self._path.with_name(f".{stem}.part{self._path.suffix.lower()}")

    def _fault(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write the video {self._path}: {error.strerror or error}")
