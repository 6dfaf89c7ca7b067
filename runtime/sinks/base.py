"""What a sink is: a place that takes predictions, or one that takes messages, which can wait on a disk until it does.

A sink is a context manager, and opens its file or folder on entering. What cannot be written is a SinkError: a verdict
is never lost in silence. Several streams share a sink through `runtime/delivery.py`, which gives it a thread of its own.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from nnet_edge.errors import SinkError
from nnet_edge.events import Event, Tell
from nnet_edge.frame import Prediction

if TYPE_CHECKING:
    from typing_extensions import Self


class RefusedError(SinkError):
    """A message that its receiver, which is well, will never take: sending it again is of no use."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a sink sends for one prediction or event: bytes, so that it can lie on a disk and be sent after a restart."""

    id: str  # the same in every copy: a receiver that met it before has met this message
    parts: tuple[tuple[str, bytes], ...]  # what the sink calls each part (a topic, a file's name), and the part

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(len(content) for _, content in self.parts)


class Sink(ABC):
    """Takes one prediction after the other; every method raises SinkError when it cannot."""

    name = "sink"  # of the kind, for counts and errors
    wants_maps = True  # of good frames too; False spares a GPU the copies, an anomalous frame has its map anyway
    wants_pixels = True  # False: predictions may come without image and map, which spares memory in a queue
    wants_events = False  # whether `tell` does anything
    can_repeat = False  # whether a prediction that failed may be written again

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def wants(self, prediction: Prediction) -> bool:
        """Whether `write` would do anything with the prediction; asked before it is queued."""
        return True

    @abstractmethod
    def write(self, prediction: Prediction) -> None:
        """Take one prediction."""

    def tell(self, event: Event) -> None:  # noqa: B027  most sinks have no use for events
        """Take one event of the line."""

    def report_to(self, tell: Tell) -> None:  # noqa: B027
        """Tell events of its own (`sink.late`, `sink.dead`, `sink.back`) through `tell`, where it has any."""

    def stop_with(self, stop: threading.Event) -> None:  # noqa: B027
        """Wait for nothing in `write` any more once `stop` is set."""

    def end_soon(self) -> None:  # noqa: B027
        """Begin to end; `__exit__` follows. Several sinks that have much to do then do it side by side."""

    def tick(self) -> None:  # noqa: B027
        """Do what is due when nothing is written; called about once a second by a delivery."""


class MessageSink(Sink):
    """A sink whose predictions become messages first. `send` may be given a message again, with the same id."""

    can_repeat = True
    largest_batch = 1  # messages that one `send` takes

    def require_deliverable(self) -> None:
        """Raise ConfigError when these settings allow no promise that every message arrives."""

    @abstractmethod
    def to_message(self, prediction: Prediction) -> Message:
        """The prediction as bytes; needs no receiver."""

    def event_message(self, event: Event) -> Message:
        """The event as bytes; only of a sink that `wants_events`."""
        raise SinkError(f"the sink {self.name} has no message for the event {event.kind}: it takes predictions alone")

    @abstractmethod
    def send(self, messages: Sequence[Message]) -> int:
        """Hand over 1 to `largest_batch` messages in order; gives how many arrived, counted from the first, at least 1.

        Raises SinkError when none arrived, RefusedError when the first of them never will.
        """

    def write(self, prediction: Prediction) -> None:
        self.send([self.to_message(prediction)])

    def tell(self, event: Event) -> None:
        if self.wants_events:
            self.send([self.event_message(event)])
