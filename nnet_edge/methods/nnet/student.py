"""The forward student of N-Net: the teacher's architecture, as narrow and shallow as the settings say, with a stem or without.

Its feature maps keep the teacher's shapes, for both are compared; what becomes narrower is the inside of its blocks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from nnet_edge.methods.backbone import Backbone, Encoder, build_encoder
from nnet_edge.methods.nnet.settings import ModelSettings

CONVOLUTIONS = {  # class of a block -> its convolutions with their norms, in the order in which they compute
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "BasicBlock": (("conv1", "bn1"), ("conv2", "bn2")),
    "Bottleneck": (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
}
Strengths = dict[nn.Module, Tensor]  # convolution -> how much each channel that it reads matters, (channels,)
MULTIPLE = 8  # of channels: what vector instructions and INT8 kernels take at once


def build_student(settings: ModelSettings, backbone: Backbone) -> Encoder:
    """The forward student, with random weights; with a shared stem it takes what the teacher's stem gives."""
    return cut_student(build_encoder(backbone), settings)


def cut_student(encoder: Encoder, settings: ModelSettings, strengths: Strengths | None = None) -> Encoder:
    """`encoder`, which has the teacher's architecture, made as shallow and narrow as `settings` say, in place.

    Of the inner channels the strongest stay, by the `strengths` that `measure_strengths` gave; without them the first ones.
    """
    for stage, depth in zip(encoder.stages, settings.student_depths, strict=True):
        for part in stage.modules():
            if depth and isinstance(part, nn.Sequential):
                shorten(part, int(depth))
    if settings.student_width < 1:
        for block in encoder.modules():
            if type(block).__name__ in CONVOLUTIONS:
                narrow(block, settings.student_width, strengths or {})
    if not settings.shared_stem:
        return encoder
    first, second, third = encoder.stages
    return Encoder((nn.Sequential(cast(nn.Sequential, first)[-1]), second, third))


@torch.no_grad()
def measure_strengths(encoder: Encoder, normalised: Tensor) -> Strengths:
    """What each inner channel of the blocks brings to the convolution that reads it, on normalised images (N, 3, H, W).

    It is the root mean square of the channel's values times the length of the weights that it is multiplied with.
    """
    found: Strengths = {}

    def measure(convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        weights = cast(nn.Conv2d, convolution).weight.float()
        values = inputs[0].float().square().mean(dim=(0, 2, 3)).sqrt()
        found[convolution] = values * weights.square().sum(dim=(0, 2, 3)).sqrt()

    readers = [one for block in encoder.modules() for one in readers_of(block)]
    hooks = [one.register_forward_pre_hook(measure) for one in readers]
    encoder.eval()(normalised)
    for hook in hooks:
        hook.remove()
    return found


def readers_of(block: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a block that read inner channels and mix them: the ends of its narrowed runs."""
    names = CONVOLUTIONS.get(type(block).__name__, ())
    convolutions: list[nn.Conv2d] = [getattr(block, name) for name, _ in names]
    return [one for one in convolutions[1:] if one.groups == 1]


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


def narrow(block: Any, width: float, strengths: Strengths) -> None:
    """Keep that share of the channels inside `block`, a multiple of 8: the strongest ones, or the first where none is known."""
    names = CONVOLUTIONS[type(block).__name__]
    readers = iter(readers_of(block))
    kept: Tensor | None = None  # of the channels that the convolution before gives
    for name, norm in names[:-1]:
        convolution: nn.Conv2d = getattr(block, name)
        inputs = kept
        if convolution.groups == 1:
            count = max(MULTIPLE, MULTIPLE * round(width * convolution.out_channels / MULTIPLE))
            kept = strongest(count, strengths.get(next(readers)))
        cut(convolution, inputs, kept)
        cut_norm(getattr(block, norm), cast(Tensor, kept))
    cut(getattr(block, names[-1][0]), kept, None)


def strongest(count: int, strengths: Tensor | None) -> Tensor:
    """The places of the `count` strongest channels, ascending; of the first ones where no strength is known."""
    if strengths is None:
        return torch.arange(count)
    return torch.topk(strengths, count).indices.sort().values


def cut(convolution: nn.Conv2d, inputs: Tensor | None, outputs: Tensor | None) -> None:
    """Leave the convolution these input and output channels; None: all of them."""
    if convolution.groups > 1:
        inputs = None
        if outputs is not None:
            convolution.groups = convolution.in_channels = len(outputs)
    weight = convolution.weight.detach()
    weight = weight if outputs is None else weight[outputs]
    weight = weight if inputs is None else weight[:, inputs]
    convolution.weight = nn.Parameter(weight.clone())
    convolution.out_channels = len(weight)
    if inputs is not None:
        convolution.in_channels = len(inputs)


def cut_norm(norm: nn.BatchNorm2d, channels: Tensor) -> None:
    """Leave a batch norm these channels."""
    norm.num_features = len(channels)
    for name in ("weight", "bias"):
        setattr(norm, name, nn.Parameter(getattr(norm, name).detach()[channels].clone()))
    for name in ("running_mean", "running_var"):
        norm.register_buffer(name, getattr(norm, name)[channels].clone())
