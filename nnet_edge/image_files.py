"""Reading of picture files: the reference for training, evaluation, calibration and streams of files.

The file's first bytes, not its suffix, tell the format; a damaged JPEG is refused (`jpeg.py`); EXIF and TIFF orientation are
applied; 16-bit values are scaled by the bits of their set (`bits.py`), never clipped; transparency and colour profiles are
ignored; of several pictures in a file the first is taken. Nothing larger than MAX_PIXELS is decoded, and only regular files
are opened. A mask's value counts as it is stored: for a palette that is the index, and 0 is the background; a GIF's counts as
it is shown, as its palette has no fixed order.

A line of cameras reads no files and does without this module, whose Pillow takes 16 ms and 2 MB.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from nnet_edge.bits import FEWEST, MOST, to_8_bit
from nnet_edge.errors import DataError
from nnet_edge.files import read_regular
from nnet_edge.jpeg import MAX_PIXELS as MAX_PIXELS
from nnet_edge.jpeg import ORIENTATION, require_size, whole_picture


def _webp(data: io.BytesIO) -> ImageFile:
    """A WebP picture; its reader loads four libraries, which a line needs only where such files come."""
    from PIL.WebPImagePlugin import WebPImageFile

    return WebPImageFile(data)


_JPEG = b"\xff\xd8\xff"
# Pillow's readers are called directly: Image.open would try forty more formats and warn, not fail, about bombs.
_READERS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile]], ...] = (
    (b"\x89PNG", PngImageFile),
    (_JPEG, JpegImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
    (b"RIFF", _webp),
)
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_LARGEST, _TIFF_PLANES = 258, 262, 281, 284  # tag numbers
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, upright."""

    pixels: np.ndarray  # uint8, or uint16 for 16 bits, of shape RGB (H, W, 3), owned by the caller
    bits: int | None = None  # of uint16: those that the file declares as significant; None: it does not say


def read_image(path: Path, bits: int = MOST) -> np.ndarray:
    """The picture in the file at `path`, upright: uint8 RGB (H, W, 3), owned by the caller; one of 16 bits is read as `bits`.

    Raises DataError, naming the file, when it is absent, corrupt, damaged, truncated, of another format, too large, or
    holds a value beyond `bits`.
    """
    pixels = read_picture(path).pixels
    try:
        return pixels if pixels.dtype == np.uint8 else to_8_bit(pixels, bits)
    except DataError as error:
        raise cannot_read("image", path, error) from error


def read_picture(path: Path) -> Picture:
    """The picture in the file at `path`, in its own depth. Raises DataError as `read_image`."""
    data = read_bytes(path)
    try:
        return decode(data)
    except Exception as error:  # on damaged bytes Pillow raises a dozen types, struct.error and KeyError among them
        raise cannot_read("image", path, error) from error


def from_pillow(image: Image.Image) -> Picture:
    """The picture as the same one in a file would be read; the image stays as it is.

    What Pillow has not decoded yet is decoded here, by the bytes of its file. Raises whatever its reader raises; DataError for
    one of 16-bit colours that Pillow has decoded, of which it kept 8.
    """
    require_size(*image.size[::-1])
    data = _bytes_not_decoded(image)
    if data is not None:
        found = decode(data)
        if sorted(found.pixels.shape[:2]) == sorted(image.size):  # else it is to be decoded smaller, by Image.draft
            return found
    bits = _bits(image, b"") if isinstance(image, TiffImageFile) else MOST if image.mode.startswith("I;16") else 8
    if len(image.getbands()) > 1 and (bits > 8 or _png_depth(image) == MOST):
        raise DataError("Pillow has kept 8 of the 16 bits of its colours: give the path of its file")
    is_inverted = _is_white_zero(image)
    with _of_pillow:
        image.load()
    return _as_picture(_upright_pixels(ImageOps.exif_transpose(image), bits, is_inverted))


_of_pillow = threading.Lock()  # several threads may be given one image, whose file has one position


def _bytes_not_decoded(image: Image.Image) -> bytes | None:
    """The bytes of the file behind an image that Pillow has opened and not decoded; None where there is none."""
    if not isinstance(image, ImageFile) or type(image) not in (reader for _, reader in _READERS):
        return None
    with _of_pillow:
        if not image.tile or image.fp is None or image.tell() != 0:
            return None
        place = image.fp.tell()
        image.fp.seek(0)
        data = image.fp.read()
        image.fp.seek(place)
    return bytes(data)


def _png_depth(image: Image.Image) -> int | None:
    """Bits a channel of the PNG that Pillow decoded the image from; None for one of other origin, or that is gone."""
    if not isinstance(image, PngImageFile):
        return None
    with suppress(OSError, ValueError, IndexError), _of_pillow:
        if image.filename:
            with open(image.filename, "rb") as file:
                return file.read(25)[24]
        image._fp.seek(0)
        return int(image._fp.read(25)[24])
    return None


