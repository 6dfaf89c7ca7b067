"""Handshake with a PLC: request, busy, done, acknowledge, time-outs. A pure state machine; times are passed in.

    idle --request--> busy --answer--> done --acknowledge, or request off--> cleared --both off--> idle

The PLC sets `request` and holds it. `busy` says that the part is inspected, `done` that `good` or `reject` is its answer. The
PLC takes it and sets `acknowledge`, or lets `request` go. An answer that it does not take in time is what `on_lost` says, an
answer that does not come a reject. Answers of parts that this PLC did not ask for are shown the same way, and wait for nobody.
`good` is on only while the verdict of that very part is good.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Stage(Enum):
    """Where a handshake stands."""

    IDLE = "idle"
    BUSY = "busy"
    DONE = "done"
    CLEARED = "cleared"  # taken, or lost; the PLC's signals are not off yet
    LOST = "lost"  # not taken in time


@dataclass(frozen=True, slots=True)
class Answer:
    """What one part is answered."""

    number: int  # of its trigger, or of its frame where nothing triggers
    is_reject: bool
    outcome: str = "verdict"  # or what became of its trigger
    score: float = 0.0
    relative_score: float = 0.0


@dataclass(frozen=True, slots=True)
class Lamps:
    """The signals that the PLC reads."""

    busy: bool = False
    done: bool = False
    good: bool = False
    reject: bool = False
    fault: bool = False  # no answer in time, or one that was not taken


class Handshake:
    """The state of one handshake; one thread at a time."""

    def __init__(self, ack_timeout_s: float, answer_timeout_s: float, on_lost: str = "reject") -> None:
        self._ack_timeout_s, self._answer_timeout_s = ack_timeout_s, answer_timeout_s
        self._on_lost = on_lost  # "reject", or "hold": the answer stays until it is taken
        self.stage = Stage.IDLE
        self.number: int | None = None  # of the part that was asked for
        self.answer: Answer | None = None  # the newest
        self.unacknowledged = self.abandoned = self.unanswered = 0
        self._request = self._acknowledge = False
        self._due_s: float | None = None
        self._ignored: int | None = None  # the part that the PLC gave up
        self._is_asked = False  # whether the answer is to a request, and must be taken

    @property
    def lamps(self) -> Lamps:
        """What is on now."""
        answer, stage = self.answer, self.stage
        if stage is Stage.LOST:
            return Lamps(reject=True, fault=True)
        if stage is not Stage.DONE or answer is None:
            return Lamps(busy=stage is Stage.BUSY)
        return Lamps(False, True, not answer.is_reject, answer.is_reject, answer.outcome != "verdict")

    @property
    def due_s(self) -> float | None:
        """When `tick` has something to do; None: nothing."""
        return self._due_s

    def signals(self, request: bool, acknowledge: bool, now_s: float) -> bool:
        """The PLC's signals now; whether a part is asked for, which `begin` or `refuse` must follow."""
        self.tick(now_s)
        was_requested, was_acknowledged = self._request, self._acknowledge
        self._request, self._acknowledge = request, acknowledge
        is_taken = (acknowledge and not was_acknowledged) or (was_requested and not request)
        if self.stage is Stage.BUSY and was_requested and not request:
            self.abandoned += 1
            self._ignored = self.number
            self._to(Stage.CLEARED)
        elif self.stage is Stage.DONE and is_taken:
            self._to(Stage.CLEARED)
        if self.stage is Stage.CLEARED and not (request or acknowledge):
            self._to(Stage.IDLE)
        return request and not was_requested and self.stage in (Stage.IDLE, Stage.LOST, Stage.DONE)

    def begin(self, number: int, now_s: float) -> None:
        """The part that was asked for has this number, and is inspected."""
        self.number, self._is_asked = number, True
        self._to(Stage.BUSY, now_s + self._answer_timeout_s)

    def refuse(self, outcome: str, now_s: float) -> None:
        """The part that was asked for cannot be inspected: a reject."""
        self._is_asked = True
        self._show(Answer(self.number or 0, True, outcome), now_s)

    def give(self, answer: Answer, now_s: float) -> bool:
        """An answer comes; whether it is shown. While a part is inspected only its own is."""
        self.tick(now_s)
        if self.stage is Stage.BUSY:
            if answer.number != self.number:
                return False
            self._show(answer, now_s)
            return True
        if answer.number == self._ignored or self._request or self._acknowledge:
            return False  # the PLC gave it up, or still handles the one before
        if self.stage is Stage.DONE and self._is_asked:
            return False
        self._is_asked = False
        self._show(answer, now_s)
        return True

    def tick(self, now_s: float) -> bool:
        """Do what is due; whether something changed."""
        if self._due_s is None or now_s < self._due_s:
            return False
        if self.stage is Stage.BUSY:
            self.unanswered += 1
            self._ignored = self.number
            self._show(Answer(self.number or 0, True, "no_answer"), now_s)
        else:
            self.unacknowledged += 1
            if self._on_lost == "reject":
                self._to(Stage.LOST)
            self._due_s = None
        return True

    def _show(self, answer: Answer, now_s: float) -> None:
        self.answer = answer
        self._to(Stage.DONE, now_s + self._ack_timeout_s if self._is_asked else None)

    def _to(self, stage: Stage, due_s: float | None = None) -> None:
        self.stage, self._due_s = stage, due_s
