"""Drop policies of the frame buffer, by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nnet_edge.errors import ConfigError
from nnet_edge.settings.runner import require_positive


class When(Enum):
    """What happens to a frame when the buffer is full, or when it comes too soon."""

    EVERY_FRAME = "every-frame"  # the source waits: for files
    FRESHEST = "freshest"  # the oldest is dropped: for live sources
    PACED = "paced"  # as freshest, and at most so many frames a second


@dataclass(frozen=True)
class Policy:
    """A policy by name: every-frame, freshest or paced:N (at most N frames a second)."""

    when: When
    pace_hz: float | None = None  # of PACED only

    def __post_init__(self) -> None:
        if (self.when is When.PACED) != (self.pace_hz is not None):
            raise ConfigError("a pace belongs to the policy paced and to no other: write paced:5 for 5 frames a second")
        if self.pace_hz is not None:
            require_positive("pace", self.pace_hz)

    @classmethod
    def from_text(cls, text: str) -> Policy:
        """The policy that `text` names. Raises ConfigError for any other text."""
        name, _, pace = text.partition(":")
        if name == "paced":
            try:
                return cls(When.PACED, float(pace))
            except ValueError as error:
                raise ConfigError(f"the policy {text!r} has no pace: write paced:5 for 5 frames a second") from error
        if pace or name not in ("every-frame", "freshest"):
            raise ConfigError(f"the policy {text!r} is unknown: choose every-frame, freshest or paced:N")
        return cls(When(name))

    def __str__(self) -> str:
        return self.when.value if self.pace_hz is None else f"paced:{self.pace_hz:g}"


EVERY_FRAME, FRESHEST = Policy(When.EVERY_FRAME), Policy(When.FRESHEST)
