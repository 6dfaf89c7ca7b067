"""Messages on a disk until they are delivered: in order, bounded, and readable again after a kill or a power cut.

A spool is a folder. Records are appended to numbered segments and read from the oldest; `cursor` says which were taken
care of. A segment whose records are all done goes. A record is 12 bytes (magic, length, CRC-32) and its payload; a torn
end is cut off when the spool is opened, and a damaged record costs the rest of its segment, counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from nnet_edge.config import require_between, require_seconds
from nnet_edge.errors import SinkError
from nnet_edge.runtime.sinks.base import Message

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

HEAD = struct.Struct("<4sII")  # magic, bytes of the payload, CRC-32 of the payload
CURSOR = struct.Struct("<QQI")  # number of the segment, offset in it, CRC-32 of the two
MAGIC = b"nnSP"
LARGEST_RECORD_BYTES = 1 << 28
SMALLEST_SPOOL_BYTES = 1 << 16


class SpoolFullError(SinkError):
    """The spool has reached its bound, or its disk is full: the message was not kept."""


@dataclass(frozen=True)
class SpoolSettings:
    """Where messages lie and how many bytes of them. Raises ConfigError for a setting that cannot be meant."""

    folder: Path
    limit_bytes: int = 1 << 30
    segment_bytes: int = 1 << 23  # a segment is closed when it is larger; the last record may reach beyond
    fsync_every_s: float | None = 1.0  # 0: after every append; None: when the system likes. A kill loses nothing anyway

    def __post_init__(self) -> None:
        require_between("bytes of a spool", self.limit_bytes, SMALLEST_SPOOL_BYTES, 1 << 50)
        require_between("bytes of a spool's segment", self.segment_bytes, 1024, 1 << 40)
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
        self._sizes: dict[int, int] = {}  # segment -> bytes of whole records
        self._tail: IO[bytes] | None = None
        self._lock_file: IO[bytes] | None = None
        self._cursor_file: IO[bytes] | None = None
        self._segment, self._offset = 1, 0  # of the first record that is not done
        self._peeked: list[tuple[int, int]] = []  # segment and offset behind each record that `peek` gave
        self._synced_s = 0.0
        self.waiting = 0  # records that are not done
        self.damaged_bytes = 0  # that could not be read and were passed over, since opening

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = lock(self._folder / "lock")
            self._recover()
        except OSError as error:
            self.close()
            raise self._fault(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Bring all to the disk and let others have the spool; a second time it does nothing."""
        with self._changed:
            try:
                if self._tail is not None:
                    os.fsync(self._tail.fileno())
            except OSError as error:
                raise self._fault(error) from error
            finally:
                for file in (self._tail, self._cursor_file, self._lock_file):
                    if file is not None:
                        file.close()
                self._tail = self._cursor_file = self._lock_file = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments, done records of the first one included."""
        return sum(self._sizes.values())

    def append(self, message: Message) -> None:
        """Keep the message: once this returns, a kill of the process does not lose it. Raises SpoolFullError."""
        payload = to_bytes(message)
        record = HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload
        with self._changed:
            if len(payload) > LARGEST_RECORD_BYTES or self.size_bytes + len(record) > self._settings.limit_bytes:
                raise SpoolFullError(
                    f"the spool {self._folder} holds {self.size_bytes} of {self._settings.limit_bytes} bytes: "
                    f"{message.id} was not kept; bring its receiver back or give it more bytes"
                )
            try:
                self._append(record)
            except OSError as error:
                raise SpoolFullError(f"{self._fault(error)}: {message.id} was not kept") from error
            self.waiting += 1
            self._changed.notify_all()

    def peek(self, limit: int, timeout_s: float) -> list[Message]:
        """The oldest 1 to `limit` messages that are not done; none when there is none within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self.waiting > 0, timeout_s)
            found: list[Message] = []
            self._peeked = []
            try:
                for segment, behind, payload in self._records_from(self._segment, self._offset):
                    found.append(to_message(payload))
                    self._peeked.append((segment, behind))
                    if len(found) == limit:
                        break
            except OSError as error:
                raise self._fault(error) from error
            if not found:
                self.waiting = 0  # what lay there was damaged, and counted
            return found

    def done(self, count: int) -> None:
        """The first `count` messages of the last `peek` are taken care of: forget them."""
        with self._changed:
            self._segment, self._offset = self._peeked[count - 1]
            self._peeked = []
            self.waiting -= count
            try:
                self._write_cursor()
                self._remove_before(self._segment)
            except OSError as error:
                raise self._fault(error) from error

    def wake(self) -> None:
        """Let a `peek` that waits look again."""
        with self._changed:
            self._changed.notify_all()

    def _append(self, record: bytes) -> None:
        """Write the record behind the last one; what was written of one that does not fit is cut off."""
        if self._tail is None or self._sizes[max(self._sizes)] >= self._settings.segment_bytes:
            self._new_segment()
        assert self._tail is not None
        number = max(self._sizes)
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self._tail.write(rest) :]
        except OSError:
            self._tail.truncate(self._sizes[number])
            raise
        self._sizes[number] += len(record)
        every_s = self._settings.fsync_every_s
        if every_s is not None and time.monotonic() - self._synced_s >= every_s:
            os.fsync(self._tail.fileno())
            self._synced_s = time.monotonic()

    def _new_segment(self) -> None:
        number = max(self._sizes, default=self._segment - 1) + 1
        following = open(self._path(number), "ab", buffering=0)
        if self._tail is not None:
            if self._settings.fsync_every_s is not None:
                os.fsync(self._tail.fileno())
            self._tail.close()
        self._tail = following
        self._sizes[number] = 0

    def _recover(self) -> None:
        """Find out what a former process left: segments, cursor, and a torn end, which is cut off."""
        self._cursor_file = open(self._folder / "cursor", "r+b" if (self._folder / "cursor").exists() else "w+b")
        numbers = sorted(int(path.stem) for path in self._folder.glob("*.segment"))
        self._sizes = {number: self._path(number).stat().st_size for number in numbers}
        self._segment, self._offset = self._read_cursor(numbers)
        self._remove_before(self._segment)
        self.waiting = sum(1 for _ in self._records_from(self._segment, self._offset, is_recovering=True))
        if self._sizes:
            self._tail = open(self._path(max(self._sizes)), "ab", buffering=0)
        if self.waiting:
            log.info("the spool %s holds %d messages of an earlier run", self._folder, self.waiting)

    def _records_from(
        self, segment: int, offset: int, is_recovering: bool = False
    ) -> Iterator[tuple[int, int, bytes]]:
        """Segment, offset behind it, and payload of each whole record from there on."""
        for number in sorted(number for number in self._sizes if number >= segment):
            start = offset if number == segment else 0
            with self._path(number).open("rb") as file:
                file.seek(start)
                while (payload := read_record(file, self._sizes[number] - start)) is not None:
                    start += HEAD.size + len(payload)
                    yield number, start, payload
            if start < self._sizes[number]:
                self._pass_over(number, start, is_recovering and number == max(self._sizes))

    def _pass_over(self, number: int, start: int, is_torn_end: bool) -> None:
        """Cut off what cannot be read behind `start`: a torn record of a killed process, or damage."""
        lost_bytes = self._sizes[number] - start
        self.damaged_bytes += 0 if is_torn_end else lost_bytes
        log.warning("the spool %s: %d bytes of segment %d cannot be read", self._folder, lost_bytes, number)
        if is_torn_end:
            os.truncate(self._path(number), start)
        self._sizes[number] = start

    def _remove_before(self, segment: int) -> None:
        for number in sorted(number for number in self._sizes if number < segment):
            self._path(number).unlink(missing_ok=True)
            del self._sizes[number]

    def _read_cursor(self, numbers: list[int]) -> tuple[int, int]:
        """Where the first record lies that is not done; the oldest segment's start when the cursor cannot be read."""
        assert self._cursor_file is not None
        held = self._cursor_file.read(CURSOR.size)
        if len(held) == CURSOR.size:
            segment, offset, checksum = CURSOR.unpack(held)
            if zlib.crc32(held[:16]) == checksum and offset <= self._sizes.get(segment, offset):
                return segment, offset
        if held:
            log.warning("the spool %s has a damaged cursor: its messages are sent again", self._folder)
        return (numbers[0] if numbers else 1), 0

    def _write_cursor(self) -> None:
        assert self._cursor_file is not None
        where = struct.pack("<QQ", self._segment, self._offset)
        os.pwrite(self._cursor_file.fileno(), where + struct.pack("<I", zlib.crc32(where)), 0)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012d}.segment"

    def _fault(self, error: OSError) -> SinkError:
        return SinkError(f"cannot use the spool {self._folder}: {error.strerror or error}")
