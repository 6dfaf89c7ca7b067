"""Depthwise convolutions with gradients that are quick on a CPU.

oneDNN computes two gradients of depthwise convolutions by slow references: that of a 5x5 kernel, and that of the input at
stride 2 in BF16. The same numbers come from kernels that it has: a 5x5 kernel's gradient is the diagonal of that of a
convolution in groups of 16 channels, 16 times the work in half the time and less; the input's gradient is a convolution of
the gradient, spread out with zeros, with the turned kernel at stride 1. Forward passes, names and weights stay as they are;
other devices and evaluation use the plain convolution.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP = 16  # channels; as wide as oneDNN's blocks. 8 and 32 take 1.4 times as long


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution with the same border of zeros on all sides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x = input_gradient(x, weight, gradient, ctx.stride, ctx.padding) if ctx.needs_input_grad[0] else None
        of_weight = weight_gradient(x, weight, gradient, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None


def input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the input (N, C, H, W), by the quickest kernel."""
    if stride > 1 and x.dtype != torch.bfloat16:
        return _convolution_backward(x, weight, gradient, stride, padding, len(weight), 0)
    return spread_input_gradient(x, weight, gradient, stride, padding)


def spread_input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the input (N, C, H, W): a stride-1 convolution of the spread-out gradient."""
    kernel = weight.shape[-1]
    if stride > 1:
        height, width = (size + 2 * padding - kernel + 1 for size in x.shape[2:])  # of the output at stride 1
        spread = gradient.new_empty((len(x), height, width, len(weight))).zero_().permute(0, 3, 1, 2)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return functional.conv2d(gradient, weight.flip(2, 3), None, 1, kernel - 1 - padding, groups=len(weight))


def weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of a kernel (C, 1, k, k)."""
    channels, _, kernel, _ = weight.shape
    if kernel == 3:
        return _convolution_backward(x, weight, gradient, stride, padding, channels, 1)
    size = math.gcd(channels, GROUP)
    wide = weight.new_empty((channels, size, kernel, kernel)).contiguous(memory_format=torch.channels_last)
    found = _convolution_backward(x, wide, gradient, stride, padding, channels // size, 1)
    each = torch.arange(channels)
    return found[each, each % size].unsqueeze(1)


def _convolution_backward(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: int, padding: int, groups: int, wanted: int
) -> Tensor:
    """oneDNN's gradient of the input (`wanted` 0) or of the weight (1), whose values are not read then."""
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups,
        [wanted == 0, wanted == 1, False],
    )[wanted]  # fmt: skip


class DepthwiseConv2d(nn.Module):
    """Stands in for a depthwise convolution of 3x3 or 5x5, with its weight under the same name."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias: nn.Parameter | None = None  # of a batch norm that was folded into it, see folding.py
        self.stride = convolution.stride[0]
        self.kernel = convolution.kernel_size[0]
        # TensorFlow's padding, which timm calls "same", depends on the size; torch's is the same on all sides
        self.padding = None if type(convolution).__name__ == "Conv2dSame" else int(convolution.padding[0])

    def border(self, x: Tensor) -> tuple[int, int, int, int]:
        """The zeros beside the input (left, right, top, bottom) that "same" asks for."""
        if self.padding is not None:
            return (0, 0, 0, 0)
        missing = [max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[2:]]
        (top, left) = (size // 2 for size in missing)
        return (left, missing[1] - left, top, missing[0] - top)

    def forward(self, x: Tensor, is_padded: bool = False) -> Tensor:
        """The convolution of (N, C, H, W), `is_padded` when it has its border already."""
        weight, padding, quick = self.weight, self.padding or 0, is_quick(self, x)
        if quick and torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        if self.padding is None and not is_padded:
            x = functional.pad(x, self.border(x))
        if not quick:
            return functional.conv2d(x, weight, self.bias, self.stride, padding, groups=len(weight))
        return _Depthwise.apply(x.contiguous(memory_format=torch.channels_last), weight, self.stride, padding)


def is_quick(module: nn.Module, x: Tensor) -> bool:
    """Whether gradients of `module` will be asked for on a processor."""
    return module.training and torch.is_grad_enabled() and x.device.type == "cpu"


def with_quick_depthwise(network: nn.Module) -> nn.Module:
    """The same network with every depthwise convolution of 3x3 and 5x5 replaced; weights and names stay."""
    for name, child in list(network.named_children()):
        is_depthwise = isinstance(child, nn.Conv2d) and child.groups == child.in_channels == child.out_channels > 1
        if is_depthwise and child.bias is None and child.kernel_size in ((3, 3), (5, 5)) and child.dilation == (1, 1):
            setattr(network, name, DepthwiseConv2d(child))
        else:
            with_quick_depthwise(child)
    return network
