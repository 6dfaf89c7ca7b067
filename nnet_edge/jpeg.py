"""JPEG decoding that refuses damaged pictures: the one decoder of files, folders, HTTP cameras and pipes.

OpenCV and Pillow return a picture whose data are damaged, with grey or shifted blocks, and no error. libjpeg itself warns,
and simplejpeg passes the warning on. Measured: of pictures with 512 bytes overwritten or 400 lost all 600 were noticed; of
single flipped bytes 26 %, because the rest is valid again after a few blocks, and only a checksum would tell. Of whole
pictures all three decoders give the same pixels.
"""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING

from nnet_edge.errors import DataError

if TYPE_CHECKING:  # sources register without what decodes
    import numpy as np

START = b"\xff\xd8"
NEEDS = {"cv2": "", "simplejpeg": ""}  # of a source of JPEGs
LARGEST_PICTURE = 64 << 20  # bytes; what claims to be larger is no picture of a camera
MAX_PIXELS = (
    89_478_485  # of any picture, Pillow's own bound against decompression bombs; there a warning, here an error
)
INKS = ("CMYK", "YCCK")
AT_AN_EIGHTH = {"min_height": 1, "min_width": 1, "min_factor": 8}  # of the size, by libjpeg's scaled transform
ORIENTATION = 274  # the tag of EXIF
MOST_STRAY = 8  # bytes before a marker that an encoder may leave; of damage, many more
STRAY = re.compile(r"(\d+) extraneous bytes before marker 0xd\d")
END, RESTART_0, RESTART = b"\xff\xd9", b"\xff\xd0", re.compile(rb"\xff[\xd0-\xd7]")
MORE = bytes(64)  # strays of our own: fewer than libjpeg reads ahead are not counted
OTHER_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
FRAMES, SCAN, INTERVAL = (0xC0, 0xC1), 0xDA, 0xDD  # codes of markers: a sequential picture, its data, its restarts
WIDEST = 65_500  # pixels of a JPEG that libjpeg takes
MOST_INTERVALS = 4096  # between restarts, that are looked at one by one


def require_size(height: int, width: int) -> None:
    """Raise DataError for a picture of more than MAX_PIXELS, before anything of it is decoded."""
    if height * width > MAX_PIXELS:
        raise DataError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed: crop or shrink it")


def whole_picture(data: bytes, colours: str = "BGR") -> np.ndarray:
    """The JPEG upright, as its EXIF says: uint8 BGR (or RGB) (H, W, 3), owned by the caller.

    Raises DataError for one that is cut off, damaged, too large or no JPEG.
    """
    import simplejpeg

    _, _, stored = header_facts(data)
    try:
        image = from_four_inks(data, colours) if stored in INKS else simplejpeg.decode_jpeg(data, colours)
    except ValueError as error:
        raise damage(error) from error
    return upright(image, orientation_of(data))


def header_facts(data: bytes) -> tuple[int, int, str]:
    """Height and width as they are stored, and the colour space, "YCbCr" for one, of a JPEG.

    Raises DataError for what is no JPEG, or too large.
    """
    import simplejpeg

    if not data.startswith(START):
        raise DataError("it is not a JPEG")
    try:
        height, width, stored, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise damage(error) from error
    require_size(height, width)
    return height, width, stored


def require_undamaged(data: bytes) -> None:
    """Raise DataError for a JPEG that `whole_picture` refuses: its coded data are read, its pixels at an eighth of the size."""
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, "BGR", **AT_AN_EIGHTH)
    except ValueError as error:
        raise damage(error) from error


