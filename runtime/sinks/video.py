"""Annotated videos: every frame with its verdict, each file atomic; one file, or pieces for weeks."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.files import new_draft, require_writable
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.sinks.base import Sink, flag_defaults, translating
from nnet_edge.runtime.sinks.rejects import safe_name
from nnet_edge.runtime.sinks.rotation import next_rotated
from nnet_edge.settings.registry import SINKS, Asked, Flag, SinkKind
from nnet_edge.settings.runner import require_between, require_seconds
from nnet_edge.settings.sink import SinkSettings

if TYPE_CHECKING:  # what draws and encodes is imported when it does
    import cv2
    import numpy as np

log = logging.getLogger(__name__)

CODECS = {".mp4": ("mp4v", "avc1"), ".avi": ("MJPG", "mp4v")}  # VP9 takes 1.3 s of a core a full-HD frame
UNKNOWN_RATE_HZ = 10.0  # frames a second of pictures that have neither a rate nor times
LOWEST_HZ, HIGHEST_HZ = 1.0, 60.0  # of a rate that was measured
MEASURED_FRAMES, MEASURED_S = 8, 2.0  # how many frames, or from which span on, a rate is measured
OFF_BEAT = 1.5  # frames by which a picture may stand beside its time; beyond it one is left out, or shown again
LONGEST_HOLD_S = 60.0  # that a picture is shown where nothing comes; a longer pause is cut to it
SMALLEST_PIECE_BYTES = 1 << 16
PIECE_S = 600.0  # what a kill or a power cut costs at most
PIECE_BYTES = 1 << 30
MOST_NAMED = 4  # files that are named at the end


@dataclass(frozen=True, kw_only=True)
class VideoSettings(SinkSettings):
    """Annotated videos, cut into numbered pieces, the oldest deleted first."""

    kind = "video"

    path: Path  # with line.mp4 the pieces are line.STREAM.000001.mp4 and so on
    rate_hz: float | None = None  # None: that of the stream, known or measured
    stream: str | None = None  # only this one; None: all
    piece_s: float | None = PIECE_S  # an older file is closed, and a new one begun; None: never
    piece_bytes: int | None = PIECE_BYTES  # a larger one too
    budget_bytes: int | None = 10 * 2**30  # of all pieces; None: no limit
    by_stream: bool = True  # numbered pieces of each stream; False: one stream alone

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.must_deliver is not None:
            raise ConfigError("a video cannot be made to deliver later: leave must_deliver out")
        if self.path.suffix.lower() not in CODECS:
            raise ConfigError(f"{self.path} has no suffix of a video that can be written: use {', '.join(CODECS)}")
        if self.rate_hz is not None and not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise ConfigError(f"the rate {self.rate_hz} frames/s of a video is invalid: give one above 0")
        if self.piece_s is not None:
            require_seconds("seconds of a piece of a video", self.piece_s, above=0.0)
        if self.piece_bytes is not None:
            require_between("bytes of a piece of a video", self.piece_bytes, SMALLEST_PIECE_BYTES, 1 << 50)
        if self.budget_bytes is not None:
            require_between("bytes of all pieces of a video", self.budget_bytes, self.piece_bytes or 1, 1 << 50)

    @property
    def shown_stream(self) -> str | None:
        return self.stream


class VideoSink(Sink):
    """Writes annotated videos, .mp4 or .avi. A file gets its name when it is complete, read back and counted.

    One stream becomes the file `path`, or, where that exists, `line.000001.mp4` and so on; cut into pieces it has numbers in
    any case, and of several streams `line.left.000001.mp4`. The numbers go on after a restart; what a kill leaves is one
    incomplete piece, which is removed.

    A video has one rate, and is as long as what it shows: by the times of the frames (in their file, or of capture) one is
    shown again, or left out. Pictures of a folder and crops have no times, and are shown once each.
    """

    name = "video"

    def __init__(self, settings: VideoSettings) -> None:
        self._settings, self.only_stream = settings, settings.stream
        self._path = settings.path
        self._cannot = f"cannot write the video {settings.path}"
        self._rates_hz: dict[str, float] = {}  # stream -> frames a second, where its source has a rate
        self._live: set[str] = set()  # streams whose moment of capture is their time
        self._files: dict[str, VideoFile] = {}  # stream -> what is being written of it
        self._is_cut = settings.by_stream  # whether files have numbers
        self._stream: str | None = None  # of a video that is not by stream
        self._finished: list[Path] = []

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files that it finished; a pattern of many."""
        many = self._path.with_name(f"{self._path.stem}.*{self._path.suffix}")
        return tuple(self._finished) if len(self._finished) <= MOST_NAMED else (many,)

    @property
    def unfinished(self) -> int:  # type: ignore[override]  # a number of every other sink
        return sum(file.taken for file in list(self._files.values()))

    def expect(self, stream: str, rate_hz: float | None, is_live: bool = False) -> None:
        if rate_hz:
            self._rates_hz[stream] = rate_hz
        if is_live:
            self._live.add(stream)

    def __enter__(self) -> VideoSink:
        with translating(self._cannot):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            for part in self._path.parent.glob(f".{escape(self._path.stem)}.*part{self._path.suffix.lower()}"):
                part.unlink(missing_ok=True)  # a kill left it
            require_writable(self._path.parent)
        return self

    def __exit__(self, *about: object) -> None:
        faults = []
        for stream in list(self._files):
            try:
                self._close(stream)
            except SinkError as fault:
                faults.append(fault)
        if faults:
            raise faults[0]

    def write(self, prediction: Prediction) -> None:
        from nnet_edge.runtime.sinks.overlay import annotate

        if self.only_stream not in (None, prediction.frame.stream):
            return
        self.tick()
        stream, picture = prediction.frame.stream, annotate(prediction)
        if stream not in self._files:
            self._files[stream] = self._begin(stream)
        self._files[stream].write(picture, self._time_s(prediction.frame))

    def _time_s(self, frame: Frame) -> float | None:
        """The frame's moment in its video; None: where it has none."""
        if frame.crop is not None:
            return None
        return frame.captured_s if frame.in_file_s is None and frame.stream in self._live else frame.in_file_s

    def tick(self) -> None:
        """Close the pieces that are old or large enough, also those of a stream that gives no frames any more.

        Raises SinkError for one that somebody removed: the next frame begins another.
        """
        for stream, file in list(self._files.items()):
            if not file.part.exists():
                self.lost += file.taken
                del self._files[stream]
                raise SinkError(f"{file.part} was removed while it was written: its {file.taken} frames are lost")
        for stream in [stream for stream, file in self._files.items() if self._is_full(file)]:
            self._is_cut = True
            self._close(stream)

    def _begin(self, stream: str) -> VideoFile:
        if not self._settings.by_stream:
            self._stream = self._stream or stream
            if stream != self._stream:
                raise SinkError(f"the video {self._path} shows {self._stream}, not {stream}: keep videos by_stream")
        rate_hz = self._settings.rate_hz or self._rates_hz.get(stream)
        with translating(self._cannot):
            file, part = new_draft(self._path.parent, f".part{self._path.suffix.lower()}", f"{self._stem(stream)}.")
            file.close()  # OpenCV opens it again
        return VideoFile(part, rate_hz)

    def _is_full(self, file: VideoFile) -> bool:
        piece_s, piece_bytes = self._settings.piece_s, self._settings.piece_bytes
        with translating(self._cannot):  # the newest pictures may be missing on the disk
            is_large = piece_bytes is not None and file.part.stat().st_size >= piece_bytes
        return is_large or (piece_s is not None and time.monotonic() - file.began_s >= piece_s)

    def _close(self, stream: str) -> None:
        """Finish the file of the stream; room is made for it in the budget."""
        target = self._path.with_name(f"{self._stem(stream)}{self._path.suffix}")
        with translating(self._cannot):
            target = next_rotated(target) if self._is_cut or target.exists() else target
            file = self._files.pop(stream)
            try:
                file.close(target)
            except (SinkError, OSError):
                self.lost += file.taken
                raise
            self._finished.append(target)
            self._keep_to_budget(target)

    def _keep_to_budget(self, newest: Path) -> None:
        """Remove the oldest pieces, whatever stream they show, until the rest is small enough."""
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


