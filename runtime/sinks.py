"""Where predictions go: JSON lines, pictures of rejects, an annotated video, a function of yours.

A sink is a context manager, and opens its file or folder on entering. What cannot be written is a SinkError: a verdict
is never lost in silence.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Prediction
from nnet_edge.runtime.opencv_video import count_frames, open_writer
from nnet_edge.runtime.overlay import annotate

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

JPEG_QUALITY = 90
CODECS = {".mp4": ("vp09", "mp4v"), ".avi": ("MJPG",)}  # browsers play VP9; an OpenCV without it writes MPEG-4
NO_RATE_HZ = 10.0  # frames a second of a video whose source has no rate


class Sink(ABC):
    """Takes one prediction after the other; both methods raise SinkError when it cannot."""

    wants_maps = True  # of good frames too; False spares a GPU the copies, an anomalous frame has its map anyway

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    def write(self, prediction: Prediction) -> None:
        """Take one prediction."""


class CallbackSink(Sink):
    """Calls a function with each prediction; what it raises becomes a SinkError."""

    def __init__(self, callback: Callable[[Prediction], object]) -> None:
        self._callback = callback

    def write(self, prediction: Prediction) -> None:
        try:
            self._callback(prediction)
        except Exception as error:
            name = getattr(self._callback, "__name__", repr(self._callback))
            raise SinkError(f"the callback {name} failed at frame {prediction.frame.index}: {error!r}") from error


class JsonLinesSink(Sink):
    """Writes one JSON object a frame, each line whole and on its way at once; without a path to standard output.

    A file that exists is replaced. On a full disk the file ends with the last whole line.
    """

    wants_maps = False

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: RawIOBase | None = None

    def __enter__(self) -> Self:
        try:
            if self._path is None:
                self._file = open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
            else:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "wb", buffering=0)
        except OSError as error:
            raise self._fault(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, prediction: Prediction) -> None:
        if self._file is None:
            raise SinkError(f"{self._where()} is not open: use the sink in a `with` statement")
        line = json.dumps(to_fields(prediction), allow_nan=False, ensure_ascii=False).encode() + b"\n"
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._take_back(len(line) - len(rest))
            raise self._fault(error) from error

    def _take_back(self, written: int) -> None:
        """Cut off the part of a line that reached a file."""
        assert self._file is not None
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(self._file.tell() - written)

    def _where(self) -> str:
        return "standard output" if self._path is None else str(self._path)

    def _fault(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write verdicts to {self._where()}: {error.strerror or error}")


class RejectPicturesSink(Sink):
    """Writes an annotated JPEG for each anomalous frame into a folder, named by index and file; none half-written."""

    wants_maps = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / ".nnet-edge-probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise self._fault(error) from error
        return self

    def write(self, prediction: Prediction) -> None:
        if not prediction.is_anomalous:
            return
        frame = prediction.frame
        was_encoded, data = cv2.imencode(".jpg", annotate(prediction), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not was_encoded:
            raise SinkError(f"the picture of frame {frame.index} could not be encoded as JPEG")
        stem = f"{frame.index:06d}" + (f"_{Path(frame.name).stem}" if frame.name else "")
        part = self._folder / f".{stem}.part"
        try:
            part.write_bytes(data.tobytes())
            part.replace(self._folder / f"{stem}.jpg")
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._fault(error) from error

    def _fault(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write pictures of rejects to {self._folder}: {error.strerror or error}")


class VideoSink(Sink):
    """Writes an annotated video, .mp4 or .avi. It gets its name when it is whole, read back and counted.

    All frames get the size of the first; one of other proportions gets a dark border.
    """

    def __init__(self, path: Path, rate_hz: float | None = None) -> None:
        if path.suffix.lower() not in CODECS:
            raise ConfigError(f"{path} has no suffix of a video that can be written: use {', '.join(CODECS)}")
        if rate_hz is not None and not (np.isfinite(rate_hz) and rate_hz > 0):
            raise ConfigError(f"a video of {rate_hz} frames/s cannot be: give a rate above 0")
        self._path = path
        self._part = path.with_name(f".{path.stem}.part{path.suffix.lower()}")
        self._rate_hz = rate_hz or NO_RATE_HZ
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)  # height, width
        self._written = 0

    def __enter__(self) -> Self:
        self._written = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._part.write_bytes(b"")
        except OSError as error:
            raise SinkError(f"cannot write the video {self._path}: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.release()
                self._writer = None
                self._require_whole()
                self._part.replace(self._path)
        except OSError as fault:
            raise SinkError(f"cannot write the video {self._path}: {fault.strerror or fault}") from fault
        finally:
            self._part.unlink(missing_ok=True)

    def write(self, prediction: Prediction) -> None:
        picture = annotate(prediction)
        if self._writer is None:
            self._size = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2  # codecs want even sides
            self._writer = self._open()
        self._writer.write(fit(picture, *self._size))
        self._written += 1

    def _open(self) -> cv2.VideoWriter:
        codecs = CODECS[self._part.suffix]
        for codec in codecs:
            writer = open_writer(str(self._part), codec, self._rate_hz, *self._size)
            if writer.isOpened():
                log.info("%s is written as %s", self._path, codec)
                return writer
        raise SinkError(f"this OpenCV cannot write {self._path} ({' or '.join(codecs)}): try another suffix")

    def _require_whole(self) -> None:
        """OpenCV does not say when a write fails, so the frames are counted."""
        found = count_frames(str(self._part))
        if found < self._written:
            raise SinkError(
                f"the video {self._path} holds {found} of {self._written} frames: is the disk full? It was taken away"
            )


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """`picture` at `height` x `width`: as it is, but for a row or a column, or shrunk or enlarged on a dark ground."""
    if picture.shape[0] - height in (0, 1) and picture.shape[1] - width in (0, 1):
        return np.ascontiguousarray(picture[:height, :width])
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner_height = min(height, max(1, round(picture.shape[0] * scale)))
    inner_width = min(width, max(1, round(picture.shape[1] * scale)))
    ground = np.zeros((height, width, 3), np.uint8)
    ground[:inner_height, :inner_width] = cv2.resize(picture, (inner_width, inner_height))
    return ground


def to_fields(prediction: Prediction) -> dict[str, object]:
    """The prediction as JSON holds it; the map stays behind. `time` is the moment of capture, UTC."""
    frame = prediction.frame
    captured_ms = round(1e3 * (time.time() - (time.monotonic() - frame.captured_s)))
    return {
        "stream": frame.stream,
        "index": frame.index,
        "name": frame.name,
        "time": utc_text(captured_ms),
        "score": prediction.image_score,
        "relative_score": prediction.relative_score,
        "threshold": prediction.threshold,
        "verdict": "anomalous" if prediction.is_anomalous else "good",
        "regions": [asdict(region) for region in prediction.regions],
        "latencies_ms": {stage: round(latency_ms, 3) for stage, latency_ms in prediction.latencies_ms.items()},
    }


def utc_text(since_1970_ms: int) -> str:
    """A moment as ISO 8601 has it, UTC, to the millisecond."""
    seconds, rest_ms = divmod(since_1970_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_ms:03d}Z"
