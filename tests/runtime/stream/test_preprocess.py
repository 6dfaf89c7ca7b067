"""Frames become the graph's input by the reference resize; outputs become verdicts with regions in frame pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from nnet_edge.errors import NotFiniteError
from nnet_edge.frame import Frame, Outputs, Prediction
from nnet_edge.imaging import resize
from nnet_edge.runtime.stream.judge import BatchTimes, Judge, PartOutputs
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.settings.stream import VerdictSettings


def judged(
    frames: Sequence[Frame],
    outputs: Outputs,
    threshold: float,
    min_area: float = 0.0,
    settings: VerdictSettings | None = None,
) -> list[Prediction]:
    """What a judge says of the frames."""
    judge = Judge(settings or VerdictSettings(min_area=min_area), threshold)
    return [
        judge.judge(frame, [frame], [PartOutputs(outputs, number)], BatchTimes(0.0, 0.0, 0.0), True)[0]
        for number, frame in enumerate(frames)
    ]


def test_a_batch_is_the_reference_resize_of_each_frame_in_rgb() -> None:
    random = np.random.default_rng(0)
    sizes = ((300, 400), (256, 256), (100, 700))
    frames = [Frame(random.integers(0, 256, (*size, 3), np.uint8), i, 0.0) for i, size in enumerate(sizes)]
    images = preprocess(frames)
    assert (images.shape, images.dtype) == ((3, 256, 256, 3), np.uint8)
    for image, frame in zip(images, frames, strict=True):
        np.testing.assert_array_equal(image, resize(np.ascontiguousarray(frame.image[..., ::-1])))


def test_a_grey_frame_is_taken_too() -> None:
    images = preprocess([Frame(np.full((40, 30), 77, np.uint8), 0, 0.0)])
    assert np.unique(images).tolist() == [77]


def test_the_regions_of_a_reject_are_in_pixels_of_the_frame(make_frame: Callable[..., Frame]) -> None:
    frames = [make_frame(0), make_frame(1, is_good=True)]
    maps = preprocess(frames).mean(axis=3, dtype=np.float32) / 255
    bad, good = judged(frames, Outputs(maps, maps.max(axis=(1, 2))), threshold=0.9)
    assert (bad.is_anomalous, good.is_anomalous) == (True, False)
    assert good.regions == ()
    (region,) = bad.regions  # the white square; antialiasing takes at most a column of the map, two of the frame
    assert (region.y, region.height) == (96, 32)
    assert region.x == pytest.approx(192, abs=2)
    assert region.width == pytest.approx(64, abs=4)
    assert region.area == pytest.approx(32 * 64, rel=0.07)
    assert region.peak == pytest.approx(1.0)


def test_small_regions_are_left_out_when_asked(make_frame: Callable[..., Frame]) -> None:
    frames = [make_frame(0)]
    maps = preprocess(frames).mean(axis=3, dtype=np.float32) / 255
    (prediction,) = judged(frames, Outputs(maps, maps.max(axis=(1, 2))), threshold=0.9, min_area=1e4)
    assert prediction.is_anomalous
    assert prediction.regions == ()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (255, 255), (100, 7)])
@pytest.mark.parametrize("settings", [VerdictSettings(), VerdictSettings(ignored=(((0, 0), (30, 0), (30, 30)),))])
def test_what_is_not_finite_is_no_verdict(
    make_frame: Callable[..., Frame], bad: float, place: tuple[int, int], settings: VerdictSettings
) -> None:
    """The score, or one place of the map although the score is finite, inside of what is inspected or outside."""
    broken, maps = np.array([bad], np.float32), np.zeros((1, 256, 256), np.float32)
    with pytest.raises(NotFiniteError, match=rf"frame 3 \(x\.png\) has the score {bad}, .* try another --runner"):
        judged([make_frame(3, name="x.png")], Outputs(maps, broken), 1.0, settings=settings)
    with pytest.raises(NotFiniteError, match=rf"frame 3 has the score {bad}"):
        Prediction(make_frame(3), bad, 1.0, None)
    maps[(0, *place)] = bad
    says = r"frame 3 \(x\.png\) has the score ((0|0\.5) and an anomaly map|-?inf|nan).* export the bundle again"
    with pytest.raises(NotFiniteError, match=says):
        judged([make_frame(3, name="x.png")], Outputs(maps, np.array([0.5], np.float32)), 1.0, settings=settings)
    with pytest.raises(NotFiniteError, match="an anomaly map that is NaN"):
        Prediction(make_frame(3), 0.5, 1.0, maps[0])