def damage(error: ValueError) -> DataError:
    """libjpeg's complaint about a picture, for people."""
    return DataError("its end is missing" if "Premature end" in str(error) else f"it is damaged: {error}")


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as EXIF's orientation, 1 to 8, turns and mirrors it."""
    import numpy as np

    if orientation > 4:
        stored = stored.swapaxes(0, 1)
    rows, columns = (slice(None, None, -1 if orientation in turned else 1) for turned in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(stored[rows, columns])


def from_four_inks(data: bytes, colours: str) -> np.ndarray:
    """A JPEG of CMYK as `whole_picture`; Pillow knows which way round the inks are stored. Raises ValueError for damage."""
    import numpy as np
    import simplejpeg
    from PIL import Image

    simplejpeg.decode_jpeg(data, "CMYK")
    rgb = np.array(Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB"))
    return np.ascontiguousarray(rgb[..., ::-1]) if colours == "BGR" else rgb


def orientation_of(data: bytes) -> int:
    """The EXIF orientation of the JPEG, 1 (as it is stored) where it says none, or nothing that can be read."""
    if b"Exif\0\0" not in data:
        return 1
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        return int(JpegImageFile(io.BytesIO(data)).getexif().get(ORIENTATION, 1))
    except Exception:  # on damaged EXIF Pillow raises a dozen types; browsers and FFmpeg pass over it too
        return 1


def without_strays(data: bytes) -> bytes:
    """The JPEG without the few bytes that an encoder left before its restart markers and its end.

    Decoders pass over them, and so would hide damage. Here each restart interval is decoded alone, and must be whole but for at
    most MOST_STRAY bytes behind it. Raises DataError for a picture of another kind, or with another fault.
    """
    start, places = header_of(data)
    coded = data[start : -len(END)]
    if not data.endswith(END) or OTHER_MARKER.search(coded) or not any(code in places for code in FRAMES):
        raise DataError("it is no JPEG of one sequential scan, so stray bytes cannot be told from damage")
    pieces, marks = RESTART.split(coded), RESTART.findall(coded)
    frame = next(places[code] for code in FRAMES if code in places)
    height, width = (int.from_bytes(data[at : at + 2], "big") for at in (frame + 5, frame + 7))
    factors = data[frame + 11 : frame + 11 + 3 * data[frame + 9] : 3]  # one byte a component: horizontal, vertical
    down, across = (8 * max(factor & 15 for factor in factors), 8 * max(factor >> 4 for factor in factors))
    down, across = (down, across) if len(factors) > 1 else (8, 8)
    units = math.ceil(height / down) * math.ceil(width / across)
    interval = int.from_bytes(data[places[INTERVAL] + 4 : places[INTERVAL] + 6], "big") if INTERVAL in places else 0
    interval = interval or units
    is_fitting = len(pieces) == math.ceil(units / interval) <= MOST_INTERVALS
    if not is_fitting or (marks and interval * across > WIDEST):
        raise DataError("its restart intervals do not fit its size, or cannot be looked at one by one")
    if not marks:
        return data[:start] + coded[: len(coded) - strays(data)] + END
    clean, header = [], bytearray(data[:start])
    for number, piece in enumerate(pieces):
        count = min(interval, units - number * interval)
        header[frame + 5 : frame + 9] = (2 * down).to_bytes(2, "big") + (across * count).to_bytes(2, "big")
        header[places[INTERVAL] + 4 : places[INTERVAL] + 6] = count.to_bytes(2, "big")
        clean.append(piece[: len(piece) - strays(bytes(header) + piece + MORE + RESTART_0 + piece + END, len(MORE))])
    return data[:start] + b"".join(piece + mark for piece, mark in zip(clean, [*marks, END], strict=True))


def header_of(data: bytes) -> tuple[int, dict[int, int]]:
    """Where the coded data start, and where each kind of segment before them does. Raises DataError."""
    places: dict[int, int] = {}
    at = len(START)
    while SCAN not in places and at + 4 <= len(data) and data[at] == 0xFF:
        places[data[at + 1]] = at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if SCAN not in places or at >= len(data):
        raise DataError("its header is damaged")
    return at, places


def strays(data: bytes, more: int = 0) -> int:
    """Bytes left over before the first marker in the JPEG's data but for `more`, at most MOST_STRAY. Raises DataError."""
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, "BGR", **AT_AN_EIGHTH)
    except ValueError as error:
        found = STRAY.search(str(error))
        if found is None or not 0 <= int(found[1]) - more <= MOST_STRAY:
            raise DataError(f"it is damaged: {error}") from error
        return int(found[1]) - more
    return 0
