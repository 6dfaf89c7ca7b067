"""One message as a record of a spool: 12 bytes (magic, length, CRC-32), and the payload that they vouch for."""

from __future__ import annotations

import json
import struct
import zlib
from typing import IO

from nnet_edge.runtime.sinks.base import Message

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
