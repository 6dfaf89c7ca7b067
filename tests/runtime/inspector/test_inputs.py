"""Every input is judged as the same photograph from disk, or refused in one sentence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from nnet_edge import Inspector
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.image_files import from_pillow, read_image, read_picture
from nnet_edge.runtime.inspector.inputs import from_array
from tests.conftest import bad_part
from tests.runtime.inspector.conftest import Opened

BGR = bad_part(5)[0]
RGB = np.ascontiguousarray(BGR[..., ::-1])


@pytest.mark.parametrize("is_decoded", [False, True])
@pytest.mark.parametrize("name", ["photographs", "deep_photographs"])
def test_an_image_of_pillow_is_what_its_file_is(name: str, is_decoded: bool, request: pytest.FixtureRequest) -> None:
    refused = []
    for path in sorted(request.getfixturevalue(name).iterdir()):
        with Image.open(path) as image:
            before = (image.size, image.mode)
            if is_decoded:
                image.load()
            try:
                found = from_pillow(image).pixels
            except DataError as error:
                refused.append((path.name, str(error)))
                continue
            assert np.array_equal(found, read_picture(path).pixels), path.name
            assert found.dtype == read_picture(path).pixels.dtype
            assert (image.size, image.mode) == before or path.suffix == ".tif"
            assert np.array_equal(from_pillow(image).pixels, found)  # it stays as it was
    lost = [("colour_1.png", "give the path of its file"), ("colour_2.tif", "give the path of its file")]
    expected = lost if is_decoded and name == "deep_photographs" else []
    assert [(path, words[-len("give the path of its file") :]) for path, words in refused] == expected


def test_what_was_done_to_an_image_counts_not_its_file(photographs: Path) -> None:
    with Image.open(photographs / "rgba.png") as image:
        image.paste((255, 0, 0), (0, 0, 96, 96))
        assert (from_pillow(image).pixels == (255, 0, 0)).all()
    with Image.open(photographs / "chroma_10.jpg") as image:
        image.draft("RGB", (48, 48))
        assert from_pillow(image).pixels.shape == (48, 48, 3)
    with Image.open(photographs / "chroma_10.jpg") as image:
        assert from_pillow(image.crop((0, 0, 10, 20))).pixels.shape == (20, 10, 3)


def test_16_bit_colours_that_pillow_halved_are_refused_also_from_memory(deep_photographs: Path) -> None:
    with Image.open(io.BytesIO((deep_photographs / "colour_1.png").read_bytes())) as image:
        image.load()
        with pytest.raises(DataError, match="Pillow has kept 8 of the 16 bits"):
            from_pillow(image)


def test_a_torn_file_behind_an_image_is_refused(inspector: Inspector, photographs: Path) -> None:
    data = (photographs / "chroma_10.jpg").read_bytes()
    with (
        Image.open(io.BytesIO(data[:-200])) as image,
        pytest.raises(DataError, match="cannot read image 0: its end is missing"),
    ):
        inspector(image)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_white_are_refused_as_on_disk(mode: str, inspector: Inspector, tmp_path: Path) -> None:
    image = Image.new(mode, (96, 96))
    with pytest.raises(DataError, match="no value is white"):
        inspector(image)
    image.save(tmp_path / "odd.tif")
    with pytest.raises(DataError, match="no value is white"):
        inspector(tmp_path / "odd.tif")


def as_deep(array: np.ndarray, bits: int) -> np.ndarray:
    return np.round(array * (((1 << bits) - 1) / 255)).astype(np.uint16)


@pytest.mark.parametrize(
    ("array", "colour"),
    [
        (RGB, "rgb"),
        (BGR, "bgr"),
        (BGR[..., ::-1], "rgb"),  # a view with a negative step
        (np.asfortranarray(RGB), "rgb"),
        (np.dstack([RGB, RGB[..., 0]]), "rgb"),
        (np.dstack([BGR, BGR[..., 0]]), "bgr"),
        ((RGB / 255).astype(np.float64), "rgb"),
        ((RGB / 255).astype(np.float32), "rgb"),
        ((RGB / 255).astype(np.float16), "rgb"),
        ((BGR / 255).astype(np.float32), "bgr"),
    ],
)
def test_an_array_is_judged_as_the_photograph_from_disk(
    array: np.ndarray, colour: Any, inspector: Inspector, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "same.png"), BGR)
    from_disk, found = inspector(tmp_path / "same.png"), inspector(array, colour=colour)
    assert np.array_equal(from_array(array, colour), BGR)
    assert (found.score, found.regions) == (from_disk.score, from_disk.regions)
    assert np.array_equal(found.map, from_disk.map)
    assert np.array_equal(found.image, RGB)


@pytest.mark.parametrize("array", [RGB[..., 0], RGB[..., :1], RGB[..., 0] / 255, RGB[..., 0].T.copy().T])
def test_a_grey_array_is_judged_as_the_photograph_from_disk(
    array: np.ndarray, inspector: Inspector, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "same.png"), RGB[..., 0])
    assert inspector(array).score == inspector(tmp_path / "same.png").score
    assert np.array_equal(inspector(array).image, read_image(tmp_path / "same.png"))


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", ["<u2", ">u2", "pillow", "float32"])
def test_deep_arrays_and_images_are_judged_as_the_photograph_from_disk(
    bits: int, kind: str, opened: Opened, tmp_path: Path
) -> None:
    grey = as_deep(RGB[..., 0], bits)
    cv2.imwrite(str(tmp_path / "same.png"), grey)
    image: Any = Image.fromarray(grey) if kind == "pillow" else grey.astype(kind)
    if kind == "float32":
        image = (grey / ((1 << bits) - 1)).astype(np.float32)
    inspector = opened("plain", bits=bits)
    assert inspector(image).score == inspector(tmp_path / "same.png").score
    inspector = opened("deep")  # whose 12 bits hold for all
    if kind == "float32":
        assert inspector(image).score == opened("plain", bits=bits)(image).score
    elif bits == 16:
        with pytest.raises(DataError, match=r"image 0 cannot be judged: .* say how many the camera gives"):
            inspector(image)
    else:
        assert inspector(image).score == inspector(tmp_path / "same.png").score


BROKEN = (RGB / 255).astype(np.float32)
BROKEN[3, 4] = np.nan


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 96, 80), np.uint8), r"shape \(3, 96, 80\) is no picture: .*; give array.transpose\(1, 2, 0\)"),
        (np.zeros((4, 96, 80, 3), np.uint8), r"give a batch as a list: list\(array\)"),
        (np.zeros((96, 80, 2), np.uint8), r"is no picture: give \(H, W\), \(H, W, 3\) or \(H, W, 4\)$"),
        (np.zeros((0, 80), np.uint8), r"shape \(0, 80\) is no picture"),
        (np.zeros(80, np.uint8), r"shape \(80,\) is no picture"),
        (RGB.astype(np.int64), r"int64 does not say which value is white: .* with .astype\(np.uint8\)"),
        (RGB > 100, r"bool does not say which value is white"),
        (RGB.astype(complex), r"complex128 does not say"),
        (BROKEN, r"3 of its 27648 values are NaN or infinite"),
        (RGB.astype(np.float32), r"its floats reach from \d+ to \d+, and black is 0 and white is 1"),
        (RGB / 255 - 0.5, r"its floats reach from -0\.\d+ to 0\.\d+"),
    ],
)
def test_an_array_that_is_no_picture_is_one_sentence(inspector: Inspector, image: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        inspector(image)
    assert str(caught.value).startswith("image 0 cannot be judged: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="image 1 cannot be judged"):
        list(inspector([RGB, image]))


def test_a_picture_that_is_too_large_is_refused_before_it_is_copied(inspector: Inspector) -> None:
    with pytest.raises(DataError, match="pixels are more than the"):
        inspector(np.broadcast_to(np.uint8(0), (100_000, 100_000)))


class Tensor:
    """What a library gives that turns into an array when it is asked."""

    def __array__(self) -> np.ndarray:
        return RGB

    def __iter__(self) -> Any:
        return iter(RGB)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "no NoneType$"),
        (7, "no int$"),
        ({"a": RGB}, "no dict$"),
        (b"\x89PNG", r"no bytes; open a file's bytes with PIL.Image.open\(io.BytesIO\(data\)\)"),
        (Tensor(), r"no Tensor; give tensor.numpy\(\)"),
    ],
)
def test_what_is_no_image_is_one_sentence(inspector: Inspector, images: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        inspector(images)


def test_what_is_no_image_among_many_is_one_sentence(inspector: Inspector, photographs: Path) -> None:
    results = inspector([RGB, 3])  # type: ignore[list-item]
    assert next(results).index == 0
    with pytest.raises(ConfigError, match="image 1 is a int: give a path"):
        next(results)
    with pytest.raises(ConfigError, match='image 0 is no array: colour="bgr" belongs to arrays'):
        inspector(photographs / "good.png", colour="bgr")
    with pytest.raises(ConfigError, match="colour 'cmyk' is unknown: choose rgb or bgr"):
        inspector(RGB, colour="cmyk")  # type: ignore[call-overload]
    for path in ("nothing.png", "a\0b.png"):
        with pytest.raises(DataError, match="cannot read"):
            inspector(path)
