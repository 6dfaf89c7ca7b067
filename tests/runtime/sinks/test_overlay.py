"""The colours of a map mean the same in every picture: they depend on score / threshold and nothing else."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from nnet_edge.frame import Frame, Prediction, Region
from nnet_edge.runtime.sinks.overlay import BAR_HEIGHT, LEGEND_WIDTH, RED, annotate, colour


def predict(image: np.ndarray, score: float = 1.0, regions: tuple[Region, ...] = ()) -> Prediction:
    return Prediction(Frame(image, 3, 0.0, name="Ö.png"), score, 0.5, np.full((256, 256), score, np.float32), regions)


def test_the_colour_scale_is_fixed_to_the_threshold() -> None:
    relative = np.linspace(0, 3, 256, dtype=np.float32)[None]
    scale = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_TURBO)
    for threshold in (0.125, 8.0):  # powers of two: the division is exact
        coloured = colour(relative * threshold, threshold)
        np.testing.assert_array_equal(coloured, colour(relative, 1.0))
        np.testing.assert_array_equal(coloured[0, 0], scale[0, 0])
        np.testing.assert_array_equal(coloured[0, 170], scale[0, 255])  # 170 is twice the threshold: the end
        np.testing.assert_array_equal(coloured[0, 255], scale[0, 255])
    blue, green, red = colour(np.ones((1, 1), np.float32), 1.0)[0, 0]
    assert green > max(blue, red)


@pytest.mark.parametrize(
    ("shape", "panel"),
    [((300, 400, 3), (300, 400)), ((1440, 1920, 3), (720, 960)), ((60, 80), (240, 320)), ((300, 400, 4), (300, 400))],
)
def test_panels_keep_the_proportions_of_the_frame_at_a_readable_size(
    shape: tuple[int, ...], panel: tuple[int, int]
) -> None:
    picture = annotate(predict(np.full(shape, 90, np.uint8)))
    assert picture.dtype == np.uint8
    assert picture.shape == (panel[0] + BAR_HEIGHT, 2 * panel[1] + LEGEND_WIDTH, 3)


def test_boxes_lie_where_the_regions_are_in_the_frame() -> None:
    region = Region(x=400, y=200, width=200, height=100, area=2e4, peak=1.0)
    picture = annotate(predict(np.zeros((1440, 1920, 3), np.uint8), regions=(region,)))
    left = picture[BAR_HEIGHT:, :960].astype(int)
    rows, columns = np.nonzero(np.abs(left - RED).sum(axis=2) == 0)
    assert (columns.min(), columns.max()) == pytest.approx((200, 299), abs=2)  # half of the frame's size
    assert rows.max() == pytest.approx(149, abs=2)


def test_annotating_leaves_the_frame_alone() -> None:
    image = np.full((300, 400, 3), 90, np.uint8)
    annotate(predict(image, regions=(Region(0, 0, 50, 50, 2500.0, 1.0),)))
    assert np.unique(image).tolist() == [90]


def test_what_is_not_inspected_is_dark_and_the_rest_as_it_was() -> None:
    inspected = np.zeros((256, 256), bool)
    inspected[:, :128] = True
    prediction = replace(predict(np.full((300, 400, 3), 90, np.uint8)), inspected=inspected)
    left = annotate(prediction)[BAR_HEIGHT:, :400]
    assert np.unique(left[20:280, 20:180]).tolist() == [90]
    assert np.unique(left[:, 220:]).tolist() == [45]
