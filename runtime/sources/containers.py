"""Whether a video file is there to its end, by the lengths that its container writes down.

A number of frames says little: it is estimated, or counts frames that an edit leaves out. Lengths are exact.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

TAIL_BYTES = 4 << 20  # of a transport stream, in which the last packet of each of its streams begins
MATROSKA, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
NESTED = (SEGMENT, b"\x1f\x43\xb6\x75")  # Segment and Cluster: of unknown length while they are recorded
PACKETS = ((188, 0), (192, 4), (204, 0))  # bytes of a packet of a transport stream, and where its 0x47 stands
FLV_TAGS = (8, 9, 18)


def is_cut_off(file: BinaryIO) -> bool:
    """Whether the file ends before its container does; False where the container does not say. Raises OSError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(1024)
    if head[4:8] in (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof"):
        ends: Iterator[int] = (place + length for place, length, _ in boxes(file, 0, size))
    elif head.startswith(MATROSKA):
        ends = elements(file, size)
    elif head.startswith(b"RIFF"):
        ends = riff(file, size)
    elif head.startswith(ASF):
        ends = asf(file, size)
    elif head.startswith(b"\0\0\1\xba"):
        ends = program(file, size)
    elif head.startswith(b"FLV"):
        return lacks_flv_end(file, size)
    elif head.startswith(b"\xff\xd8"):  # JPEGs, one after another
        file.seek(max(0, size - 4096))
        return not file.read().rstrip(b"\0\r\n").endswith(b"\xff\xd9")
    else:
        found = [(packet, at) for packet, at in PACKETS if head[at : at + 3 * packet : packet] == b"G" * 3]
        return bool(found) and (size % found[0][0] > 0 or lacks_packets(file, size, *found[0]))
    return any(end > size for end in ends)


def boxes(file: BinaryIO, place: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Place, length and kind of each box of MP4 from `place` to `end`; the last one may claim to be longer."""
    while place < end:
        file.seek(place)
        start = file.read(16)
        length, kind = int.from_bytes(start[:4], "big"), start[4:8]
        if len(start) >= 8 and not kind.isalnum():
            return  # padding, or what a camera appends
        if length == 1:
            length = int.from_bytes(start[8:16], "big")
        elif length == 0 and len(start) >= 8:
            length = end - place  # to the end of the file
        yield place, max(length, 8), kind
        place += max(length, 8)


def picture_s(file: BinaryIO) -> float | None:
    """How long the pictures of an MP4 file are shown, s, without what an edit leaves out; None where it does not say."""
    for place, length, kind in boxes(file, 0, file.seek(0, os.SEEK_END)):
        if kind == b"moov":
            file.seek(place + 8)
            index = file.read(min(length - 8, 64 << 20))
            break
    else:
        return None
    scale, lengths = 0, []
    movie = index.find(b"mvhd")
    if movie >= 0:
        is_long = index[movie + 4] == 1
        at = movie + (24 if is_long else 16)
        scale = int.from_bytes(index[at : at + 4], "big")
    for track in index.split(b"trak")[1:]:
        header, handler = track.find(b"tkhd"), track.find(b"hdlr")
        if header >= 0 and track[handler + 12 : handler + 16] == b"vide":
            is_long = track[header + 4] == 1
            at = header + (32 if is_long else 24)
            lengths.append(int.from_bytes(track[at : at + (8 if is_long else 4)], "big"))
    if not scale or len(lengths) != 1 or lengths[0] in (0, (1 << 32) - 1, (1 << 64) - 1):
        return None
    return lengths[0] / scale


def elements(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each element of a Matroska file ends; those of unknown length by what is in them."""
    place = 0
    while place < size:
        file.seek(place)
        start = file.read(12)
        kind_bytes = 9 - start[0].bit_length()
        data = start[kind_bytes:]
        length_bytes = 9 - data[0].bit_length() if data else 9
        if kind_bytes > 4 or length_bytes > 8 or len(data) < length_bytes:
            if len(data) < 8:
                yield size + 1  # cut in the head of an element
            return
        length = int.from_bytes(data[:length_bytes], "big") & (1 << 7 * length_bytes) - 1
        place += kind_bytes + length_bytes
        if length == (1 << 7 * length_bytes) - 1 and start[:kind_bytes] in NESTED:
            continue
        yield place + length
        place += length


def riff(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each part of an AVI file ends; one that was never closed does not say."""
    place = 0
    while place + 12 <= size:
        file.seek(place)
        start = file.read(12)
        length = int.from_bytes(start[4:8], "little")
        if start[:4] != b"RIFF" or length in (0, (1 << 32) - 1):
            return
        yield place + 8 + length
        place += 8 + length + length % 2


def asf(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each object of a WMV file ends; a broadcast does not say."""
    place = 0
    while place + 24 <= size:
        file.seek(place + 16)
        length = int.from_bytes(file.read(8), "little")
        if length < 24:
            return
        yield place + length
        place += length


def program(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each packet of an MPEG program stream ends, as long as one follows on another."""
    place = 0
    while place < size:
        file.seek(place)
        start = file.read(14)
        if start[:3] != b"\0\0\1"[: len(start)]:
            return
        if len(start) < 6:
            yield place + (4 if start[3:] == b"\xb9" else 6)
            return
        if start[3] == 0xBA:
            place += 12 if start[4] >> 6 == 0 else 14 + (start[13] & 7 if len(start) == 14 else 0)
        else:
            place += 4 if start[3] == 0xB9 else 6 + int.from_bytes(start[4:6], "big")
        yield place


def lacks_flv_end(file: BinaryIO, size: int) -> bool:
    """Whether the last bytes of an FLV file are not the length of the tag before them."""
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    if not 11 <= length <= size - 13:
        return length > 0  # zeros are padding
    file.seek(size - 4 - length)
    start = file.read(4)
    return start[0] & 31 not in FLV_TAGS or int.from_bytes(start[1:], "big") + 11 != length


def lacks_packets(file: BinaryIO, size: int, packet: int, at: int) -> bool:
    """Whether the last packet (PES) of a stream in a transport stream ends early.

    Most of video do not say how long they are. Their end is padded to fill its 188 bytes, all but one in 184, so a video
    that ends without is taken for cut off.
    """
    missing: dict[int, int | None] = {}  # stream -> bytes that its last packet lacks, None: it does not say
    is_padded: dict[int, bool] = {}
    file.seek(max(0, size // packet - TAIL_BYTES // packet) * packet)
    tail = file.read()
    for place in range(at, len(tail), packet):
        data = tail[place : place + 188]
        stream, control = int.from_bytes(data[1:3], "big") & 0x1FFF, data[3] >> 4 & 3
        if not control & 1:
            continue  # no payload
        payload = data[4 + (1 + data[4] if control & 2 else 0) :]
        if data[1] & 0x40 and payload[:3] == b"\0\0\1":
            length = int.from_bytes(payload[4:6], "big")
            missing[stream] = length + 6 if length else None
        if stream in missing:
            before = missing[stream]
            missing[stream] = None if before is None else before - len(payload)
            is_padded[stream] = bool(control & 2) and has_stuffing(data[4 : 5 + data[4]])
    return any(not is_padded[stream] if left is None else left > 0 for stream, left in missing.items())


def has_stuffing(field: bytes) -> bool:
    """Whether an adaptation field is longer than what it says: a clock stands in the first packet of many pictures."""
    if len(field) < 2 or not field[1]:
        return True  # it says nothing
    flags, place = field[1], 2
    place += (6 if flags & 0x10 else 0) + (6 if flags & 0x08 else 0) + (1 if flags & 0x04 else 0)
    for flag in (0x02, 0x01):  # private data and an extension bring their length
        if flags & flag:
            place += 1 + (field[place] if place < len(field) else 0)
    return place < len(field)
