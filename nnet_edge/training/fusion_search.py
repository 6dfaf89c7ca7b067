"""How much each scale counts in the anomaly map, decided on good images alone.

A defect stands out where good parts look alike. So a scale counts by how steady its distances are from one good part to the
next, beside the deepest scale's: its exponent is the ratio of the two spreads to a power. The spread is the deviation of
the logarithm of the scale's sum (equation 8) at one position over good images, for a product adds logarithms.

Seen, power 4, spread of stride 16 over that of stride 8: 0.82 and 0.85 where parts lie one way and all scales see the
defects (tire, ball_screw), 0.55 to 0.61 where shallow features repeat seldom (cookie, alien_toy, magnetic_tile).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from nnet_edge.anomaly_map import SCALES, SMALLEST_DISTANCE, Fusion, scale_sum
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.nnet.network import NNet
from nnet_edge.training.feature_cache import chunks, to_device

IMAGES = 32  # looked at
FEWEST_IMAGES = 4  # fewer say nothing of what varies: the exponents stay
LEAST = 0.1  # below it a scale no longer sharpens the outline of what the deepest one sees
DECIMALS = 3


def choose_exponents(network: NNet, images: np.ndarray, compute: Compute) -> tuple[float, ...]:
    """The exponents of the scales 64, 32, 16 for `network` on good images that it did not learn, uint8 (N, 256, 256, 3).

    Those of its settings where `exponent_power` is 0, or where fewer than 4 images are given.
    """
    settings = network.settings
    if not settings.exponent_power or len(images) < FEWEST_IMAGES:
        return settings.scale_exponents
    return exponents_of(layer_maps_of(network, images[:IMAGES], compute), settings.fusion, settings.exponent_power)


def exponents_of(layer_maps: Mapping[str, np.ndarray], fusion: Fusion, power: float) -> tuple[float, ...]:
    """Each scale's exponent by the layer maps (N, 1, h, w) of good images: 0.1 to 1, and 1 for the deepest that has a map."""
    spreads = [spread(layer_maps, scale, fusion) for scale in SCALES]
    deepest = next(value for value in reversed(spreads) if value is not None)
    ratios = [1.0 if value is None else deepest / value for value in spreads]
    return tuple(round(max(LEAST, min(1.0, ratio) ** power), DECIMALS) for ratio in ratios)


def spread(layer_maps: Mapping[str, np.ndarray], scale: int, fusion: Fusion) -> float | None:
    """Deviation of the logarithm of a scale's sum at one position over the images, above 0; None for a scale without a map."""
    summed = scale_sum({name: np.asarray(maps, np.float64) for name, maps in layer_maps.items()}, scale, fusion)
    if summed is None:
        return None
    logarithms = np.log(np.maximum(summed, SMALLEST_DISTANCE))
    return max(float(np.sqrt(logarithms.var(axis=0, ddof=1).mean())), SMALLEST_DISTANCE)


@torch.inference_mode()
def layer_maps_of(network: NNet, images: np.ndarray, compute: Compute) -> dict[str, np.ndarray]:
    """The layer maps, float32 (N, 1, h, w) by name, of uint8 RGB images (N, 256, 256, 3)."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in network.output_names}
    for chunk in chunks(images):
        with compute.autocast():
            layer_maps = network(to_device(chunk, network))
        for name, values in zip(network.output_names, layer_maps, strict=True):
            found[name].append(values.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}
