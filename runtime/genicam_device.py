"""What a GenICam camera can do, whichever library opened it: its features by name, and its buffers as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

Value = str | int | float | bool


@dataclass(frozen=True)
class Block:
    """A buffer as it came: a picture, or why it is none. `data` belongs to the camera until the next one is asked for."""

    fault: str  # "" for a whole picture
    block_id: int | None = None
    time_ns: int | None = None
    data: np.ndarray | None = None  # uint8 (N,)
    pixel_format: str = ""
    height: int = 0
    width: int = 0
    padding: int = 0  # bytes at the end of each row


class Device(Protocol):
    """An opened camera; one thread at a time may call its methods, beside `take`.

    Methods raise ConfigError where the camera refuses, and SourceError when it does not answer.
    """

    is_gige: bool  # whether its block ids may be GigE Vision's of 16 bits
    address: str  # its IP address; "" of none

    def kind_of(self, name: str) -> str | None:
        """enumeration, command, boolean, float, integer or string; None when the camera has no such feature now."""

    def names(self) -> Sequence[str]:
        """Every feature that the camera has now, sorted."""

    def get(self, name: str) -> Value:
        """The value of a feature."""

    def set(self, name: str, value: Value) -> None:
        """Give a feature a value of its kind."""

    def choices(self, name: str) -> Sequence[str]:
        """The values that an enumeration can take now."""

    def bounds(self, name: str) -> tuple[float, float, float]:
        """The least and the largest value of a number, and its steps; 0: any between."""

    def execute(self, name: str) -> None:
        """Run a command."""

    def packet_size(self) -> int | None:
        """Bytes of its packets with their headers; None of a camera without packets."""

    def set_packet_size(self, size: int) -> None:
        """Ask for packets of that size."""

    def start(self, buffers: int) -> None:
        """Begin to send, into so many buffers."""

    def stop(self) -> None:
        """Ask the camera to send no more."""

    def take(self, wait_s: float) -> Block | None:
        """The next buffer, whose data are valid until the next call; None when none came within the wait."""

    def counts(self) -> dict[str, int]:
        """What is counted of packets since the start."""

    def require_alive(self) -> None:
        """Raise SourceError unless the camera answers, and obeys this program."""

    def close(self) -> None:
        """Let go of everything; may wait for a camera that does not answer."""
