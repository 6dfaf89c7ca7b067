"""The forward student of N-Net: the teacher's architecture, as narrow and shallow as the settings say, with a stem or without.

Its feature maps keep the teacher's shapes, for both are compared; what becomes narrower is the inside of its blocks.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from nnet_edge.methods.backbone import Backbone, Encoder, build_encoder
from nnet_edge.methods.nnet.settings import ModelSettings

CONVOLUTIONS = {  # class of a block -> its convolutions with their norms, in the order in which they compute
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "BasicBlock": (("conv1", "bn1"), ("conv2", "bn2")),
    "Bottleneck": (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
}
MULTIPLE = 8  # of channels: what vector instructions and INT8 kernels take at once


def build_student(settings: ModelSettings, backbone: Backbone) -> Encoder:
    """The forward student, with random weights; with a shared stem it takes what the teacher's stem gives."""
    encoder = build_encoder(backbone)
    if settings.student_depth:
        for stage in encoder.modules():
            if isinstance(stage, nn.Sequential):
                shorten(stage, settings.student_depth)
    if settings.student_width < 1:
        for block in encoder.modules():
            if type(block).__name__ in CONVOLUTIONS:
                narrow(block, settings.student_width)
    if not settings.shared_stem:
        return encoder
    first, second, third = encoder.stages
    return Encoder((nn.Sequential(cast(nn.Sequential, first)[-1]), second, third))


def shorten(stage: nn.Sequential, depth: int) -> None:
    """Keep, of the blocks that give a map of the shape that they take, the first ones, so that `depth` blocks are left.

    A block that changes the shape always stays.
    """
    names = [name for name, block in stage.named_children() if type(block).__name__ in CONVOLUTIONS]
    for name in names[depth:]:
        if keeps_shape(getattr(stage, name)):
            delattr(stage, name)


def keeps_shape(block: Any) -> bool:
    """Whether a block gives as many channels, of the same height and width, as it takes."""
    convolutions = [getattr(block, name) for name, _ in CONVOLUTIONS[type(block).__name__]]
    is_even = all(tuple(one.stride) == (1, 1) for one in convolutions)
    return is_even and convolutions[0].in_channels == convolutions[-1].out_channels


def narrow(block: Any, width: float) -> None:
    """Keep that share of the channels inside `block`, a multiple of 8; the weights, random as they are, of the first ones."""
    names = CONVOLUTIONS[type(block).__name__]
    inputs: int | None = None  # that come from the convolution before, where it became narrower
    for name, norm in names[:-1]:
        convolution: nn.Conv2d = getattr(block, name)
        if convolution.groups == 1:
            outputs = max(MULTIPLE, MULTIPLE * round(width * convolution.out_channels / MULTIPLE))
        cut(convolution, inputs, outputs)
        cut_norm(getattr(block, norm), outputs)
        inputs = outputs
    cut(getattr(block, names[-1][0]), inputs, None)


def cut(convolution: nn.Conv2d, inputs: int | None, outputs: int | None) -> None:
    """Leave the convolution its first input and output channels; None: all of them."""
    if convolution.groups > 1:
        convolution.groups, inputs = outputs or convolution.groups, None
        convolution.in_channels = convolution.groups
    weight = convolution.weight.detach()[:outputs, :inputs].clone()
    convolution.weight = nn.Parameter(weight)
    convolution.out_channels = len(weight)
    convolution.in_channels = inputs or convolution.in_channels


def cut_norm(norm: nn.BatchNorm2d, channels: int) -> None:
    """Leave a fresh batch norm its first channels."""
    norm.num_features = channels
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[:channels].clone()))
    for name in ("running_mean", "running_var"):
        norm.register_buffer(name, getattr(norm, name)[:channels].clone())
