"""Depthwise convolutions whose gradients are quick on a CPU.

oneDNN computes two gradients of depthwise convolutions by a slow reference: that of the input at stride 2, and that of a 5x5
kernel. The same numbers come from kernels that it has: the input's gradient is a convolution of the gradient, spread out with
zeros, with the turned kernel at stride 1; a 5x5 kernel's gradient is put together from 3x3 ones of shifted inputs. Forward
passes, names and weights stay as they are; other devices and evaluation use the plain convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of an input that is padded already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return functional.conv2d(x, weight, None, stride, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x = input_gradient(x, weight, gradient, ctx.stride) if ctx.needs_input_grad[0] else None
        of_weight = weight_gradient(x, weight, gradient, ctx.stride) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


def input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """The gradient of a padded input (N, C, H, W): a stride-1 convolution of the spread-out gradient."""
    kernel = weight.shape[-1]
    height, width = x.shape[2] - kernel + 1, x.shape[3] - kernel + 1  # of the output at stride 1
    if stride > 1:
        spread = gradient.new_zeros((len(x), len(weight), height, width)).contiguous(memory_format=torch.channels_last)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return functional.conv2d(gradient, weight.flip(2, 3), None, 1, kernel - 1, groups=len(weight))


def weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int) -> Tensor:
    """The gradient of a 3x3 or 5x5 kernel (C, 1, k, k), in 3x3 pieces."""
    kernel = weight.shape[-1]
    if kernel == 3:
        return _weight_gradient_3x3(x, weight, gradient, stride)
    whole = torch.empty_like(weight)
    rows, columns = ((size - 1) * stride + 3 for size in gradient.shape[2:])
    corner = weight[:, :, :3, :3].contiguous()
    for top in (0, 2):
        for left in (0, 2):
            part = x[:, :, top : top + rows, left : left + columns].contiguous(memory_format=torch.channels_last)
            whole[:, :, top : top + 3, left : left + 3] = _weight_gradient_3x3(part, corner, gradient, stride)
    return whole


def _weight_gradient_3x3(x: Tensor, weight: Tensor, gradient: Tensor, stride: int) -> Tensor:
    groups, wanted = len(weight), [False, True, False]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride, stride], [0, 0], [1, 1], False, [0, 0], groups, wanted
    )
    return found[1]


class DepthwiseConv2d(nn.Module):
    """Stands in for a depthwise convolution of 3x3 or 5x5, with its weight under the same name."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.stride = convolution.stride[0]
        self.kernel = convolution.kernel_size[0]
        # TensorFlow's padding, which timm calls "same", depends on the size; torch's is the same on all sides
        self.padding = None if type(convolution).__name__ == "Conv2dSame" else int(convolution.padding[0])

    def pad(self, x: Tensor) -> Tensor:
        """The input with its border of zeros."""
        if self.padding is not None:
            return functional.pad(x, [self.padding] * 4)
        missing = [max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in x.shape[2:]]
        (top, left) = (size // 2 for size in missing)
        return functional.pad(x, [left, missing[1] - left, top, missing[0] - top])

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of (N, C, H, W)."""
        if not (self.training and torch.is_grad_enabled() and x.device.type == "cpu"):
            return functional.conv2d(self.pad(x), self.weight, None, self.stride, groups=len(self.weight))
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        return _Depthwise.apply(self.pad(x).contiguous(memory_format=torch.channels_last), weight, self.stride)


def with_quick_depthwise(network: nn.Module) -> nn.Module:
    """The same network with every depthwise convolution of 3x3 and 5x5 replaced; weights and names stay."""
    for name, child in list(network.named_children()):
        is_depthwise = isinstance(child, nn.Conv2d) and child.groups == child.in_channels == child.out_channels > 1
        if is_depthwise and child.bias is None and child.kernel_size in ((3, 3), (5, 5)) and child.dilation == (1, 1):
            setattr(network, name, DepthwiseConv2d(child))
        else:
            with_quick_depthwise(child)
    return network
