"""A scale counts by how steady it is over good parts, and whoever names the exponents gets them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnet_edge.anomaly_map import LAYER_MAPS, Fusion
from nnet_edge.errors import ConfigError
from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.base import METHODS
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.fusion_search import IMAGES, LEAST, exponents_of, layer_maps_of, spread
from nnet_edge.methods.nnet.network import NNet
from nnet_edge.methods.nnet.settings import PAPER, TUNED
from tests.conftest import good_part

CPU = Compute("cpu", "fp32")


def choose_exponents(network: NNet, images: np.ndarray, compute: Compute) -> tuple[float, ...]:
    exponents: tuple[float, ...] = METHODS.find("nnet").settle(network, images, compute).exponents
    return exponents


def good_maps(deviations: dict[int, float], images: int = 400) -> dict[str, np.ndarray]:
    """Layer maps whose logarithms vary from image to image with these deviations, by scale; another level a position."""
    rng = np.random.default_rng(0)
    maps = {}
    for name in LAYER_MAPS:
        scale = int(name.split("_")[1])
        level = rng.uniform(0.1, 2, (1, 1, scale, scale))
        varying = np.exp(
            deviations[scale] * rng.normal(size=(images, 1, 1, 1))
        )  # alike over an image: enlarging keeps it
        maps[name] = np.float32(level * varying)
    return {name: maps[name.replace("forward", "reverse")] for name in LAYER_MAPS}


def test_the_spread_is_of_the_images_and_not_of_the_positions() -> None:
    maps = good_maps({64: 0.4, 32: 0.2, 16: 0.1})
    for scale, deviation in ((64, 0.4), (32, 0.2), (16, 0.1)):
        assert spread(maps, scale, Fusion()) == pytest.approx(deviation, rel=0.1)
    assert spread({name: maps[name] for name in maps if "16" in name}, 64, Fusion()) is None
    assert spread(maps, 64, Fusion(weights=(0, 1, 1))) == pytest.approx(0.4, rel=0.1)


def test_a_scale_that_varies_counts_less_and_none_more_than_the_paper_lets_it() -> None:
    shallow, middle, deep = exponents_of(good_maps({64: 0.2, 32: 0.15, 16: 0.1}), Fusion(), 2)
    assert (shallow, middle, deep) == (pytest.approx(1 / 4, rel=0.3), pytest.approx(4 / 9, rel=0.3), 1)
    assert exponents_of(good_maps({64: 0.9, 32: 0.9, 16: 0.1}), Fusion(), 4) == (LEAST, LEAST, 1)
    assert exponents_of(good_maps({64: 0.05, 32: 0.1, 16: 0.2}), Fusion(), 4) == (1, 1, 1)
    assert exponents_of(good_maps({64: 0, 32: 0, 16: 0}), Fusion(), 4) == (
        1,
        1,
        1,
    )  # the same photograph again and again
    maps = good_maps({64: 0.4, 32: 0.2, 16: 0.1})
    without_deepest = {name: maps[name] for name in maps if "16" not in name}
    assert exponents_of(without_deepest, Fusion(), 2)[1:] == (1, 1)


@pytest.fixture(scope="module")
def network() -> NNet:
    torch.manual_seed(0)
    settings = replace(TUNED.model, memory_slots=16)
    return NNet(settings, build_encoder(find_backbone(settings.backbone))).eval()


def test_the_choice_is_of_the_network_s_own_maps_on_the_first_images(network: NNet) -> None:
    images = np.stack([good_part(number) for number in range(IMAGES + 2)])
    chosen = choose_exponents(network, images, CPU)
    maps = layer_maps_of(network, images[:IMAGES], CPU)
    assert {name: values.shape[0] for name, values in maps.items()} == dict.fromkeys(network.output_names, IMAGES)
    assert chosen == exponents_of(maps, network.settings.fusion, network.settings.exponent_power)
    assert chosen[2] == 1
    assert all(LEAST <= value <= 1 for value in chosen)
    assert choose_exponents(network, images[:3], CPU) == network.settings.scale_exponents  # too few to say
    network.settings = replace(network.settings, exponent_power=0.0)
    assert choose_exponents(network, images, CPU) == network.settings.scale_exponents


def test_whoever_names_the_exponents_gets_them() -> None:
    assert PAPER.model.exponent_power == 0
    assert TUNED.model.exponent_power > 0
    named = TUNED.overridden("model.scale_exponents=0.5,0.5,1").model
    assert (named.exponent_power, named.scale_exponents) == (0, (0.5, 0.5, 1))
    assert TUNED.overridden("model.exponent_power=2").model.exponent_power == 2
    with pytest.raises(ConfigError, match="exponent_power is -1"):
        TUNED.overridden("model.exponent_power=-1")
