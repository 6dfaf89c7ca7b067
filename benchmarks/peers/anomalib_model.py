"""anomalib's models with N-Net's teacher in them; runs in the other methods' environment only.

A timm backbone is EfficientNet-Lite0 with the weights and the normalisation that N-Net's teacher has. Reverse Distillation
knows ResNets only: its ResNet-18 bottleneck and decoder, whose outputs are not negative, stand behind `SplitTaps`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnet_edge.benchmarks.peers.methods import RANDOM, SAME_BACKBONE, Method
from nnet_edge.errors import ConfigError
from nnet_edge.methods.backbone import build_network, find_backbone
from nnet_edge.methods.teacher_weights import copy_weights, find_weights, read_weights
from nnet_edge.methods.torchvision_operators import import_torchvision

TIMM_NAME = "tf_efficientnet_lite0"
RESNET18_CHANNELS = (64, 128, 256)
PADIM_FEATURES = 100  # anomalib's number for its small backbone; it has none for this one


class SplitTaps(nn.Module):
    """Three feature maps with both signs as not negative ones of ResNet-18's widths: [relu(x), relu(-x), zeros].

    24, 40 and 112 channels become 48, 80 and 224, then 64, 128 and 256 with zeros; nothing is lost.
    """

    def __init__(self, taps: nn.Module) -> None:
        super().__init__()
        self.taps = taps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 64, H/4, W/4), (N, 128, H/8, W/8), (N, 256, H/16, W/16) of images (N, 3, H, W)."""
        self.taps.eval()
        split = {}
        for (name, maps), channels in zip(self.taps(images).items(), RESNET18_CHANNELS, strict=True):
            halves = torch.cat([maps.relu(), (-maps).relu()], dim=1)
            split[name] = functional.pad(halves, (0, 0, 0, 0, 0, channels - halves.shape[1]))
        return split


class Shim:
    """Stands where anomalib's files have `timm`: no network is fetched, known weights are put in."""

    def __init__(self, timm: Any) -> None:
        self._timm = timm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._timm, name)

    def create_model(self, name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        """timm's, with N-Net's teacher's weights where they are asked for and the name is that teacher's."""
        network = self._timm.create_model(name, pretrained=False, **options)
        if pretrained and name == TIMM_NAME:
            backbone = find_backbone(SAME_BACKBONE)
            whole = build_network(backbone)
            path = find_weights(backbone)
            copy_weights(whole, read_weights(path), path)
            known = whole.state_dict()
            network.load_state_dict({key: known[key] for key in network.state_dict()})
        return cast(nn.Module, network)


def build_model(method: Method, backbone: str) -> Any:
    """The Lightning module of `method`: with SAME_BACKBONE and its weights, or with anomalib's own and RANDOM ones.

    Without anomalib's post-processor: maps and scores come out as the method computes them, neither scaled nor clamped.
    Raises ConfigError when the method cannot take the backbone.
    """
    if backbone == SAME_BACKBONE and not method.takes_same_backbone:
        raise ConfigError(f"{method.title} cannot take {SAME_BACKBONE}")
    torchvision = import_torchvision()
    import anomalib.models as models
    from anomalib.models.components.feature_extractors import timm as extractors
    from anomalib.models.image.fastflow import torch_model as fastflow

    for module in (extractors, fastflow):
        if not isinstance(module.timm, Shim):
            module.timm = Shim(module.timm)
    options: dict[str, Any] = {"post_processor": False, "evaluator": False, "visualizer": False}
    if backbone == RANDOM:
        # the shim leaves its weights random
        options |= {"model_size": "medium"} if method.name == "efficient_ad_m" else {}
        return getattr(models, method.class_name)(**options)
    options["pre_processor"] = pre_processor(torchvision)
    if method.name == "reverse_distillation":
        model = models.ReverseDistillation(backbone="resnet18", pre_trained=False, **options)
        taps = extractors.TimmFeatureExtractor(TIMM_NAME, list(method.layers), pre_trained=True)
        model.model.encoder = SplitTaps(taps)
        return model
    if method.name == "padim":
        options["n_features"] = PADIM_FEATURES
    return getattr(models, method.class_name)(backbone=TIMM_NAME, layers=list(method.layers), **options)


def pre_processor(torchvision: Any) -> Any:
    """anomalib's own: resize to 256x256 and normalise as the teacher's weights were trained, inside the exported graph."""
    from anomalib.pre_processing import PreProcessor

    v2, backbone = torchvision.transforms.v2, find_backbone(SAME_BACKBONE)
    normalise = v2.Normalize(mean=list(backbone.mean), std=list(backbone.std))
    return PreProcessor(transform=v2.Compose([v2.Resize((256, 256), antialias=True), normalise]))


def count_values(network: nn.Module) -> tuple[int, int]:
    """(parameters, values kept in all): the second adds memory banks and statistics, but not those of batch norm."""
    parameters = sum(value.numel() for value in network.parameters())
    norms = {id(b) for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for b in m.buffers()}
    kept = sum(value.numel() for value in network.buffers() if id(value) not in norms)
    return parameters, parameters + kept


def count_macs(network: nn.Module, side: int) -> int:
    """Multiply-adds of one image through convolutions and matrix products, by torch.utils.flop_counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.rand(1, 3, side, side))
    return int(counter.get_total_flops() // 2)
