"""Size of the input and fit: what they do to pictures and masks, how maps come back over the picture, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnet_edge.data.dataset import Sample
from nnet_edge.data.masks import load_mask
from nnet_edge.errors import BundleError, ConfigError, DataError
from nnet_edge.frame import Frame, Outputs, Prediction
from nnet_edge.geometry import (
    FITS,
    GREY,
    Box,
    Geometry,
    PictureSizes,
    default_fit,
    most_frequent,
    parse_size,
)
from nnet_edge.imaging import resize, resize_mask, to_input, to_rgb
from nnet_edge.runtime.sinks.fields import changing_fields
from nnet_edge.runtime.sinks.overlay import draw_regions
from nnet_edge.runtime.stream.judge import BatchTimes, Judge, PartOutputs, inspected_part
from nnet_edge.settings.stream import VerdictSettings

WIDE = (100, 300)  # height and width of pictures three times as wide as high
LETTERBOX, CROP = (Geometry(64, 96, fit, WIDE) for fit in ("letterbox", "crop"))
NOW = BatchTimes(0.0, 0.0, 0.0)
EVERYWHERE = VerdictSettings()


def test_the_usual_input_is_that_of_the_paper() -> None:
    assert Geometry() == Geometry(256, 256, "squeeze", ())
    assert Geometry().is_whole
    assert Geometry().sentence() == "Pillow bilinear with antialias, aspect ratio not kept"  # as in every graph so far


@pytest.mark.parametrize(("text", "size"), [("384", (384, 384)), ("256x512", (256, 512)), ("64X96", (64, 96))])
def test_a_size_is_a_side_or_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("300", "300x300 pixels is impossible: the maps of stride 16 .* multiples of 32; the nearest is 288x288"),
        ("256x500", "256x500 .* the nearest is 256x512"),
        ("32", "from 64 to 2048"),
        ("4096", "from 64 to 2048"),
        ("0", "from 64 to 2048"),
        ("big", "--size big: give a side, as 384, or HEIGHTxWIDTH, as 256x512"),
        ("256x", "--size 256x"),
        ("-256", "--size -256"),
        ("256x256x3", "--size 256x256x3"),
        ("9" * 40, "--size 9"),
    ],
)
def test_other_sizes_are_refused_in_a_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


def test_the_fit_today_is_squeeze_whatever_the_shapes() -> None:
    assert default_fit([WIDE, (300, 100)]) == "squeeze"
    assert most_frequent([(3, 4), WIDE, WIDE, (5, 6)]) == WIDE
    with pytest.raises(ConfigError, match="fit 'stretch' is unknown: choose squeeze, letterbox, crop"):
        Geometry(fit="stretch")
    with pytest.raises(ConfigError, match="letterbox needs the size of the pictures"):
        Geometry(fit="letterbox").window  # noqa: B018


def test_a_letterbox_keeps_the_aspect_ratio_and_a_crop_fills_the_input() -> None:
    assert LETTERBOX.window == Box(16, 0, 32, 96)
    assert LETTERBOX.part(*WIDE) == Box(0, 0, 100, 300)
    assert CROP.window == Box(0, 0, 64, 96)
    assert CROP.part(*WIDE) == Box(0, 75, 100, 150)
    assert CROP.part(50, 30) == Box(0, 7, 50, 15)  # the same shares of a picture of another shape
    assert not LETTERBOX.leaves_out
    assert CROP.leaves_out
    for fit in FITS:  # of the input's own aspect ratio all three are one
        same = Geometry(64, 96, fit, (128, 192))
        assert same.is_whole
        assert not same.leaves_out


@given(
    st.sampled_from(FITS), st.integers(1, 400), st.integers(1, 400), st.integers(1, 300), st.integers(1, 300),
    st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_path_into_the_input_is_one(
    fit: str, height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    """Of any picture, learned from or not: colour, grey and what the stream makes of either are the same input."""
    geometry = Geometry(64, 96, fit, (height, width))
    frame = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
    for image in (frame, frame[..., 0]):
        into = np.zeros(geometry.shape, np.uint8)
        to_input(image, into, geometry)
        np.testing.assert_array_equal(into, resize(to_rgb(image), geometry))
    outside = np.ones(geometry.size, bool)
    outside[geometry.window.inside] = False
    assert (into[outside] == GREY).all()
    part = geometry.part(rows, columns)
    assert 0 < part.height <= rows
    assert 0 < part.width <= columns
    whole_rows, whole_columns, box = geometry.judged
    sides = (geometry.window.height, geometry.window.width)
    assert box.size == tuple(-(-side // geometry.coarser) for side in sides)
    assert geometry.over_picture(np.ones(geometry.size, np.float32)).shape == (whole_rows, whole_columns)


@pytest.mark.parametrize("geometry", [Geometry(64, 96), LETTERBOX, CROP], ids=lambda geometry: geometry.fit)
def test_masks_go_where_their_pictures_go_and_maps_come_back(geometry: Geometry) -> None:
    picture = np.zeros((*WIDE, 3), np.uint8)
    picture[40:60, 120:160] = 255
    mask = picture[..., 0] > 0
    there = resize(picture, geometry)[..., 0]
    there = np.where(resize_mask(np.ones(WIDE, bool), geometry), there, 0)  # without the grey beside a letterbox
    marked = resize_mask(mask, geometry)
    np.testing.assert_array_equal(marked, there > 127)
    back = geometry.over_picture(marked.astype(np.float32))
    large = cv2.resize(back, WIDE[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    assert (large & mask).sum() / (large | mask).sum() > 0.75


def judged(geometry: Geometry, anomaly_map: np.ndarray, verdict: VerdictSettings = EVERYWHERE) -> Prediction:
    frame = Frame(np.full((*WIDE, 3), 200, np.uint8), 0, 0.0)
    outputs = Outputs(anomaly_map[None], anomaly_map.max()[None])
    judge = Judge(verdict, 0.5, geometry=geometry)
    (found,) = judge.judge(frame, [frame], [PartOutputs(outputs, 0)], NOW, wants_maps=True)
    return found


def test_regions_of_a_letterbox_are_in_pixels_of_the_picture() -> None:
    anomaly_map = np.zeros((64, 96), np.float32)
    anomaly_map[16:20, 92:96] = 1.0  # the upper right corner of the window
    (region,) = judged(LETTERBOX, anomaly_map).regions
    assert (region.x, region.y, region.x + region.width, region.height) == (287, 0, 300, 13)
    assert judged(LETTERBOX, anomaly_map).judged is None


def test_what_a_crop_leaves_out_is_marked_as_not_judged() -> None:
    anomaly_map = np.zeros((64, 96), np.float32)
    anomaly_map[:4, :4] = 1.0
    found = judged(CROP, anomaly_map)
    (region,) = found.regions
    assert (region.x, region.y) == (75, 0)
    assert found.judged == Box(0, 75, 100, 150)
    assert json.loads(json.dumps(changing_fields(found)))["judged"] == {"x": 75, "y": 0, "width": 150, "height": 100}
    assert "judged" not in changing_fields(judged(LETTERBOX, anomaly_map))
    assert not found.is_masked  # its score is one as of the good parts that the threshold was chosen on
    assert found.inspected is not None
    assert found.inspected.mean() == pytest.approx(0.5, abs=0.02)
    drawn = draw_regions(np.full((*WIDE, 3), 200, np.uint8), replace(found, regions=()))
    assert (drawn[50, 10] == 100).all()  # darkened
    assert (drawn[50, 150] == 200).all()


def test_regions_that_people_drew_hold_inside_of_what_is_judged() -> None:
    left = ((0.0, 0.0), (120.0, 0.0), (120.0, 100.0), (0.0, 100.0))
    drawn = VerdictSettings(regions_of_interest=(left,))
    anomaly_map = np.zeros((64, 96), np.float32)
    anomaly_map[:, 60] = 1.0  # at x = 75 + 60 * 150 / 96 = 169 of the picture
    anomaly_map[:, 10] = 0.4
    found = judged(CROP, anomaly_map, drawn)
    assert found.is_masked
    assert found.image_score == pytest.approx(0.4)
    outside = ((0.0, 0.0), (60.0, 0.0), (60.0, 100.0), (0.0, 100.0))
    with pytest.raises(ConfigError, match="leave nothing of the picture"):
        inspected_part(VerdictSettings(regions_of_interest=(outside,)), *WIDE, geometry=CROP)


def test_another_bundle_brings_another_geometry() -> None:
    judge = Judge(VerdictSettings(), 0.5, geometry=CROP)
    judge.admit(np.zeros((*WIDE, 3), np.uint8))
    judge.use_bundle(0.5, geometry=LETTERBOX)
    frame, anomaly_map = Frame(np.zeros((*WIDE, 3), np.uint8), 0, 0.0), np.ones((1, 64, 96), np.float32)
    (found,) = judge.judge(frame, [frame], [PartOutputs(Outputs(anomaly_map, np.ones(1)), 0)], NOW, wants_maps=True)
    assert found.judged is None
    assert found.inspected is None


def test_the_manifest_keeps_it_and_an_old_one_means_256() -> None:
    for geometry in (Geometry(), LETTERBOX, CROP, Geometry(320, 320)):
        assert Geometry.in_manifest(json.loads(json.dumps({"input": geometry.as_dict()}))) == geometry
    assert Geometry.in_manifest({}) == Geometry()
    assert Geometry.in_manifest({"input": {"height": 256, "width": 256}}) == Geometry()


@pytest.mark.parametrize(
    "fields",
    [{"height": 250}, {"width": "256"}, {"fit": "other"}, {"fit": "crop"}, {"picture": [1]}, {"picture": 3}, [], 7],
)
def test_a_damaged_manifest_is_refused(fields: object) -> None:
    if not fields:  # as good as absent
        assert Geometry.in_manifest({"input": fields}) == Geometry()
        return
    with pytest.raises(BundleError, match=r"the manifest's input cannot be used .* export the bundle again"):
        Geometry.in_manifest({"input": fields})


def test_pictures_of_another_size_or_shape_are_told_apart() -> None:
    sizes = PictureSizes.of([(100, 300), (110, 330)])
    assert PictureSizes.in_manifest({"data": {"pictures": json.loads(json.dumps(sizes.as_dict()))}}) == sizes
    assert PictureSizes.in_manifest({}) is None
    assert sizes.differs(100, 300, CROP) == ""
    assert sizes.differs(105, 316, CROP) == ""
    smaller, other = sizes.differs(50, 150, LETTERBOX), sizes.differs(300, 100, Geometry())
    assert "150x50 pixels has another size than those that were learned from (300 to 330x100 to 110)" in smaller
    assert "100x300 pixels has another shape" in other
    assert "squeezed" in other
    with pytest.raises(BundleError, match=r"data\.pictures cannot be read"):
        PictureSizes.in_manifest({"data": {"pictures": {"height": 3}}})


def test_a_mask_of_another_size_than_its_picture_is_refused_whatever_the_fit(tmp_path: Path) -> None:
    picture, mask = tmp_path / "part.png", tmp_path / "mask.png"
    cv2.imwrite(str(picture), np.zeros((*WIDE, 3), np.uint8))
    sample = Sample(picture, True, mask, "scratch")
    for geometry in (Geometry(64, 96), LETTERBOX, CROP):
        cv2.imwrite(str(mask), np.zeros(geometry.size, np.uint8))  # as somebody drew it on the input
        with pytest.raises(
            DataError, match=r"64 x 96 .height x width. pixels and its image .* 100 x 300 .* make them the same"
        ):
            load_mask(sample, geometry=geometry)
        drawn = np.zeros(WIDE, np.uint8)
        drawn[40:60, 100:200] = 255
        cv2.imwrite(str(mask), drawn)
        np.testing.assert_array_equal(load_mask(sample, geometry=geometry), resize_mask(drawn > 0, geometry))
