"""A bundle's tiles on any runner: bounded batches, stitched maps, one score a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.errors import BundleError, ConfigError, StreamError
from nnet_edge.frame import Outputs
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.runners.base import infer_all, load_runner
from nnet_edge.runtime.runners.tiled import AHEAD, TiledRunner, tiled
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.tiles import Tiles

TILES = Tiles(2, 3)
SEEN = Geometry().with_tiles(TILES)


@pytest.fixture
def canvases() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, *TILES.canvas, 3), np.uint8)


def test_maps_are_those_of_the_whole_canvas_and_scores_their_maxima(
    make_runner: Callable[..., Any], canvases: np.ndarray
) -> None:
    runner = tiled(make_runner(), SEEN)
    assert (runner.input_shape, runner.max_batch) == ((448, 640, 3), 1)
    outputs = infer_all(runner, canvases)
    expected = canvases.mean(axis=3, dtype=np.float32) / 255  # what the runner says of each pixel
    np.testing.assert_allclose(outputs.anomaly_map, expected, atol=1e-6)
    np.testing.assert_array_equal(outputs.image_score, outputs.anomaly_map.max(axis=(1, 2)))


def test_without_tiles_the_runner_is_itself(make_runner: Callable[..., Any]) -> None:
    runner = make_runner()
    assert tiled(runner, Geometry()) is runner


def test_tiles_of_another_size_than_the_graphs_input_are_refused(make_runner: Callable[..., Any]) -> None:
    with pytest.raises(BundleError, match="the bundle's tiles have 320x320 pixels and its graph takes 256x256"):
        tiled(make_runner(), Geometry(320, 320).with_tiles(Tiles(2, 2, 0.25, 320, 320)))


def test_beside_a_letterbox_nothing_is_judged(make_runner: Callable[..., Any], canvases: np.ndarray) -> None:
    seen = Geometry(fit="letterbox", picture=(448, 320)).with_tiles(TILES)  # half as wide as the canvas
    found = tiled(make_runner(), seen).infer(canvases)
    assert (found.anomaly_map[:, :, :160] == 0).all()
    assert (found.anomaly_map[:, :, 480:] == 0).all()
    np.testing.assert_allclose(found.anomaly_map[:, :, 160:480], canvases[:, :, 160:480].mean(axis=3) / 255, atol=1e-6)
    np.testing.assert_array_equal(found.image_score, found.anomaly_map.max(axis=(1, 2)))


def test_few_batches_of_tiles_are_under_way_whatever_their_number(make_runner: Callable[..., Any]) -> None:
    inner, tiles = make_runner(), Tiles(8, 8)
    seen = Geometry().with_tiles(tiles)
    under_way, most = 0, 0
    infer = inner.infer

    def start(images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)

        def outputs() -> Outputs:
            nonlocal under_way
            under_way -= 1
            return infer(images, layer_maps)  # type: ignore[no-any-return]

        return outputs

    inner.start = start
    runner = TiledRunner(inner, seen, tiles)
    runner.infer(np.zeros((2, *runner.input_shape), np.uint8))
    assert (under_way, most) == (0, AHEAD)
    assert inner.batches == [8] * 16

    def broken(images: np.ndarray, layer_maps: bool = False) -> Outputs:
        raise StreamError("the runner broke")

    infer = broken
    with pytest.raises(StreamError, match="the runner broke"):
        runner.infer(np.zeros((1, *runner.input_shape), np.uint8))
    assert under_way == 0  # nothing stays behind


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_a_graph_gives_the_layer_maps_of_its_tiles_and_two_batches_do_not_mix(
    graph: Path, canvases: np.ndarray, kind: str
) -> None:
    with load_runner(graph, RunnerSettings(kind=kind, threads=1)) as alone:
        runner = TiledRunner(alone, SEEN, TILES)
        first, second = runner.start(canvases[:1], layer_maps=True), runner.start(canvases[1:])
        found, others = first(), second()
        of_tiles = infer_all(alone, TILES.cut(canvases[:1]))
    assert {name: maps.shape for name, maps in found.layer_maps.items()} == {
        name: (1, 6, *maps.shape[2:]) for name, maps in of_tiles.layer_maps.items()
    }
    np.testing.assert_allclose(found.layer_maps["forward_64"][0], of_tiles.layer_maps["forward_64"][:, 0], atol=1e-6)
    np.testing.assert_allclose(found.anomaly_map, TILES.stitch(of_tiles.anomaly_map), atol=1e-6)
    np.testing.assert_allclose(others.anomaly_map, runner_maps(graph, canvases[1:]), atol=1e-6)


def runner_maps(graph: Path, canvases: np.ndarray) -> np.ndarray:
    with load_runner(graph, RunnerSettings(kind="onnxruntime", threads=1)) as runner:
        return infer_all(TiledRunner(runner, SEEN, TILES), canvases).anomaly_map


@pytest.mark.parametrize("shape", [(1, 256, 256, 3), (0, 448, 640, 3), (448, 640, 3)])
def test_pictures_that_are_no_canvas_are_refused(make_runner: Callable[..., Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="a bundle of 2x3 tiles takes"):
        TiledRunner(make_runner(), SEEN, TILES).infer(np.zeros(shape, np.uint8))


def test_a_tile_that_is_not_finite_is_seen(make_runner: Callable[..., Any], canvases: np.ndarray) -> None:
    inner = make_runner()
    infer = inner.infer

    def broken(images: np.ndarray, layer_maps: bool = False) -> Outputs:
        outputs = infer(images, layer_maps)
        outputs.anomaly_map[-1, 0, 0] = np.nan
        return outputs  # type: ignore[no-any-return]

    inner.infer = broken
    assert list(TiledRunner(inner, SEEN, TILES).infer(canvases[:1]).broken()) == [0]
