"""The base of every source: a context manager, iterable once, that gives frames and never makes one up."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.frame import Frame

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class SourceFacts:
    """Size, rate and pixel format, as asked for or as got; None: not asked for, or not known."""

    height: int | None = None
    width: int | None = None
    rate_hz: float | None = None
    pixel_format: str | None = None  # four letters, or GenICam's name
    settings: Mapping[str, object] = field(default_factory=dict)  # the camera's other settings by our keys
    automatic: tuple[str, ...] | None = None  # what the camera changes by itself, "exposure" for one; None: not known
    device: str | None = None  # maker, model and serial number

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return vars(self) | {"settings": dict(self.settings)}


class Source(ABC):
    """Frames in the order in which they were taken. Iterating raises SourceError when the source breaks."""

    is_live = False  # frames are lost when nobody takes them in time; it is opened again when it is lost
    never_ends = False  # though it is not live
    may_be_silent = False  # no frame for hours is no fault, as of a watched folder
    rate_hz: float | None = None  # frames a second, where the source knows it before it starts
    skipped = 0  # pictures that could not be read
    last_fault: str | None = None  # why the newest of them was passed over
    got: SourceFacts | None = None  # what an opened source says of itself
    counts: Mapping[str, int] = MappingProxyType({})  # of its own, as packets that came twice; they only grow
    lose: Callable[[str, int], None] = staticmethod(lambda cause, frames: None)  # told frames that did not arrive whole

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self._interrupted = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    @abstractmethod
    def describe(self) -> str:
        """The source in few words, for people; without passwords."""

    def trigger(self) -> None:
        """Ask for one picture; any thread may call it. Raises ConfigError unless it waits for software triggers."""
        raise ConfigError(
            f'{self.describe()} takes no software trigger: set trigger_mode = "software" of a GenICam camera'
        )

    def interrupt(self) -> None:
        """Ask an iteration that waits to end soon; any thread may call it."""
        self._interrupted.set()


class AbsentSource(Source):
    """A device, a pipe or a folder that is not there yet. Entering raises SourceError; a camera tries again."""

    is_live = True

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what)
        self._what, self._reason = what, reason

    def __enter__(self) -> Self:
        raise SourceError(self._reason)

    def __iter__(self) -> Iterator[Frame]:
        raise SourceError(self._reason)

    def describe(self) -> str:
        return self._what


def file_mode(path: str) -> int:
    """What lies at the path, as `stat` tells it; 0 when nothing does, or nothing can be seen."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0
