"""Triggers of one stream: each gets one verdict, or one named outcome. At any moment

    triggers = verdicts + outcomes by name + open

An outcome other than a verdict is the event `trigger.failed`, which says why, and what the part is answered: never good.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from nnet_edge.errors import ConfigError
from nnet_edge.frame import OUTCOMES, Frame, Triggered
from nnet_edge.settings.stream import ANYBODY, CAMERA, TriggerSettings

LARGEST_NUMBER = 2**32 - 1  # of a trigger: two registers of Modbus
MOST_GAP = 1000  # numbers of a camera that may be missing; a larger gap is a camera that counts anew


@dataclass(frozen=True)
class TriggerCounts:
    """What became of a stream's triggers."""

    triggers: int = 0
    verdicts: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)  # of OUTCOMES; those that never came are absent
    open: int = 0  # without verdict or outcome yet

    @property
    def is_balanced(self) -> bool:
        """Whether every trigger is accounted for."""
        return self.triggers == self.verdicts + sum(self.outcomes.values()) + self.open

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        counts = {"triggers": self.triggers, "verdicts": self.verdicts, "open": self.open}
        return {**counts, "outcomes": dict(self.outcomes)}

    def __str__(self) -> str:
        causes = ", ".join(f"{count} {name}" for name, count in self.outcomes.items())
        return f"{self.triggers} triggers, {self.verdicts} verdicts" + (f", {causes}" if causes else "")


@dataclass
class Waiting:
    """A trigger that waits for its frame, or with it for its verdict; also the newest one that is over."""

    trigger: Triggered
    has_frame: bool = False
    is_open: bool = True


Tell = Callable[..., object]  # (kind, stream, **facts), as Events.tell


