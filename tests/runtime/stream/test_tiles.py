"""A bundle with tiles or a crop in a line: one verdict a frame, drawn where it lies, whatever shares the line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Crop, Prediction
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.runners.tiled import tiled
from nnet_edge.runtime.sinks import CallbackSink
from nnet_edge.runtime.sinks.overlay import annotate
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.runtime.web.pictures import draw_view
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.stream import LineStream, VerdictSettings
from nnet_edge.tiles import CropShare, Tiles

TILES = Geometry().with_tiles(Tiles(2, 3))
CROP = Geometry(crop=CropShare(0.25, 0.5, 0.5, 0.25))
BOTH = Geometry(crop=CropShare(0.25, 0.5, 0.5, 0.25)).with_tiles(Tiles(2, 3))
NOTHING = VerdictSettings()
MakeRunner = Callable[..., Any]


def model_of(runner: Any, geometry: Geometry, name: str = "parts") -> Model:
    return Model(name, Path(name), tiled(runner, geometry), 0.5, manifest={"input": geometry.as_dict()})


def spot(x: int, y: int, size: int = 30, height: int = 480, width: int = 800) -> np.ndarray:
    """A black picture with one bright square, uint8 BGR."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y : y + size, x : x + size] = 255
    return picture


def judged(model: Model, pictures: Iterable[np.ndarray], verdict: VerdictSettings = NOTHING) -> list[Prediction]:
    seen: list[Prediction] = []
    line = Line(model, [CallbackSink(seen.append)])
    line.add_source(LineStream("left", CameraSettings("synthetic"), verdict=verdict), SyntheticSource(pictures, None))
    report = run_line(line)
    assert report.total.is_balanced
    assert report.total.captured == report.total.judged
    return seen


@pytest.mark.parametrize("geometry", [TILES, CROP, BOTH], ids=["tiles", "crop", "both"])
def test_a_frame_has_one_verdict_and_its_region_lies_where_the_defect_does(
    make_runner: MakeRunner, geometry: Geometry
) -> None:
    places = [(230, 250), (500, 260), (400, 300), (560, 320)]
    seen = judged(model_of(make_runner(), geometry), [spot(x, y) for x, y in places])
    assert [one.frame.index for one in seen] == [0, 1, 2, 3]
    for (x, y), one in zip(places, seen, strict=True):
        assert one.is_anomalous
        assert one.frame.image.shape == (480, 800, 3)
        (region,) = one.regions
        assert abs(region.x - x) <= 4 >= abs(region.y - y)
        assert abs(region.width - 30) <= 8 >= abs(region.height - 30)
        assert one.anomaly_map is not None
        assert one.anomaly_map.max() == one.image_score
        row, column = np.unravel_index(int(one.anomaly_map.argmax()), one.anomaly_map.shape)
        assert abs(column / one.anomaly_map.shape[1] - (x + 15) / 800) < 0.04
        assert abs(row / one.anomaly_map.shape[0] - (y + 15) / 480) < 0.04
        assert not one.is_masked
        assert one.latencies_ms["total"] > 0


def test_what_lies_outside_the_crop_is_not_judged_and_is_shown_so(make_runner: MakeRunner) -> None:
    outside, inside = judged(model_of(make_runner(), BOTH), [spot(50, 50), spot(300, 300)])
    assert not outside.is_anomalous
    assert outside.image_score == 0
    assert inside.is_anomalous
    assert inside.inspected is not None
    shares = (inside.inspected.any(axis=1).mean(), inside.inspected.any(axis=0).mean())
    np.testing.assert_allclose(shares, (0.25, 0.5), atol=0.01)
    assert annotate(inside).ndim == 3
    bright = np.full((480, 800, 3), 100, np.uint8)
    view = draw_view(inside.frame, [inside], 800, has_overlay=True)
    assert (view[:230] == 0).all()  # the overlay marks nothing outside
    assert view[300:330, 300:330].any()
    (good,) = judged(model_of(make_runner(), BOTH), [bright])
    shown = draw_view(good.frame, [good], 800, has_overlay=True)
    assert shown[100, 100].max() < shown[300, 400].max()


