"""Reader of the spools of version 0.1.0, which had no database: numbered segments of records, and a cursor.

A record is 12 bytes (magic, length, CRC-32) and its payload: a line of JSON that names the parts and their lengths, and the
parts. The cursor says where the first undelivered record lies. A torn or damaged record costs the rest of its segment.
"""

from __future__ import annotations

import json
import logging
import struct
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

from nnet_edge.runtime.sinks.base import Message

log = logging.getLogger(__name__)

HEAD = struct.Struct("<4sII")  # magic, bytes of the payload, CRC-32 of the payload
MAGIC = b"nnSP"
CURSOR_FILE = "cursor"
CURSOR = struct.Struct("<QQI")  # number of a segment, offset in it, CRC-32 of the two


def segments_of(folder: Path) -> dict[int, Path]:
    """The segments in `folder` by number, oldest first."""
    found = {int(path.stem): path for path in folder.glob("*.segment") if path.stem.isdecimal()}
    return dict(sorted(found.items()))


def undelivered(segment: Path) -> Iterator[Message]:
    """The messages of the segment that were not delivered, in order, as far as they can be read."""
    held = segment.read_bytes()
    start = start_in(segment, len(held))
    while (payload := record_at(held, start)) is not None:
        start += HEAD.size + len(payload)
        yield to_message(payload)
    if start < len(held):
        log.warning("the spool %s: %d bytes of %s cannot be read", segment.parent, len(held) - start, segment.name)


def start_in(segment: Path, size_bytes: int) -> int:
    """Where the first undelivered record of the segment lies; its start when the cursor cannot be read."""
    path = segment.parent / CURSOR_FILE
    held = path.read_bytes() if path.exists() else b""
    if len(held) >= CURSOR.size:
        number, offset, checksum = CURSOR.unpack(held[: CURSOR.size])
        if zlib.crc32(held[:16]) == checksum:
            if int(segment.stem) < number:
                return size_bytes
            if int(segment.stem) > number:
                return 0
            if offset <= size_bytes:
                return int(offset)
    if held:
        log.warning("the spool %s has a damaged cursor: its messages are sent again", segment.parent)
    return 0


def record_at(held: bytes, start: int) -> bytes | None:
    """The payload of the record that begins there; None when no whole and sound one does."""
    if len(held) < start + HEAD.size:
        return None
    magic, length, checksum = HEAD.unpack_from(held, start)
    payload = held[start + HEAD.size :][:length]
    is_sound = magic == MAGIC and len(payload) == length and zlib.crc32(payload) == checksum
    return payload if is_sound else None


def to_message(payload: bytes) -> Message:
    """The message whose record has this payload."""
    names, _, rest = payload.partition(b"\n")
    fields = json.loads(names)
    return Message(fields["id"], split_parts(fields["parts"], rest))


def split_parts(lengths: Iterable[tuple[str, int]], content: bytes) -> tuple[tuple[str, bytes], ...]:
    """Name and bytes of each part; `content` holds them one behind the other."""
    whole = BytesIO(content)
    return tuple((name, whole.read(length)) for name, length in lengths)
