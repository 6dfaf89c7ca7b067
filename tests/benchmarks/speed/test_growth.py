"""Growth: two real curves of a small bundle, and what the sentences say of known points."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from nnet_edge.benchmarks.harness.rounds import spread
from nnet_edge.benchmarks.line.line import Row
from nnet_edge.benchmarks.speed import growth
from nnet_edge.benchmarks.speed.growth import (
    Curve,
    GrowthReport,
    GrowthSettings,
    Point,
    exponent,
    line_point,
    measure_growth,
    slope,
    with_slots,
)
from nnet_edge.benchmarks.speed.plot import plot_growth
from nnet_edge.benchmarks.speed.systems import cut_tail, load_bare, trace_bare
from nnet_edge.bundle import Bundle
from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.evaluation.artefact import load_network
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.settings.runner import RunnerSettings

SCHEMA = json.loads((Path(growth.__file__).parents[1] / "schemas/growth.json").read_text())
SETTINGS = RunnerSettings("openvino", threads=1)


def curve(name: str, values: dict[int, float], **more: float) -> Curve:
    points = (Point(place, spread([0.99 * ms, ms, 1.01 * ms]), 10, **more) for place, ms in values.items())
    return Curve(name, "made up", "axis", tuple(points))


def test_the_curves_are_measured_and_obey_their_schema(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "BATCHES", (1, 4))
    monkeypatch.setattr(growth, "CAMERAS", (1, 2))
    settings = GrowthSettings(("batch", "cameras", "picture"), repeats=2, turn_s=0.01, line_s=0.5, threads=1)
    report = measure_growth(bundle.path, settings, "the command")
    jsonschema.validate(json.loads(json.dumps(report.as_dict(), allow_nan=False)), SCHEMA)
    batch, cameras, picture = report.curves
    assert [(point.place, point.images % point.place) for point in batch.points] == [(1, 0), (4, 0)]
    assert picture.points[-1].ms.median > picture.points[0].ms.median  # 1024 x 1024 beside what needs no resize
    assert "hint latency for 1" in batch.what
    assert all(point.ms.smallest < point.ms.largest for point in cameras.points)  # two rounds each
    # No bounds: each number comes from half a second, in which another process may have the processor.
    assert all((point.p99_ms or 0) > 0 and (point.share_of_bare or 0) > 0 for point in cameras.points)
    assert batch.sentence in report.markdown()
    plot_growth(report, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


def test_a_graph_without_tail_gives_the_layer_maps_of_the_whole_one(bundle: Bundle, tmp_path: Path) -> None:
    images = bundle.frames("held_out")[:2]
    with load_bare(cut_tail(bundle.graph, tmp_path), SETTINGS) as bare, load_runner(bundle.graph, SETTINGS) as whole:
        alone, expected = bare.infer_layer_maps(images), whole.infer(images, layer_maps=True).layer_maps
        assert alone.keys() == expected.keys()
        for name, maps in alone.items():
            np.testing.assert_allclose(maps, expected[name], atol=1e-5)  # the tail changes how layers are fused
        with pytest.raises(ConfigError, match="has no tail"):
            bare.infer(images)
    with pytest.raises(BundleError, match="lacks the output anomaly_map"):
        load_runner(tmp_path / "nnet.onnx", SETTINGS)


def test_another_side_and_another_memory_are_traced_into_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    network = load_network(bundle)
    slots = network.settings.memory_slots
    graph = trace_bare(with_slots(network, 40).at(Geometry(320, 352)), tmp_path / "other.onnx")
    sizes = {size for value in onnx.load(graph).graph.initializer for size in value.dims}
    assert 40 in sizes
    assert slots not in sizes
    with load_bare(graph, SETTINGS) as runner:
        maps = runner.infer_layer_maps(np.zeros((1, 320, 352, 3), np.uint8))
        assert maps["forward_64"].shape == (1, 1, 80, 88)
        with pytest.raises(ConfigError, match=r"takes uint8 RGB \(N, 320, 352, 3\)"):
            runner.infer_layer_maps(np.zeros((1, 256, 256, 3), np.uint8))


def test_sentences_say_what_the_points_say() -> None:
    square = curve("side", {side: 1e-4 * side**2 for side in (256, 384, 512)})
    assert exponent(square.points) == pytest.approx(2.0)
    assert square.sentence == (
        "The bare network costs 6.55 ms at 256x256 and 26.21 ms at 512x512, 4.00 times as much for 4 times the pixels "
        "(power 2.00 of the side)."
    )
    slots = curve("slots", {50: 10.0, 1050: 12.0})
    assert slope(slots.points) == pytest.approx(0.002)
    assert "1.20 times as much, 0.200 ms for a hundred slots." in slots.sentence
    assert "whether it grows at all was not seen" in curve("slots", {50: 10.0, 1050: 10.1}).sentence
    assert "least in a batch of 8 (4.00 ms)" in curve("batch", {1: 6.0, 8: 4.0, 64: 5.0}).sentence
    line = curve("cameras", {1: 20.0, 8: 25.0}, share_of_bare=0.9, p99_ms=80.0)
    assert line.sentence.startswith("8 cameras get 40.0 frames a second together, 0.80 times what one gets, 90%")
    report = GrowthReport("c", "w", {"processor": "p; x", "threads": "1"}, "b", ("WARNING",), (line,))
    assert report.markdown().startswith("**WARNING**")


def test_a_point_of_cameras_holds_all_its_rounds() -> None:
    row = Row(4, 10.0, 20.0, 18.0, 1.0, 2.0, 30.0, 60, 50, 10, 12, 13, 4.0, 0.1, 1.0)
    point = line_point(
        [row, replace(row, frames_per_s=20.0, p99_ms=50.0), replace(row, frames_per_s=16.0, p99_ms=40.0)]
    )
    assert (point.place, point.images, point.share_of_bare, point.p99_ms) == (4, 150, 0.8, 40.0)
    assert (point.ms.smallest, point.ms.median, point.ms.largest) == (50.0, 62.5, 100.0)


def test_invalid_settings() -> None:
    for wrong in ({"curves": ("time",)}, {"system": "torch"}, {"line_s": 0.0}, {"repeats": 0}):
        with pytest.raises(ConfigError):
            GrowthSettings(**wrong)
