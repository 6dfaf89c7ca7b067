"""Message queue on disk: ordered, bounded, and kept through a kill or a power cut.

A spool is a folder with one SQLite database, `spool.db`. Each append is a transaction: a killed process loses nothing that
was appended, and a power cut loses nothing older than the last `sync`. A message has a CRC-32; a damaged one is dropped and
counted. A damaged database is set aside as `spool.db.damaged`, and the messages that can still be read from it are kept.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nnet_edge.errors import SinkError
from nnet_edge.runtime.sinks.base import Message
from nnet_edge.runtime.sinks.spool_database import Row, SpoolDatabase, is_at
from nnet_edge.runtime.sinks.spool_migration import CURSOR_FILE, segments_of, split_parts, undelivered
from nnet_edge.settings.runner import require_between, require_seconds

log = logging.getLogger(__name__)

SMALLEST_SPOOL_BYTES = 1 << 16
LARGEST_MESSAGE_BYTES = 1 << 28
ENCODE = json.JSONEncoder(ensure_ascii=False).encode  # made once: `json.dumps` makes one for each call


class SpoolFullError(SinkError):
    """The spool has reached its bound: the message was not kept."""


@dataclass(frozen=True)
class SpoolSettings:
    """Where messages lie and how many bytes of them. Raises ConfigError for an invalid setting."""

    folder: Path
    limit_bytes: int = 1 << 30  # of the database; its log adds an eighth to that, from 128 KB to 8 MB
    fsync_every_s: float | None = 1.0  # 0: after every append; None: at the end only. A kill loses nothing anyway

    def __post_init__(self) -> None:
        require_between("bytes of a spool", self.limit_bytes, SMALLEST_SPOOL_BYTES, 1 << 50)
        if self.fsync_every_s is not None:
            require_seconds("seconds between two fsyncs of a spool", self.fsync_every_s)


class Spool:
    """A queue of messages in a folder; one thread may append while another reads. Every method raises SinkError.

    Use it in a `with` statement. One process at a time has it.
    """

    def __init__(self, settings: SpoolSettings) -> None:
        self._settings = settings
        self._folder = settings.folder
        self._changed = threading.Condition()
        self._lock_file: IO[bytes] | None = None
        self._database = SpoolDatabase(settings.folder, settings.limit_bytes, self._recount)
        self._next = 1  # number of the next message
        self._done = 0  # number of the last message that is done
        self._peeked: list[int] = []  # numbers of the messages that `peek` gave
        self.waiting = 0  # messages that are not done
        self.damaged = 0  # messages that were appended and could not be read again

    def __enter__(self) -> Spool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = lock(self._folder / "lock")
            self._database.open()
            self._import_old_spool()
            self.waiting, last = self._database.count_after(self._done)
            self._next = max(self._next, last + 1)
        except OSError as error:
            self.close()
            raise SinkError(f"cannot use the spool {self._folder}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise
        if self.waiting:
            log.info("the spool %s holds %d messages of an earlier run", self._folder, self.waiting)
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def close(self) -> None:
        """Bring all to the disk and let others have the spool; a second time it does nothing."""
        with self._changed:
            try:
                if self.waiting:
                    self._renew_if_removed()
                self._database.close()
            finally:
                if self._lock_file is not None:
                    self._lock_file.close()
                self._lock_file = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the database, without its log."""
        with self._changed:
            return self._database.size_bytes()

    def append(self, message: Message) -> None:
        """Keep the message: once this returns, a kill of the process does not lose it.

        Raises SpoolFullError at the bound, SinkError when the disk does not take it; nothing of it stays then.
        """
        with self._changed:
            try:
                self._renew_if_removed()
                is_small = message.size_bytes <= LARGEST_MESSAGE_BYTES
                is_kept = is_small and self._database.insert(to_row(self._next, message))
            except SinkError as error:
                raise SinkError(f"{error}; {message.id} was not kept") from error
            if not is_kept:
                raise SpoolFullError(
                    f"the spool {self._folder} holds {self.size_bytes} of {self._settings.limit_bytes} bytes: {message.id} was "
                    "not kept; bring its receiver back or give the spool more bytes"
                )
            self._next += 1
            self.waiting += 1
            self._changed.notify_all()
        if self._settings.fsync_every_s == 0:
            self.sync()

    def sync(self) -> None:
        """Bring what was appended to the disk itself; a fault is logged, what is written stays.

        Others wait only for a checkpoint, when the database's log is half full.
        """
        with self._changed:
            try:
                self._renew_if_removed()
            except SinkError as error:
                log.warning("%s", error)
            file = self._database.log_file()
        if file is None:
            return
        with file:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                log.warning("the spool %s: %s: a power cut loses the newest messages", self._folder, error.strerror)
        with self._changed:
            try:
                self._database.checkpoint_if_due()
            except SinkError as error:
                log.warning("%s: the log of its database grows until the disk takes it", error)

    def peek(self, limit: int, timeout_s: float) -> list[Message]:
        """The oldest 1 to `limit` messages that are not done; none when there is none within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self.waiting > 0, timeout_s)
            found: list[Message] = []
            self._peeked = []
            while self.waiting and not found and (rows := self._database.oldest_after(self._done, limit)):
                for row in rows:
                    if is_sound(row):
                        found.append(to_message(row))
                        self._peeked.append(row[0])
                    elif found:
                        break  # it comes first in the next peek
                    else:  # it goes with those that are done next
                        log.warning("the spool %s: message %d is damaged and is dropped", self._folder, row[0])
                        self._done, self.waiting, self.damaged = row[0], self.waiting - 1, self.damaged + 1
            if not found:
                self.damaged, self.waiting = self.damaged + self.waiting, 0
            return found

    def done(self, count: int) -> None:
        """The first `count` messages of the last `peek` are taken care of: forget them."""
        with self._changed:
            self._done = self._peeked[count - 1]
            self._peeked = []
            self.waiting -= count
            self._database.delete_to(self._done)

    def _renew_if_removed(self) -> None:
        """Make the spool again where somebody removed or renamed it, with the messages that wait."""
        if self._database.is_present:
            return
        log.warning(
            "the spool %s was removed while open: it is made again with %d messages", self._folder, self.waiting
        )
        path = self._folder / "lock"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._lock_file is not None and not is_at(self._lock_file, path):
                self._lock_file.close()
                self._lock_file = lock(path)
        except OSError as error:
            raise SinkError(f"cannot use the spool {self._folder}: {error.strerror or error}") from error
        self._database.begin_anew()

    def _recount(self) -> None:
        """The database was damaged and replaced: what it lost is damaged."""
        waiting, self.waiting = self.waiting, self._database.count_after(self._done)[0]
        self.damaged += max(0, waiting - self.waiting)

    def _import_old_spool(self) -> None:
        """Take over the messages of version 0.1.0, which had no database, segment by segment; each file goes then.

        The database notes the last segment in the same transaction, so that a kill repeats none.
        """
        segments = segments_of(self._folder)
        first = last = self._database.count_after(0)[1]
        for number, path in segments.items():
            if number > self._database.last_import():
                rows = [to_row(last + index, message) for index, message in enumerate(undelivered(path), 1)]
                self._database.insert_all(rows, number)
                last += len(rows)
            path.unlink()
        if segments:
            self._database.insert_all([], 0)
            log.info("the spool %s took over %d messages of an older version", self._folder, last - first)
        (self._folder / CURSOR_FILE).unlink(missing_ok=True)


def lock(path: Path) -> IO[bytes]:
    """The open file at `path`, locked for this process. Raises SinkError when another one has it."""
    file = path.open("ab")
    if os.name == "posix":
        import fcntl  # Windows has none, and a second process is kept away by the database there

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise SinkError(f"the spool {path.parent} is used by another process: give each line its own") from error
    return file


def to_row(number: int, message: Message) -> Row:
    """The message as a row of the table."""
    names = ENCODE([[name, len(content)] for name, content in message.parts]).encode()
    content = b"".join([content for _, content in message.parts])
    id_ = message.id.encode()
    return number, id_, names, content, checksum(id_, names, content)


def to_message(row: Row) -> Message:
    """The message of a sound row."""
    _, id_, names, content, _ = row
    return Message(id_.decode(), split_parts(json.loads(names), content))


def is_sound(row: Row) -> bool:
    """Whether the row is as it was appended."""
    _, *fields, expected = row
    return all(isinstance(field, bytes) for field in fields) and checksum(*fields) == expected


def checksum(id_: bytes, names: bytes, content: bytes) -> int:
    """CRC-32 of the three, in this order."""
    return zlib.crc32(content, zlib.crc32(names, zlib.crc32(id_)))
