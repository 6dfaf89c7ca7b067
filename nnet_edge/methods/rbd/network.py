"""RBD's network, corruption and losses: the student reconstructs normal features from corrupted ones.

In the style of the paper's abstract (Zhao, Guo, Computers & Graphics 132:104328, 2025), whose text could not be had: what is
corrupted, and how, is a design of this project, and published figures are no promise. The graph of inference is that of reverse
distillation (RD4AD): teacher, one-class bottleneck and decoder, without a forward student.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nnet_edge.methods.backbone import STRIDES, Encoder, Features
from nnet_edge.methods.blocks import Decoder, FeatureFusion
from nnet_edge.methods.cosine import cosine_distances, distillation_loss
from nnet_edge.methods.network import Network
from nnet_edge.methods.rbd.settings import ModelSettings, TrainSettings

CELL = 32  # pixels a side; a cell covers 8x8 places of the map of stride 4, 4x4 of stride 8, 2x2 of stride 16
TOKEN_DEVIATION = 0.02  # of the learned mask tokens at the start


@dataclass(frozen=True)
class Reconstructions:
    """What the losses compare."""

    teacher: Features  # F
    whole: Features  # R_inf, of the teacher's features as they are
    corrupted: Features | None  # R_train, of corrupted ones; None for held-out images


class RBD(Network):
    """The whole network; `forward` gives the three reconstruction maps."""

    method = TrainSettings.method
    settings: ModelSettings

    def __init__(self, settings: ModelSettings, teacher: Encoder) -> None:
        super().__init__(settings, teacher)
        self.bottleneck = FeatureFusion(self.backbone, use_ffc=False)
        self.reverse_student = Decoder(self.backbone, not self.backbone.has_linear_taps)
        self.tokens = nn.ParameterList(
            nn.Parameter(TOKEN_DEVIATION * torch.randn(1, channels, 1, 1)) for channels in self.backbone.channels
        )

    def reconstruct(self, features: Features) -> Features:
        """The reconstructions of feature maps, of the same shapes."""
        return self.reverse_student(self.bottleneck(features), features[2])

    def masked(self, features: Features, cells: Tensor) -> Features:
        """`features` with the learned token of their scale where `cells`, bool (N, 1, H / 32, W / 32), are true."""
        first, second, third = (
            torch.where(enlarged(cells, value), token.to(value.dtype), value)
            for value, token in zip(features, self.tokens, strict=True)
        )
        return first, second, third

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """1 - cos(F_i, R_i), each (N, 1, h, w) in [0, 2], for uint8 RGB images (N, H, W, 3)."""
        features = self.teacher_features(self.normalise(images))
        return self.levelled(cosine_distances(features, self.reconstruct(features)), features)


def enlarged(cells: Tensor, like: Tensor) -> Tensor:
    """The cells, bool (N, 1, H / 32, W / 32), at the size of a feature map; every cell covers as many places."""
    height, width = like.shape[-2] // cells.shape[-2], like.shape[-1] // cells.shape[-1]
    return cells.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)


def draw_cells(count: int, size: tuple[int, int], settings: TrainSettings, rng: np.random.Generator) -> np.ndarray:
    """Which of `size` cells are masked, bool (count, 1, *size): of each image a share from mask_least to mask_most."""
    cells = size[0] * size[1]
    shares = rng.uniform(settings.mask_least, settings.mask_most, (count, 1))
    ranks = rng.random((count, cells)).argsort(axis=1).argsort(axis=1)
    return (ranks < np.rint(shares * cells)).reshape(count, 1, *size)


def corrupt(network: RBD, features: Features, anomalous: Features | None, settings: TrainSettings,
            rng: np.random.Generator) -> Features:  # fmt: skip
    """The features that are reconstructed from: masked, or, of a share of the images, those of their damaged copies."""
    count, device = len(features[0]), features[0].device
    height, width = (STRIDES[2] * side // CELL for side in features[2].shape[-2:])
    cells = torch.from_numpy(draw_cells(count, (height, width), settings, rng)).to(device)
    is_synthetic = torch.from_numpy(rng.random(count) < settings.synthesis_share).to(device)
    if settings.corruption == "mask" or anomalous is None:
        return network.masked(features, cells)
    if settings.corruption == "synthesis":
        return anomalous
    masked, chosen = network.masked(features, cells), is_synthetic[:, None, None, None]
    first, second, third = (torch.where(chosen, one, other) for one, other in zip(anomalous, masked, strict=True))
    return first, second, third


def rbd_losses(compared: Reconstructions, settings: TrainSettings) -> dict[str, Tensor]:
    """reconstruction: L(R_train, F), of held-out images L(R_inf, F). consistency: L(R_train, sg(R_inf)) + L(R_inf, F)."""
    if compared.corrupted is None:
        return {"reconstruction": distillation_loss(compared.teacher, compared.whole)}
    terms = {"reconstruction": distillation_loss(compared.teacher, compared.corrupted)}
    if settings.consistency_weight:
        fixed = [value.detach() for value in compared.whole]
        agreement = distillation_loss(fixed, compared.corrupted) + distillation_loss(compared.teacher, compared.whole)
        terms["consistency"] = settings.consistency_weight * agreement
    return terms
