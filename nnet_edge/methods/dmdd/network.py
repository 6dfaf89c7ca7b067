"""DMDD's network and losses: a student whose features are decoupled into normality and abnormality, and a head that segments.

In the style of the paper's abstract (Liu, Wang, Leng, Zhang, arXiv 2408.03888, ACM MM 2024), whose text could not be had:
layers, losses and schedule are a design of this project after public code of the same authors (URD) and of DeSTSeg, and
published figures are no promise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnet_edge.anomaly_map import FUSED_STRIDE, SCALES, STRIDES, enlarging_matrix
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.methods.backbone import Encoder, Features, build_encoder
from nnet_edge.methods.blocks import conv, conv_bn_relu
from nnet_edge.methods.cosine import cosine_distances, distillation_loss, learned_distance, unit
from nnet_edge.methods.dmdd.settings import ModelSettings, TrainSettings
from nnet_edge.methods.expansion import with_quick_training
from nnet_edge.methods.network import Network
from nnet_edge.methods.pairs import masks_like

SQUEEZE = 8  # what channel attention divides the channels by
DILATIONS = (1, 3, 6)
SMALLEST_SHARE = 1e-6  # of probability, below which a logarithm is not taken


@dataclass(frozen=True)
class Decoupled:
    """The two kinds of features of one image, three scales each."""

    normality: Features  # N
    abnormality: Features  # A


@dataclass(frozen=True)
class Compared:
    """What the losses compare: of the first stage the features, of the second the head's map."""

    teacher: Features  # Fn, of the good image
    good: Decoupled | None = None
    teacher_damaged: Features | None = None  # Fa, of its damaged copy
    damaged: Decoupled | None = None
    masks: Tensor | None = None  # where the damage is, bool (N, 1, H, W)
    segmentation: Tensor | None = None  # the head's map of the damaged copy, (N, 1, H / 4, W / 4), 0 to 1


class DMDD(Network):
    """The whole network; `forward` gives the head's map, or the distances that `settings.maps` names."""

    method = TrainSettings.method
    settings: ModelSettings

    def __init__(self, settings: ModelSettings, teacher: Encoder) -> None:
        super().__init__(settings, teacher)
        channels = self.backbone.channels
        self.student = with_quick_training(build_encoder(self.backbone))
        self.decouple = nn.ModuleList(DecoupleHead(width) for width in channels)
        self.head = SegmentationHead(channels, settings) if settings.has_head else None

    def at(self, geometry: Geometry) -> Network:
        """The network itself, with a head that enlarges maps of such inputs."""
        if self.head is not None:
            self.head.enlarge_for(geometry)
        return super().at(geometry)

    def decoupled(self, normalised: Tensor) -> Decoupled:
        """Normality and abnormality features of normalised images."""
        halves = [head(value) for head, value in zip(self.decouple, self.student(normalised), strict=True)]
        (n1, a1), (n2, a2), (n3, a3) = halves
        return Decoupled((n1, n2, n3), (a1, a2, a3))

    def segment(self, teacher: Features, decoupled: Decoupled) -> Tensor:
        """The head's map (N, 1, H / 4, W / 4), 0 to 1."""
        assert self.head is not None  # only asked for where settings have it
        kinds = (decoupled.normality, decoupled.abnormality)
        products = [unit(t) * unit(value) for kind in kinds for t, value in zip(teacher, kind, strict=True)]
        return self.head(products)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The head's map (N, 1, H / 4, W / 4), or 1 - cos(F, A) and 1 - cos(F, N), for uint8 RGB images (N, H, W, 3)."""
        normalised = self.normalise(images)
        teacher, decoupled = self.teacher_features(normalised), self.decoupled(normalised)
        if self.head is not None:
            return self.levelled([self.segment(teacher, decoupled).float()], teacher)
        maps: list[Tensor] = []
        if self.settings.maps != "normality":
            maps += cosine_distances(teacher, decoupled.abnormality)
        if self.settings.maps != "abnormality":
            maps += cosine_distances(teacher, decoupled.normality)
        return self.levelled(maps, teacher)


class DecoupleHead(nn.Module):
    """1x1 to twice the channels, batch norm, ReLU; a 1x1 of each half gives normality and abnormality features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = conv_bn_relu(channels, 2 * channels, 1)
        self.normality = conv(channels, channels, 1)
        self.abnormality = conv(channels, channels, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Both, each of the shape of `features`."""
        first, second = self.expand(features).chunk(2, dim=1)
        return self.normality(first), self.abnormality(second)


