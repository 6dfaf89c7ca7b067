"""Rejects as pictures: the frame as it came, the verdict drawn, the map; never more bytes than the budget."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.files import new_draft, require_writable
from nnet_edge.frame import Frame, Prediction, new_session
from nnet_edge.runtime.sinks.base import Message, MessageSink, RefusedError, flag_defaults, translating
from nnet_edge.settings.registry import SINKS, Asked, Flag, SinkKind
from nnet_edge.settings.runner import require_between, require_choice
from nnet_edge.settings.sink import SinkSettings

if TYPE_CHECKING:  # what draws and encodes is imported when it does
    import numpy as np
log = logging.getLogger(__name__)

JPEG_QUALITY = 90
SUFFIX = {"original": ".original.png", "overlay": ".jpg", "map": ".map.png"}
KINDS = tuple(SUFFIX)
NO_NAME = re.compile(r'[\\/:*?"<>|]')  # what Windows' shares and cards refuse in a file's name
AnyPath = TypeVar("AnyPath", bound=PurePath)
SMALLEST_BUDGET_BYTES = 1 << 16
LONGEST_NAME = 255  # bytes of a file's name, where the file system does not say
DRAFT = re.compile(
    r"\.([0-9a-f]{16}|.+\.(jpg|png))\.part"
)  # a picture that a kill left half-written, of this version or 0.1


@dataclass(frozen=True, kw_only=True)
class RejectsSettings(SinkSettings):
    """Pictures of rejects in a folder, the oldest deleted first."""

    kind = "rejects"

    folder: Path  # for a folder of each run
    pictures: tuple[str, ...] = KINDS  # of each reject: the original, the overlay, the map
    budget_bytes: int | None = 10 * 2**30  # of all pictures in the folder; None: no limit
    by_stream: bool = (
        True  # a folder for each stream, and in it for each session; False: one stream, folders of sessions
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pictures or len(set(self.pictures)) < len(self.pictures):
            raise ConfigError(f"pictures are {self.pictures}: name each of {', '.join(KINDS)} once, at least one")
        for picture in self.pictures:
            require_choice("kind of picture", picture, KINDS)
        if self.budget_bytes is not None:
            require_between("bytes of pictures", self.budget_bytes, SMALLEST_BUDGET_BYTES, 1 << 50)


class RejectsSink(MessageSink):
    """Writes pictures of each anomalous frame into a folder of its session, named by index and file; each appears whole.

    A session is one start of a camera, `20261129T013058Z-3f9a1c`: no start replaces pictures of another. The overlay is an
    annotated JPEG, `000012.jpg`; the original is a lossless PNG, `000012.original.png`; the map is a grey PNG of 16 bits,
    `000012.map.png`, in which 65535 stands for twice the threshold and more.
    """

    name = "rejects"
    wants_maps = False
    wants_good = False

    def __init__(self, settings: RejectsSettings) -> None:
        self._settings = settings
        self._folder = settings.folder
        self._session = new_session()  # of frames that have none
        self._stream: str | None = None  # whose pictures lie in a folder that is not by stream
        self._budget = FolderBudget(settings.folder, settings.budget_bytes)
        self._cannot = f"cannot write pictures of rejects to {settings.folder}"

    @property
    def outputs(self) -> tuple[Path, ...]:
        return (self._folder,)

    def __enter__(self) -> RejectsSink:
        with translating(self._cannot):
            self._folder.mkdir(parents=True, exist_ok=True)
            require_writable(self._folder)
            self._budget.scan()
        return self

    def write(self, prediction: Prediction) -> None:
        if prediction.is_anomalous:
            super().write(prediction)

    def to_message(self, prediction: Prediction) -> Message:
        stem = self._stem(prediction.frame)
        parts = [(f"{stem}{SUFFIX[kind]}", encode(kind, prediction)) for kind in self._settings.pictures]
        return Message(prediction.frame.id, tuple(parts))

    def send(self, messages: Sequence[Message]) -> int:
        (message,) = messages
        with translating(self._cannot):
            self._look()
            longest = longest_name(self._folder)
            targets = [self._folder / fitting(name, longest) for name, _ in message.parts]
            if not self._budget.make_room(message.size_bytes, targets):
                raise RefusedError(
                    f"the pictures of {message.id} need {message.size_bytes} bytes, which is more than the budget of "
                    f"{self._settings.budget_bytes} for {self._folder}: give a larger one"
                )
            for target, (_, content) in zip(targets, message.parts, strict=True):
                write_atomically(target, content)
                self._budget.add(target, len(content))
        return 1

    def tick(self) -> None:
        with translating(self._cannot):
            self._look()

    def _look(self) -> None:
        """Begin the folder anew when somebody removed it."""
        if not self._folder.is_dir():
            log.warning("%s was removed: it is begun anew", self._folder)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._budget.scan()

    def _stem(self, frame: Frame) -> str:
        """The start of the file names, relative to the folder; only letters that every file system takes."""
        stem = f"{frame.index:06d}" + (f"_{NO_NAME.sub('_', Path(frame.name).stem)}" if frame.name else "")
        if frame.crop is not None:
            stem += f"_{safe_name(frame.crop.name)}"
        session = safe_name(frame.session or self._session)
        if not self._settings.by_stream:
            self._stream = self._stream or frame.stream
            if frame.stream != self._stream:
                raise RefusedError(
                    f"the pictures of {self._stream} and {frame.stream} would have the same names in {self._folder}: "
                    "keep them by_stream"
                )
            return str(PurePosixPath(session, stem))
        return str(PurePosixPath(safe_name(frame.stream), session, stem))


def encode(kind: str, prediction: Prediction) -> bytes:
    """One of KINDS of the prediction as the bytes of a picture file. Raises SinkError."""
    import cv2

    from nnet_edge.runtime.sinks.overlay import annotate

    suffix, options = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if kind == "overlay":
        picture, suffix, options = annotate(prediction), ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    else:
        picture = prediction.frame.image if kind == "original" else to_grey(prediction)
    was_encoded, data = cv2.imencode(suffix, picture, options)
    if not was_encoded:
        raise SinkError(f"the {kind} picture of frame {prediction.frame.index} could not be encoded as {suffix}")
    return data.tobytes()


def to_grey(prediction: Prediction) -> np.ndarray:
    """The anomaly map as uint16 (H, W): 0 stays 0, twice the threshold and more becomes 65535."""
    import numpy as np

    from nnet_edge.runtime.sinks.overlay import SCALE_END

    if prediction.anomaly_map is None:
        raise SinkError(f"frame {prediction.frame.index} has no map to keep: only anomalous frames always have one")
    share = np.clip(prediction.anomaly_map / (SCALE_END * prediction.threshold), 0, 1)
    return np.round(65535 * share).astype(np.uint16)


def safe_name(text: str) -> str:
    """`text` as the name of a file or folder: what is no letter, digit, `.`, `_` or `-` becomes `_`; never hidden."""
    return re.sub(r"[^\w.-]", "_", text).lstrip(".") or "_"


def longest_name(folder: Path) -> int:
    """Bytes that the name of a file in `folder` may have."""
    with contextlib.suppress(OSError):  # the folder is gone, and will be made again
        return os.pathconf(folder, "PC_NAME_MAX")
    return LONGEST_NAME


def fitting(name: str, longest: int) -> str:
    """The path `name`, the name of its file shortened so that it fits into `longest` bytes.

    What is shortened ends with a hash: two names never become one, and the pictures of one reject keep one stem.
    """
    path = PurePosixPath(name)
    stem = stem_of(path)
    room = longest - max(map(len, SUFFIX.values()))
    if stem is None or len(encoded := os.fsencode(stem.name)) <= room:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    short = encoded[: room - len(digest) - 1].decode(errors="ignore")
    return str(path.with_name(f"{short}-{digest}{path.name.removeprefix(stem.name)}"))


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`, atomically but without an fsync, which a picture is not worth. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file, part = new_draft(path.parent)
    try:
        with file:
            file.write(content)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


class FolderBudget:
    """Counts the pictures in `folder` and removes the oldest; files of one stem in one folder belong together.

    Other files are neither counted nor touched. Without a limit nothing is counted and nothing goes. Methods raise
    OSError.
    """

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._groups: OrderedDict[Path, dict[Path, int]] = OrderedDict()  # path without suffix -> file -> bytes
        self.used_bytes = 0

    def scan(self) -> None:
        """Count what lies in the folder and below, oldest first; the parts of pictures that a kill left are removed."""
        self._groups.clear()
        self.used_bytes = 0
        if self._limit_bytes is None:
            return
        found = []
        for path in self._folder.rglob("*"):
            if DRAFT.fullmatch(path.name) and not path.is_dir():
                path.unlink(missing_ok=True)
            elif stem_of(path) is not None and path.is_file():
                facts = path.stat()
                found.append((facts.st_mtime_ns, path, facts.st_size))
        for _, path, size_bytes in sorted(found):
            self.add(path, size_bytes)
        self.make_room(0, ())

    def make_room(self, size_bytes: int, replaced: Sequence[Path]) -> bool:
        """Remove the oldest groups until so many bytes more fit; False, with nothing removed, when they never can.

        `replaced` are the files that will hold these bytes: what they hold now goes.
        """
        if self._limit_bytes is None:
            return True
        if size_bytes > self._limit_bytes:
            return False
        for path in replaced:
            self.used_bytes -= self._groups.get(stem_of(path) or path, {}).pop(path, 0)
        while self.used_bytes + size_bytes > self._limit_bytes and self._groups:
            stem, files = next(iter(self._groups.items()))
            for path in list(files):
                path.unlink(missing_ok=True)  # a file that a person removed is no fault
                self.used_bytes -= files.pop(path)
            del self._groups[stem]
            if stem.parent != self._folder:
                with contextlib.suppress(OSError):  # it holds something else
                    stem.parent.rmdir()
        return True

    def add(self, path: Path, size_bytes: int) -> None:
        """Count a file that was just written; its group is now the newest."""
        if self._limit_bytes is None:
            return
        stem = stem_of(path)
        assert stem is not None, f"{path} is no file of this budget"
        files = self._groups.setdefault(stem, {})
        self.used_bytes += size_bytes - files.get(path, 0)
        files[path] = size_bytes
        self._groups.move_to_end(stem)


def stem_of(path: AnyPath) -> AnyPath | None:
    """The path without the suffix of its kind; None for what is no picture of this sink."""
    suffix = next((suffix for suffix in SUFFIX.values() if path.name.endswith(suffix)), None)
    return None if suffix is None else path.with_name(path.name.removesuffix(suffix))


def table_of(folder: Path, asked: Asked) -> dict[str, Any]:
    """What --rejects asks for: every overlay, in a folder of this run."""
    by_stream = asked.streams > 1 or asked.must_deliver
    table = {"folder": str(folder), "pictures": ["overlay"], "budget_bytes": None, "by_stream": by_stream}
    return table | flag_defaults(asked)


FLAG = Flag("--rejects", "A picture of every reject, into a folder of this run below.", table_of, "folder")
SINKS.register(SinkKind("rejects", RejectsSettings, RejectsSink, FLAG, needs={"cv2": ""}))
