"""A pointwise convolution to many channels with its batch norm and ReLU6, trained at half the cost.

What a 1x1 convolution gives of x has the mean W mean(x) and the variance diag(W cov(x) W'), so the statistics of the wide map
are known from the narrow one, and one convolution with the norm folded in gives the normalised map. Its gradient needs the
wide map once: the sums that a batch norm subtracts are rows of the weight's gradient, and what it subtracts from the input's
gradient is a small convolution of the narrow map. The map before the norm is neither kept nor read.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nnet_edge.methods.depthwise import DepthwiseConv2d, is_quick, with_quick_depthwise

WIDEST_INPUT = 48  # channels; of more, their covariance and the small convolution cost what they save
NO_BORDER = (0, 0, 0, 0)  # left, right, top, bottom
TOP = 6.0


class _Expansion(torch.autograd.Function):
    """ReLU6 of the normalised convolution, in a border of zeros; and the mean and variance of each of its channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gain: Tensor, shift: Tensor, epsilon: float,
                border: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        matrix = weight.flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.permute(0, 2, 3, 1).flatten(0, 2).to(matrix.dtype)
            centre = rows.mean(dim=0)
            rows = rows - centre
            spread = matrix @ (rows.t() @ rows / len(rows))  # of each output with each input
            mean, variance = matrix @ centre, (spread * matrix).sum(dim=1).clamp_min(0)
            inverse = (variance + epsilon).rsqrt()
            scale = gain * inverse
            folded = (matrix * scale[:, None]).to(x.dtype)[:, :, None, None]
            bias = (shift - scale * mean).to(x.dtype)
            padded = functional.pad(x, border) if any(border) else x
            wide = functional.conv2d(padded, folded, bias).clamp_(0, TOP)
        left, right, top, bottom = border
        height, width = wide.shape[2:]
        for edge in (wide[:, :, :top], wide[:, :, height - bottom :], wide[..., :left], wide[..., width - right :]):
            edge.zero_()
        ctx.save_for_backward(x, matrix, wide, centre, spread, mean, inverse, scale)
        ctx.border = border
        ctx.mark_non_differentiable(mean, variance)
        return wide, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix, wide, centre, spread, mean, inverse, scale = ctx.saved_tensors
        masked = torch.ops.aten.hardtanh_backward(gradients[0], wide, 0, TOP)  # 0 in the border, where `wide` is 0
        padded = functional.pad(x, ctx.border) if any(ctx.border) else x
        folded = (matrix * scale[:, None]).to(x.dtype)[:, :, None, None]
        of_x, of_folded, of_bias = torch.ops.aten.convolution_backward(
            masked, padded, folded, [len(matrix)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
            [ctx.needs_input_grad[0], True, True],
        )  # fmt: skip
        products, sums = (
            of_folded.flatten(1).to(matrix.dtype),
            of_bias.to(matrix.dtype),
        )  # of the masked gradient with x, and alone
        along = inverse * ((matrix * products).sum(dim=1) - mean * sums)  # with the normalised map
        of_weight = scale[:, None] * (products - sums[:, None] * centre - (along * inverse)[:, None] * spread)
        if of_x is not None:
            count = x.numel() // x.shape[1]
            away = (scale * inverse * along / count)[:, None] * matrix
            back = matrix.t() @ away
            constant = matrix.t() @ (scale * sums / count) - back @ centre
            left, _, top, _ = ctx.border
            height, width = x.shape[2:]
            of_x = of_x[:, :, top : top + height, left : left + width]
            of_x = of_x - functional.conv2d(x, back.to(x.dtype)[:, :, None, None], constant.to(x.dtype))
        return of_x, of_weight[:, :, None, None], along, sums, None, None


class QuickResidual(nn.Module):
    """Stands in for an inverted residual block of timm's, with its weights under the same names."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv_pw, self.bn1 = block.conv_pw, block.bn1
        self.conv_dw, self.bn2 = block.conv_dw, block.bn2
        self.conv_pwl, self.bn3 = block.conv_pwl, block.bn3
        self.has_skip = block.has_skip

    def forward(self, x: Tensor) -> Tensor:
        """As of the block."""
        quick = is_quick(self, x)
        wide = self.conv_dw(self.expanded(x) if quick else self.bn1(self.conv_pw(x)), is_padded=quick)
        narrow = self.bn3(self.conv_pwl(self.bn2(wide)))
        return narrow + x if self.has_skip else narrow

    def expanded(self, x: Tensor) -> Tensor:
        """What the depthwise convolution takes, in its border; the norm's running statistics follow."""
        norm = self.bn1
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        x = x.contiguous(memory_format=torch.channels_last)
        border = cast(DepthwiseConv2d, self.conv_dw).border(x)
        wide, mean, variance = _Expansion.apply(x, self.conv_pw.weight, norm.weight, norm.bias, norm.eps, border)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        return wide


def with_quick_training(network: nn.Module) -> nn.Module:
    """The same network, quicker to train on a processor: depthwise convolutions and expansions; weights and names stay."""
    with_quick_depthwise(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "InvertedResidual" and has_quick_expansion(child):
                setattr(parent, name, QuickResidual(child))
    return network


def has_quick_expansion(block: Any) -> bool:
    """Whether the block is a narrow map's, made of what QuickResidual computes and nothing else."""
    rest = (block.aa, block.se, block.drop_path)
    return (
        block.conv_s2d is None
        and all(isinstance(part, nn.Identity) for part in rest)
        and block.conv_pw.kernel_size == (1, 1)
        and block.conv_pw.bias is None
        and block.conv_pw.in_channels <= WIDEST_INPUT
        and isinstance(block.bn1.act, nn.ReLU6)
        and block.bn1.momentum is not None
        and isinstance(block.conv_dw, DepthwiseConv2d)
    )
