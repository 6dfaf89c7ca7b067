"""Fusion search: how much each scale counts in the anomaly map, chosen on good images alone.

A defect stands out where good parts look alike. So a scale counts by how steady its distances are from one good part to the
next, beside the deepest scale's: its exponent is the ratio of the two spreads to a power. The spread is the deviation of
the logarithm of the scale's sum (equation 8) at one position over good images, for a product adds logarithms.

Seen, power 4, spread of stride 16 over that of stride 8: 0.82 and 0.85 where parts lie one way and all scales see the
defects (tire, ball_screw), 0.55 to 0.61 where shallow features repeat seldom (cookie, alien_toy, magnetic_tile).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from nnet_edge.anomaly_map import SCALES, SMALLEST_DISTANCE, Fusion, scale_sum
from nnet_edge.methods.compute import Compute, chunks, to_device
from nnet_edge.methods.network import Network

IMAGES = 32  # measured on
FEWEST_IMAGES = 4  # fewer say nothing of what varies: the exponents stay
LEAST = 0.1  # below it a scale no longer sharpens the outline of what the deepest one sees
DECIMALS = 3


def with_chosen_exponents(network: Network, images: np.ndarray, power: float, compute: Compute) -> Fusion:
    """The network's fusion with exponents chosen on good images that it did not learn, uint8 RGB (N, H, W, 3).

    Of tiles (N, T, H, W, 3) each is compared with those of its place in the other images.

    The fusion of its settings where `power` is 0, or where fewer than 4 images are given.
    """
    fusion = network.map_fusion
    if not power or len(images) < FEWEST_IMAGES:
        return fusion
    tiles = images.shape[1] if images.ndim == 5 else 1
    some = images[: max(FEWEST_IMAGES, IMAGES // tiles)]
    layer_maps = layer_maps_of(network, some.reshape(-1, *some.shape[-3:]), compute)
    return replace(fusion, exponents=exponents_of(layer_maps, fusion, power, tiles))


def exponents_of(
    layer_maps: Mapping[str, np.ndarray], fusion: Fusion, power: float, tiles: int = 1
) -> tuple[float, ...]:
    """Each scale's exponent by the layer maps (N * tiles, 1, h, w) of good images: 0.1 to 1, 1 for the deepest with a map."""
    spreads = [spread(layer_maps, scale, fusion, tiles) for scale in SCALES]
    deepest = next(value for value in reversed(spreads) if value is not None)
    ratios = [1.0 if value is None else deepest / value for value in spreads]
    return tuple(round(max(LEAST, min(1.0, ratio) ** power), DECIMALS) for ratio in ratios)


def spread(layer_maps: Mapping[str, np.ndarray], scale: int, fusion: Fusion, tiles: int = 1) -> float | None:
    """Deviation of the logarithm of a scale's sum at one position over the images, above 0; None for a scale without a map."""
    summed = scale_sum({name: np.asarray(maps, np.float64) for name, maps in layer_maps.items()}, scale, fusion)
    if summed is None:
        return None
    logarithms = np.log(np.maximum(summed, SMALLEST_DISTANCE))
    by_place = logarithms.reshape(-1, tiles, *logarithms.shape[1:])
    return max(float(np.sqrt(by_place.var(axis=0, ddof=1).mean())), SMALLEST_DISTANCE)


@torch.inference_mode()
def layer_maps_of(network: Network, images: np.ndarray, compute: Compute) -> dict[str, np.ndarray]:
    """The layer maps, float32 (N, 1, h, w) by name, of uint8 RGB images (N, H, W, 3)."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in network.output_names}
    for chunk in chunks(images):
        with compute.autocast():
            layer_maps = network(to_device(chunk, network.mean.device))
        for name, values in zip(network.output_names, layer_maps, strict=True):
            found[name].append(values.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}
