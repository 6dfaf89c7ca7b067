"""SQLite database of a spool: a table of messages in one file, bounded, and replaced when it is damaged.

The database is in WAL mode: a transaction is written behind the log `spool.db-wal`, and a checkpoint brings the log into
`spool.db`. Every method raises SinkError; one thread at a time may call them.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any

from nnet_edge.errors import SinkError

log = logging.getLogger(__name__)

PAGE_BYTES = 2048  # each append writes a page or two to the log: half of SQLite's 4096 makes that half as much
SMALLEST_LOG_BYTES, LARGEST_LOG_BYTES = 1 << 17, 1 << 23
LOOK_EVERY_BYTES = 1 << 16  # of the log: how often to see whether the disk is nearly full
MOST_ROWS = (1 << 63) - 1
MOST_PAGES = (1 << 30) - 1  # of any database of SQLite 3.37
BUSY_S = 1.0  # how long a program that looks into the database may hold it

TABLE = """CREATE TABLE IF NOT EXISTS messages (
    number INTEGER PRIMARY KEY,  -- their order
    id BLOB NOT NULL,  -- text in UTF-8
    parts BLOB NOT NULL,  -- JSON: [[name, bytes], ...]
    content BLOB NOT NULL,  -- of all parts, one behind the other
    checksum INTEGER NOT NULL  -- CRC-32 of id, parts and content
)"""
INSERT = "INSERT INTO messages VALUES (?, ?, ?, ?, ?)"
INSERT_ONCE = INSERT.replace("INSERT", "INSERT OR IGNORE")
OLDEST = "SELECT * FROM messages WHERE number > ? ORDER BY number LIMIT ?"
NEWEST = "SELECT * FROM messages WHERE number > ? AND number < ? ORDER BY number DESC LIMIT 1"
Row = tuple[int, bytes, bytes, bytes, int]  # of the table
SQLITE_OR_SYSTEM = (sqlite3.Error, OSError)


class SpoolDatabase:
    """The messages of one spool as rows, in the order of their numbers.

    When SQLite finds the file damaged, it is renamed to `spool.db.damaged`, a new one gets every row that can still be read,
    and `on_replaced` is called.
    """

    def __init__(self, folder: Path, limit_bytes: int, on_replaced: Callable[[], None]) -> None:
        self._folder = folder
        self._path = folder.absolute() / "spool.db"
        self._limit_bytes = limit_bytes
        self._log_limit_bytes = min(LARGEST_LOG_BYTES, max(SMALLEST_LOG_BYTES, limit_bytes // 8))
        self._on_replaced = on_replaced
        self._connection: sqlite3.Connection | None = None
        self._file: FileIO | None = None  # the database again; closed last, for that ends SQLite's lock on it
        self._log_file: FileIO | None = None  # the log again, for fsync
        self._log_bytes = 0  # about, since the last checkpoint
        self._look_at_bytes = LOOK_EVERY_BYTES  # of the log: when to see how full the disk is

    def open(self) -> None:
        """Open the database, or make it; a damaged one is replaced."""
        try:
            self._open()
        except SQLITE_OR_SYSTEM as error:
            raise self._fault(error) from error

    def close(self) -> None:
        """Bring all to the disk itself and close; a second time it does nothing."""
        try:
            if self._log_file is not None:
                os.fsync(self._log_file.fileno())
        except OSError as error:
            raise self._fault(error) from error
        finally:
            self._disconnect()

    @property
    def is_present(self) -> bool:
        """Whether the open database still lies at its path."""
        return self._file is None or is_at(self._file, self._path)

    def begin_anew(self) -> None:
        """Make the database again where it was removed or renamed, with every row that the open one holds."""
        carried = self._beside(".carried")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            carried.unlink(missing_ok=True)
            self._execute("VACUUM INTO ?", (str(carried),))
            self._disconnect()
            if not self._path.exists():  # a log without its database is of the removed one
                self._beside("-wal").unlink(missing_ok=True)
            carried.replace(self._beside(".salvage"))
            self._open(is_sound=True)
        except SQLITE_OR_SYSTEM as error:
            raise self._fault(error) from error

    def size_bytes(self) -> int:
        """Bytes of the database, without its log."""
        return int(self._read("PRAGMA page_count")[0][0]) * PAGE_BYTES

    def count_after(self, number: int) -> tuple[int, int]:
        """How many rows have a larger number, and the largest of these; 0 and 0 without any."""
        count, last = self._read("SELECT count(*), max(number) FROM messages WHERE number > ?", (number,))[0]
        return count, last or 0

    def oldest_after(self, number: int, limit: int) -> list[Row]:
        """At most `limit` rows with a larger number, in order."""
        return self._read(OLDEST, (number, limit))

    def insert(self, row: Row) -> bool:
        """Keep the row; False when the database has reached its bound."""
        size_bytes = len(row[2]) + len(row[3]) + 2 * PAGE_BYTES
        try:
            self._write(INSERT, row)
        except SQLITE_OR_SYSTEM as error:
            is_full = "is full" in str(error)  # SQLite says so of the disk and of `max_page_count`
            if is_full and self.size_bytes() + size_bytes > self._limit_bytes:
                return False
            disk_error = self._disk_error(size_bytes) if isinstance(error, sqlite3.Error) else None
            if is_full and disk_error is None:
                return False
            raise self._fault(disk_error or error) from error
        self._log_bytes += size_bytes
        self._spare_disk()
        return True

    def insert_all(self, rows: Iterable[Row], last_import: int) -> None:
        """Keep the rows, all or nothing, on the disk itself, and note the number of what they were imported from."""
        try:
            self._insert_all(rows, last_import)
        except SQLITE_OR_SYSTEM as error:
            raise self._fault(self._disk_error(PAGE_BYTES) or error) from error

    def last_import(self) -> int:
        """The number that the last `insert_all` noted; 0 before the first."""
        return int(self._read("PRAGMA user_version")[0][0])

    def delete_to(self, number: int) -> None:
        """Remove the rows up to this number."""
        try:
            self._write("DELETE FROM messages WHERE number <= ?", (number,))
        except SQLITE_OR_SYSTEM as error:
            raise self._fault(self._disk_error(PAGE_BYTES) or error) from error
        self._log_bytes += 2 * PAGE_BYTES

    def log_file(self) -> FileIO | None:
        """The log, opened for an fsync by the caller, who closes it; None when the database is closed."""
        return None if self._log_file is None else FileIO(os.dup(self._log_file.fileno()), "r+b")

    def checkpoint_if_due(self) -> None:
        """Bring the log into the database when it is half full; takes a few fsyncs."""
        if self._connection is not None and self._log_bytes > self._log_limit_bytes // 2:
            try:
                self._checkpoint()
            except SQLITE_OR_SYSTEM as error:
                raise self._fault(error) from error

    def _open(self, is_sound: bool = False) -> None:
        try:
            self._connect()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._set_aside(error)
            self._connect()
        self._salvage(is_sound)
        self._bound(self._limit_bytes)

    def _connect(self) -> None:
        self._file = FileIO(self._path, "ab")  # its error says more than SQLite's
        self._connection = connect(self._path)
        log_pages = self._log_limit_bytes // PAGE_BYTES
        for setting in (
            "locking_mode = EXCLUSIVE",  # without memory shared between processes, which a network drive has not
            f"page_size = {PAGE_BYTES}",
            "auto_vacuum = FULL",  # the file shrinks as messages are done
            "secure_delete = OFF",
            "synchronous = NORMAL",  # waits for the disk in a checkpoint and when the log starts again
            f"wal_autocheckpoint = {log_pages}",  # in `append` and `done`, when `sync` did not make it in time
            f"journal_size_limit = {self._log_limit_bytes}",
        ):
            self._execute(f"PRAGMA {setting}")
        if self._execute("PRAGMA journal_mode = WAL") != [(b"wal",)]:
            raise SinkError(f"the spool {self._folder} cannot have a log (WAL) there: give it a folder on a local disk")
        self._execute(TABLE)
        self._execute("SELECT count(*) FROM messages")  # reads the whole tree, which finds damage
        self._log_file = FileIO(self._beside("-wal"), "r+b")

    def _execute(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        if self._connection is None:
            raise SinkError(f"the spool {self._folder} is closed: open it in a with statement")
        return self._connection.execute(statement, values).fetchall()

    def _read(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        try:
            return self._run(statement, values)
        except SQLITE_OR_SYSTEM as error:
            raise self._fault(error) from error

    def _run(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """The rows that the statement gives; a damaged database is replaced first."""
        try:
            return self._execute(statement, values)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._set_aside(error)
            self._open()
            self._on_replaced()
            return self._execute(statement, values)

    def _write(self, statement: str, values: Sequence[object]) -> None:
        """Run the statement; once more after a checkpoint, which lets the log start again where the disk is full."""
        try:
            self._run(statement, values)
        except sqlite3.OperationalError:
            self._checkpoint()
            self._run(statement, values)

    def _checkpoint(self) -> None:
        """Bring the log into the database, both to the disk itself."""
        self._execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._log_bytes, self._look_at_bytes = 0, LOOK_EVERY_BYTES

    def _spare_disk(self) -> None:
        """Where the disk is nearly full, checkpoint early: a page is in the log once for each message, else once in all."""
        if self._log_bytes > self._look_at_bytes:
            self._look_at_bytes += LOOK_EVERY_BYTES
            with suppress(*SQLITE_OR_SYSTEM):
                if shutil.disk_usage(self._folder).free < 2 * self._log_limit_bytes:
                    self._checkpoint()

    def _bound(self, limit_bytes: int) -> None:
        """Let the database grow to so many bytes; one that is larger grows no more."""
        self._execute(f"PRAGMA max_page_count = {min(MOST_PAGES, limit_bytes // PAGE_BYTES)}")

    def _insert_all(self, rows: Iterable[Row], last_import: int) -> None:
        self._bound(MOST_PAGES * PAGE_BYTES)  # what was within it may need some pages more here
        self._execute("BEGIN")
        try:
            for row in rows:
                self._execute(INSERT_ONCE, row)
            self._execute(f"PRAGMA user_version = {last_import}")
            self._execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                self._execute("ROLLBACK")
            raise
        finally:
            self._bound(self._limit_bytes)
        self._checkpoint()

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Close the damaged database and rename it; `_salvage` reads it."""
        log.error("%s: it is set aside as %s", self._fault(error), self._beside(".damaged"))
        self._disconnect()
        for ending in ("", "-wal"):
            with suppress(FileNotFoundError):
                os.replace(self._beside(ending), self._beside(".salvage" + ending))

    def _salvage(self, is_sound: bool) -> None:
        """Take over what can be read of a database that was set aside; it stays, as damaged, unless it is sound."""
        if not self._beside(".salvage").exists():
            return
        self._insert_all(readable(self._beside(".salvage")), 0)
        for ending in ("", "-wal"):
            with suppress(FileNotFoundError):
                if is_sound:
                    self._beside(".salvage" + ending).unlink()
                else:
                    os.replace(self._beside(".salvage" + ending), self._beside(".damaged" + ending))

    def _disconnect(self) -> None:
        """Close it: that is a last checkpoint, and removes its log when that succeeds."""
        for open_file in (self._log_file, self._connection, self._file):
            if open_file is not None:
                open_file.close()
        self._log_file = self._connection = self._file = None

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(self._path.name + ending)

    def _disk_error(self, size_bytes: int) -> OSError | None:
        """What the system says when the log grows by so many bytes, which SQLite keeps to itself; None when it can."""
        if self._log_file is None:
            return None
        end = self._log_file.seek(0, os.SEEK_END)
        rest = memoryview(bytes(size_bytes))
        try:
            while rest:
                rest = rest[self._log_file.write(rest) :]
        except OSError as error:
            return error
        finally:
            self._log_file.truncate(end)
        return None

    def _fault(self, error: Exception) -> SinkError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if "is locked" in reason:
            reason = "another program has spool.db open: close it"
        return SinkError(f"cannot use the spool {self._folder}: {reason}")


def is_at(file: IO[bytes] | FileIO, path: Path) -> bool:
    """Whether the open file still lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def connect(path: Path) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time. Text comes as bytes, for damaged text cannot be decoded."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    connection.text_factory = bytes
    return connection


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite calls the database malformed or no database; Python 3.10 gives no code, but the class itself."""
    return type(error) is sqlite3.DatabaseError


def readable(path: Path) -> Iterator[Row]:
    """The rows of a damaged database that can be read from its two ends, up to the damage.

    Each has a statement of its own: a cursor that fails at the next row keeps this one to itself.
    """
    first, last = 0, MOST_ROWS
    with closing(connect(path)) as database:
        with suppress(sqlite3.Error):
            while row := database.execute(OLDEST, (first, 1)).fetchone():
                first = row[0]
                yield row
            return
        with suppress(sqlite3.Error):
            while row := database.execute(NEWEST, (first, last)).fetchone():
                last = row[0]
                yield row
