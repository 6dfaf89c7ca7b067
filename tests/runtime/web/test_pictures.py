"""The small picture of the page: where map, regions and masks are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nnet_edge.frame import Crop, Prediction
from nnet_edge.runtime.web.pictures import DIMMED, draw_view

MakePrediction = Callable[..., Prediction]


def test_without_overlay_it_is_the_picture_alone(make_prediction: MakePrediction) -> None:
    prediction = make_prediction()
    picture = draw_view(prediction.frame, [prediction], 256, has_overlay=False)
    assert picture.shape == (128, 256, 3)
    assert picture[20, 20].tolist() == [0, 0, 0]
    assert picture[56, 112].tolist() == [255, 255, 255]


def test_a_picture_is_never_enlarged_and_grey_ones_are_shown(make_prediction: MakePrediction) -> None:
    frame = replace(make_prediction().frame, image=np.full((30, 40), 90, np.uint8))
    assert draw_view(frame, [], 480, has_overlay=True)[5, 5].tolist() == [90, 90, 90]
    assert draw_view(frame, [], 480, has_overlay=True).shape == (30, 40, 3)


def test_heat_lies_where_the_map_is_high_and_nowhere_else(make_prediction: MakePrediction) -> None:
    prediction = replace(make_prediction(), regions=())
    picture = draw_view(prediction.frame, [prediction], 512, has_overlay=True)
    plain = draw_view(prediction.frame, [prediction], 512, has_overlay=False)
    changed = (picture != plain).any(axis=2)
    assert changed[112, 224]  # the map is high in rows and columns 96 to 127 of 256, the frame has 256x512
    assert not changed[:80].any()
    assert not changed[:, :170].any()
    blue, _, red = picture[112, 224].tolist()
    assert red > blue  # far above the threshold


def test_what_is_not_inspected_is_dimmed(make_prediction: MakePrediction) -> None:
    inspected = np.zeros((256, 256), bool)
    inspected[:, :128] = True
    prediction = replace(make_prediction(is_good=True), inspected=inspected)
    frame = replace(prediction.frame, image=np.full((256, 512, 3), 200, np.uint8))
    picture = draw_view(frame, [replace(prediction, frame=frame)], 512, has_overlay=True)
    assert picture[10, 10].tolist() == [200] * 3
    assert picture[10, 500].tolist() == [round(200 * DIMMED)] * 3


def test_crops_are_drawn_where_they_lie_and_none_of_nothing(make_prediction: MakePrediction) -> None:
    whole = make_prediction().frame
    crop = Crop("nut", 256, 64, 128, 128)
    part = replace(whole, image=whole.image[64:192, 256:384], crop=crop)
    prediction = replace(make_prediction(), frame=part, regions=(), anomaly_map=np.full((256, 256), 4.0, np.float32))
    changed = (draw_view(whole, [prediction], 512, True) != draw_view(whole, [], 512, True)).any(axis=2)
    assert changed[70:186, 262:378].all()
    assert not changed[:, :250].any()
    assert not changed[:, 390:].any()
    assert draw_view(whole, [replace(prediction, anomaly_map=None)], 2, True).shape == (1, 2, 3)