class Triggers:
    """The triggers of one stream; any thread may call any method. Times are time.monotonic()."""

    def __init__(self, stream: str, settings: TriggerSettings, tell: Tell, has_trigger_line: bool = False) -> None:
        self._stream, self._settings, self._tell = stream, settings, tell
        self._counts_frames = has_trigger_line  # a camera's own numbers have gaps where no part passed
        self._changed = threading.Condition()
        self._waiting: dict[int, Waiting] = {}  # by number, oldest first
        self._newest: Waiting | None = None
        self._unclear_until_s = -math.inf  # frames until then may belong to one of two triggers
        self._last_number = 0
        self._camera_number: int | None = None  # of its newest frame
        self._triggers = self._verdicts = 0
        self._outcomes: Counter[str] = Counter()
        self._told: list[dict[str, object]] = []  # events, told once the lock is free
        self._thread: threading.Thread | None = None
        self._is_ended = False
        self.recipe: str | None = None

    def order(self, by: str, number: int | None = None, now_s: float | None = None) -> Triggered:
        """A trigger comes now, from `by`; without a `number` it is the next. Raises ConfigError for one that is refused."""
        settings, now_s = self._settings, time.monotonic() if now_s is None else now_s
        if settings.by not in (ANYBODY, by):
            raise ConfigError(
                f"stream {self._stream} is triggered by {settings.by!r}, not by {by!r}: see [stream.trigger]"
            )
        if number is not None and not (isinstance(number, int) and 0 <= number <= LARGEST_NUMBER):
            raise ConfigError(f"a trigger's number is {number!r}: it must be a whole number from 0 to {LARGEST_NUMBER}")
        with self._telling():
            if self._is_ended:
                raise ConfigError(f"stream {self._stream} has ended: it takes no trigger")
            if number in self._waiting:
                raise ConfigError(
                    f"trigger {number} of stream {self._stream} waits for its verdict: give another number"
                )
            number = (self._last_number + 1) % (LARGEST_NUMBER + 1) if number is None else number
            while number in self._waiting:
                number += 1
            one = self._open(number, now_s, by)
            end_s = now_s + 1e-3 * (settings.delay_ms + settings.window_ms)
            before = [other for other in self._waiting.values() if other is not one and not other.has_frame]
            if settings.frames != "first" and (before or now_s <= self._unclear_until_s):
                self._unclear_until_s = end_s
                for other in (*before, one):
                    self._fail(other, "overlap", now_s)
            return one.trigger

    def _open(self, number: int, at_s: float, by: str) -> Waiting:
        self._triggers += 1
        self._last_number = number
        trigger = Triggered(number, at_s, by, at_s + 1e-3 * self._settings.deadline_ms)
        self._newest = self._waiting[number] = Waiting(trigger)
        self._changed.notify_all()
        return self._newest

    def admit(self, frame: Frame, number: int | None = None, now_s: float | None = None) -> tuple[Frame, str | None]:
        """The frame with its trigger, or the cause for which it is dropped; `number` is the camera's own count of frames."""
        now_s = time.monotonic() if now_s is None else now_s
        with self._telling():
            if self._is_ended:
                return frame, None  # its buffer is closed, and says so
            if self._settings.by == CAMERA:
                return self._admit_own(frame, None if self._counts_frames else number, now_s), None
            return self._admit(frame, now_s)

    def _admit_own(self, frame: Frame, number: int | None, now_s: float) -> Frame:
        """The frame of a camera that is triggered itself, with its trigger; one whose frame was lost on the way is missed."""
        before, self._camera_number = self._camera_number, number
        if number is not None and before is not None and 1 < number - before <= MOST_GAP:
            for lost in range(before + 1, number):
                if lost not in self._waiting:
                    self._fail(self._open(lost, frame.captured_s, CAMERA), "missed", now_s)
        number = self._last_number + 1 if number is None else number
        while number in self._waiting:  # the camera counts anew, and an old one of that number has no verdict yet
            number += 1
        one = self._open(number, frame.captured_s, CAMERA)
        one.has_frame = True
        return replace(frame, trigger=one.trigger)

    def _admit(self, frame: Frame, now_s: float) -> tuple[Frame, str | None]:
        settings, captured_s = self._settings, frame.captured_s
        if captured_s <= self._unclear_until_s:
            return frame, "overlap"
        begun = [one for one in self._waiting.values() if one.trigger.at_s + 1e-3 * settings.delay_ms <= captured_s]
        for older in begun[:-1]:
            if not older.has_frame:  # frames come in order: it gets none any more
                self._fail(older, "missed", now_s)
        one = begun[-1] if begun else self._newest
        if one is None or captured_s < one.trigger.at_s + 1e-3 * settings.delay_ms:
            return frame, "untriggered"
        is_late = captured_s > one.trigger.at_s + 1e-3 * (settings.delay_ms + settings.window_ms)
        if one.has_frame:
            if settings.frames == "first" or is_late:
                return frame, "untriggered"
            if one.is_open:
                self._fail(one, "double", now_s)
            return frame, "double"
        if not one.is_open:
            return frame, "late" if one.trigger.at_s + 1e-3 * settings.deadline_ms >= captured_s else "untriggered"
        if is_late:
            self._fail(one, "late", now_s)
            return frame, "late"
        one.has_frame = True
        return replace(frame, trigger=one.trigger), None

    def claim(self, trigger: Triggered, now_s: float) -> bool:
        """Whether a verdict that is there now is the trigger's; False: it has another outcome already, or it is too late."""
        with self._telling():
            one = self._waiting.get(trigger.number)
            if one is None or one.trigger is not trigger:
                return False
            if now_s > trigger.answer_by_s:
                self._fail(one, "no_answer", now_s)
                return False
            self._close(one)
            self._verdicts += 1
            return True

    def fail(self, trigger: Triggered, outcome: str, why: str = "") -> None:
        """The trigger gets no verdict; one that has its outcome already keeps it."""
        with self._telling():
            one = self._waiting.get(trigger.number)
            if one is not None and one.trigger is trigger:
                self._fail(one, outcome, time.monotonic(), why)

    def expire(self, now_s: float) -> float | None:
        """Give every trigger that is due its outcome; gives when the next one is due, None: none is open."""
        with self._telling():
            for one in [one for one in self._waiting.values() if one.trigger.answer_by_s <= now_s]:
                self._fail(one, "no_answer" if one.has_frame else "missed", now_s)
            return min((one.trigger.answer_by_s for one in self._waiting.values()), default=None)

    def _fail(self, one: Waiting, outcome: str, now_s: float, why: str = "") -> None:
        if not one.is_open:
            return
        self._close(one)
        self._outcomes[outcome] += 1
        trigger, settings = one.trigger, self._settings
        limits = {"missed": settings.window_ms, "no_answer": settings.deadline_ms}
        within = f" within {limits[outcome]:g} ms" if outcome in limits else ""
        self._told.append({
            "trigger": trigger.number, "outcome": outcome, "answer": settings.on_lost, "triggered_by": trigger.by,
            "recipe": self.recipe, "latency_ms": round(1e3 * (now_s - trigger.at_s), 3),
            "reason": f"trigger {trigger.number}: {OUTCOMES[outcome]}{within}{f': {why}' if why else ''}",
        })  # fmt: skip

    def _close(self, one: Waiting) -> None:
        one.is_open = False
        self._waiting.pop(one.trigger.number, None)
        self._changed.notify_all()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Hold the lock, and tell behind it what happened: who hears it may trigger again."""
        try:
            with self._changed:
                yield
        finally:
            with self._changed:
                told, self._told = self._told, []
            for facts in told:
                self._tell("trigger.failed", self._stream, **facts)

    def counts(self) -> TriggerCounts:
        """A snapshot."""
        with self._changed:
            return TriggerCounts(self._triggers, self._verdicts, dict(self._outcomes), len(self._waiting))

    # ---- while the line runs

    def start(self) -> None:
        """Watch the deadlines, in a thread of its own."""
        self._thread = threading.Thread(target=self._watch, name=f"triggers of {self._stream}", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_ended:
            due_s = self.expire(time.monotonic())
            with self._changed:
                if not self._is_ended and (not self._waiting or due_s is not None):
                    self._changed.wait(None if due_s is None else max(0.0, due_s - time.monotonic()))

    def end(self) -> None:
        """Take no more triggers; those that are open end as stopped."""
        with self._telling():
            self._is_ended = True
            for one in list(self._waiting.values()):
                self._fail(one, "stopped", time.monotonic())
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(1.0)
