"""What a training is shown of tiles: all places alike, not too many, and exponents that compare a place with itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnet_edge.anomaly_map import PAPER_FUSION, SCALES, anomaly_map
from nnet_edge.geometry import Geometry
from nnet_edge.methods.fusion_search import spread
from nnet_edge.methods.nnet.settings import PROTOCOLS
from nnet_edge.tiles import Tiles
from nnet_edge.training import start
from nnet_edge.training.folds import scores_of
from nnet_edge.training.memory import needed_memory
from nnet_edge.training.start import held_out_inputs, learned_inputs, one_by_one

SEEN = Geometry(64, 64).with_tiles(Tiles(2, 3, 0.5, 64, 64))
SETTINGS = replace(PROTOCOLS["tuned"], input=SEEN)


@pytest.fixture(scope="module")
def canvases() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, *SEEN.shape), np.uint8)


def test_all_tiles_are_learned_and_those_of_a_picture_measured_together(canvases: np.ndarray) -> None:
    assert np.array_equal(learned_inputs(canvases, SETTINGS), SEEN.cut(canvases))
    held_out = held_out_inputs(canvases, SETTINGS)
    assert held_out.shape == (5, 6, 64, 64, 3)
    assert np.array_equal(one_by_one(held_out), SEEN.cut(canvases))
    whole = replace(SETTINGS, input=Geometry(96, 128))
    assert learned_inputs(canvases, whole) is canvases
    assert held_out_inputs(canvases, whole) is canvases
    assert np.array_equal(one_by_one(canvases), canvases)


def test_of_too_many_tiles_the_seed_draws_some(canvases: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MOST_TILES", 12)
    some = learned_inputs(canvases, SETTINGS)
    known = {tile.tobytes() for tile in SEEN.cut(canvases)}
    assert len(some) == len({tile.tobytes() for tile in some}) == 12
    assert {tile.tobytes() for tile in some} <= known
    assert np.array_equal(some, learned_inputs(canvases, SETTINGS))
    assert not np.array_equal(some, learned_inputs(canvases, replace(SETTINGS, seed=2)))


def test_exponents_compare_a_tile_with_those_of_its_place() -> None:
    of_place = np.array([0.2, 0.9])  # two tiles that differ, and not from picture to picture
    maps = {"forward_64": np.tile(of_place, 4)[:, None, None, None] * np.ones((8, 1, 16, 16), np.float32)}
    by_place, mixed = (spread(maps, 64, PAPER_FUSION, tiles) for tiles in (2, 1))
    assert by_place is not None
    assert mixed is not None
    assert by_place < 1e-5 < 0.1 < mixed


def test_folds_score_the_stitched_map() -> None:
    rng = np.random.default_rng(0)
    sides = {name: int(name.split("_")[1]) * 64 // 256 for name in PAPER_FUSION.layer_maps}
    maps = {name: rng.uniform(0, 2, (12, 1, side, side)).astype(np.float32) for name, side in sides.items()}
    assert SEEN.tiles is not None
    stitched = SEEN.tiles.stitch(anomaly_map(maps, PAPER_FUSION)[:, 0])
    found = scores_of(maps, PAPER_FUSION, None, SEEN)
    assert found.shape == (2,)
    np.testing.assert_array_equal(found, stitched.max(axis=(1, 2)))
    assert set(SCALES) == {64, 32, 16}


def test_memory_is_that_of_the_tiles_beside_the_canvases() -> None:
    seen = Geometry().with_tiles(Tiles(2, 3))
    tiled, whole = (
        needed_memory(replace(SETTINGS, input=one), pictures, 4 << 30)
        for one, pictures in ((seen, 200), (Geometry(), 1200))
    )
    assert tiled == whole + 3 * 200 * 448 * 640
    many = needed_memory(replace(SETTINGS, input=seen), 10_000, 4 << 30)
    assert many - 3 * 10_000 * 448 * 640 == needed_memory(
        replace(SETTINGS, input=Geometry()), start.MOST_TILES, 4 << 30
    )