def test_a_streams_crops_compose_with_the_bundles(make_runner: MakeRunner) -> None:
    alone = [spot(300, 300), spot(50, 50)]
    whole = np.zeros((1000, 2000, 3), np.uint8)
    whole[100:580, 150:950], whole[500:980, 1100:1900] = alone
    crops = (Crop("a", 150, 100, 800, 480), Crop("b", 1100, 500, 800, 480))
    expected = judged(model_of(make_runner(), BOTH), alone)
    found = judged(model_of(make_runner(), BOTH), [whole], VerdictSettings(crops=crops))
    assert [one.image_score for one in found] == [one.image_score for one in expected]
    assert [one.regions for one in found] == [one.regions for one in expected]
    assert found[0].frame.crop == crops[0]


def test_regions_of_interest_hold_within_the_tiles(make_runner: MakeRunner) -> None:
    ignored = VerdictSettings(ignored=(((280.0, 280.0), (350.0, 280.0), (350.0, 350.0), (280.0, 350.0)),))
    for geometry in (TILES, BOTH):
        left_out, seen = judged(model_of(make_runner(), geometry), [spot(300, 300), spot(500, 260)], ignored)
        assert not left_out.is_anomalous
        assert seen.is_anomalous
        assert seen.is_masked


def test_a_swap_between_tiles_and_none_judges_every_frame_by_one_of_them(make_runner: MakeRunner) -> None:
    models = {
        "tiles": model_of(make_runner(), TILES, "tiles"), "whole": model_of(make_runner(), Geometry(), "whole"),
        "crop": model_of(make_runner(), BOTH, "crop"),
    }  # fmt: skip
    seen: list[Prediction] = []
    asked = threading.Semaphore(0)
    region = VerdictSettings(regions_of_interest=(((200.0, 200.0), (700.0, 200.0), (700.0, 400.0)),))

    def frames() -> Iterable[np.ndarray]:
        for _ in range(4):
            for _ in range(5):
                yield spot(500, 260)
            asked.acquire()

    line = Line(models["whole"], [CallbackSink(seen.append)], lambda path: models[path.name])
    line.add_source(LineStream("left", CameraSettings("synthetic"), verdict=region), SyntheticSource(frames(), None))

    def swapping() -> None:
        for name in ("tiles", "crop", "whole"):
            line.swap(Path(name))
            asked.release()
        asked.release()

    thread = threading.Thread(target=swapping)
    thread.start()
    report = run_line(line)
    thread.join()
    assert report.total.judged == len(seen) == 20
    assert all(one.is_anomalous for one in seen)
    for one in seen:
        assert one.judged_by is not None
        assert one.anomaly_map is not None
        wanted = models[one.judged_by.bundle].geometry
        assert one.anomaly_map.shape == wanted.judged[:2]
        (found,) = one.regions
        assert abs(found.x - 500) <= 5


def test_a_swap_to_a_crop_that_sees_nothing_of_the_region_is_refused(make_runner: MakeRunner) -> None:
    seen: list[Prediction] = []
    go_on = threading.Event()

    def frames() -> Iterable[np.ndarray]:
        yield spot(20, 20)
        go_on.wait(20)
        yield spot(20, 20)

    region = VerdictSettings(regions_of_interest=(((0.0, 0.0), (100.0, 0.0), (100.0, 100.0)),))
    runner = make_runner()
    cropped = model_of(runner, CROP, "crop")
    line = Line(model_of(make_runner(), TILES), [CallbackSink(seen.append)], lambda path: cropped)
    line.add_source(LineStream("left", CameraSettings("synthetic"), verdict=region), SyntheticSource(frames(), None))
    errors: list[str] = []

    def swapping() -> None:
        while not seen:
            time.sleep(0.01)
        try:
            line.swap(Path("crop"))
        except ConfigError as error:
            errors.append(str(error))
        go_on.set()

    thread = threading.Thread(target=swapping)
    thread.start()
    run_line(line)
    thread.join()
    assert errors == [
        "the bundle crop cannot judge stream left: the regions leave nothing of the picture (800x480 pixels) to inspect: draw "
        "them anew"
    ]
    assert [one.is_anomalous for one in seen] == [True, True]
    assert runner.exited == 1


def test_a_large_photograph_is_cut_without_a_large_map(make_runner: MakeRunner) -> None:
    geometry = Geometry().with_tiles(Tiles(4, 6))
    runner = make_runner()
    (one,) = judged(model_of(runner, geometry), [spot(3900, 2900, 60, 3000, 4096)])
    assert one.anomaly_map is not None
    assert one.anomaly_map.shape == geometry.size == (832, 1216)
    (region,) = one.regions
    assert abs(region.x - 3900) < 20 > abs(region.y - 2900)
    assert runner.batches == [8, 8, 8]
