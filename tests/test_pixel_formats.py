"""Pixel formats of industrial cameras: bytes to pictures, held against a reader that takes bit after bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from nnet_edge.bits import to_8_bit
from nnet_edge.errors import DataError
from nnet_edge.pixel_formats import PixelFormat, find_format, to_image

GREY = [f"Mono{bits}{packing}" for bits, packing in [
    (8, ""), (10, ""), (12, ""), (14, ""), (16, ""), (10, "p"), (12, "p"), (14, "p"), (10, "Packed"), (12, "Packed")
]]  # fmt: skip


def form_of(name: str) -> PixelFormat:
    form = find_format(name)
    assert form is not None
    return form


def packed(values: Sequence[int], form: PixelFormat) -> bytes:
    """The values as a camera lays them out, one bit after the other, by the words of the convention."""
    if form.packing == "Packed":
        low, found = form.bits - 8, bytearray()
        for place in range(0, len(values), 2):
            pair = [*values[place : place + 2], 0][:2]
            found += bytes([pair[0] >> low, pair[0] % 2**low + 16 * (pair[1] % 2**low), pair[1] >> low])
        return bytes(found[: (12 * len(values) + 7) // 8])
    width = form.bits if form.packing else form.bits_per_pixel
    bits = [value >> place & 1 for value in values for place in range(width)]
    bits += [0] * (-len(bits) % 8)
    return bytes(sum(bit << place for place, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))


@pytest.mark.parametrize("name", GREY)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (3, 5), (4, 8), (5, 7)])
@pytest.mark.parametrize("padding", [0, 3, 4])
def test_grey_values_are_those_that_were_packed(name: str, height: int, width: int, padding: int) -> None:
    form = form_of(name)
    if padding % 2 and form.bits_per_pixel == 16:
        padding += 1
    values = np.random.default_rng(height * width).integers(0, 2**form.bits, (height, width))
    values[0, 0], values[-1, -1] = 2**form.bits - 1, 0 if height * width > 1 else 2**form.bits - 1
    lines = [packed(row.tolist(), form) + b"\xff" * padding for row in values]
    data = b"".join(lines) if padding else packed(values.reshape(-1).tolist(), form)
    assert len(data) == form.image_bytes(height, width, padding)
    image = to_image(np.frombuffer(data, np.uint8), form, height, width, padding)
    assert image.dtype == (np.uint8 if form.bits == 8 else np.uint16)
    assert image.shape == (height, width, 3)
    assert (image == values[..., None]).all()


@pytest.mark.parametrize("name", ["RGB8", "BGR8", "RGB8Packed", "BGR8Packed"])
@pytest.mark.parametrize("padding", [0, 2])
def test_three_colours_come_as_bgr(name: str, padding: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    rows = np.pad(colours.reshape(3, 15), ((0, 0), (0, padding)))
    image = to_image(rows.reshape(-1), form_of(name), 3, 5, padding)
    assert (image == (colours if name.startswith("BGR") else colours[..., ::-1])).all()


@pytest.mark.parametrize("order", ["RG", "GR", "GB", "BG"])
@pytest.mark.parametrize("depth", ["8", "10", "12", "16", "12p", "10Packed", "12Packed"])
def test_a_bayer_picture_of_one_colour_comes_back_as_that_colour(order: str, depth: str) -> None:
    form = form_of(f"Bayer{order}{depth}")
    white = 2**form.bits - 1
    of = {"R": white, "G": white // 2, "B": white // 5}
    second = {"RG": "GB", "GR": "BG", "GB": "RG", "BG": "GR"}[order]  # the row below: green stands crosswise
    values = [of[(order, second)[row % 2][column % 2]] for row in range(8) for column in range(10)]
    image = to_image(np.frombuffer(packed(values, form), np.uint8), form, 8, 10)
    inside = image[2:-2, 2:-2].reshape(-1, 3).astype(int)
    assert (abs(inside - [of["B"], of["G"], of["R"]]) <= 1).all()


def test_deep_values_are_scaled_as_a_photographs_are() -> None:
    form = form_of("Mono12p")
    values = np.arange(4096)
    image = to_image(np.frombuffer(packed(values.tolist(), form), np.uint8), form, 64, 64)
    scaled = to_8_bit(image, form.bits)[..., 0].reshape(-1)
    assert (scaled == np.round(255 * values / 4095)).all()


@pytest.mark.parametrize(
    "name", ["Mono8s", "YUV422_8", "Mono1p", "Mono16Packed", "Mono8p", "Coord3D_ABC32f", "mono8", ""]
)
def test_a_format_that_is_not_read_is_none(name: str) -> None:
    assert find_format(name) is None


def test_a_buffer_that_is_too_short_is_an_error() -> None:
    with pytest.raises(DataError, match=r"23 bytes are no picture of 4x4 Mono12p, which has 24"):
        to_image(np.zeros(23, np.uint8), form_of("Mono12p"), 4, 4)
    with pytest.raises(DataError, match="no picture"):
        to_image(np.zeros(23, np.uint8), form_of("Mono8"), 0, 4)
