"""Tiles cover a canvas and are stitched without seams; a crop is found, cut and placed again."""

from __future__ import annotations

import math
from dataclasses import asdict

import cv2
import numpy as np
import pytest

from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.geometry import LARGEST, Box, Geometry
from nnet_edge.imaging import resize
from nnet_edge.methods.nnet.settings import PROTOCOLS, TrainSettings
from nnet_edge.tiles import CropShare, Tiles, weights_of

GRIDS = [
    Tiles(2, 3), Tiles(1, 2, 0.125), Tiles(3, 1, 0.5), Tiles(2, 2, 0.3), Tiles(4, 5, 0.4), Tiles(2, 3, 0.25, 320, 512),
    Tiles(3, 2, 0.5, 288, 64), Tiles(2, 2, 0.125, 64, 96),
]  # fmt: skip


def textured(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("tiles", GRIDS, ids=str)
def test_the_weights_of_all_tiles_sum_to_one_and_the_tiles_cover_the_canvas(tiles: Tiles) -> None:
    canvas = np.zeros(tiles.canvas)
    for place, weights in zip(tiles.places, weights_of(tiles), strict=True):
        canvas[place] += weights
    np.testing.assert_allclose(canvas, 1, rtol=1e-6)
    assert tiles.places[-1][0].stop == canvas.shape[0]
    assert tiles.places[-1][1].stop == canvas.shape[1]


@pytest.mark.parametrize("tiles", GRIDS, ids=str)
def test_what_was_cut_is_stitched_again(tiles: Tiles) -> None:
    canvases = textured((2, *tiles.canvas))
    np.testing.assert_allclose(tiles.stitch(tiles.cut(canvases)), canvases, atol=1e-6)


def test_constant_maps_stay_constant() -> None:
    stitched = Tiles(2, 3).stitch(np.full((6, 256, 256), 0.7, np.float32))
    np.testing.assert_allclose(stitched, 0.7, rtol=1e-6)


@pytest.mark.parametrize(("radius", "is_covered"), [(16, True), (40, False)])
def test_stitched_maps_are_the_whole_map_where_tiles_see_all_that_it_looks_at(radius: int, is_covered: bool) -> None:
    tiles = Tiles(2, 3)  # 64 pixels of overlap, of which 16 on each side count for nothing
    canvas = textured(tiles.canvas)
    size = 2 * radius + 1

    def looked_at(image: np.ndarray) -> np.ndarray:  # whose border is another than the picture's, as a network's is
        return cv2.blur(image, (size, size), borderType=cv2.BORDER_CONSTANT)

    stitched = tiles.stitch(np.stack([looked_at(tile) for tile in tiles.cut(canvas[None])]))[0]
    assert np.allclose(stitched, looked_at(canvas), atol=1e-5) == is_covered
    assert not np.allclose(
        tiles.cut(canvas[None])[0], looked_at(canvas)[:256, :256], atol=1e-2
    )  # the blur does something


def test_a_nan_in_a_tile_is_not_weighed_away() -> None:
    maps = np.zeros((2, 256, 256), np.float32)
    maps[0, 0, 255] = np.nan  # where the tile counts for nothing
    assert np.isnan(Tiles(1, 2).stitch(maps)).any()


@pytest.mark.parametrize("text", ["1x1", "0x3", "9x9", "2", "2x", "-1x2", "two", "2x3x4", "1000x1"])
def test_odd_grids_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="ROWSxCOLUMNS"):
        Tiles.parse(text, 0.25, 256, 256)


@pytest.mark.parametrize("overlap", [0.0, -0.1, 0.1, 0.6, 1.0, math.nan, math.inf])
def test_an_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(ConfigError, match="give a share of a tile from"):
        Tiles.parse("2x3", overlap, 256, 256)


def test_a_crop_is_given_in_pixels_or_shares() -> None:
    in_pixels = CropShare.parse("10,20,50,60", (100, 200))
    assert in_pixels.box(100, 200) == (20, 10, 60, 50)
    assert in_pixels.box(200, 400) == (40, 20, 120, 100)
    assert CropShare.parse("0.05,0.2,0.25,0.6", None) == in_pixels
    assert CropShare.parse("0,0,1,1", None).box(7, 9) == (0, 0, 7, 9)
    for height, width in ((3000, 4096), (205, 512), (97, 101)):
        for x, y in ((0, 0), (17, 31)):
            size = width - x - 5, height - y - 3
            assert CropShare.parse(f"{x},{y},{size[0]},{size[1]}", (height, width)).box(height, width) == (
                y,
                x,
                *size[::-1],
            )