class VideoFile:
    """Pictures on their way into `part`. All get the size of the first; one of other proportions gets a dark border.

    Without a rate the first pictures wait until it is measured.
    """

    def __init__(self, part: Path, rate_hz: float | None) -> None:
        self.part, self._rate_hz = part, rate_hz
        self._size = 0, 0  # height, width
        self.taken = self.written = 0  # pictures that it was given, and those in the file
        self.began_s = time.monotonic()
        self._writer: cv2.VideoWriter | None = None
        self._waiting: list[tuple[np.ndarray, float | None]] = []  # with their times
        self._last: tuple[np.ndarray, float] | None = None  # what is shown again, and its time
        self._start_s = 0.0  # the time of the file's first picture

    def write(self, picture: np.ndarray, time_s: float | None) -> None:
        """Add a picture, uint8 BGR (H, W, 3), of that moment; None: it follows on the last one."""
        if self._writer is not None:
            self._show(picture, time_s)
        else:
            self._waiting.append((picture, time_s))
            if self._rate_hz or time_s is None or self._is_measured():
                self._open()
        self.taken += 1

    def _is_measured(self) -> bool:
        times_s = [time_s for _, time_s in self._waiting if time_s is not None]
        return len(times_s) >= MEASURED_FRAMES or (len(times_s) > 2 and times_s[-1] - times_s[0] >= MEASURED_S)

    def _show(self, picture: np.ndarray, time_s: float | None) -> None:
        """Write the picture in its time: the one before it is shown until then, and what comes too fast is left out."""
        assert self._writer is not None
        assert self._rate_hz is not None
        picture = fit(picture, *self._size)
        if time_s is not None:
            before, before_s = self._last or (picture, time_s)
            self._last = picture, time_s
            pause_s = time_s - before_s
            if (
                self.written == 0 or pause_s < 0
            ):  # the first, or of a clock that was set back: it follows on the last one
                self._start_s = time_s - self.written / self._rate_hz
            elif pause_s > LONGEST_HOLD_S:
                log.warning("%s: nothing came for %.0f s, which it shows as %.0f s", self.part, pause_s, LONGEST_HOLD_S)
                self._start_s += pause_s - LONGEST_HOLD_S
            place = (time_s - self._start_s) * self._rate_hz
            if self.written - place > OFF_BEAT:
                return
            if place - self.written > OFF_BEAT:
                for _ in range(round(place) - self.written):
                    self._put(before)
        self._put(picture)

    def _put(self, picture: np.ndarray) -> None:
        assert self._writer is not None
        self._writer.write(picture)
        self.written += 1

    def close(self, target: Path) -> None:
        """Read it back and give it its name. Raises SinkError when frames are missing, OSError.

        OpenCV does not say when a write fails, so the frames are counted.
        """
        from nnet_edge.runtime.opencv_video import count_frames

        try:
            if self._writer is None:
                self._open()
            assert self._writer is not None
            self._writer.release()
            found = count_frames(str(self.part))
            if found < self.written:
                lack = f"{found} of {self.written} frames"
                raise SinkError(f"the video {target} holds {lack}: is the disk full? It was removed")
            self.part.replace(target)
        finally:
            self.part.unlink(missing_ok=True)

    def _open(self) -> None:
        """Begin the file with the pictures that wait."""
        from nnet_edge.runtime.opencv_video import open_writer

        self._rate_hz = self._rate_hz or measured_hz([time_s for _, time_s in self._waiting])
        height, width = self._waiting[0][0].shape[:2]
        self._size = height // 2 * 2, width // 2 * 2  # codecs want even sides
        codecs = CODECS[self.part.suffix]
        for codec in codecs:
            writer = open_writer(str(self.part), codec, self._rate_hz, *self._size)
            if writer.isOpened():
                log.info("%s is written as %s, %g frames/s", self.part, codec, self._rate_hz)
                self._writer = writer
                break
        else:
            self.part.unlink(missing_ok=True)
            raise SinkError(f"this OpenCV cannot write {self.part} ({' or '.join(codecs)}): try another suffix")
        for picture, time_s in self._waiting:
            self._show(picture, time_s)
        self._waiting.clear()


