"""History: every verdict in a SQLite file, rejects and the newest accepted parts with pictures; bounded by days and bytes."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, NnetEdgeError, SinkError
from nnet_edge.frame import Prediction, new_session
from nnet_edge.runtime.sinks.base import JsonSink, Message, RefusedError, flag_defaults
from nnet_edge.runtime.sinks.fields import to_json_line
from nnet_edge.runtime.sinks.rejects import KINDS, SMALLEST_BUDGET_BYTES, encode
from nnet_edge.runtime.texts import LANGUAGES
from nnet_edge.settings.registry import SINKS, Asked, Flag, SinkKind
from nnet_edge.settings.runner import require_between, require_choice, require_positive, require_seconds
from nnet_edge.settings.sink import SinkSettings

if TYPE_CHECKING:  # SQLite's tables are imported where a history is opened
    from nnet_edge.runtime.history.database import Entry, Happening
log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # whether the file still lies where it should, and what lies beyond its bounds
PRUNE_S = 0.05  # at once, so that verdicts never wait for it
LONGEST_DAYS = 36_500
TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


@dataclass(frozen=True, kw_only=True)
class HistorySettings(SinkSettings):
    """Every verdict in one SQLite file; `nnet-edge history` and the page read it."""

    kind = "history"

    path: Path  # the SQLite file
    days: float = 90.0  # after which verdicts, events and pictures go; those of parts that somebody labelled stay
    budget_bytes: int = 20 * 2**30  # of the file: the oldest pictures go first, then the oldest verdicts
    pictures: tuple[str, ...] = KINDS  # of rejects; review and the training set need original and map
    good_pictures: int = 100  # newest accepted parts with a picture, so that one can be called missed; 0: none
    good_every_s: float = 2.0  # between two of them
    shifts: tuple[str, ...] = ("06:00", "14:00", "22:00")  # when each begins, of this machine's clock
    report_folder: Path | None = None  # where a report of each shift is written when it has ended; None: none is
    report_language: str = "en"  # or de, zh

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("days of a history", self.days)
        if self.days > LONGEST_DAYS:
            raise ConfigError(f"days of a history are {self.days:g}: give {LONGEST_DAYS} at most")
        require_between("bytes of a history", self.budget_bytes, SMALLEST_BUDGET_BYTES, 1 << 50)
        if len(set(self.pictures)) < len(self.pictures):
            raise ConfigError(f"pictures are {self.pictures}: name each of {', '.join(KINDS)} once at most")
        for picture in self.pictures:
            require_choice("kind of picture", picture, KINDS)
        require_between("pictures of accepted parts", self.good_pictures, 0, 100_000)
        require_seconds("seconds between two pictures of accepted parts", self.good_every_s)
        if not self.shifts or not all(TIME_OF_DAY.fullmatch(begin) for begin in self.shifts):
            raise ConfigError(f"shifts are {self.shifts}: give the times at which they begin, as 06:00")
        require_choice("language of reports", self.report_language, LANGUAGES)


class HistorySink(JsonSink):
    """Writes verdicts, pictures and events into the history, many at once; each is there whole or not at all."""

    name = "history"
    largest_batch = 64
    wants_pixels = picks_pixels = True
    wants_events = True

    def __init__(self, settings: HistorySettings) -> None:
        from nnet_edge.runtime.history.database import ACCEPTED, Bounds, HistoryWriter

        self.settings = settings
        self._accepted = ACCEPTED
        self._writer = HistoryWriter(
            settings.path, Bounds(settings.days, settings.budget_bytes, settings.good_pictures)
        )
        self._next_good_s = 0.0 if settings.good_pictures else float("inf")
        self._session = new_session()  # of frames that have none
        self._looked_s = 0.0
        self._shift = 0  # when the shift began that is written now

    @property
    def outputs(self) -> tuple[Path, ...]:
        reports = self.settings.report_folder
        return (self.settings.path,) if reports is None else (self.settings.path, reports)

    def __enter__(self) -> HistorySink:
        import sqlite3

        try:
            self.settings.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer.open()
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error
        return self

    def __exit__(self, *about: object) -> None:
        self._writer.close()

    def keeps_pixels(self, prediction: Prediction) -> bool:
        """A reject waits with its picture, of accepted parts one now and then."""
        if prediction.is_untaught or prediction.is_anomalous:
            return not prediction.is_untaught
        is_due = time.monotonic() >= self._next_good_s
        if is_due:
            self._next_good_s = time.monotonic() + self.settings.good_every_s
        return is_due

    def to_message(self, prediction: Prediction) -> Message:
        image = prediction.frame.image
        more = b', "size": [%d, %d]' % image.shape[:2] if image.size else b""
        if not prediction.frame.session:  # else a second start would count as the first once more
            more += b', "session": "%s"' % self._session.encode()
        kinds = [(kind, kind) for kind in self.settings.pictures] if prediction.is_anomalous and image.size else []
        if image.size and not prediction.is_anomalous:
            kinds = [(self._accepted, "original")]
        pictures = tuple((name, encode(kind, prediction)) for name, kind in kinds)
        return Message(prediction.frame.id, (("verdict", to_json_line(prediction)[:-1] + more + b"}"), *pictures))

    def part_name(self, content: str, stream: str | None) -> str:
        return content

    def send(self, messages: Sequence[Message]) -> int:
        import sqlite3

        self.tick()
        try:
            self._writer.add([item_of(message) for message in messages])
        except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError, KeyError, TypeError, ValueError) as error:
            if len(messages) > 1:
                return self.send(messages[:1])
            raise RefusedError(f"the history cannot hold {messages[0].id}: {error!r}") from error
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error
        return len(messages)

    def tick(self) -> None:
        import sqlite3

        try:
            self._look_after()
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error

    def _look_after(self) -> None:
        """Begin a file that somebody removed anew, and delete what lies beyond the bounds, as often as is due."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if not self._writer.look():
            log.warning("the history %s was removed: it is begun anew", self.settings.path)
        while self._writer.prune() and time.monotonic() - now_s < PRUNE_S:
            pass
        if self.settings.report_folder is not None:
            self._report(self.settings.report_folder)

    def _report(self, folder: Path) -> None:
        """Write the report of the shift before this one, once; one that cannot be written stops no verdict."""
        from nnet_edge.files import write_atomically
        from nnet_edge.runtime.history.queries import History, Window, shift_begin, utc
        from nnet_edge.runtime.history.report import shift_report

        begin = shift_begin(self.settings.shifts)
        if begin == self._shift:
            return
        self._shift = begin
        before = shift_begin(self.settings.shifts, begin / 1e3 - 1)
        out = folder / f"shift-{utc(before)[:16].replace(':', '')}Z.html"
        if out.exists():
            return
        try:
            with History(self.settings.path) as history:
                page = shift_report(history, Window(before, begin), self.settings.report_language)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(out, page.encode(errors="backslashreplace"))
        except (OSError, NnetEdgeError) as error:
            log.warning("the report of the shift could not be written to %s: %s", out, error)

    def _fault(self, error: Exception) -> SinkError:
        """The error in a sentence, with what to do."""
        path, text = self.settings.path, str(getattr(error, "strerror", None) or error)
        advice = {
            "disk is full": "make room where it lies",
            "No space left": "make room where it lies",
            "readonly": "let its user write the file and its folder",
            "Read-only": "mount its disk for writing, or give another path",
            "unable to open": "see that its folder is there and may be written",
            "malformed": "move it away, and a new one is begun",
            "not a database": "move it away, or give another path",
            "no history": "give another path",
        }
        told = next((what for sign, what in advice.items() if sign in text), "see its disk and folder")
        return SinkError(f"cannot write the history {path}: {text}; {told}")


def item_of(message: Message) -> Entry | Happening:
    """What the message says."""
    from nnet_edge.runtime.history.database import Entry, Happening

    (kind, text), *pictures = message.parts
    fields = json.loads(text)
    return Happening(fields) if kind == "event" else Entry(fields, dict(pictures))


def table_of(path: Path, asked: Asked) -> dict[str, Any]:
    """What --history asks for."""
    return {"path": str(path)} | flag_defaults(asked, needs_queue=True)


FLAG = Flag("--history", "Every verdict, with pictures of rejects, into this SQLite file.", table_of)
SINKS.register(SinkKind("history", HistorySettings, HistorySink, FLAG, needs={"cv2": ""}))
