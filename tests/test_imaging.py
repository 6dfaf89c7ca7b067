"""Resize and colour order of images, against Pillow."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.imaging import IS_VECTORISED, bilinear, pillow_bilinear, resize, resize_mask, to_input, to_rgb
from tests.conftest import as_rgb, over_257


@given(st.integers(1, 1200), st.integers(1, 1200), st.sampled_from((1, 3)), st.booleans(), st.integers(0, 2**32 - 1))
@example(320, 320, 3, False, 0)  # the worst size, see findings/cykooz_resizer_is_two_levels_off_at_320.sh
@settings(max_examples=60, deadline=None)
def test_bilinear_is_pillows_within_a_grey_level_a_direction(
    height: int, width: int, channels: int, is_black_and_white: bool, seed: int
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width + 3, channels), np.uint8)
    image = (np.where(noise < 128, 0, 255).astype(np.uint8) if is_black_and_white else noise)[::-1, 3:]
    image = image[..., 0] if channels == 1 else image
    expected = pillow_bilinear(np.ascontiguousarray(image), 256, 256)
    found = bilinear(image, 256, 256)
    assert (found.shape, found.dtype) == (expected.shape, np.uint8)
    assert np.abs(found.astype(int) - expected).max() <= (2 if IS_VECTORISED else 0)


def test_bilinear_serves_threads_at_once() -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (480 + seed, 640, 3), np.uint8) for seed in range(8)]
    expected = [bilinear(image, 256, 256) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(
            pool.map(lambda image: bilinear(image, 256, 256), images * 5), expected * 5, strict=True
        ):
            np.testing.assert_array_equal(found, wanted)


def test_resize(rgb: np.ndarray) -> None:
    large = np.random.default_rng(5).integers(0, 256, (300, 700, 3), dtype=np.uint8)
    for image in (large, rgb, large[::-1, ::2]):
        resized = resize(image)
        np.testing.assert_array_equal(resized, bilinear(image, 256, 256))
        assert resized.flags.writeable
    averaged = resize(as_rgb(np.tile(np.array([0, 255], np.uint8), (512, 256))))[:, 2:-2]
    np.testing.assert_allclose(averaged, 127.5, atol=0.5)  # antialiased: stripes of one pixel become grey
    same = np.random.default_rng(6).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize(same), same)
    assert not np.shares_memory(resize(same), same)
    assert resize(rgb, Geometry(64, 96)).shape == (64, 96, 3)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_resize_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"uint8 \(H, W, 3\)"):
        resize(np.zeros(shape, np.uint8))


def test_to_rgb(rgb: np.ndarray, deep: np.ndarray) -> None:
    bgr, grey = rgb[..., ::-1], rgb[..., 0]
    np.testing.assert_array_equal(to_rgb(bgr), rgb)
    np.testing.assert_array_equal(to_rgb(np.dstack([bgr, grey])), rgb)
    np.testing.assert_array_equal(to_rgb(grey), as_rgb(grey))
    np.testing.assert_array_equal(to_rgb(grey[..., None]), as_rgb(grey))
    np.testing.assert_array_equal(to_rgb(deep[..., 0]), as_rgb(over_257(deep[..., 0])))
    own = as_rgb(grey)
    assert not np.shares_memory(to_rgb(own), own)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 4, 2), "uint8"), ((4,), "uint8"), ((4, 4), "float32"), ((0, 4), "u1")]
)
def test_to_rgb_refuses_what_no_camera_gives(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(DataError, match="a frame must be uint8 or uint16"):
        to_rgb(np.zeros(shape, dtype))


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(300, 411), (256, 256), (97, 700)])
def test_to_input_is_the_resize_of_the_rgb_picture(channels: int, depth: type, size: tuple[int, int]) -> None:
    shape = (*size, channels) if channels else size
    frame = np.random.default_rng(channels).integers(0, np.iinfo(depth).max, shape, depth, endpoint=True)
    for view in (frame, frame[5:-5, 3:-20]):  # whole, and a part that shares the rows of a larger picture
        into = np.zeros((256, 256, 3), np.uint8)
        to_input(view, into, DEFAULT)
        np.testing.assert_array_equal(into, resize(to_rgb(view)))


def test_to_input_refuses_what_no_camera_gives() -> None:
    with pytest.raises(DataError, match="a frame must be uint8 or uint16"):
        to_input(np.zeros((4, 4), np.float32), np.zeros((256, 256, 3), np.uint8), DEFAULT)


def test_resize_mask_rules() -> None:
    mask = np.zeros((512, 512), bool)
    mask[100:140, 200:260] = True
    block = np.zeros((256, 256), bool)
    block[50:70, 100:130] = True
    half = resize_mask(mask)
    np.testing.assert_array_equal(half, block)  # edges on the grid: a quarter of the filter lies beyond them
    grown = resize_mask(mask, rule="any")
    expected = np.zeros((256, 256), bool)
    expected[49:71, 99:131] = True
    np.testing.assert_array_equal(grown, expected)


def test_a_tiny_defect_vanishes_by_half_and_never_by_any() -> None:
    random = np.random.default_rng(7)
    for _ in range(20):
        mask = np.zeros((1500, 2100), bool)
        mask[random.integers(1500), random.integers(2100)] = True
        assert not resize_mask(mask, rule="half").any()
        assert resize_mask(mask, rule="any").any()


def test_an_unknown_mask_rule() -> None:
    with pytest.raises(ConfigError, match='mask rule "most" is unknown'):
        resize_mask(np.zeros((4, 4), bool), rule="most")  # type: ignore[arg-type]