class SegmentationHead(nn.Module):
    """Multi-perception segmentation: six products of unit features -> one map at stride 4, by dilations and attentions."""

    def __init__(self, channels: tuple[int, int, int], settings: ModelSettings) -> None:
        super().__init__()
        self.align_corners = settings.align_corners
        self.enlarge_for(DEFAULT)
        width, reduced = settings.head_width, settings.head_width // 2
        self.reduce = nn.ModuleList(conv(inputs, reduced, 1) for inputs in (*channels, *channels))
        self.mix = conv_bn_relu(6 * reduced, width)
        self.perceive = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
            for dilation in DILATIONS[: settings.perceptions]
        )
        self.join = conv_bn_relu(settings.perceptions * width, width, 1)
        self.channel = ChannelAttention(width) if settings.channel_attention else nn.Identity()
        self.spatial = SpatialAttention() if settings.spatial_attention else nn.Identity()
        self.last = nn.Conv2d(width, 1, 1)

    def enlarge_for(self, geometry: Geometry) -> None:
        """Make the matrices for inputs of that geometry: one for rows and columns where the input is a square."""
        for scale, stride in zip(SCALES[1:], STRIDES[1:], strict=True):
            for name, side in (("enlarging", geometry.height), ("across", geometry.width)):
                matrix = enlarging_matrix(side // stride, side // FUSED_STRIDE, self.align_corners)
                is_needed = name == "enlarging" or geometry.width != geometry.height
                values = torch.from_numpy(matrix.copy()).float() if is_needed else None
                self.register_buffer(f"{name}_{scale}", values, persistent=False)

    def forward(self, products: list[Tensor]) -> Tensor:
        """(N, 1, H / 4, W / 4), 0 to 1."""
        scales = (*SCALES, *SCALES)
        reduced = [
            self.enlarged(part(value), scale) for part, value, scale in zip(self.reduce, products, scales, strict=True)
        ]
        mixed = self.mix(torch.cat(reduced, dim=1))
        joined = self.join(torch.cat([part(mixed) for part in self.perceive], dim=1))
        return torch.sigmoid(self.last(self.spatial(self.channel(joined))))

    def enlarged(self, values: Tensor, scale: int) -> Tensor:
        """At stride 4, bilinear, by the matrices of `anomaly_map.py`: no runner's idea of Resize enters."""
        if scale == SCALES[0]:
            return values
        rows: Tensor = getattr(self, f"enlarging_{scale}").to(values.dtype)
        across: Tensor | None = getattr(self, f"across_{scale}")
        return rows @ values @ (rows if across is None else across.to(values.dtype)).T


class ChannelAttention(nn.Module):
    """A gate for each channel, from its mean over all places (an eighth of the channels between)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // SQUEEZE
        self.gate = nn.Sequential(nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1), nn.Sigmoid())

    def forward(self, values: Tensor) -> Tensor:
        """The gated values, same shape."""
        return values * self.gate(values.mean(dim=(2, 3), keepdim=True))


class SpatialAttention(nn.Module):
    """A gate for each place, from mean and maximum over the channels there, by a 7x7 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.Sigmoid())

    def forward(self, values: Tensor) -> Tensor:
        """The gated values, same shape."""
        summary = torch.cat([values.mean(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)], dim=1)
        return values * self.gate(summary)


def dmdd_losses(compared: Compared, settings: TrainSettings) -> dict[str, Tensor]:
    """The weighted terms of the stage; their sum is the loss.

    normality, L_NGM: L(N(x_a), Fn) + L(N(x_n), Fn). abnormality, L_AIM: the sum over the scales of the mean of
    |1 - cos(A(x_a), Fa) - m|, plus L(A(x_n), Fn). segmentation, L_seg: focal loss plus L1 of the head's map and the mask.
    """
    if compared.segmentation is not None and compared.masks is not None:
        return {"segmentation": settings.segmentation_weight * segmentation_loss(compared, settings.focal_gamma)}
    assert compared.good is not None  # the first stage compares features
    normality = distillation_loss(compared.teacher, compared.good.normality)
    abnormality = distillation_loss(compared.teacher, compared.good.abnormality)
    if compared.damaged is not None:
        normality = normality + distillation_loss(compared.teacher, compared.damaged.normality)
        abnormality = abnormality + abnormality_loss(compared, settings)
    return {
        "normality": settings.normality_weight * normality,
        "abnormality": settings.abnormality_weight * abnormality,
    }


def abnormality_loss(compared: Compared, settings: TrainSettings) -> Tensor:
    """How far the distances of the damaged copy's abnormality features are from its mask."""
    assert compared.damaged is not None
    assert compared.masks is not None
    of_damaged = compared.teacher_damaged if settings.abnormality_target == "anomalous" else compared.teacher
    assert of_damaged is not None
    losses = []
    for target, student in zip(of_damaged, compared.damaged.abnormality, strict=True):
        distance = learned_distance(target, student)
        mask = masks_like(compared.masks, distance)
        if settings.abnormality_loss == "mask":
            losses.append((distance - mask).abs().mean())
        else:
            losses.append((mask * (1 - distance).clamp_min(0)).sum() / mask.sum().clamp_min(1))
    return torch.stack(losses).sum()


def segmentation_loss(compared: Compared, gamma: float) -> Tensor:
    """Focal loss without class weights, and L1, of the head's map and the mask at its size; FP32."""
    assert compared.segmentation is not None
    assert compared.masks is not None
    share = compared.segmentation.float()
    mask = masks_like(compared.masks, share)
    right = torch.where(mask > 0, share, 1 - share).clamp(SMALLEST_SHARE, 1.0)  # probability of what is there
    focal = -((1 - right) ** gamma * right.log()).mean()
    return focal + (share - mask).abs().mean()
