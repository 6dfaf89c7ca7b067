"""Rejects as pictures: the frame as it came, the verdict drawn, the map; never more bytes than the budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.sinks.base import Message, MessageSink, RefusedError
from nnet_edge.runtime.sinks.budget import FolderBudget
from nnet_edge.runtime.sinks.overlay import SCALE_END, annotate
from nnet_edge.settings.runner import require_between, require_choice

if TYPE_CHECKING:
    from typing_extensions import Self

JPEG_QUALITY = 90
KINDS = ("original", "overlay", "map")
SUFFIX = {"original": ".original.png", "overlay": ".jpg", "map": ".map.png"}
SMALLEST_BUDGET_BYTES = 1 << 16


@dataclass(frozen=True)
class PictureSettings:
    """Which pictures of a reject are kept, and how many of them. Raises ConfigError for what cannot be meant."""

    kinds: tuple[str, ...] = ("overlay",)  # of KINDS
    budget_bytes: int | None = None  # of all pictures in the folder: the oldest rejects go first; None: no limit
    by_stream: bool = (
        False  # True: a folder for each stream and session; False: one stream alone, replaced at a restart
    )

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ConfigError(f"kinds of pictures are {self.kinds}: name each of {', '.join(KINDS)} once, at least one")
        for kind in self.kinds:
            require_choice("kind of picture", kind, KINDS)
        if self.budget_bytes is not None:
            require_between("bytes of pictures", self.budget_bytes, SMALLEST_BUDGET_BYTES, 1 << 50)


class RejectPicturesSink(MessageSink):
    """Writes pictures of each anomalous frame into a folder, named by index and file; none half-written.

    The overlay is an annotated JPEG, `000012.jpg`; the original is a lossless PNG, `000012.original.png`; the map is a
    grey PNG of 16 bits, `000012.map.png`, in which 65535 stands for twice the threshold and more.
    """

    name = "pictures"
    wants_maps = False

    def __init__(self, folder: Path, settings: PictureSettings | None = None) -> None:
        self._folder = folder
        self._settings = settings or PictureSettings()
        self._stream: str | None = None  # whose pictures lie in a folder that is not by stream
        self._budget = FolderBudget(folder, self._settings.budget_bytes, tuple(SUFFIX.values()))

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / ".nnet-edge-probe"
            probe.write_bytes(b"")
            probe.unlink()
            self._budget.scan()
        except OSError as error:
            raise self._fault(error) from error
        return self

    def wants(self, prediction: Prediction) -> bool:
        return prediction.is_anomalous

    def write(self, prediction: Prediction) -> None:
        if self.wants(prediction):
            super().write(prediction)

    def to_message(self, prediction: Prediction) -> Message:
        stem = self._stem(prediction.frame)
        return Message(
            prediction.frame.id,
            tuple((f"{stem}{SUFFIX[kind]}", encode(kind, prediction)) for kind in self._settings.kinds),
        )

    def send(self, messages: Sequence[Message]) -> int:
        (message,) = messages
        targets = [self._folder / name for name, _ in message.parts]
        try:
            if not self._budget.make_room(message.size_bytes, targets):
                raise RefusedError(
                    f"the pictures of {message.id} need {message.size_bytes} bytes, which is more than the budget of "
                    f"{self._settings.budget_bytes} for {self._folder}: give a larger one"
                )
            for target, (_, content) in zip(targets, message.parts, strict=True):
                write_whole(target, content)
                self._budget.add(target, len(content))
        except OSError as error:
            raise self._fault(error) from error
        return 1

    def _stem(self, frame: Frame) -> str:
        """The start of the file names, relative to the folder; only letters that every file system takes."""
        stem = f"{frame.index:06d}" + (f"_{Path(frame.name).stem}" if frame.name else "")
        if frame.crop is not None:
            stem += f"_{safe_name(frame.crop.name)}"
        if not self._settings.by_stream:
            self._stream = self._stream or frame.stream
            if frame.stream != self._stream:
                raise RefusedError(
                    f"the pictures of {self._stream} and {frame.stream} would have the same names in {self._folder}: "
                    "keep them by stream"
                )
            return stem
        return str(PurePosixPath(safe_name(frame.stream), safe_name(frame.session), stem))

    def _fault(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write pictures of rejects to {self._folder}: {error.strerror or error}")


def encode(kind: str, prediction: Prediction) -> bytes:
    """One of KINDS of the prediction as the bytes of a picture file. Raises SinkError."""
    if kind == "overlay":
        picture, suffix, options = annotate(prediction), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    elif kind == "original":
        picture, suffix, options = prediction.frame.image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
    else:
        picture, suffix, options = to_grey(prediction), ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
    was_encoded, data = cv2.imencode(suffix, picture, options)
    if not was_encoded:
        raise SinkError(f"the {kind} picture of frame {prediction.frame.index} could not be encoded as {suffix}")
    return data.tobytes()


def to_grey(prediction: Prediction) -> np.ndarray:
    """The anomaly map as uint16 (H, W): 0 stays 0, twice the threshold and more becomes 65535."""
    if prediction.anomaly_map is None:
        raise SinkError(f"frame {prediction.frame.index} has no map to keep: only anomalous frames always have one")
    share = np.clip(prediction.anomaly_map / (SCALE_END * prediction.threshold), 0, 1)
    return np.round(65535 * share).astype(np.uint16)


def safe_name(text: str) -> str:
    """`text` as the name of a file or folder: what is no letter, digit, `.`, `_` or `-` becomes `_`; never hidden."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".") or "_"


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
