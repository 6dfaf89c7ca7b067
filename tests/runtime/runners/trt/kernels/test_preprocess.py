"""Camera frames to 256x256 RGB: the kernel's arithmetic against Pillow and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnet_edge.errors import ConfigError
from nnet_edge.geometry import GREY, SIDE, Geometry
from nnet_edge.imaging import pillow_bilinear, to_rgb
from nnet_edge.runtime.runners.trt.kernels.tables import BGR8, GRAY8, NV12, RGB8, resize_axis

SIZES = ((1, 1), (1, 700), (2, 3), (96, 96), (255, 257), (256, 256), (480, 640), (511, 513), (1080, 1920))


def by_pillow(rgb: np.ndarray) -> np.ndarray:
    """The definition that the kernel follows: uint8 RGB (256, 256, 3)."""
    return pillow_bilinear(rgb, SIDE, SIDE)


def picture(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """Noise at full contrast: every rounding of the filter shows."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_format_equals_pillow_bit_by_bit(host_kernels, height: int, width: int) -> None:
    colour, grey = picture(height, width, 3), picture(height, width, 1)
    found = host_kernels.preprocess([colour, colour, grey], [BGR8, RGB8, GRAY8])
    for image, rgb in zip(found, (to_rgb(colour), colour, to_rgb(grey)), strict=True):
        np.testing.assert_array_equal(image, by_pillow(rgb))


@pytest.mark.parametrize("picture_size", [(100, 300), (300, 100), (96, 160), (1, 1)])
def test_other_sizes_and_letterboxes_equal_pillow(host_kernels_at, picture_size: tuple[int, int]) -> None:
    frame = picture(*picture_size, 3)
    for geometry in (Geometry(96, 160), Geometry(96, 160, "letterbox", picture_size)):
        (found,) = host_kernels_at(geometry).preprocess([frame], [BGR8])
        window, wanted = geometry.window, np.full(geometry.shape, GREY, np.uint8)
        wanted[window.inside] = pillow_bilinear(to_rgb(frame), window.width, window.height)
        np.testing.assert_array_equal(found, wanted)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 9), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_size_and_stride(host_kernels, height: int, width: int, padding: int, seed: int, is_flipped: bool) -> None:
    wide = picture(height, width + padding, 3, seed)
    frame = wide[::-1, :width] if is_flipped else wide[:, :width]
    (found,) = host_kernels.preprocess([frame], [BGR8])
    difference = np.abs(found.astype(int) - by_pillow(to_rgb(np.ascontiguousarray(frame))))
    assert difference.max() == 0


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_a_flat_frame_keeps_its_value(host_kernels, value: int) -> None:
    (found,) = host_kernels.preprocess([np.full((333, 777, 3), value, np.uint8)], [BGR8])
    assert (found == value).all()


@pytest.mark.parametrize(("height", "width"), [(2, 2), (256, 256), (480, 640), (1080, 1920)])
def test_nv12_equals_opencv_and_pillow(host_kernels, height: int, width: int) -> None:
    frame = picture(height * 3 // 2, width, 1, seed=height)
    (found,) = host_kernels.preprocess([frame], [NV12])
    reference = by_pillow(cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12))
    assert np.abs(found.astype(int) - reference).max() <= 1


def test_nv12_with_a_row_pitch(host_kernels) -> None:
    wide = picture(360 * 3 // 2, 512, 1)
    frame = wide[:, :480]
    (found,) = host_kernels.preprocess([frame], [NV12])
    reference = by_pillow(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_YUV2RGB_NV12))
    assert np.abs(found.astype(int) - reference).max() <= 1


def test_frames_of_a_batch_keep_their_places(host_kernels) -> None:
    frames = [picture(40 + 50 * number, 300 - 40 * number, 3, number) for number in range(5)]
    found = host_kernels.preprocess(frames, [BGR8] * 5)
    for image, frame in zip(found, frames, strict=True):
        np.testing.assert_array_equal(image, by_pillow(to_rgb(frame)))


def test_a_frame_larger_than_pillow_would_open_for_a_row(host_kernels) -> None:
    frame = picture(3, 20_000, 3)
    (found,) = host_kernels.preprocess([frame], [BGR8])
    np.testing.assert_array_equal(found, by_pillow(to_rgb(frame)))


def test_the_coefficients_of_an_output_sum_to_one() -> None:
    for size in (1, 100, 256, 257, 1080, 4096):
        table = resize_axis(size)
        taps = table[0]
        sums = table[1 + 512 :].reshape(256, taps).sum(axis=1)
        assert np.abs(sums - (1 << 22)).max() <= taps  # each is rounded by half a unit at most


def test_an_axis_without_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1x1"):
        resize_axis(0)


def test_worst_difference_over_many_sizes(host_kernels) -> None:
    """The figure that reports quote: pytest tests/runtime/kernels -k worst -rP"""
    rng = np.random.default_rng(0)
    worst = 0
    for number in range(60):
        height, width = (int(side) for side in rng.integers(1, 1300, 2))
        image = picture(height, width, 3, number)
        (found,) = host_kernels.preprocess([image], [RGB8])
        worst = max(worst, int(np.abs(found.astype(int) - by_pillow(image)).max()))
    print(f"preprocess: worst difference in grey levels over 60 sizes: {worst}")  # noqa: T201
    assert worst == 0
