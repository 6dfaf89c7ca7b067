"""Inputs of an inspector: paths, images of Pillow and arrays, each as the same photograph in a file would be read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, Union

import cv2
import numpy as np
from PIL import Image

from nnet_edge.bits import MOST, StreamBits, to_8_bit
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.frame import Frame
from nnet_edge.image_files import cannot_read, from_pillow
from nnet_edge.jpeg import require_size
from nnet_edge.runtime.sources.images import read_bgr
from nnet_edge.settings.runner import require_choice

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", Image.Image, np.ndarray]
Colour = Literal["rgb", "bgr"]
ONE = (str, os.PathLike, Image.Image, np.ndarray)  # what is one image, or the path of one
STREAM = "inspector"  # of the frames, where they are written as JSON
TO_BGR = {
    ("rgb", 3): cv2.COLOR_RGB2BGR,
    ("rgb", 4): cv2.COLOR_RGBA2BGR,
    ("bgr", 4): cv2.COLOR_BGRA2BGR,
}


def require_many(images: object) -> Iterable[ImageLike]:
    """The same, where it can be many images. Raise ConfigError for what is neither one image nor many."""
    is_one_of_others = isinstance(images, (bytes, bytearray, memoryview, dict)) or hasattr(images, "__array__")
    if is_one_of_others or not isinstance(images, Iterable):
        name = type(images).__name__
        hint = {
            "bytes": "; open a file's bytes with PIL.Image.open(io.BytesIO(data))",
            "Tensor": "; give tensor.numpy(), of shape (H, W, 3)",
        }.get(name, "")
        raise ConfigError(
            f"an inspector takes a path, a Pillow image, a NumPy array, or a list or an iterator of them, no {name}{hint}"
        )
    return images


@dataclass(frozen=True)
class Taken:
    """An image that was taken in."""

    frame: Frame
    path: Path | None = None  # None: of no file
    state: tuple[int, int] = (0, 0)  # of the file, before it was read

    def scaled(self, stream: StreamBits, said: int | None) -> Taken:
        """The same with 8 bits a channel, by the bits of its stream. Raises DataError for a value beyond them."""
        if self.frame.image.dtype == np.uint8:
            return self
        bits = stream.of(self.frame.image, self.frame.bits, said)
        try:
            return replace(self, frame=replace(self.frame, image=to_8_bit(self.frame.image, bits), bits=bits))
        except DataError as error:
            raise DataError(f"image {self.path or self.frame.index} cannot be judged: {error}") from error


def read_again(taken: Taken) -> np.ndarray:
    """The pixels of the taken image, uint8 BGR (H, W, 3), once more from its file.

    Raises DataError for a file that is gone, or was changed since it was judged.
    """
    assert taken.path is not None
    picture = read_bgr(taken.path)
    if state_of(taken.path) != taken.state:
        raise DataError(f"{taken.path} was changed since it was judged: judge it again")
    return picture.pixels if picture.pixels.dtype == np.uint8 else to_8_bit(picture.pixels, taken.frame.bits or MOST)


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of the last change, in nanoseconds, of the file; zeros where it is gone."""
    try:
        facts = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file has; reading says so
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def take(image: ImageLike, index: int, colour: Colour) -> Taken:
    """The image as the frame that a stream would be given, its pixels its own.

    Raises DataError that names the image for one that cannot be read, ConfigError for what is no image.
    """
    require_choice("colour", colour, ("rgb", "bgr"))
    if isinstance(image, np.ndarray):
        try:
            return Taken(Frame(from_array(image, colour), index, time.monotonic(), STREAM))
        except DataError as error:
            raise DataError(f"image {index} cannot be judged: {error}") from error
    if not isinstance(image, (str, os.PathLike, Image.Image)):
        raise ConfigError(f"image {index} is a {type(image).__name__}: give a path, a Pillow image or a NumPy array")
    if colour != "rgb":
        raise ConfigError(f'image {index} is no array: colour="{colour}" belongs to arrays, and a file says its own')
    if isinstance(image, Image.Image):
        name = Path(getattr(image, "filename", None) or "").name
        try:
            picture = from_pillow(image)
        except Exception as error:  # whatever a reader of Pillow raises
            raise cannot_read("image", name or index, error) from error
        pixels = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2BGR)
        return Taken(Frame(pixels, index, time.monotonic(), STREAM, name or None, bits=picture.bits))
    began_s, path = time.monotonic(), Path(image)
    state = state_of(path)
    picture = read_bgr(path)
    return Taken(Frame(picture.pixels, index, began_s, STREAM, path.name, bits=picture.bits), path, state)


def from_array(array: np.ndarray, colour: Colour = "rgb") -> np.ndarray:
    """The array's picture as a camera would give it: BGR (H, W, 3) or grey (H, W), uint8 or uint16, of its own memory.

    Takes grey (H, W) and (H, W, 1), colours (H, W, 3), and (H, W, 4) of which the last is transparency and ignored; uint8,
    uint16, and floats from 0 to 1, which are round(255 * value). Raises DataError for any other.
    """
    channels = array.shape[2] if array.ndim == 3 else 1 if array.ndim == 2 else 0
    if channels not in (1, 3, 4) or array.size == 0:
        hint = ""
        if array.ndim == 4:
            hint = "; give a batch as a list: list(array)"
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; give array.transpose(1, 2, 0), for channels come last"
        raise DataError(f"an array of shape {array.shape} is no picture: give (H, W), (H, W, 3) or (H, W, 4){hint}")
    require_size(*array.shape[:2])
    pixels = to_whole_numbers(array)
    if channels == 1:
        return np.array(pixels.reshape(pixels.shape[:2]), order="C")
    conversion = TO_BGR.get((colour, channels))
    return np.array(pixels, order="C") if conversion is None else cv2.cvtColor(np.ascontiguousarray(pixels), conversion)


def to_whole_numbers(array: np.ndarray) -> np.ndarray:
    """The array as uint8, or uint16 where it is. Raises DataError for another type, and for floats beyond 0 to 1."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return array.astype(np.uint16)
    if array.dtype.kind != "f":
        hint = ", with .astype(np.uint8) where its values are 0 to 255" if array.dtype.kind in "iu" else ""
        raise DataError(
            f"an array of {array.dtype} does not say which value is white: give uint8, uint16 or floats from 0 to 1{hint}"
        )
    smallest, largest = float(array.min()), float(array.max())
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        count = array.size - int(np.isfinite(array).sum())
        raise DataError(f"{count} of its {array.size} values are NaN or infinite: a picture has none")
    if smallest < 0 or largest > 1:
        raise DataError(
            f"its floats reach from {smallest:g} to {largest:g}, and black is 0 and white is 1: scale them, or give uint8"
        )
    wide = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    return np.rint(wide * 255).astype(np.uint8)
