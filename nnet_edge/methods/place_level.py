"""Place level: how strange good parts look at each place, and whether maps divided by a power of it find more.

Where parts always lie the same way, some places are harder to predict than others on every good part (an edge, a thread, the
border of the picture), and their level hides defects elsewhere. The level is the mean fused map over good images, smoothed, at
the size of the deepest layer maps; a network that has it multiplies those maps by level^-power. So it is a constant of the one
graph, and fusion, tail, kernels and engines know nothing of it.

Whether it is used is decided on good parts: the level must explain most of how the maps of held-out images vary over their
places, and synthetic anomalies painted on those images must stand out by at least a fiftieth more (pixel AP). It is not tried
where parts were found to lie any way round, nor for a sum of several maps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnet_edge.anomaly_map import SMALLEST_DISTANCE, Fusion, anomaly_map, blur, fuse_maps, split_name
from nnet_edge.data.painted import anomalous_copies
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.fusion_search import layer_maps_of
from nnet_edge.methods.network import Network
from nnet_edge.metrics import pixel_ap

IMAGES = 48  # good ones that the level is the mean of, and held-out ones, at most
COPIES = 48  # with synthetic anomalies
SMOOTH = 4.0  # places of the fused map, deviation of the Gaussian: 16 pixels of the image
CLEARLY_MORE = 1.02  # times the AP without a level: two draws of the copies differ by a hundredth
EXPLAINED = 0.5  # share of the variance; seen: a texture cut anywhere 0.13, parts below a fixed camera 0.60 to 0.84


@dataclass(frozen=True)
class PlaceLevel:
    """What was chosen, and why."""

    power: float  # 0: none
    factors: np.ndarray  # of the deepest maps, float32 (1, 1, h, w)
    explained: float  # share of the variance of held-out images' maps over their places that the level explains
    found: Mapping[
        float, float
    ]  # power -> pixel AP of synthetic anomalies, 0 to 1; only 0 where too little is explained

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint and the manifest."""
        tried = {f"{power:g}": value for power, value in self.found.items()}
        return {"power": self.power, "explained": self.explained, "pixel_ap": tried}


def choose_place_level(
    network: Network, powers: Sequence[float], good: np.ndarray, held_out: np.ndarray, seed: int, compute: Compute
) -> PlaceLevel | None:
    """The power of `powers` that makes synthetic anomalies stand out most, if one clearly does; None where none can be tried.

    `good` are images that were learned from, `held_out` others, both uint8 RGB (N, H, W, 3).
    """
    fusion = network.map_fusion
    if not powers or (fusion.rule == "sum" and len(network.output_names) > 1):
        return None
    level = level_of(layer_maps_of(network, some_of(good), compute), fusion)
    clean_images = some_of(held_out)
    clean = layer_maps_of(network, clean_images, compute)
    window = network.geometry.window
    explained = share_explained(level, clean, fusion, network.geometry)
    if explained < EXPLAINED:
        return PlaceLevel(0.0, factors_of(level, 0.0, fusion), explained, {})
    images, masks = anomalous_copies(held_out, COPIES, seed, window=window)
    painted = layer_maps_of(network, images, compute)
    judged = {name: np.concatenate((maps, clean[name])) for name, maps in painted.items()}
    masks = np.concatenate((masks, np.zeros((len(clean_images), *masks.shape[1:]), bool)))
    tried = {power: factors_of(level, power, fusion) for power in (0.0, *powers)}
    found = {
        power: pixel_ap(masks, anomaly_map(with_factors(judged, factors), fusion, window)[:, 0]) or 0.0
        for power, factors in tried.items()
    }
    best = max(found, key=lambda power: found[power])
    power = best if found[best] >= CLEARLY_MORE * found[0.0] else 0.0
    return PlaceLevel(power, tried[power], explained, found)


def some_of(images: np.ndarray) -> np.ndarray:
    """At most IMAGES of them, from all over."""
    return images[np.linspace(0, len(images), min(IMAGES, len(images)), endpoint=False).astype(int)]


def level_of(layer_maps: Mapping[str, np.ndarray], fusion: Fusion) -> np.ndarray:
    """The smoothed mean of the fused maps of good images at the size of the deepest layer maps, float64 (h, w), above 0."""
    mean = fused_maps(layer_maps, fusion).mean(axis=0)
    smooth = np.exp(blur(np.log(mean), SMOOTH, round(4 * SMOOTH)))
    return at_size(smooth[None], layer_maps)[0]


def share_explained(
    level: np.ndarray, layer_maps: Mapping[str, np.ndarray], fusion: Fusion, geometry: Geometry = DEFAULT
) -> float:
    """The share of the variance over places, of the logarithm of good images' fused maps, that is the level's; 1 at most.

    The mean of each image takes no part, nor do places beside a letterbox.
    """
    rows, columns = (
        slice(math.ceil(part.start * places / side), math.floor(part.stop * places / side))
        for part, places, side in zip(geometry.window.inside, level.shape, geometry.size, strict=True)
    )
    level = level[rows, columns]
    if not level.size:  # a letterbox narrower than a place
        return 0.0
    logarithms = np.log(at_size(fused_maps(layer_maps, fusion), layer_maps))[:, rows, columns]
    varied = logarithms - logarithms.mean(axis=(1, 2), keepdims=True)
    expected = np.log(level) - np.log(level).mean()
    return float(1 - ((varied - expected) ** 2).sum() / max((varied**2).sum(), SMALLEST_DISTANCE))


def fused_maps(layer_maps: Mapping[str, np.ndarray], fusion: Fusion) -> np.ndarray:
    """The fused maps, float64 (N, h, w), above 0."""
    wide = {name: np.asarray(maps, np.float64) for name, maps in layer_maps.items()}
    return np.maximum(fuse_maps(wide, fusion)[:, 0], SMALLEST_DISTANCE)


def at_size(fused: np.ndarray, layer_maps: Mapping[str, np.ndarray]) -> np.ndarray:
    """Means of the fused maps (N, H, W) over the places of the deepest layer maps, (N, h, w)."""
    height, width = min((maps.shape[-2:] for maps in layer_maps.values()), key=np.prod)
    rows, columns = fused.shape[1] // height, fused.shape[2] // width
    return fused.reshape(len(fused), height, rows, width, columns).mean(axis=(2, 4))


def factors_of(level: np.ndarray, power: float, fusion: Fusion) -> np.ndarray:
    """What the deepest maps are multiplied by, float32 (1, 1, h, w): level^-power, 1 in the geometric mean over the places."""
    logarithms = -power * (np.log(level) - np.log(level).mean())
    exponent = next(value for value in reversed(fusion.exponents) if value > 0)
    return np.exp(logarithms / exponent)[None, None].astype(np.float32)


def with_factors(layer_maps: Mapping[str, np.ndarray], factors: np.ndarray) -> dict[str, np.ndarray]:
    """The layer maps, the deepest ones multiplied by `factors`."""
    deepest = min(split_name(name)[1] for name in layer_maps)
    return {name: maps * factors if split_name(name)[1] == deepest else maps for name, maps in layer_maps.items()}
