"""Bits of pictures deeper than 8: their one scaling to 8 bits, and how many bits a set of them has.

A camera's 10, 12 or 14 bits mostly lie in the low bits of a 16-bit PNG, TIFF or frame. With so many bits white is
2 ** bits - 1, and everywhere, in training, evaluation and stream,

    value of 8 bits = round(255 * value / (2 ** bits - 1))

The bits are said (`--bits`, `bits` of a camera), or recognised once for a whole set, never picture by picture: those that the
files declare (sBIT of a PNG, MaxSampleValue of a TIFF) where all values fit into them, else the fewest of 8, 10, 12, 14 and 16
that hold the brightest value. The bundle keeps them. A value beyond them is an error: it would be cut to white.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnet_edge.errors import DataError

log = logging.getLogger(__name__)

DEPTHS = (8, 10, 12, 14, 16)
FEWEST, MOST = DEPTHS[0], DEPTHS[-1]
DARK_WORDS = "; WARNING: nothing in them exceeds a quarter of that range: too many bits, or under-exposed"


def to_8_bit(values: np.ndarray, bits: int = MOST) -> np.ndarray:
    """`values`, uint16 of any shape, as uint8. Raises DataError for one beyond `bits`."""
    require_within(int(values.max()), bits)
    return table_of(bits)[values]


def require_within(brightest: int, bits: int) -> None:
    """Raise DataError for a value beyond `bits`."""
    if brightest >> bits:
        raise DataError(
            f"its brightest value {brightest} is beyond the {bits} bits that its pictures are read with, 0 to "
            f"{(1 << bits) - 1}: say how many the camera gives, for example with --bits {choose_bits(brightest)}"
        )


@functools.cache
def table_of(bits: int) -> np.ndarray:
    """The 8-bit value of each 16-bit one, uint8 (65536,); what is beyond `bits` is white."""
    white = (1 << bits) - 1
    values = np.minimum(np.arange(1 << MOST, dtype=np.uint32), white)
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def choose_bits(brightest: int, declared: int | None = None) -> int:
    """The bits of a set by its brightest value and by what its files declare; see the top of this file.

    A PNG that obeys its standard scales what it declares up to 16 bits, and its values do not fit into them.
    """
    candidates = DEPTHS if declared is None else (declared, *DEPTHS)
    return next(bits for bits in candidates if not brightest >> bits)


@dataclass(frozen=True, slots=True)
class Depth:
    """Bits of the deep pictures of a set, and how they are known."""

    bits: int
    brightest: int  # value of the set
    origin: str  # "said", "declared" or "recognised"

    @property
    def is_dark(self) -> bool:
        """Whether nothing exceeds a quarter of the range."""
        return 4 * self.brightest <= 1 << self.bits

    def sentence(self) -> str:
        """For the person who trains or looks on."""
        how = {
            "said": "as --bits or the bundle says",
            "declared": "as the files declare",
            "recognised": "the fewest that hold it",
        }[self.origin]
        return (
            f"pictures of 16 bits are read as {self.bits} bits ({how}; the brightest value is {self.brightest} of "
            f"{(1 << self.bits) - 1}): if the camera gives others, say --bits N"
        )


def kept_bits(manifest: Mapping[str, Any]) -> int | None:
    """The bits that a bundle was trained with; None where its pictures had 8, or it has no manifest.

    Version 0.1 kept none, and read 16.
    """
    data = manifest.get("data")
    return data.get("bits", MOST) if isinstance(data, Mapping) else None


def depth_of(brightest: int, declared: int | None, said: int | None = None) -> Depth:
    """The depth of a set: said, declared or recognised."""
    bits = said or choose_bits(brightest, declared)
    return Depth(bits, brightest, "said" if said else "declared" if bits == declared else "recognised")


class StreamBits:
    """The bits of one stream's deep pictures: those that are said, else what its first picture shows."""

    def __init__(self, stream: str) -> None:
        self._stream, self._recognised = stream, 0

    def of(self, image: np.ndarray, declared: int | None, said: int | None) -> int:
        """Those of a picture, uint16 (H, W, ...); of the first it is logged where nobody says them, or it is dark."""
        if not self._recognised:
            depth = depth_of(int(image.max()), declared, said)
            self._recognised = depth.bits
            if said is None or depth.is_dark:
                log.warning("%s: %s%s", self._stream, depth.sentence(), DARK_WORDS if depth.is_dark else "")
        return said or self._recognised