def decode(data: bytes) -> Picture:
    """The picture that is the content of a file. Raises whatever its reader raises."""
    if data.startswith(_JPEG):
        return Picture(whole_picture(data, "RGB"))
    picture = _open(data)
    pixels = _pixels(picture, data)
    return _as_picture(pixels, None if pixels.dtype == np.uint8 else _significant_bits(picture, data))


def _as_picture(pixels: np.ndarray, bits: int | None = None) -> Picture:
    """Pixels (H, W) or RGB (H, W, 3) as a picture."""
    rgb = np.broadcast_to(pixels[..., None], (*pixels.shape, 3)) if pixels.ndim == 2 else pixels
    return Picture(np.ascontiguousarray(rgb), bits)


class Labels(NamedTuple):
    """The pixels of a mask, upright."""

    values: np.ndarray  # as they are stored, (H, W) or (H, W, 3); those of a GIF as they are shown
    grey: np.ndarray  # as they are shown, uint8 (H, W)
    alpha: np.ndarray | None  # how opaque they are, uint8 (H, W), where the file says so


def read_mask(path: Path) -> np.ndarray:
    """Where the mask at `path` marks a defect: bool (H, W), true where a stored value is not 0. Raises as `read_labels`."""
    values = read_labels(path).values
    return values != 0 if values.ndim == 2 else (values != 0).any(axis=2)


def read_labels(path: Path) -> Labels:
    """The pixels of the mask at `path`.

    Raises DataError, naming the file, when it cannot be read or is a JPEG or a lossy WebP, whose edges are never clean.
    """
    data = read_bytes(path)
    lossy = "JPEG" if data.startswith(_JPEG) else "lossy WebP" if _is_lossy_webp(data) else None
    if lossy:
        raise DataError(
            f"mask {path} is a {lossy}, whose noise would count as defect: save the mask as PNG, BMP or TIFF"
        )
    try:
        return decode_labels(data)
    except Exception as error:  # as in read_picture
        raise cannot_read("mask", path, error) from error


def decode_labels(data: bytes) -> Labels:
    """The pixels of the mask that is the content of a file. Raises whatever its reader raises."""
    is_gif = data.startswith(b"GIF8")
    if is_gif:
        from PIL.GifImagePlugin import GifImageFile

        picture: ImageFile = _bounded(GifImageFile(io.BytesIO(data)))
    else:
        picture = _open(data)
    ImageOps.exif_transpose(picture, in_place=True)
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    alpha = np.array(picture.convert("RGBA").getchannel("A")) if has_alpha else None
    values = _pixels(picture, data, as_labels=not is_gif)
    picture.info.pop("transparency", None)
    is_plain = values.dtype == np.uint8 and picture.mode not in ("1", "P")
    grey = _shown(values) if is_plain or values.dtype.itemsize > 1 else np.array(picture.convert("RGB").convert("L"))
    return Labels(values, grey, alpha)


def _shown(values: np.ndarray) -> np.ndarray:
    """Stored values as grey, uint8 (H, W); those of more than 8 bits reach from black to white."""
    grey = values if values.ndim == 2 else values.max(axis=2)
    if grey.dtype == np.uint8:
        return grey
    darkest, brightest = float(grey.min()), float(grey.max())
    return ((grey - darkest) * (255 / max(brightest - darkest, 1e-9))).astype(np.uint8)


class Header(NamedTuple):
    """What a picture's file says of it before its pixels."""

    size: tuple[int, int]  # (height, width), upright
    format: str  # "PNG", "JPEG", ...
    bits: int  # a channel, as the file declares them
    channels: int