def measured_hz(times_s: Sequence[float | None]) -> float:
    """The usual rate of frames of these times, whole frames a second; UNKNOWN_RATE_HZ where they have none."""
    known_s = [time_s for time_s in times_s if time_s is not None]
    gaps_s = [after - before for before, after in pairwise(known_s) if after > before]
    if not gaps_s:
        return UNKNOWN_RATE_HZ
    from statistics import median

    return min(HIGHEST_HZ, max(LOWEST_HZ, float(round(1 / median(gaps_s)))))


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """`picture` at `height` x `width`: as it is, but for a row or a column, or shrunk or enlarged on a dark ground."""
    import cv2
    import numpy as np

    if picture.shape[0] - height in (0, 1) and picture.shape[1] - width in (0, 1):
        return np.ascontiguousarray(picture[:height, :width])
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner_height = min(height, max(1, round(picture.shape[0] * scale)))
    inner_width = min(width, max(1, round(picture.shape[1] * scale)))
    ground = np.zeros((height, width, 3), np.uint8)
    ground[:inner_height, :inner_width] = cv2.resize(picture, (inner_width, inner_height))
    return ground


def table_of(path: Path, asked: Asked) -> dict[str, Any]:
    """What --video asks for: one file of a file, and of a live source pieces, so that a kill costs one of them."""
    piece_s, piece_bytes = (PIECE_S, PIECE_BYTES) if asked.is_live else (None, None)
    table = {"path": str(path), "piece_s": piece_s, "piece_bytes": piece_bytes, "budget_bytes": None}
    return table | {"by_stream": asked.streams > 1} | flag_defaults(asked)


FLAG = Flag("--video", "Annotated video (.mp4 or .avi); of a live source in numbered pieces of 10 minutes.", table_of)
SINKS.register(SinkKind("video", VideoSettings, VideoSink, FLAG, needs={"cv2": ""}))
