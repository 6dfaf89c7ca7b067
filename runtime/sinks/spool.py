"""Messages on a disk until they are delivered: in order, bounded, and readable again after a kill or a power cut.

A spool is a folder. Records are appended to numbered segments and read from the oldest; `cursor` says which were taken
care of. A segment whose records are all done goes. A record is 12 bytes (magic, length, CRC-32) and its payload; a torn
end is cut off when the spool is opened, and a damaged record costs the rest of its segment.

How the files of a spool are opened: nothing of what is written stays in this process, and no other one has the folder.

One message as a record of a spool: 12 bytes (magic, length, CRC-32), and the payload that they vouch for.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from nnet_edge.errors import SinkError
from nnet_edge.runtime.sinks.base import Message
from nnet_edge.settings.runner import require_between, require_seconds

if TYPE_CHECKING:
    from typing_extensions import Self


def unbuffered(path: Path, mode: str) -> FileIO:
    """The open file at `path`: what is written is the system's at once, and survives this process."""
    return FileIO(path, mode)


def lock(path: Path) -> IO[bytes]:
    """The open file at `path`, locked for this process. Raises SinkError when another one has it."""
    file = path.open("ab")
    if os.name == "posix":
        import fcntl  # Windows has none, and a second process is not kept away there

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise SinkError(
                f"the spool {path.parent} is used by another process: give each line a spool of its own"
            ) from error
    return file


HEAD = struct.Struct("<4sII")  # magic, bytes of the payload, CRC-32 of the payload
HEAD_BYTES = HEAD.size
MAGIC = b"nnSP"
LARGEST_RECORD_BYTES = 1 << 28


def to_record(message: Message) -> bytes:
    """The message as a record: a head, a line of JSON that names the parts and their lengths, the parts."""
    parts = [[name, len(content)] for name, content in message.parts]
    names = json.dumps({"id": message.id, "parts": parts}, ensure_ascii=False).encode()
    payload = b"".join([names, b"\n", *(content for _, content in message.parts)])
    return HEAD.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


