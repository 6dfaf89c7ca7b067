"""Pixel formats of industrial cameras, by their names of GenICam's naming convention (PFNC): from bytes to a frame's image.

Mono is grey, Bayer one colour a pixel, RGB and BGR three. 8 bits stay uint8. 10, 12, 14 and 16 bits become uint16 whose low
bits hold the camera's value, as a 12-bit photograph's do, and bits.py alone scales them; nothing is stretched or balanced here.
Bayer is interpolated bilinearly (OpenCV's demosaicing), deep ones before they are scaled. Every image is BGR (H, W, 3).

Unpacked values are words of 16 bits, the lower byte first. "p" is packed without gaps, the lowest bits first; "Packed" is GigE
Vision's older way, two pixels in three bytes: the outer bytes hold the high 8 bits of each, the middle one the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnet_edge.errors import DataError

if TYPE_CHECKING:  # the list of formats is asked for without them
    import numpy as np

NAMES = {"RGB8Packed": "RGB8", "BGR8Packed": "BGR8"}  # older names
MONO_OR_BAYER = re.compile(r"(Mono|BayerRG|BayerGR|BayerGB|BayerBG)(8|10|12|14|16)(p|Packed)?")


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How pixels lie in a camera's buffer."""

    name: str  # "BayerRG12p"
    colours: str  # "Mono", "BayerRG", ..., "RGB" or "BGR"
    bits: int  # of a value
    packing: str = ""  # "", "p" or "Packed"

    @property
    def bits_per_pixel(self) -> int:
        """Bits that a pixel takes in the buffer."""
        if self.colours in ("RGB", "BGR"):
            return 24
        if self.packing:
            return self.bits if self.packing == "p" else 12
        return 8 if self.bits == 8 else 16

    def row_bytes(self, width: int) -> int:
        """Bytes that a row of the picture takes, with the bits that fill its last byte."""
        return (width * self.bits_per_pixel + 7) // 8

    def image_bytes(self, height: int, width: int, padding: int = 0) -> int:
        """Bytes of a picture whose rows end with so many bytes of padding; without any, rows follow bit by bit."""
        if padding:
            return height * (self.row_bytes(width) + padding)
        return (height * width * self.bits_per_pixel + 7) // 8


def find_format(name: str) -> PixelFormat | None:
    """The format of that name; None for one that is not read here."""
    if NAMES.get(name, name) in ("RGB8", "BGR8"):
        return PixelFormat(name, name[:3], 8)
    found = MONO_OR_BAYER.fullmatch(name)
    if found is None:
        return None
    colours, bits, packing = found.group(1), int(found.group(2)), found.group(3) or ""
    if (packing == "Packed" and bits not in (10, 12)) or (packing == "p" and bits not in (10, 12, 14)):
        return None
    return PixelFormat(name, colours, bits, packing)


def to_image(data: np.ndarray, form: PixelFormat, height: int, width: int, padding: int = 0) -> np.ndarray:
    """The picture in a camera's buffer, `data` uint8 (N,): BGR (H, W, 3), uint8 or uint16 (low bits), owned by the caller.

    Raises DataError when the buffer is too short.
    """
    import cv2

    needed = form.image_bytes(height, width, padding)
    if not (height and width) or data.size < needed:
        raise DataError(f"{data.size} bytes are no picture of {width}x{height} {form.name}, which has {needed}")
    values = unpack(rows_of(data[:needed], form, height, width, padding), form)
    if form.colours in ("RGB", "BGR"):
        colour = values.reshape(height, width, 3)
        return cv2.cvtColor(colour, cv2.COLOR_RGB2BGR) if form.colours == "RGB" else colour.copy()
    # each row holds at least `width` values; without padding all rows are one
    plane = values.reshape(-1)[: height * width].reshape(height, width) if not padding else values[:, :width]
    return cv2.cvtColor(plane, cv2_conversion(form.colours))


def cv2_conversion(colours: str) -> int:
    """OpenCV's code of the conversion to BGR. GenICam's name has the first two pixels, OpenCV's RGGB those of two rows."""
    import cv2

    pattern = {"BayerRG": "RGGB", "BayerGR": "GRBG", "BayerGB": "GBRG", "BayerBG": "BGGR"}.get(colours)
    return int(cv2.COLOR_GRAY2BGR if pattern is None else getattr(cv2, f"COLOR_Bayer{pattern}2BGR"))


def rows_of(data: np.ndarray, form: PixelFormat, height: int, width: int, padding: int) -> np.ndarray:
    """The bytes as (rows, bytes of a row) without padding; one row for all of them where there is none."""
    row = form.row_bytes(width)
    return data.reshape(height, row + padding)[:, :row] if padding else data.reshape(1, -1)


def unpack(rows: np.ndarray, form: PixelFormat) -> np.ndarray:
    """The values in rows of bytes, uint8 (R, B), each row for itself: (R, N) of uint8 or uint16; some beyond the last pixel."""
    import numpy as np

    if form.bits == 8:
        return rows
    if not form.packing:
        return np.ascontiguousarray(rows).view("<u2")
    low = form.bits - 8
    group = 3 if form.packing == "Packed" else {10: 5, 12: 3, 14: 7}[form.bits]  # bytes that hold whole pixels
    missing = -rows.shape[1] % group
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    parts = rows.reshape(rows.shape[0], -1, group).astype(np.uint16)
    if form.packing == "Packed":
        first, middle, last = (parts[..., place] for place in range(3))
        mask = (1 << low) - 1
        values = np.stack([first << low | (middle & mask), last << low | (middle >> 4 & mask)], axis=-1)
    else:
        count = group * 8 // form.bits
        values = np.stack([bits_from(parts, place * form.bits, form.bits) for place in range(count)], axis=-1)
    return values.reshape(rows.shape[0], -1)


def bits_from(parts: np.ndarray, start: int, bits: int) -> np.ndarray:
    """The value in `bits` bits from bit `start` on, of each group of bytes (..., B); the lowest bit comes first."""
    byte, shift = divmod(start, 8)
    value = parts[..., byte] >> shift
    for further in range(1, (shift + bits + 7) // 8):
        value = value | parts[..., byte + further] << (8 * further - shift)
    return value & ((1 << bits) - 1)
