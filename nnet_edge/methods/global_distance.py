"""Global distance: how far the arrangement of a whole picture is from that of good ones, and what it adds to the maps.

A part that is missing, doubled or in a wrong place is made of ordinary pieces: no small window of the picture is strange. So
the teacher's deepest features, averaged over a grid of 4 x 4 cells, are compared with those of the good pictures by a
Mahalanobis distance (32 principal components, the rest by their mean variance). Where it is above the middle of held-out good
pictures the deepest layer maps are raised where the fused map, at their size, is near its maximum:

    gain = (distance / middle)^power, from 1 to the largest gain, map * (1 + (gain - 1) * (fused / its maximum)^4)

so that the image score grows by about the gain and places far below the maximum stay as they are. The power gives held-out good
pictures' distances the spread of their image scores (logarithms). It is a part of the one graph that gives the layer maps, so
fusion, tail, kernels and engines know nothing of it. It is not measured where parts lie any way round, for tiles, in a
letterbox, nor for a sum of several maps. Our own design; what it was seen to change: benchmarks/accuracy.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nnet_edge.anomaly_map import SCALES, SMALLEST_DISTANCE, Fusion, split_name
from nnet_edge.methods.global_formula import PREFIX

GRID = 4  # cells along a side
SHARPNESS = 4  # power of the share of the maximum; seen: 2 and 8 gain less, 0 (the whole map) costs PRO
BUFFERS = ("cells", "mean", "scale", "basis", "shrink", "power", "largest")


class GlobalDistance(nn.Module):
    """The distance of feature maps (N, C, h, w) from those of good pictures, (N,), 1 in the middle of held-out good ones.

    Buffers: `cells` (h * w, 16), which averages over the grid's cells; `mean` and `scale` (16 * C) of the averages; `basis`
    (K, 16 * C), the principal components, and `shrink` (K), the share that is taken out of each; `power` and `largest` ().
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in BUFFERS:
            self.register_buffer(name, values[name].detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        """The distance, float (N,)."""
        of = self.get_buffer
        away = (torch.matmul(features.float().flatten(2), of("cells")).flatten(1) - of("mean")) * of("scale")
        known = torch.matmul(away, of("basis").T) * of("shrink")
        return (away - torch.matmul(known, of("basis"))).square().mean(dim=1).sqrt()

    def gain(self, features: Tensor) -> Tensor:
        """What the strangest place of each picture is raised by, (N, 1, 1, 1), from 1 to `largest`."""
        largest, power = self.get_buffer("largest"), self.get_buffer("power")
        distance = torch.minimum(self(features).clamp_min(1.0), largest ** (1 / power))
        return (distance**power).reshape(-1, 1, 1, 1)


def strangeness_of(layer_maps: Mapping[str, Tensor], fusion: Fusion) -> Tensor:
    """The layer maps fused by a product at the size of the deepest ones, float (N, 1, h, w)."""
    fused: Tensor | None = None
    height = min(maps.shape[2] for maps in layer_maps.values())
    for scale, exponent in zip(SCALES, fusion.exponents, strict=True):
        some = [maps * fusion.weight(name) for name, maps in layer_maps.items() if split_name(name)[1] == scale]
        if some and exponent > 0:
            summed = torch.cat(some, dim=1).sum(dim=1, keepdim=True)
            small = torch.nn.functional.avg_pool2d(summed, summed.shape[2] // height)
            factor = small.clamp_min(SMALLEST_DISTANCE) ** exponent
            fused = factor if fused is None else fused * factor
    assert fused is not None  # one of them counts
    return fused


def raised(maps: Tensor, strangeness: Tensor, gain: Tensor) -> Tensor:
    """The maps (N, 1, h, w), the place of the largest `strangeness` (N, 1, h, w) times `gain` (N, 1, 1, 1), others by less."""
    relative = strangeness / strangeness.amax(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return maps * (1 + (gain - 1) * relative**SHARPNESS)


def values_in(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The buffers of the global distance among a network's weights; empty where there is none."""
    return {name: weights[PREFIX + name] for name in BUFFERS if PREFIX + name in weights}