def read_record(file: IO[bytes], available: int) -> bytes | None:
    """The payload of the record that begins here; None when no whole and sound one lies within `available` bytes."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    magic, length, checksum = HEAD.unpack(head)
    if magic != MAGIC or length > min(LARGEST_RECORD_BYTES, available - HEAD.size):
        return None
    payload = file.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def to_message(payload: bytes) -> Message:
    """The message whose record has this payload."""
    head, _, rest = payload.partition(b"\n")
    fields = json.loads(head)
    parts, start = [], 0
    for name, length in fields["parts"]:
        parts.append((name, rest[start : start + length]))
        start += length
    return Message(fields["id"], tuple(parts))


log = logging.getLogger(__name__)

CURSOR = struct.Struct("<QQI")  # number of the segment, offset in it, CRC-32 of the two
SMALLEST_SPOOL_BYTES = 1 << 16
MOST_TURNED = 8  # full segments that wait for `sync`; with more, `append` does it


class SpoolFullError(SinkError):
    """The spool has reached its bound: the message was not kept."""


@dataclass(frozen=True)
class SpoolSettings:
    """Where messages lie and how many bytes of them. Raises ConfigError for a setting that cannot be meant."""

    folder: Path
    limit_bytes: int = 1 << 30
    segment_bytes: int = 1 << 23  # a segment is closed when it is larger, or than an eighth of the limit
    fsync_every_s: float | None = 1.0  # 0: after every append; None: at the end only. A kill loses nothing anyway

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
        self._tail: FileIO | None = None
        self._lock_file: IO[bytes] | None = None
        self._cursor_file: FileIO | None = None
        self._segment_bytes = min(settings.segment_bytes, settings.limit_bytes // 8)
        self._segment, self._offset = 1, 0  # of the first record that is not done
        self._peeked: list[tuple[int, int]] = []  # segment and offset behind each record that `peek` gave
        self._turned: list[FileIO] = []  # full segments that may not be on the disk itself yet
        self.waiting = 0  # records that are not done
        self.damaged = 0  # records that were appended and could not be read again

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
            written = [*self._turned, *([] if self._tail is None else [self._tail])]
            try:
                for file in written:
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._fault(error) from error
            finally:
                for open_file in (*written, self._cursor_file, self._lock_file):
                    if open_file is not None:
                        open_file.close()
                self._turned, self._tail, self._cursor_file, self._lock_file = [], None, None, None

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments, done records of the first one included."""
        return sum(self._sizes.values())

    def append(self, message: Message) -> None:
        """Keep the message: once this returns, a kill of the process does not lose it.

        Raises SpoolFullError at the bound, SinkError when the disk does not take it; nothing of it stays then.
        """
        record = to_record(message)
        with self._changed:
            try:
                self._turn_over()
                self._require_room(message, len(record))
                self._append(record)
            except OSError as error:
                raise SinkError(f"{self._fault(error)}; {message.id} was not kept") from error
            self.waiting += 1
            self._changed.notify_all()
            if self._settings.fsync_every_s == 0:
                self._sync_file(self._tail)

    def sync(self) -> None:
        """Bring what was appended to the disk itself; nobody else waits for it. A fault is told in the log, what is written
        stays.
        """
        with self._changed:
            files, self._turned = self._turned, []
            if self._tail is not None:
                files.append(FileIO(os.dup(self._tail.fileno())))
        for file in files:
            with file:
                self._sync_file(file)

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
                self.damaged += self.waiting
                self.waiting = 0
            return found

    def done(self, count: int) -> None:
        """The first `count` messages of the last `peek` are taken care of: forget them."""
        with self._changed:
            self._segment, self._offset = self._peeked[count - 1]
            later = [number for number in self._sizes if number > self._segment]
            if later and self._offset >= self._sizes[self._segment]:  # a segment that others follow grows no more
                self._segment, self._offset = min(later), 0
            self._peeked = []
            self.waiting -= count
            try:
                self._write_cursor()
                self._remove_before(self._segment)
            except OSError as error:
                raise self._fault(error) from error

    def _require_room(self, message: Message, record_bytes: int) -> None:
        limit_bytes = self._settings.limit_bytes
        if record_bytes > LARGEST_RECORD_BYTES or self.size_bytes + record_bytes > limit_bytes:
            raise SpoolFullError(
                f"the spool {self._folder} holds {self.size_bytes} of {limit_bytes} bytes: {message.id} was not kept; "
                "bring its receiver back or give the spool more bytes"
            )

    def _append(self, record: bytes) -> None:
        """Write the record behind the last one; what was written of one that does not fit is cut off."""
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

    def _turn_over(self) -> None:
        """Begin a new segment where the last is full; when all records are done, the old ones go."""
        if self._tail is not None and self._sizes[max(self._sizes)] < self._segment_bytes:
            return
        number = max(self._sizes, default=self._segment) + 1
        following = unbuffered(self._path(number), "ab")
        if self._tail is not None:
            self._turned.append(self._tail)
            if not self._settings.fsync_every_s or len(self._turned) > MOST_TURNED:
                with self._turned.pop(0) as oldest:
                    self._sync_file(oldest if self._settings.fsync_every_s else None)
        self._tail = following
        self._sizes[number] = 0
        if self.waiting == 0:
            self._segment, self._offset = number, 0
            self._write_cursor()
            self._remove_before(number)

    def _sync_file(self, file: FileIO | None) -> None:
        if file is not None:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                log.warning("%s: a power cut would lose the newest messages", self._fault(error))

    def _recover(self) -> None:
        """Find out what a former process left: segments, cursor, and a torn end, which is cut off."""
        path = self._folder / "cursor"
        self._cursor_file = unbuffered(path, "r+b" if path.exists() else "w+b")
        numbers = sorted(int(path.stem) for path in self._folder.glob("*.segment"))
        self._sizes = {number: self._path(number).stat().st_size for number in numbers}
        self._segment, self._offset = self._read_cursor(numbers)
        self._write_cursor()  # its place on the disk is taken now, while there is some
        self._remove_before(self._segment)
        self.waiting = sum(1 for _ in self._records_from(self._segment, self._offset))
        if self._sizes:
            self._tail = unbuffered(self._path(max(self._sizes)), "ab")
        if self.waiting:
            log.info("the spool %s holds %d messages of an earlier run", self._folder, self.waiting)

    def _records_from(self, segment: int, offset: int) -> Iterator[tuple[int, int, bytes]]:
        """Segment, offset behind it, and payload of each whole record from there on."""
        for number in sorted(number for number in self._sizes if number >= segment):
            start = offset if number == segment else 0
            with self._path(number).open("rb") as file:
                file.seek(start)
                while (payload := read_record(file, self._sizes[number] - start)) is not None:
                    start += HEAD_BYTES + len(payload)
                    yield number, start, payload
            if start < self._sizes[number]:
                self._cut(number, start)

    def _cut(self, number: int, start: int) -> None:
        """Cut off what cannot be read behind `start`: a torn record of a killed process, or damage."""
        lost_bytes = self._sizes[number] - start
        log.warning(
            "the spool %s: the last %d bytes of %s cannot be read", self._folder, lost_bytes, self._path(number)
        )
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
            later = [number for number in numbers if number > segment]
            if zlib.crc32(held[:16]) == checksum and segment not in self._sizes:
                return (later[0] if later else segment + 1), 0
            if zlib.crc32(held[:16]) == checksum and offset <= self._sizes[segment]:
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
