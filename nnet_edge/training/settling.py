"""Settling: what a training chooses at its end on good images alone, with the weights that are deployed.

In this order: the exponents of the fusion (methods/fusion_search.py), the place level (methods/place_level.py) and the global
distance (global_search.py); the last two not where parts lie any way round, nor for tiles.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnet_edge.anomaly_map import Fusion
from nnet_edge.methods.base import METHODS, MethodSettings
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.global_formula import PREFIX
from nnet_edge.methods.network import PLACE_FACTORS, Network, is_settled, restore_network
from nnet_edge.methods.place_level import PlaceLevel, choose_place_level
from nnet_edge.training.augmentation import augmented_copies
from nnet_edge.training.checkpoint import Checkpoint
from nnet_edge.training.global_search import learn_global_distance
from nnet_edge.training.start import held_out_inputs, learned_inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GoodImages:
    """What a training knows of good parts, uint8 RGB (N, H, W, 3)."""

    learned: np.ndarray
    copies: np.ndarray  # of those, augmented, as the steps saw them
    held_out: np.ndarray  # or the tiles of each (N, T, H, W, 3)


@dataclass(frozen=True)
class Settled:
    """What was chosen, for the checkpoint; the network has it already."""

    settings: MethodSettings
    weights: dict[str, Tensor]  # that are not trained: of the place level and of the global distance
    facts: dict[str, Any]


def settle(network: Network, settings: MethodSettings, good: GoodImages, compute: Compute) -> Settled:
    """Choose what suits `network`, which has the weights to deploy, and give it that."""
    settings = settle_fusion(network, settings, good.held_out, compute)
    return settle_levels(network, settings, good, compute)


def settle_fusion(network: Network, settings: MethodSettings, held_out: np.ndarray, compute: Compute) -> MethodSettings:
    """Choose the exponents of the fusion and give them to `network`; the settings have them, too."""
    fusion = METHODS.find(settings.method).settle(network, held_out, compute)
    if fusion != network.map_fusion:
        tell_exponents(fusion)
        settings = settings.with_fusion(fusion)
        network.settings = settings.model
    return settings


def settle_levels(network: Network, settings: MethodSettings, good: GoodImages, compute: Compute) -> Settled:
    """Choose the place level and the global distance and give them to `network`."""
    if settings.augmentation.turns_any_way or settings.input.tiles is not None:
        return Settled(settings, {}, {})
    weights: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    device, seed = network.mean.device, settings.seed
    level = choose_place_level(network, settings.place_powers, good.copies, good.held_out, seed, compute)
    if level is not None:
        facts["place_level"] = level.as_dict()
        if level.power:
            tell_level(level)
            network.place_factors = weights[PLACE_FACTORS] = torch.from_numpy(level.factors).to(device)
    network.global_distance = None
    found = learn_global_distance(network, settings.global_gain, good.learned, good.held_out, compute)
    if found is not None:
        facts["global_distance"] = found.as_dict()
        network.global_distance = found.distance.to(device)
        weights |= {PREFIX + name: value for name, value in network.global_distance.named_buffers()}
    return Settled(settings, weights, facts)


def settled_otherwise(
    checkpoint: Checkpoint, settings: MethodSettings, images: np.ndarray, held_out: np.ndarray, compute: Compute
) -> Network:
    """The finished training's network, settled with other `settings` than its own, which must agree in all that is trained.

    `images` and `held_out` are the training's own, uint8 RGB (N, H, W, 3).
    """
    trained = {name: value for name, value in checkpoint.deployed.items() if not is_settled(name)}
    network = restore_network(settings, trained)
    network.to(compute.device)
    learned = learned_inputs(images, settings)
    copies = augmented_copies(learned, settings.augmentation, settings.seed, settings.input.network.window)
    settle(network, settings, GoodImages(learned, copies, held_out_inputs(held_out, settings)), compute)
    return network


def tell_exponents(fusion: Fusion) -> None:
    """Log the exponents that were chosen."""
    values = ", ".join(f"{value:g}" for value in fusion.exponents)
    log.info("exponents of strides 4, 8 and 16: %s, by how steady each is over good parts", values)


def tell_level(level: PlaceLevel) -> None:
    """Log what the place level brings."""
    log.info(
        "maps are divided by good parts' level at each place to the power %g: synthetic anomalies on held-out parts have a "
        "pixel AP of %.1f with it, %.1f without", level.power, 100 * level.found[level.power], 100 * level.found[0.0],
    )  # fmt: skip
