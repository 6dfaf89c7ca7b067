"""Verdicts and events as JSON lines: whole lines only, in files that rotate before they fill the disk."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.runtime.sinks.base import ClosedError, JsonSink, Message, flag_defaults
from nnet_edge.runtime.sinks.rotation import cut_torn_line, remove_oldest, rotate
from nnet_edge.settings.registry import SINKS, Asked, Flag, SinkKind
from nnet_edge.settings.runner import require_between, require_seconds
from nnet_edge.settings.sink import SinkSettings

log = logging.getLogger(__name__)

SMALLEST_FILE_BYTES = 1024
LARGEST_FILE_BYTES = 1 << 40
STANDARD_OUTPUT = Path("-")
EVENT = "event"  # the name of the part of a message that belongs into the file of events
LOOK_EVERY_S = 1.0  # whether the file still lies where it should


@dataclass(frozen=True, kw_only=True)
class JsonLinesSettings(SinkSettings):
    """One JSON object a verdict, in a file that rotates; events in a file of their own."""

    kind = "json-lines"

    path: Path  # "-": standard output
    append: bool = True  # behind what a file holds, its torn last line cut off; False: such a file gets a number first
    turn_bytes: int | None = None  # a file that would grow beyond is renamed, and a new one begun
    turn_every_s: float | None = None  # a file open for longer too
    keep_files: int | None = None  # renamed files that stay, the oldest go first; None: all
    fsync_every_s: float | None = 1.0  # 0: after every line; None: when the system likes
    events: bool = True  # whether events of the line are written too
    events_path: Path | None = (
        None  # their file; None: beside path, verdicts.events.jsonl; on standard output among verdicts
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.turn_bytes is not None:
            require_between("bytes of a log file", self.turn_bytes, SMALLEST_FILE_BYTES, LARGEST_FILE_BYTES)
        if self.turn_every_s is not None:
            require_seconds("seconds until a log file rotates", self.turn_every_s, above=0.0)
        if self.keep_files is not None:
            require_between("log files to keep", self.keep_files, 0, 1_000_000)
        if self.fsync_every_s is not None:
            require_seconds("seconds between two fsyncs of the log", self.fsync_every_s)
        if self.events_path is not None and (self.events_path == self.path or not self.events):
            raise ConfigError(
                f"events_path is {self.events_path}: give another file than path, and leave events = false out"
            )

    @property
    def is_strict(self) -> bool:
        """A closed pipe ends the line, as in any program, unless every line must be delivered."""
        return self.path == STANDARD_OUTPUT and self.must_deliver is None

    @property
    def events_file(self) -> Path:
        """Where events go."""
        if self.events_path is not None or self.path == STANDARD_OUTPUT:
            return self.events_path or self.path
        return self.path.with_name(f"{self.path.stem}.events{self.path.suffix}")


class JsonLinesSink(JsonSink):
    """Writes one JSON object a frame into one file and one an event into another, each line whole and at once; see LogFile."""

    name = "json-lines"
    line_end = b"\n"
    largest_batch = 64

    def __init__(self, settings: JsonLinesSettings) -> None:
        self._verdicts = self._events = LogFile(settings.path, settings)
        if settings.events and settings.events_file != settings.path:
            self._events = LogFile(settings.events_file, settings)
        self._files = list(dict.fromkeys([self._verdicts, self._events]))
        self._is_entered = False
        self._is_durable = settings.fsync_every_s is not None
        self.wants_events = settings.events

    @property
    def outputs(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self._files if file.path is not None)

    def __enter__(self) -> JsonLinesSink:
        for file in self._files:
            try:
                file.begin()
            except OSError as error:
                raise file.fault(error) from error
        self._is_entered = True
        return self

    def __exit__(self, *about: object) -> None:
        self._is_entered = False
        faults = []
        for file in self._files:
            try:
                file.end()
            except OSError as error:
                faults.append(file.fault(error))
        if faults:
            raise faults[0]

    def send(self, messages: Sequence[Message]) -> int:
        if not self._is_entered:
            raise SinkError(f"{self._verdicts.where} is not open: use the sink in a `with` statement")
        written, file = 0, self._verdicts
        try:
            for message in messages:
                ((kind, line),) = message.parts
                file = self._events if kind == EVENT else self._verdicts
                file.append(line)
                written += 1
            for file in self._files:
                file.do_what_is_due()
        except OSError as error:
            fault = file.fault(error)
            if written == 0 or self._is_durable:
                raise fault from error
            log.warning("%s", fault)
        return written

    def tick(self) -> None:
        for file in self._files:
            try:
                file.do_what_is_due()
            except OSError as error:
                raise file.fault(error) from error

    def part_name(self, content: str, stream: str | None) -> str:
        return EVENT if content == EVENT else ""


class LogFile:
    """A file of lines, or standard output. Methods raise OSError, which `fault` takes.

    On a full disk the file ends with the last whole line, and the next `append` opens it again. A file that rotates gets a
    number: verdicts.jsonl becomes verdicts.000001.jsonl, and so on; the largest number is the newest. One that somebody
    renames or removes is begun anew within a second, with the lines that came since it was last seen.
    """

    def __init__(self, path: Path, settings: JsonLinesSettings) -> None:
        self.path = None if path == STANDARD_OUTPUT else path
        self.where = "standard output" if self.path is None else str(path)
        self._settings = settings
        self._file: FileIO | None = None
        self._opened_s = self._synced_s = self._looked_s = 0.0  # time.monotonic()
        self._seen_bytes = 0  # of the file, when it last lay where it should
        self._carried = b""  # lines of a removed file, for the next one
        self._is_dirty = False
        self._rotates = settings.turn_bytes is not None or settings.turn_every_s is not None

    def fault(self, error: OSError) -> SinkError:
        """Close the file, which `append` opens again, for the disk may be another one by then; gives the error to raise."""
        self._close()
        kind = ClosedError if isinstance(error, BrokenPipeError) else SinkError
        return kind(f"cannot write verdicts to {self.where}: {error.strerror or error}")

    def begin(self) -> None:
        """Open the file behind its last whole line, or number it and begin a new one."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut_torn_line(self.path)
            if not self._settings.append and self.path.is_file() and self.path.stat().st_size:
                self._number(self.path)
        self._file = self._open()

    def end(self) -> None:
        """Bring everything to the disk, and close."""
        self._look()
        self._sync(is_due=self._settings.fsync_every_s is not None)
        self._close()

    def append(self, line: bytes) -> None:
        """Write the line, whole or not at all."""
        file = self._file or self._reopen()
        if self.path is not None and self._rotates and self._is_full(file.tell(), len(line)):
            self._look()
            if self._file is not None and self._is_full(self._file.tell(), len(line)):
                self._rotate(self.path)
        self._write(self._file or self._reopen(), line)

    def _write(self, file: FileIO, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            if self._is_regular():  # cut off the part of the line that reached the file
                file.truncate(file.tell() - (len(line) - len(rest)))
            raise
        self._is_dirty = True

    def do_what_is_due(self) -> None:
        """Look where the file is, and bring it to the disk, as often as the settings say."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            self._look()
        every_s = self._settings.fsync_every_s
        self._sync(is_due=every_s is not None and now_s - self._synced_s >= every_s)

    def _look(self) -> None:
        """Begin the file anew when it does not lie at its path any more, with the newest lines of a removed one."""
        if self.path is None or self._file is None or not self._is_regular():
            return
        mine = os.fstat(self._file.fileno())
        if self.path.exists() and os.path.samestat(mine, self.path.stat()):
            self._seen_bytes = mine.st_size
            return
        if mine.st_nlink == 0 and mine.st_size > self._seen_bytes:
            self._carried += os.pread(self._file.fileno(), mine.st_size - self._seen_bytes, self._seen_bytes)
        lines = self._carried.count(b"\n")
        log.warning(
            "%s was renamed or removed: it is begun anew, with the %d lines of its last second", self.path, lines
        )
        self._close()
        self._reopen()

    def _reopen(self) -> FileIO:
        """The file, open again, with the lines that a removed one leaves."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open()
        if self._carried:
            self._write(self._file, self._carried)
            self._carried = b""
        return self._file

    def _open(self) -> FileIO:
        self._opened_s = self._synced_s = self._looked_s = time.monotonic()
        self._seen_bytes = 0
        if self.path is None:
            return FileIO(sys.stdout.fileno(), "wb", closefd=False)
        is_readable = self.path.is_file() or not self.path.exists()  # a pipe or a device is written only
        file = FileIO(self.path, "a+b" if is_readable else "ab")
        self._seen_bytes = file.tell() if is_readable else 0
        return file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _is_full(self, size_bytes: int, line_bytes: int) -> bool:
        """Whether the file, which holds at least one line, must rotate before the next."""
        turn_bytes, turn_every_s = self._settings.turn_bytes, self._settings.turn_every_s
        is_large = turn_bytes is not None and size_bytes + line_bytes > turn_bytes
        is_old = turn_every_s is not None and time.monotonic() - self._opened_s >= turn_every_s
        return size_bytes > 0 and (is_large or is_old)

    def _rotate(self, path: Path) -> None:
        self._sync(is_due=self._settings.fsync_every_s is not None)
        self._close()
        self._number(path)
        self._file = self._open()

    def _number(self, path: Path) -> None:
        rotate(path)
        if self._settings.keep_files is not None:
            remove_oldest(path, self._settings.keep_files)

    def _sync(self, is_due: bool) -> None:
        """Bring what was written to the disk itself, where that is due; a pipe has none."""
        if is_due and self._is_dirty and self._file is not None:
            if self._is_regular():
                os.fsync(self._file.fileno())
            self._is_dirty, self._synced_s = False, time.monotonic()

    def _is_regular(self) -> bool:
        return self._file is not None and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)


def table_of(path: Path, asked: Asked) -> dict[str, Any]:
    """What --json asks for: verdicts behind those of earlier runs; events too where the sink has a queue."""
    defaults = flag_defaults(asked)
    events = defaults.get("queue") != 0 and path != STANDARD_OUTPUT
    return {"path": str(path), "fsync_every_s": None, "events": events} | defaults


def events_table_of(path: Path, asked: Asked) -> dict[str, Any]:
    """What --events asks for beside --json."""
    return {"events": True, "events_path": str(path), "queue": SinkSettings.queue}


FLAG = Flag("--json", "One JSON object a frame behind what this file holds; - for standard output.", table_of)
EVENTS_FLAG = Flag("--events", "Events of the line go here (default: beside --json, F.events.jsonl).", events_table_of)
SINKS.register(SinkKind("json-lines", JsonLinesSettings, JsonLinesSink, FLAG, (EVENTS_FLAG,)))
