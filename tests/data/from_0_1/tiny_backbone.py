"""A teacher of three small stages: it makes an N-Net of kilobytes that goes through training, export and calibration.

No product code knows it. Whoever trains or resumes with it puts `TINY_NAME` into the table of backbones and `TinyNetwork`
into torchvision's models, as `nnet_edge.model.backbone.build_network` looks a ResNet up:

    monkeypatch.setitem(BACKBONES, TINY_NAME, Backbone(TINY_NAME, *TINY_FIELDS))
    monkeypatch.setattr(torchvision.models, TINY_NAME, TinyNetwork, raising=False)
"""

from __future__ import annotations

from torch import nn

TINY_NAME = "tiny_for_tests"
TINY_CHANNELS = (4, 8, 8)
TINY_FIELDS = (TINY_CHANNELS, "basic", (1, 1, 1), 1, True)  # of Backbone, behind its name


class TinyNetwork(nn.Module):
    """A classification network in the layout of torchvision's ResNets, without a classifier."""

    def __init__(self, weights: None = None) -> None:
        super().__init__()
        first, second, third = TINY_CHANNELS
        self.conv1 = nn.Conv2d(3, first, 3, 2, 1, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(first, first, 1)
        self.layer2 = stage(first, second, 2)
        self.layer3 = stage(second, third, 2)


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution, ReLU and a 1x1 convolution, whose answers have both signs: no feature is all zero."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1),
    )