@pytest.mark.parametrize(
    ("text", "words"),
    [("10,20,500,60", "outside"), ("10,20,0,60", "empty"), ("-5,0,50,60", "outside"), ("1,2,3", "rectangle"),
     ("a,b,c,d", "rectangle"), ("0.5,0.5,0.6,0.5", "outside"), ("0.1,0.1,nan,0.5", "outside"),
     ("0.5,0.5,0.001,0.5", "smaller")],
)  # fmt: skip
def test_odd_crops_are_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CropShare.parse(text, (100, 200))


def test_pixels_of_pictures_of_several_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="several sizes"):
        CropShare.parse("10,20,50,60", None)


def test_a_crop_leaves_a_pixel_of_any_picture() -> None:
    for height, width in ((1, 1), (2, 100), (100, 3)):
        top, left, rows, columns = CropShare(0.98, 0.5, 0.02, 0.01).box(height, width)
        assert rows >= 1 <= columns
        assert top + rows <= height
        assert left + columns <= width


@pytest.mark.parametrize("fit", ["squeeze", "letterbox", "crop"])
def test_a_map_of_the_crop_is_placed_where_it_lies(fit: str) -> None:
    crop = CropShare(0.25, 0.5, 0.5, 0.25)
    geometry = Geometry(256, 512, fit, (100, 400), crop=crop)
    picture = np.zeros((400, 800, 3), np.uint8)
    part = geometry.part(400, 800)
    picture[part.inside] = 200
    assert (resize(picture, geometry)[geometry.window.inside] == 200).all()  # and nothing else is seen
    placed = geometry.over_picture(np.full(geometry.size, 3, np.float32))
    inside = placed > 0
    assert (placed.shape, geometry.judged[2]) == ((geometry.judged[0], geometry.judged[1]), box_of(inside))
    scaled = [side / full for side, full in zip(box_edges(box_of(inside)), (*placed.shape, *placed.shape), strict=True)]
    expected = [side / full for side, full in zip(box_edges(part), (400, 800, 400, 800), strict=True)]
    np.testing.assert_allclose(scaled, expected, atol=0.01)


def box_of(inside: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return Box(int(rows[0]), int(columns[0]), len(rows), len(columns))


def box_edges(box: Box) -> tuple[int, int, int, int]:
    return box.top, box.left, box.top + box.height, box.left + box.width


def test_a_map_of_a_small_crop_is_placed_coarser_and_keeps_its_peaks() -> None:
    geometry = Geometry(crop=CropShare(0.5, 0.2, 0.03, 0.05)).with_tiles(Tiles(2, 2))
    values = textured(geometry.size)
    placed = geometry.over_picture(values)
    assert LARGEST / 2 < max(placed.shape) <= LARGEST
    assert placed.max() == values.max()
    values[3, 5] = np.nan
    assert np.isnan(geometry.over_picture(values)).any()


def test_a_large_canvas_keeps_its_map() -> None:
    geometry = Geometry().with_tiles(Tiles(1, 12))
    assert geometry.judged == (256, 2368, Box(0, 0, 256, 2368))
    values = textured(geometry.size)
    assert geometry.over_picture(values) is values


def test_tiles_and_crop_travel_in_manifest_and_settings() -> None:
    plain = Geometry(320, 256, "letterbox", (300, 200), crop=CropShare(0.1, 0.2, 0.3, 0.4))
    geometry = plain.with_tiles(Tiles(2, 3, 0.3, 320, 256))
    assert Geometry.in_manifest({"input": geometry.as_dict()}) == geometry
    assert geometry.network == Geometry(320, 256)
    assert Geometry().as_dict().keys().isdisjoint({"tiles", "crop"})
    settings = TrainSettings.from_dict(PROTOCOLS["tuned"].as_dict() | {"input": asdict(geometry)})
    assert settings.input == geometry


@pytest.mark.parametrize(
    "fields",
    [{"tiles": {"rows": 2}}, {"tiles": 3}, {"crop": {"x": 2, "y": 0, "width": 1, "height": 1}}, {"crop": {"x": 0}},
     {"tiles": {"rows": 2, "columns": 2.5, "overlap": 0.25}}],
)  # fmt: skip
def test_odd_tiles_in_a_manifest_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="the manifest's input cannot be used"):
        Geometry.in_manifest({"input": fields})


def test_a_canvas_beyond_the_largest_input_is_refused_in_words_of_tiles() -> None:
    with pytest.raises(ConfigError, match="1x64 tiles make a canvas of 256x12352 pixels, and 4096 are the most"):
        Geometry().with_tiles(Tiles(1, 64))
