"""Colours of video: coded by the matrix of BT.601 or of BT.709, which are up to 23 grey levels apart.

FFmpeg, and so OpenCV, follows what the file or the coded stream says of its matrix. Where nothing does it takes BT.601,
whatever the size; HD material is mostly BT.709. OpenCV tells neither, so the tag is looked for here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.runtime.sources.decoding import DecodeOptions
from nnet_edge.settings.runner import require_choice

if TYPE_CHECKING:
    import numpy as np

MATRICES = ("bt601", "bt709", "auto")
HD_LINES = 720
UNTAGGED = (0, 2)  # of the numbers of H.273: reserved (RGB in an MP4's box) and unspecified
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # weights of red and blue
CODED = {
    "avc1": "h264",
    "h264": "h264",
    "x264": "h264",
    "fmp4": "mpeg4",
    "mp4v": "mpeg4",
    "xvid": "mpeg4",
    "divx": "mpeg4",
    "mjpg": "jpeg",
}
HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
HEAD_BYTES = 1 << 16  # of a Matroska file, before its pictures
LARGEST_INDEX = 1 << 26  # bytes of an MP4's index
BOX_TAG = re.compile(rb"colrncl[xc]....(..)", re.DOTALL)  # primaries, transfer, matrix
MATROSKA_TAG = re.compile(rb"\x55\xb1\x81(.)", re.DOTALL)  # MatrixCoefficients


@dataclass(frozen=True)
class CodedOptions(DecodeOptions):
    """How coded video is read: where it is decoded, and by which colours."""

    colour_matrix: str = field(default="bt601", metadata={"choices": MATRICES})  # of video whose file names none

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("colour matrix", self.colour_matrix, MATRICES)


@dataclass(frozen=True)
class Colours:
    """What is done to the frames of one video."""

    is_converted: bool = False  # from BT.601, as OpenCV read it, to BT.709
    words: str = ""  # for people, behind the source's name


def choose_colours(matrix: str, lines: int | None, is_tagged: bool | None) -> Colours:
    """What to do with video of so many lines, whose file names its matrix, names none, or cannot be asked (None)."""
    is_hd = (lines or 0) >= HD_LINES
    if is_tagged:
        return Colours()
    if matrix == "bt709" or (matrix == "auto" and is_hd and is_tagged is False):
        return Colours(True, ", colours read as BT.709")
    if is_hd:
        known = "names no colour matrix" if is_tagged is False else "may name no colour matrix"
        return Colours(False, f", which {known}: without one it is read as BT.601 (--colour-matrix bt709)")
    return Colours()


def to_709(image: np.ndarray) -> np.ndarray:
    """Coded BT.709 that was read as BT.601, uint8 BGR (H, W, 3), in its own colours; what was cut off is not brought back."""
    import cv2

    return cv2.transform(image, to_709_matrix())


def to_709_matrix() -> np.ndarray:
    """Float64 (3, 3) for BGR: from BT.601's colours back to luma and chroma, and on to BT.709's. The range cancels out."""
    import numpy as np

    rgb = np.linalg.inv(coding(*LUMA["bt709"])) @ coding(*LUMA["bt601"])
    return rgb[::-1, ::-1]


def coding(red: float, blue: float) -> np.ndarray:
    """The matrix from RGB to luma and the two differences of colour, float64 (3, 3)."""
    import numpy as np

    luma = np.array((red, 1 - red - blue, blue))
    return np.stack((luma, (np.eye(3)[2] - luma) / (2 - 2 * blue), (np.eye(3)[0] - luma) / (2 - 2 * red)))


def is_tagged(path: Path, codec: str | None, extradata: Callable[[], bytes]) -> bool | None:
    """Whether the video file, or H.264 in it, names its matrix; None for a codec that is not understood here.

    `extradata` gives what the codec wrote before the first picture.
    """
    found = tag_of_container(path)
    if found is not None and found not in UNTAGGED:
        return True
    coded = CODED.get((codec or "").lower())
    if coded == "jpeg":
        return True  # JFIF knows BT.601 alone
    if coded == "h264":
        try:
            return (tag_of_h264(extradata()) or 2) not in UNTAGGED
        except (IndexError, ValueError):
            return None
    return False if coded == "mpeg4" else None


def tag_of_container(path: Path) -> int | None:
    """The number of the matrix in the index of an MP4 or the head of a Matroska file; None for none."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            if head.startswith(b"\x1a\x45\xdf\xa3"):
                found = MATROSKA_TAG.search(head)
                return None if found is None else found[1][0]
            place, size = 0, path.stat().st_size
            while place + 8 <= size and head[4:8] in (b"ftyp", b"styp"):
                file.seek(place)
                start = file.read(16)
                length, kind = int.from_bytes(start[:4], "big"), start[4:8]
                length = int.from_bytes(start[8:16], "big") if length == 1 else length or size - place
                if kind == b"moov":
                    file.seek(place)
                    found = BOX_TAG.search(file.read(min(length, LARGEST_INDEX)))
                    return None if found is None else int.from_bytes(found[1], "big")
                place += max(length, 8)
    except OSError:
        return None
    return None


def tag_of_h264(extradata: bytes) -> int | None:
    """The number of the matrix in the sequence parameters (clause 7.3.2.1 and annex E of H.264); None for none.

    Raises ValueError, IndexError for data that are none.
    """
    if extradata[:1] == b"\1":  # as MP4 and Matroska keep them: the first of the parameter sets behind its length
        sps = extradata[8 : 8 + int.from_bytes(extradata[6:8], "big")]
    else:
        starts = [found.end() for found in re.finditer(b"\0\0\1", extradata)]
        sps = next((extradata[start:] for start in starts if extradata[start] & 31 == 7), b"")
    if not sps or sps[0] & 31 != 7:
        raise ValueError("no sequence parameters")
    bits = BitReader(sps[1:].replace(b"\0\0\3", b"\0\0"))
    profile = bits.take(8)
    bits.take(16)
    bits.number()
    if profile in HIGH_PROFILES:
        chroma = bits.number()
        bits.take(chroma == 3)
        bits.number(), bits.number(), bits.take(1)
        if bits.take(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.number()
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.take(1), bits.number(), bits.number()
        for _ in range(bits.number()):
            bits.number()
    bits.number(), bits.take(1), bits.number(), bits.number()
    if not bits.take(1):
        bits.take(1)
    bits.take(1)
    if bits.take(1):
        for _ in range(4):
            bits.number()
    if not bits.take(1):  # no annex E
        return None
    if bits.take(1) and bits.take(8) == 255:
        bits.take(32)
    if bits.take(1):
        bits.take(1)
    if bits.take(1) and bits.take(4) >= 0 and bits.take(1):
        bits.take(16)
        return bits.take(8)
    return None


def skip_scaling_list(bits: BitReader, size: int) -> None:
    """Pass over a scaling list of `size` entries."""
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.number()
            step = (code + 1) // 2 if code % 2 else -(code // 2)
            following = (last + step) % 256
        last = following or last


class BitReader:
    """Reads bits and Exp-Golomb numbers. Raises IndexError behind the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, bits: int) -> int:
        """So many bits as a number."""
        if bits > self._left:
            raise IndexError("the data end early")
        self._left -= bits
        return self._value >> self._left & (1 << bits) - 1

    def number(self) -> int:
        """An Exp-Golomb number without a sign."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
