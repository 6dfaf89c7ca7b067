"""What methods that learn from pairs share: masks at the size of a layer map."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def masks_like(masks: Tensor, layer_map: Tensor) -> Tensor:
    """`masks`, bool (N, 1, H, W), at the size of a layer map (N, 1, h, w), float: bilinear, corners aligned, 1 from 0.5 on."""
    shrunk = functional.interpolate(masks.float(), layer_map.shape[-2:], mode="bilinear", align_corners=True)
    return (shrunk >= 0.5).float()
