"""Blocks that networks share: feature projection, residual blocks, the fusing bottleneck (FFC or OCBE), the decoder.

The specification's sections 3, 5 and 6; without `use_ffc` and `recall_residual` they are reverse distillation's (RD4AD).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nnet_edge.methods.backbone import Backbone, Features


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded to keep the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class FeatureProjection(nn.Module):
    """FPM: gates a feature map along both axes, P = x * a_h * a_w (paper section 3.2; coordinate attention).

    (N, C, H, W) in and out. The inner width is C / reduction, at least 8 (A-2); `mid` as in A-1.
    """

    def __init__(self, channels: int, reduction: int = 32, mid: str = "bn_hswish") -> None:
        super().__init__()
        width = max(8, channels // reduction)
        self.reduce = nn.Conv2d(channels, width, 1)
        self.mid = nn.Sequential(nn.BatchNorm2d(width), nn.Hardswish()) if mid == "bn_hswish" else nn.Identity()
        self.restore_height = nn.Conv2d(width, channels, 1)
        self.restore_width = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The gated feature map, same shape as `x`."""
        height, width = x.shape[2:]
        along_height = x.mean(dim=3, keepdim=True)  # (N, C, H, 1)
        along_width = x.mean(dim=2, keepdim=True).transpose(2, 3)  # (N, C, W, 1)
        reduced = self.mid(self.reduce(torch.cat([along_height, along_width], dim=2)))
        rows, columns = reduced.split([height, width], dim=2)
        gate_rows = torch.sigmoid(self.restore_height(rows))
        gate_columns = torch.sigmoid(self.restore_width(columns.transpose(2, 3)))
        return x * gate_rows * gate_columns


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, as in ResNet-18; `scale` 1 keeps the size, 2 halves it, -2 doubles it."""

    def __init__(self, inputs: int, outputs: int, scale: int = 1, width: int = 0, ends_in_relu: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _resample(inputs, outputs, scale),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            conv(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = _shortcut(inputs, outputs, scale)
        self.end = nn.ReLU(inplace=True) if ends_in_relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, H / scale, W / scale)."""
        return self.end(self.body(x) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (or a 2x2 transposed convolution), 1x1 and a shortcut, as in ResNet-50; `scale` as in BasicBlock."""

    def __init__(self, inputs: int, outputs: int, scale: int = 1, width: int = 0, ends_in_relu: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn_relu(inputs, width, 1),
            _resample(width, width, scale),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            conv(width, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = _shortcut(inputs, outputs, scale)
        self.end = nn.ReLU(inplace=True) if ends_in_relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, H / scale, W / scale)."""
        return self.end(self.body(x) + self.shortcut(x))


def _resample(inputs: int, outputs: int, scale: int) -> nn.Module:
    if scale == -2:
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    return conv(inputs, outputs, 3, scale)


def _shortcut(inputs: int, outputs: int, scale: int) -> nn.Module:
    if scale == 1 and inputs == outputs:
        return nn.Identity()
    if scale == -2:
        resample: nn.Module = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    else:
        resample = conv(inputs, outputs, 1, scale)
    return nn.Sequential(resample, nn.BatchNorm2d(outputs))


def _block_of(backbone: Backbone) -> Callable[..., nn.Module]:
    return BottleneckBlock if backbone.block == "bottleneck" else BasicBlock


class FeatureFusion(nn.Module):
    """FFC: three scales aligned at 1/16, added top-down (equation 6), concatenated and compressed to F_C at 1/32.

    With `use_ffc` False it is the bottleneck of reverse distillation instead (RD4AD: concatenation and three residual
    blocks), the baseline of Table 5.
    """

    def __init__(self, backbone: Backbone, residual_blocks: int = 4, use_ffc: bool = True) -> None:
        super().__init__()
        first, second, third = backbone.channels
        self.use_ffc = use_ffc
        self.align_first = nn.Sequential(conv_bn_relu(first, second, stride=2), conv_bn_relu(second, third, stride=2))
        self.align_second = conv_bn_relu(second, third, stride=2)
        self.mix = conv_bn_relu(3 * third, 3 * third, 1) if use_ffc else nn.Identity()
        block, outputs = _block_of(backbone), backbone.fusion_channels
        counted = range(residual_blocks if use_ffc else 3)
        self.residual = nn.Sequential(
            *(
                block(
                    3 * third if n == 0 else outputs, outputs, 2 if n == 0 else 1, backbone.width_factor * outputs // 4
                )
                for n in counted
            )
        )

    def forward(self, projected: Features) -> Tensor:
        """F_C (N, 2 * C3, H/32, W/32) of the projected features P1, P2, P3."""
        first, second, third = self.align_first(projected[0]), self.align_second(projected[1]), projected[2]
        if self.use_ffc:  # equation 6, from the deepest scale up: Q1 holds all three
            second = second + third
            first = first + second
        return self.residual(self.mix(torch.cat([first, second, third], dim=1)))


class Decoder(nn.Module):
    """S2: three stages that each double the size; the outputs D1, D2, D3 have the shapes of F1, F2, F3 (section 6).

    Where the teacher's feature maps have both signs the last block of a stage ends without its ReLU, else D could not
    reach them; the published decoder of reverse distillation always ends in ReLU. With `recall_residual` D3 is what the
    memory recalls plus a learned correction that starts at zero, so that the deepest reverse map starts as the distance to
    the stored normal features (not in the paper).
    """

    def __init__(
        self,
        backbone: Backbone,
        ends_in_relu: bool,
        order: str = "encoder",
        recall_residual: bool = False,
        depth: int = 0,
    ) -> None:
        """`depth`: blocks of a stage at most, 0 for as many as the backbone says."""
        super().__init__()
        counts: Sequence[int] = backbone.decoder_blocks if order == "encoder" else backbone.decoder_blocks[::-1]
        counts = [min(count, depth or count) for count in counts]
        inputs = backbone.fusion_channels
        stages = []
        for outputs, count in zip(backbone.channels[::-1], counts, strict=True):
            stages.append(_decoder_stage(backbone, inputs, outputs, count, ends_in_relu))
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.gain = nn.Parameter(torch.zeros(1, backbone.channels[2], 1, 1)) if recall_residual else None

    def forward(self, fused: Tensor, recalled: Tensor) -> Features:
        """D1 (N, C1, H/4, W/4), D2 and D3 from F_C (N, 2 * C3, H/32, W/32) and F3' (N, C3, H/16, W/16)."""
        third = self.stages[0](fused)
        if self.gain is not None:
            third = recalled + self.gain * third
        second = self.stages[1](third)
        return self.stages[2](second), second, third


def _decoder_stage(backbone: Backbone, inputs: int, outputs: int, count: int, ends_in_relu: bool) -> nn.Sequential:
    width = backbone.width_factor * outputs // 4
    blocks = []
    for n in range(count):
        is_last = n == count - 1
        scale = -2 if n == 0 else 1
        blocks.append(
            _block_of(backbone)(inputs if n == 0 else outputs, outputs, scale, width, ends_in_relu or not is_last)
        )
    return nn.Sequential(*blocks)
