"""Verdicts of one stream: masks in camera coordinates, crops, the trigger line, thresholds of maps on a GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Crop, Frame, FrameOutputs, Outputs
from nnet_edge.runtime.stream.judge import BatchTimes, Judge, PartOutputs, TriggerLine, inspected_part
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.policy import Policy
from nnet_edge.settings.stream import LineStream, Smoothing, Trigger, VerdictSettings

HEIGHT, WIDTH = 100, 200  # of the camera
LEFT_HALF = ((0, 0), (100, 0), (100, 100), (0, 100))
NOW = BatchTimes(0.0, 0.0, 0.0)


def frame(index: int = 0) -> Frame:
    return Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), index, time.monotonic(), "a", session="s")


def outputs_of(anomaly_map: np.ndarray) -> Outputs:
    return Outputs(anomaly_map[None], np.array([anomaly_map.max()], np.float32))


def two_spots() -> np.ndarray:
    """A map with 0.6 left and 0.9 right."""
    anomaly_map = np.zeros((256, 256), np.float32)
    anomaly_map[100:120, 40:60] = 0.6
    anomaly_map[100:120, 200:220] = 0.9
    return anomaly_map


def judge(settings: VerdictSettings, anomaly_map: np.ndarray):  # type: ignore[no-untyped-def]
    one = frame()
    (prediction,) = Judge(settings, 0.5).judge(one, [one], [PartOutputs(outputs_of(anomaly_map), 0)], NOW, True)
    return prediction


def test_a_region_of_interest_decides_what_counts() -> None:
    everywhere, left = (
        judge(VerdictSettings(), two_spots()),
        judge(VerdictSettings(regions_of_interest=(LEFT_HALF,)), two_spots()),
    )
    assert (everywhere.image_score, len(everywhere.regions), everywhere.is_masked) == (pytest.approx(0.9), 2, False)
    assert (left.image_score, len(left.regions), left.is_masked) == (pytest.approx(0.6), 1, True)
    assert left.anomaly_map is not None
    assert left.anomaly_map[:, 128:].max() == 0
    assert left.regions[0].x == pytest.approx(200 * 40 / 256, abs=1)


def test_an_ignored_polygon_takes_its_part_away() -> None:
    prediction = judge(VerdictSettings(ignored=(LEFT_HALF,)), two_spots())
    assert prediction.image_score == pytest.approx(0.9)
    assert len(prediction.regions) == 1
    both = VerdictSettings(regions_of_interest=(LEFT_HALF,), ignored=(((10, 20), (80, 20), (80, 80), (10, 80)),))
    assert not judge(both, two_spots()).is_anomalous


def test_masks_as_pictures_mean_the_same_as_polygons(tmp_path: Path) -> None:
    picture = np.zeros((HEIGHT, WIDTH), np.uint8)
    picture[:, :100] = 255
    assert cv2.imwrite(str(tmp_path / "left.png"), picture)
    drawn = inspected_part(VerdictSettings(regions_of_interest=(LEFT_HALF,)), HEIGHT, WIDTH)
    read = inspected_part(VerdictSettings(interest_picture=tmp_path / "left.png"), HEIGHT, WIDTH)
    assert drawn is not None
    assert read is not None
    assert (drawn != read).mean() < 0.005  # the polygon's border belongs to it, the picture's next column does not
    ignored = inspected_part(VerdictSettings(ignored_picture=tmp_path / "left.png"), HEIGHT, WIDTH)
    np.testing.assert_array_equal(ignored, ~read)


def test_a_mask_lies_in_the_cameras_picture_also_where_a_crop_is_judged() -> None:
    settings = VerdictSettings(regions_of_interest=(LEFT_HALF,))
    crop = inspected_part(settings, HEIGHT, WIDTH, Crop("middle", 50, 0, 100, 100))
    assert crop is not None
    assert crop[:, :126].all()
    assert not crop[:, 132:].any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (VerdictSettings(regions_of_interest=(((300, 0), (400, 0), (400, 50)),)), "leave nothing of the picture"),
        (VerdictSettings(interest_picture=Path("absent.png")), r"the mask absent\.png cannot be used: .* no such file"),
        (
            VerdictSettings(crops=(Crop("wide", 150, 0, 100, 50),)),
            "the crop wide .*reaches beyond the camera's 200x100",
        ),
    ],
)
def test_what_does_not_fit_the_camera_is_an_error(settings: VerdictSettings, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Judge(settings, 0.5).admit(frame().image)


def test_a_mask_of_another_size_is_an_error(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "small.png"), np.full((10, 10), 255, np.uint8))
    with pytest.raises(ConfigError, match="has 10x10 pixels and the camera gives 200x100"):
        inspected_part(VerdictSettings(ignored_picture=tmp_path / "small.png"), HEIGHT, WIDTH)


def test_small_regions_and_those_below_the_pixel_threshold_are_left_out() -> None:
    settings = VerdictSettings(pixel_threshold=0.7)
    assert [round(region.peak, 1) for region in judge(settings, two_spots()).regions] == [0.9]
    area = 20 * 20 * HEIGHT * WIDTH / 256**2
    assert len(judge(VerdictSettings(min_area=0.9 * area), two_spots()).regions) == 2
    assert len(judge(VerdictSettings(min_area=1.1 * area), two_spots()).regions) == 0


class OnGpu:
    """Maps that are counted when they are fetched."""

    def __init__(self, anomaly_map: np.ndarray) -> None:
        self.fetched, self._map = 0, anomaly_map

    def __getitem__(self, index: int) -> np.ndarray:
        self.fetched += 1
        return self._map


@pytest.mark.parametrize(
    ("settings", "threshold", "fetched"),
    [
        (VerdictSettings(), 2.0, 0),  # a good frame's map stays where it is
        (VerdictSettings(), 0.5, 1),
        (VerdictSettings(regions_of_interest=(LEFT_HALF,)), 2.0, 1),  # its score follows from the map
    ],
)
def test_a_map_is_fetched_once_where_it_is_needed(settings: VerdictSettings, threshold: float, fetched: int) -> None:
    maps, one = OnGpu(two_spots()), frame()
    outputs = FrameOutputs(np.array([0.9], np.float32), maps)
    (prediction,) = Judge(settings, threshold).judge(one, [one], [PartOutputs(outputs, 0)], NOW, wants_maps=False)
    assert maps.fetched == fetched
    assert (prediction.anomaly_map is not None) == bool(fetched)


def test_a_part_is_judged_in_the_frame_in_which_it_reaches_the_line() -> None:
    watch = TriggerLine(Trigger((50, 10), (50, 90), level=100, hysteresis=20))
    greys = [20, 150, 160, 90, 150, 50, 130, 20]  # two parts; 90 is within the hysteresis of the first
    reached = [watch.is_reached(np.full((HEIGHT, WIDTH, 3), grey, np.uint8)) for grey in greys]
    assert reached == [False, True, False, False, False, False, True, False]
    dark = TriggerLine(Trigger((50, 10), (60, 90), level=100, dark=True))
    assert [dark.is_reached(np.full((HEIGHT, WIDTH), grey, np.uint8)) for grey in (200, 50, 50)] == [False, True, False]
    with pytest.raises(ConfigError, match="leaves the camera's 200x100 pixels"):
        TriggerLine(Trigger((50, 10), (300, 10), level=100)).is_reached(np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def test_another_bundle_keeps_the_distance_of_a_threshold_that_was_set() -> None:
    stream_judge = Judge(VerdictSettings(threshold=0.6), 0.5)
    assert stream_judge.use_bundle(5.0) == pytest.approx(6.0)
    assert stream_judge.set_threshold(None) == 5.0


def at_once(*changes: Callable[[], object]) -> None:
    """Make the changes in threads of their own that begin together."""
    together = threading.Barrier(len(changes))

    def make(change: Callable[[], object]) -> None:
        together.wait(5)
        change()

    threads = [threading.Thread(target=make, args=(change,)) for change in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)


def test_a_person_and_a_swap_change_a_judge_at_once_and_both_hold() -> None:
    """Drawing the masks of a large picture takes a while; what changes meanwhile must not be undone behind it."""
    stream_judge = Judge(VerdictSettings(), 0.5)
    stream_judge.admit(np.zeros((3000, 4000, 3), np.uint8))
    for number in range(1, 11):
        left = tuple((x + number, y) for x, y in LEFT_HALF)
        at_once(
            lambda left=left: stream_judge.set_regions([left]),
            lambda number=number: stream_judge.use_bundle(0.5 + number),
            lambda number=number: stream_judge.set_threshold(number),
            lambda left=left: stream_judge.set_regions(ignored=[((500, 500), (600, 500), (600, 600 + left[0][0]))]),
        )
        assert stream_judge.bundle_threshold == 0.5 + number
        assert stream_judge.settings.regions_of_interest == (left,)
        assert stream_judge.settings.ignored[0][2] == (600, 600 + number)
        assert stream_judge.threshold != 0.5 + number  # the slider's, before or after the swap


def test_a_swap_does_not_fail_because_of_a_mask_that_can_no_longer_be_read(tmp_path: Path) -> None:
    path = tmp_path / "left.png"
    assert cv2.imwrite(str(path), np.full((HEIGHT, WIDTH), 255, np.uint8))
    stream_judge = Judge(VerdictSettings(interest_picture=path), 0.5)
    stream_judge.admit(frame().image)
    path.unlink()
    assert stream_judge.use_bundle(0.7) == 0.7
    (prediction,) = stream_judge.judge(frame(), [frame()], [PartOutputs(outputs_of(two_spots()), 0)], NOW, True)
    assert (prediction.threshold, prediction.bundle_threshold, prediction.is_masked) == (0.7, 0.7, True)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Policy.from_text("paced"), "has no pace: write paced:5"),
        (lambda: Policy.from_text("paced:0"), "pace is 0.0: it must be a finite number above 0"),
        (lambda: Policy.from_text("newest"), "is unknown: choose every-frame, freshest or paced:N"),
        (lambda: VerdictSettings(regions_of_interest=(((0, 0), (1, 1)),)), "at least three"),
        (lambda: VerdictSettings(ignored=(((0, 0), (1, 1), (2, 2)),)), "has no area"),
        (lambda: VerdictSettings(threshold=0), "threshold is 0"),
        (lambda: VerdictSettings(crops=(Crop("a", 0, 0, 5, 5), Crop("a", 5, 0, 5, 5))), "two crops have one name"),
        (lambda: Smoothing(4, 3), "n of n-of-m is 4"),
        (lambda: Trigger((1, 1), (1, 1), 100), "give two points"),
        (lambda: CameraSettings("x", width=640), "a width needs a height"),
        (lambda: CameraSettings("x", credentials="me:secret"), "never written out"),
        (lambda: CameraSettings("x", pixel_format="MJPEG"), "has four letters"),
        (lambda: LineStream("a b", CameraSettings("x")), "cannot be called 'a b'"),
    ],
)
def test_an_invalid_setting_is_an_error(make, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=says) as caught:
        make()
    assert "secret" not in str(caught.value)
