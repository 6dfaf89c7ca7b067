"""Tiles cover a canvas and are stitched without seams; a crop is found, cut and placed again."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.frame import Region
from nnet_edge.tiles import NETWORK, CropShare, Tiles

GRIDS = [Tiles(2, 3), Tiles(1, 2, 0.125), Tiles(3, 1, 0.5), Tiles(2, 2, 0.3), Tiles(4, 5, 0.4)]


def textured(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("tiles", GRIDS, ids=str)
@pytest.mark.parametrize("tile", [NETWORK, (320, 512), (288, 64)])
def test_the_weights_of_all_tiles_sum_to_one_and_the_tiles_cover_the_canvas(
    tiles: Tiles, tile: tuple[int, int]
) -> None:
    canvas = np.zeros(tiles.canvas(tile))
    for place, weights in zip(tiles.places(tile), tiles.weights(tile), strict=True):
        canvas[place] += weights
    np.testing.assert_allclose(canvas, 1, rtol=1e-6)
    assert tiles.places(tile)[-1][0].stop == canvas.shape[0]
    assert tiles.places(tile)[-1][1].stop == canvas.shape[1]


@pytest.mark.parametrize("tiles", GRIDS, ids=str)
def test_what_was_cut_is_stitched_again(tiles: Tiles) -> None:
    canvases = textured((2, *tiles.canvas()))
    np.testing.assert_allclose(tiles.stitch(tiles.cut(canvases)), canvases, atol=1e-6)


def test_constant_maps_stay_constant() -> None:
    stitched = Tiles(2, 3).stitch(np.full((6, 256, 256), 0.7, np.float32))
    np.testing.assert_allclose(stitched, 0.7, rtol=1e-6)


@pytest.mark.parametrize(("radius", "is_covered"), [(16, True), (40, False)])
def test_stitched_maps_are_the_whole_map_where_tiles_see_all_that_it_looks_at(radius: int, is_covered: bool) -> None:
    tiles = Tiles(2, 3)  # 64 pixels of overlap, of which 16 on each side count for nothing
    canvas = textured(tiles.canvas())
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
        Tiles.parse(text)


@pytest.mark.parametrize("overlap", [0.0, -0.1, 0.1, 0.6, 1.0, math.nan, math.inf])
def test_an_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(ConfigError, match="give a share of a tile from"):
        Tiles.parse("2x3", overlap)


def test_a_crop_is_given_in_pixels_or_shares() -> None:
    in_pixels = CropShare.parse("10,20,50,60", (100, 200))
    assert in_pixels.box(100, 200) == (10, 20, 50, 60)
    assert in_pixels.box(200, 400) == (20, 40, 100, 120)
    assert CropShare.parse("0.05,0.2,0.25,0.6", None) == in_pixels
    assert CropShare.parse("0,0,1,1", None).box(7, 9) == (0, 0, 9, 7)
    for height, width in ((3000, 4096), (205, 512), (97, 101)):
        for x, y in ((0, 0), (17, 31)):
            size = width - x - 5, height - y - 3
            assert CropShare.parse(f"{x},{y},{size[0]},{size[1]}", (height, width)).box(height, width) == (x, y, *size)


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


def test_a_crop_that_leaves_nothing_of_a_small_picture_is_refused() -> None:
    with pytest.raises(DataError, match="leaves nothing of a picture of 4x100"):
        CropShare(0.02, 0.0, 0.05, 1.0).box(100, 4)


def test_a_map_of_the_crop_is_placed_where_it_lies() -> None:
    crop = CropShare(0.25, 0.5, 0.5, 0.25)
    placed = crop.place(np.full((256, 256), 3, np.float32), 400, 800)
    assert placed.shape == (
        1024,
        512,
    )  # the crop's own resolution: 256 pixels are a quarter of the height, half the width
    assert (crop.of(placed) == 3).all()
    assert placed.sum() == 3 * 256 * 256  # and nothing outside
    seen = crop.place(np.ones((256, 256), bool), 400, 800)
    assert seen.dtype == bool
    assert np.array_equal(seen, placed > 0)
    assert max(CropShare(0.5, 0.5, 0.01, 0.01).place(np.ones((832, 832), np.float32), 3000, 4000).shape) == 1024


def test_regions_of_the_crop_are_told_in_the_pictures_pixels() -> None:
    (moved,) = CropShare(0.25, 0.5, 0.5, 0.25).move([Region(1, 2, 3, 4, 12.0, 0.5)], 400, 800)
    assert moved == Region(201, 202, 3, 4, 12.0, 0.5)