def read_header(path: Path) -> Header:
    """The header of the picture at `path`; no pixel is decoded. Raises DataError as `read_image`."""
    data = read_bytes(path)
    try:
        picture = _open(data)
        width, height = picture.size
        # A TIFF's size is given as it will be after loading already; looking for a PNG's EXIF would decode it.
        has_exif = b"eXIf" in data if isinstance(picture, PngImageFile) else not isinstance(picture, TiffImageFile)
        turned = has_exif and picture.getexif().get(ORIENTATION) in _QUARTER_TURNS
        size = (width, height) if turned else (height, width)
        return Header(size, str(picture.format), _bits(picture, data), len(picture.getbands()))
    except Exception as error:  # as in read_picture
        raise cannot_read("image", path, error) from error


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright picture at `path`, from its header alone. Raises DataError as `read_image`."""
    return read_header(path).size


def read_bytes(path: Path) -> bytes:
    """All of the file at `path`. Raises DataError, naming the file, when it is absent or cannot be read."""
    try:
        return read_regular(path)
    except FileNotFoundError as error:
        raise DataError(f"cannot read {path}: no such file, or a link that leads nowhere") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _open(data: bytes) -> ImageFile:
    reader = next((reader for start, reader in _READERS if data.startswith(start)), None)
    if reader is None:
        raise DataError("it is empty" if not data else "it is not a PNG, JPEG, BMP, TIFF or WebP")
    return _bounded(reader(io.BytesIO(_without_notes(data) if reader is PngImageFile else data)))


def _without_notes(png: bytes) -> bytes:
    """The PNG without texts, colour profile and an EXIF that is none: no pixel is in them, and Pillow refuses large ones."""
    if not any(kind in png for kind in (*_NOTES, b"eXIf")):
        return png
    kept, start = [png[:8]], 8
    while start < len(png):
        kind, end = png[start + 4 : start + 8], start + 12 + int.from_bytes(png[start : start + 4], "big")
        is_exif = kind != b"eXIf" or png[start + 8 : start + 12] in (b"II*\0", b"MM\0*")
        if kind not in _NOTES and is_exif:
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def _bounded(picture: ImageFile) -> ImageFile:
    require_size(*picture.size[::-1])
    return picture


def _is_lossy_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP" and b"VP8L" not in data[12:8192]


def _pixels(picture: ImageFile, data: bytes, as_labels: bool = False) -> np.ndarray:
    """Upright pixels: (H, W) or RGB (H, W, 3), uint8 or uint16 for 16 bits, or as they are stored with `as_labels`."""
    bits = _bits(picture, data)
    if bits > 8 and len(picture.getbands()) > 1:
        return _deep_colour(picture, data)
    ImageOps.exif_transpose(picture, in_place=True)
    return _upright_pixels(picture, bits, _is_white_zero(picture), as_labels)


def _upright_pixels(picture: Image.Image, bits: int, is_inverted: bool, as_labels: bool = False) -> np.ndarray:
    """The pixels of an upright picture of so many bits a channel, as `_pixels`; `is_inverted`: 0 of 16 bits means white."""
    if picture.mode.startswith("I;16"):
        deep = np.asarray(picture).astype(np.uint16)
        if is_inverted:
            deep = ((1 << bits) - 1 - deep).astype(np.uint16)
        return deep if as_labels or bits == MOST else to_8_bit(deep, bits)
    if as_labels and picture.mode in ("1", "L", "P", "I", "F"):
        return np.array(picture)
    if picture.mode in ("I", "F"):
        raise DataError("its pixels are signed or have 32 bits, so no value is white: save it with 8 or 16 bits")
    picture.info.pop("transparency", None)  # else Pillow warns about some palettes
    return np.array(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))


def _bits(picture: ImageFile, data: bytes) -> int:
    """Bits a channel as the file declares them."""
    if isinstance(picture, PngImageFile):
        return data[24]  # IHDR: signature 8, length 4, name 4, width 4, height 4, then the depth
    if isinstance(picture, TiffImageFile):
        return max(picture.tag_v2.get(_TIFF_BITS, (1,)))
    return 8


def _significant_bits(picture: ImageFile, data: bytes) -> int | None:
    """Bits that a file of 16 bits declares as significant, None where it does not: sBIT of a PNG, a TIFF's largest value."""
    if isinstance(picture, TiffImageFile):
        largest = picture.tag_v2.get(_TIFF_LARGEST)
        found = max(largest if isinstance(largest, tuple) else (largest or 0,)).bit_length()
    else:
        found, place = 0, 8  # behind the signature; sBIT lies before the pixels
        while (kind := data[place + 4 : place + 8]) not in (b"IDAT", b""):
            (length,) = struct.unpack(">I", data[place : place + 4])
            if kind == b"sBIT":
                found = max(data[place + 8 : place + 8 + length])
            place += 12 + length
    return found if FEWEST <= found <= MOST else None


def _is_white_zero(picture: Image.Image) -> bool:
    """Whether 0 means white, which Pillow heeds up to 8 bits only."""
    return isinstance(picture, TiffImageFile) and picture.tag_v2.get(_TIFF_PHOTOMETRIC) == 0


def _deep_colour(picture: ImageFile, data: bytes) -> np.ndarray:
    """16-bit colour, which Pillow cuts to its high byte: uint16 RGB (H, W, 3), upright."""
    in_planes = isinstance(picture, TiffImageFile) and picture.tag_v2.get(_TIFF_PLANES) == 2  # both libraries err
    if in_planes or picture.mode == "CMYK":
        raise DataError("16-bit CMYK and colours stored plane by plane are not supported: save it as a PNG")
    picture.load()  # OpenCV fills what a truncated file lacks with zeros; Pillow raises
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if bgr is None or bgr.dtype != np.uint16:
        raise DataError("this kind of 16-bit colour is not supported: save it as a PNG")
    return bgr[..., ::-1]


def cannot_read(kind: str, path: object, error: Exception) -> DataError:
    """The error that says which image or mask cannot be read, and why."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    hint = " (corrupt, truncated or of a rare kind: replace the file or take it away)"
    hint = "" if isinstance(error, DataError) else hint
    return DataError(f"cannot read {kind} {path}: {' '.join(reason.split())}{hint}")
