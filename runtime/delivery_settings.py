"""How a sink is served, and what became of what it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nnet_edge.config import WhenFull, require_between, require_seconds
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.spool import SpoolSettings

CAUSES = (
    "queue full",  # the sink was slower than the line, or dead for too long
    "undelivered",  # the sink failed for `retry_s`
    "failed",  # a sink that takes everything once (a callback, a video) could not
    "refused",  # the receiver is well and will never take it, or it cannot be written as a message
    "spool full",  # with must-deliver: its bytes were used up
    "spool failed",  # with must-deliver: its disk took nothing, or gave back what cannot be read
    "stopped",  # still waiting when the line ended and the time to flush had passed
)


@dataclass(frozen=True)
class DeliverySettings:
    """Queue, patience and spool of one sink. Raises ConfigError for a setting that cannot be meant."""

    queue_items: int = 256  # predictions and events that wait in memory
    queue_bytes: int = 256 << 20  # of their images and maps, where the sink wants them
    when_full: WhenFull = WhenFull.DROP_OLDEST  # WAIT for files, where every frame counts
    wait_limit_s: float = 30.0  # with WAIT: after this a new prediction is dropped, so that a dead sink ends nothing
    retry_s: float = 60.0  # a sink that fails for longer costs what it was given; with must-deliver nothing, ever
    first_pause_s: float = 0.1  # between two tries; doubles up to the longest
    longest_pause_s: float = 10.0
    dead_after_s: float = 2.0  # a sink that fails for so long is called dead
    flush_s: float = 5.0  # at the end: what then waits in memory is dropped, what lies in the spool stays
    is_strict: bool = False  # True: the first fault of the sink is raised in the caller's thread instead of all this
    must_deliver: SpoolSettings | None = None

    def __post_init__(self) -> None:
        require_between("items of a sink's queue", self.queue_items, 1, 1_000_000)
        require_between("bytes of a sink's queue", self.queue_bytes, 1, 1 << 40)
        for what, value in (
            ("seconds that a put may wait", self.wait_limit_s),
            ("seconds of retries", self.retry_s),
            ("seconds until a sink is called dead", self.dead_after_s),
            ("seconds to flush", self.flush_s),
        ):
            require_seconds(what, value)
        require_seconds("seconds of the first pause", self.first_pause_s, above=0.0)
        require_seconds("seconds of the longest pause", self.longest_pause_s, above=0.0)
        if self.longest_pause_s < self.first_pause_s:
            raise ConfigError(f"the longest pause, {self.longest_pause_s:g} s, is shorter than the first")
        if self.is_strict and self.must_deliver is not None:
            raise ConfigError("a sink that must deliver goes on after a fault, a strict one does not: choose one")


@dataclass(frozen=True)
class DeliveryCounts:
    """What became of everything that a sink was given; `is_balanced` at any moment."""

    name: str
    state: str  # "ok", "late" (it loses what it cannot take in time) or "dead" (it fails)
    reason: str | None  # of the newest fault since it was last ok
    offered: int  # predictions and events that the sink wants and was given
    recovered: int  # messages of an earlier run that lay in the spool
    delivered: int
    dropped: Mapping[str, int] = field(
        default_factory=dict
    )  # cause of CAUSES -> items; causes that never came are absent
    queued: int = 0  # in memory, the ones being written included
    spooled: int = 0  # on the disk, waiting

    @property
    def is_balanced(self) -> bool:
        """Whether everything is accounted for."""
        there = self.delivered + sum(self.dropped.values()) + self.queued + self.spooled
        return self.offered + self.recovered == there

    def losses(self) -> str | None:
        """What was lost, as a person reads it; None when nothing was."""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.dropped.items())
        return (
            f"the sink {self.name} lost {sum(self.dropped.values())} verdicts and events: {causes}" if causes else None
        )
