"""Place level: what it is, when it is chosen, and that network and checkpoint have it (an export checks its graph itself)."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnet_edge.anomaly_map import Fusion, fuse_maps
from nnet_edge.errors import ConfigError
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.methods import place_level
from nnet_edge.methods.base import METHODS
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.network import PLACE_FACTORS
from nnet_edge.methods.nnet.settings import PAPER, TUNED
from nnet_edge.methods.place_level import PlaceLevel, choose_place_level, factors_of, level_of, with_factors
from nnet_edge.training import settling
from nnet_edge.training.checkpoint import read_checkpoint
from nnet_edge.training.loop import TrainOptions, train

CPU = Compute("cpu", "fp32")
FUSION = Fusion(exponents=(0.3, 0.3, 1.0), branches=("reverse",))
SETTINGS = replace(
    PAPER, epochs=1, batch=2, align_epochs=1, ema_decay=0.9, place_powers=(1.0,),
    model=replace(PAPER.model, memory_slots=32), input=Geometry(64, 64),
)  # fmt: skip


def maps_like(deepest: np.ndarray) -> dict[str, np.ndarray]:
    """Layer maps (N, 1, h, w) of which the shallow ones say nothing."""
    count = len(deepest)
    return {
        "reverse_64": np.ones((count, 1, 64, 64), np.float32),
        "reverse_32": np.ones((count, 1, 32, 32), np.float32),
        "reverse_16": deepest.astype(np.float32),
    }


def test_factors_take_a_level_out_of_the_fused_maps() -> None:
    rng = np.random.default_rng(0)
    smooth = np.linspace(0.2, 1.0, 16)[:, None] * np.linspace(1.0, 0.5, 16)
    maps = maps_like(smooth * rng.uniform(0.9, 1.1, (40, 1, 16, 16)))
    level = level_of(maps, FUSION)
    assert level.shape == (16, 16)
    factors = factors_of(level, 1.0, FUSION)
    assert float(np.log(factors).mean()) == pytest.approx(0, abs=1e-5)  # scores keep their size
    before, after = (fuse_maps(some, FUSION).mean(axis=0)[0] for some in (maps, with_factors(maps, factors)))
    inside = (slice(8, -8), slice(8, -8))  # smoothing bends a level at the border
    assert before[inside].max() / before[inside].min() > 4
    assert after[inside].max() / after[inside].min() < 1.5
    assert (factors_of(level, 0.0, FUSION) == 1).all()
    halves = replace(FUSION, exponents=(0.3, 0.3, 0.5))
    assert np.allclose(np.sqrt(factors_of(level, 1.0, halves)), factors, rtol=1e-5)  # what the exponent makes of them


def by_cells(images: np.ndarray, level: np.ndarray) -> dict[str, np.ndarray]:
    """Layer maps of a made network: how far cells of 16 x 16 pixels are from mid grey, times `level`."""
    away = np.abs(images.astype(np.float32).mean(axis=3) - 128).reshape(len(images), 16, 16, 16, 16).mean(axis=(2, 4))
    return maps_like((0.05 + away / 128)[:, None] * level)


@pytest.mark.parametrize(("rise", "wander", "chosen"), [(0.0, 0.1, 0.0), (3.0, 0.1, 1.0), (3.0, 9.0, 0.0)])
def test_a_level_is_used_where_it_hides_anomalies_and_stays_in_its_place(
    monkeypatch: pytest.MonkeyPatch, rise: float, wander: float, chosen: float
) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(118, 139, (14, 256, 256, 3)).astype(np.uint8)
    level = np.exp(rise * np.linspace(0, 1, 16))[None, None, :, None] * np.ones((1, 1, 16, 16))

    def layer_maps_of(network: Any, some: np.ndarray, compute: Compute) -> dict[str, np.ndarray]:
        elsewhere = np.exp(wander * np.random.default_rng(2).normal(size=(len(some), 1, 16, 16)))  # of each image
        return by_cells(some, level * elsewhere)

    monkeypatch.setattr(place_level, "layer_maps_of", layer_maps_of)
    network: Any = SimpleNamespace(map_fusion=FUSION, output_names=FUSION.layer_maps, geometry=DEFAULT)
    found = choose_place_level(network, (0.5, 1.0), images[:6], images[6:], 3, CPU)
    assert found is not None
    assert found.power == chosen
    if wander > 1:
        assert found.explained < 0.5
        assert found.found == {}
    elif chosen:
        assert found.found[chosen] > found.found[0.5] > found.found[0.0]


def test_a_level_that_does_not_help_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.full((14, 256, 256, 3), 128, np.uint8)
    level = np.ones((1, 1, 16, 16))
    level[..., 4:8, 4:8] = 50  # a place where nothing is painted: it must not be lowered

    def layer_maps_of(network: Any, some: np.ndarray, compute: Compute) -> dict[str, np.ndarray]:
        return by_cells(some, level)

    monkeypatch.setattr(place_level, "layer_maps_of", layer_maps_of)
    monkeypatch.setattr(place_level, "pixel_ap", lambda masks, maps: 0.5)  # as much with and without
    network: Any = SimpleNamespace(map_fusion=FUSION, output_names=FUSION.layer_maps, geometry=DEFAULT)
    found = choose_place_level(network, (1.0,), images[:6], images[6:], 3, CPU)
    assert found is not None
    assert found.explained > 0.9
    assert found.power == 0
    assert (found.factors == 1).all()


def test_nothing_is_tried_for_a_sum_of_maps_or_without_powers() -> None:
    images = np.zeros((2, 256, 256, 3), np.uint8)
    for fusion, powers in ((replace(FUSION, rule="sum"), (1.0,)), (FUSION, ())):
        network: Any = SimpleNamespace(map_fusion=fusion, output_names=fusion.layer_maps, geometry=DEFAULT)
        assert choose_place_level(network, powers, images, images, 0, CPU) is None


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Factors that every training chooses."""
    factors = np.linspace(0.5, 2.0, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    chosen = PlaceLevel(1.0, factors, 0.8, {0.0: 0.3, 1.0: 0.4})
    monkeypatch.setattr(settling, "choose_place_level", lambda *given: chosen)
    return factors


def test_checkpoint_and_network_have_the_factors(
    small_washers: np.ndarray, halved: np.ndarray, tmp_path: Path, one_thread: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(small_washers[:4], small_washers[4:], SETTINGS, tmp_path / "run", TrainOptions("cpu", "fp32"))
    assert any("to the power 1" in line and "40.0 with it, 30.0 without" in line for line in caplog.messages)
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint.facts["place_level"] == {"power": 1.0, "explained": 0.8, "pixel_ap": {"0": 0.3, "1": 0.4}}
    for weights in (checkpoint.deployed, checkpoint.averaged, checkpoint.network):
        assert torch.equal(weights[PLACE_FACTORS], torch.from_numpy(halved))
    network = checkpoint.build_network()
    images = torch.from_numpy(small_washers[:2])
    with torch.inference_mode():
        levelled = dict(zip(network.output_names, network(images), strict=True))
        network.place_factors = None
        plain = dict(zip(network.output_names, network(images), strict=True))
    for name, maps in plain.items():
        factor = torch.from_numpy(halved) if name.endswith("_16") else 1.0
        assert torch.equal(levelled[name], maps * factor)


def test_parts_that_lie_any_way_have_no_places(small_washers: np.ndarray, halved: np.ndarray, tmp_path: Path) -> None:
    settings = SETTINGS.overridden("augmentation.rotation_degrees=180")
    train(small_washers[:4], small_washers[4:], settings, tmp_path, TrainOptions("cpu", "fp32"))
    checkpoint = read_checkpoint(tmp_path)
    assert PLACE_FACTORS not in checkpoint.deployed
    assert "place_level" not in checkpoint.facts


def test_every_tuned_protocol_tries_it_and_a_wrong_power_is_refused() -> None:
    for name in METHODS.names():
        assert METHODS.find(name).protocols["tuned"].place_powers == TUNED.place_powers
    assert TUNED.overridden("place_powers=").place_powers == ()
    with pytest.raises(ConfigError, match="place_powers are"):
        TUNED.overridden("place_powers=0")
