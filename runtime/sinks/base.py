"""The base classes of sinks: one that takes predictions, and one that takes messages, which can wait on a disk.

A sink is a context manager and opens its file or folder on entering. What it cannot write is a SinkError: no verdict is
lost in silence. `queued.py` gives a sink a queue and a thread of its own.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import SinkError
from nnet_edge.events import Event, Tell
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks.fields import event_fields, event_id, to_json, to_json_line
from nnet_edge.settings.registry import Asked

if TYPE_CHECKING:
    from typing_extensions import Self


class RefusedError(SinkError):
    """A message that its receiver, which works, will never take: sending it again is useless."""


class ClosedError(SinkError):
    """A receiver that closed for good, as the reader of a pipe."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a sink sends for one prediction or event: bytes, so that it can lie on a disk and be sent after a restart."""

    id: str  # the same in every copy: a receiver that met it before has met this message
    parts: tuple[tuple[str, bytes], ...]  # what the sink calls each part (a topic, a file's name), and the part

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(len(content) for _, content in self.parts)


@dataclass(frozen=True)
class Orders:
    """What a sink may ask of the line; any thread may. Raises NnetEdgeError for what is refused."""

    trigger: Callable[
        [str | None, int | None, str], int | None
    ]  # stream (None: the only one), number (None: the next), by
    use_recipe: Callable[[str, str], None]  # name, by; returns at once, `recipe.changed` or `recipe.refused` follows
    recipes: tuple[str, ...] = ()  # their names
    recipe: str | None = None  # that the line begins with


class Sink(ABC):
    """Takes one prediction after the other; every method raises SinkError when it cannot."""

    name = "sink"  # of the kind: the default name in counts, events and errors
    wants_maps = True  # of good frames too; False saves a GPU the copies, an anomalous frame has its map anyway
    wants_pixels = True  # False: predictions may come without image and map, which saves memory in a queue
    picks_pixels = False  # True: `keeps_pixels` says it of each
    wants_good = True  # False: only anomalous predictions are of use to `write`
    only_stream: str | None = None  # the one stream whose predictions are of use; None: all
    wants_events = False  # whether `tell` does anything
    can_repeat = False  # whether a prediction that failed may be written again
    unfinished = 0  # predictions that are lost where it does not end: they are in a file that it has not closed
    lost = 0  # predictions that it took and lost later, with a file that was removed
    largest_batch = 1  # messages that one `send` of a MessageSink takes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        return None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files and folders that it wrote."""
        return ()

    @property
    def own_counts(self) -> Mapping[str, int]:
        """What it counts itself; what never came is absent."""
        return {}

    @abstractmethod
    def write(self, prediction: Prediction) -> None:
        """Take one prediction."""

    def keeps_pixels(self, prediction: Prediction) -> bool:
        """Whether this prediction waits with its image and map; asked in the line's thread where the sink `picks_pixels`."""
        return self.wants_pixels

    def tell(self, event: Event) -> None:  # noqa: B027  most sinks have no use for events
        """Take one event of the line."""

    def expect(self, stream: str, rate_hz: float | None, is_live: bool = False) -> None:  # noqa: B027
        """Learn before the line runs that this stream will come, and at which frame rate where that is known."""

    def report_to(self, tell: Tell) -> None:  # noqa: B027
        """Tell events of its own (`sink.late`, `sink.dead`, `sink.back`) through `tell`, where it has any."""

    def stop_with(self, stop: threading.Event) -> None:  # noqa: B027
        """Wait for nothing in `write` once `stop` is set."""

    def obey(self, orders: Orders) -> None:  # noqa: B027
        """From now on pass triggers and recipes that come from outside on to the line, where it takes any."""

    def end_soon(self) -> None:  # noqa: B027
        """Begin to end; `__exit__` follows. Sinks that have much to flush then do it side by side."""

    def tick(self) -> None:  # noqa: B027
        """Do what is due while nothing is written; a queued sink's thread calls it about once a second."""


class MessageSink(Sink):
    """A sink that sends messages. `send` may be given a message again, with the same id."""

    can_repeat = True

    def require_deliverable(self) -> None:
        """Raise ConfigError where the settings cannot promise that every message arrives."""

    @abstractmethod
    def to_message(self, prediction: Prediction) -> Message:
        """The prediction as bytes; needs no receiver."""

    def event_message(self, event: Event) -> Message:
        """The event as bytes; only of a sink that `wants_events`."""
        raise SinkError(f"the sink {self.name} has no message for the event {event.kind}: it takes predictions alone")

    @abstractmethod
    def send(self, messages: Sequence[Message]) -> int:
        """Send 1 to `largest_batch` messages in order; gives how many arrived, counted from the first, at least 1.

        Raises SinkError when none arrived, RefusedError when the first of them never will.
        """

    def write(self, prediction: Prediction) -> None:
        self.send([self.to_message(prediction)])

    def tell(self, event: Event) -> None:
        if self.wants_events:
            self.send([self.event_message(event)])


class JsonSink(MessageSink):
    """Sends each prediction and event as one JSON object; needs neither image nor map."""

    wants_maps = False
    wants_pixels = False
    line_end = b""

    def to_message(self, prediction: Prediction) -> Message:
        part = self.part_name("verdict", prediction.frame.stream), to_json_line(prediction) + self.line_end
        return Message(prediction.frame.id, (part,))

    def event_message(self, event: Event) -> Message:
        part = self.part_name("event", event.stream), to_json(event_fields(event)) + self.line_end
        return Message(event_id(event), (part,))

    def part_name(self, content: str, stream: str | None) -> str:
        """The name of the one part: of a "verdict", or of an "event" of this stream (None: of the line)."""
        return ""


@contextmanager
def translating(cannot: str) -> Iterator[None]:
    """Raise an OSError of the block as a SinkError that begins with `cannot`, "cannot write to PATH"."""
    try:
        yield
    except OSError as error:
        raise SinkError(f"{cannot}: {error.strerror or error}") from error


def flag_defaults(asked: Asked, needs_queue: bool = False) -> dict[str, Any]:
    """How a sink that a flag asks for is served: files wait for it, live sources do not.

    One stream of files writes it directly, so that its first fault ends the run, unless the sink `needs_queue`.
    """
    is_direct = asked.streams == 1 and not (asked.is_live or asked.must_deliver or needs_queue)
    return {"every_frame": asked.every_frame or not asked.is_live} | ({"queue": 0} if is_direct else {})
