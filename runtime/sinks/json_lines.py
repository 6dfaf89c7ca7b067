"""Verdicts as JSON lines: whole lines only, in files that rotate before they fill the disk."""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.runtime.sinks.base import JsonSink, Message, flag_defaults
from nnet_edge.runtime.sinks.rotation import cut_torn_line, remove_oldest, rotate
from nnet_edge.settings.registry import SINKS, Asked, Flag, SinkKind
from nnet_edge.settings.runner import require_between, require_seconds
from nnet_edge.settings.sink import SinkSettings

log = logging.getLogger(__name__)

SMALLEST_FILE_BYTES = 1024
LARGEST_FILE_BYTES = 1 << 40
STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class JsonLinesSettings(SinkSettings):
    """One JSON object a verdict, in a file that rotates."""

    kind = "json-lines"

    path: Path  # "-": standard output
    append: bool = True  # False: a file that exists is replaced at the start; True: its torn last line is cut off
    turn_bytes: int | None = None  # a file that would grow beyond is renamed, and a new one begun
    turn_every_s: float | None = None  # a file open for longer too
    keep_files: int | None = None  # renamed files that stay, the oldest go first; None: all
    fsync_every_s: float | None = 1.0  # 0: after every line; None: when the system likes
    events: bool = True  # whether events of the line are lines too

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

    @property
    def is_strict(self) -> bool:
        """A closed pipe ends the line, as in any program, unless every line must be delivered."""
        return self.path == STANDARD_OUTPUT and self.must_deliver is None

    @property
    def outputs(self) -> tuple[Path, ...]:
        return () if self.path == STANDARD_OUTPUT else (self.path,)


class JsonLinesSink(JsonSink):
    """Writes one JSON object a frame, each line whole and at once.

    On a full disk the file ends with the last whole line, and the next write opens it again. A file that rotates gets a
    number: verdicts.jsonl becomes verdicts.000001.jsonl, and so on; the largest number is the newest.
    """

    name = "json-lines"
    line_end = b"\n"
    largest_batch = 64

    def __init__(self, settings: JsonLinesSettings) -> None:
        self._settings = settings
        self._path = None if settings.path == STANDARD_OUTPUT else settings.path
        self._file: RawIOBase | None = None
        self._is_entered = False
        self._opened_s = self._synced_s = 0.0  # time.monotonic()
        self._is_dirty = False
        self._rotates = settings.turn_bytes is not None or settings.turn_every_s is not None
        self.wants_events = settings.events

    def __enter__(self) -> JsonLinesSink:
        try:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if not self._settings.append:
                    self._path.open("wb").close()
                cut_torn_line(self._path)
            self._file = self._open()
        except OSError as error:
            raise self._fault(error) from error
        self._is_entered = True
        return self

    def __exit__(self, *about: object) -> None:
        self._is_entered = False
        try:
            self._sync(is_due=self._settings.fsync_every_s is not None)
        except OSError as error:
            raise self._fault(error) from error
        finally:
            self._close()

    def require_deliverable(self) -> None:
        if self._path is not None and not self._settings.append:
            raise ConfigError(f"{self._path} is replaced at every start, so nothing it must hold stays: append to it")

    def send(self, messages: Sequence[Message]) -> int:
        if not self._is_entered:
            raise SinkError(f"{self._where()} is not open: use the sink in a `with` statement")
        written = 0
        try:
            for message in messages:
                self._write(message.parts[0][1])
                written += 1
            self._sync(self._is_sync_due())
        except OSError as error:
            self._close()  # the next send opens it again: the disk may be another one by then
            if written == 0 or self._settings.fsync_every_s is not None:
                raise self._fault(error) from error
            log.warning("%s", self._fault(error))
        return written

    def tick(self) -> None:
        try:
            self._sync(self._is_sync_due())
        except OSError as error:
            self._close()
            raise self._fault(error) from error

    def _write(self, line: bytes) -> None:
        if self._file is None:
            self._file = self._open()
        if self._path is not None and self._rotates and self._is_full(self._file.tell(), len(line)):
            self._rotate(self._path)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            if self._is_regular():  # cut off the part of the line that reached the file
                self._file.truncate(self._file.tell() - (len(line) - len(rest)))
            raise
        self._is_dirty = True

    def _open(self) -> RawIOBase:
        self._opened_s = self._synced_s = time.monotonic()
        if self._path is None:
            return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
        return open(self._path, "ab", buffering=0)

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
        rotate(path)
        if self._settings.keep_files is not None:
            remove_oldest(path, self._settings.keep_files)
        self._file = self._open()

    def _is_sync_due(self) -> bool:
        every_s = self._settings.fsync_every_s
        return every_s is not None and time.monotonic() - self._synced_s >= every_s

    def _sync(self, is_due: bool) -> None:
        """Bring what was written to the disk itself, where that is due; a pipe has none."""
        if is_due and self._is_dirty and self._file is not None:
            if self._is_regular():
                os.fsync(self._file.fileno())
            self._is_dirty, self._synced_s = False, time.monotonic()

    def _is_regular(self) -> bool:
        return self._file is not None and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)

    def _where(self) -> str:
        return "standard output" if self._path is None else str(self._path)

    def _fault(self, error: OSError) -> SinkError:
        return SinkError(f"cannot write verdicts to {self._where()}: {error.strerror or error}")


def table_of(path: Path, asked: Asked) -> dict[str, Any]:
    """What --json asks for: the verdicts of this run alone, or with --must-deliver behind those of earlier ones."""
    table = {"path": str(path), "append": asked.must_deliver, "fsync_every_s": None, "events": False}
    return table | flag_defaults(asked)


FLAG = Flag("--json", "One JSON object a frame into this file; - for standard output.", table_of)
SINKS.register(SinkKind("json-lines", JsonLinesSettings, JsonLinesSink, FLAG))
