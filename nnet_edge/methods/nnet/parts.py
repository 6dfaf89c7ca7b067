"""The trained parts of N-Net beside the encoders: FPM, NFS, FFC and the decoder (specification sections 3 to 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnet_edge.methods.backbone import Backbone, Features
from nnet_edge.methods.cosine import unit

NORM_EPSILON = 1e-12  # smallest sum of the memory's weights
SHRINK_SOFTNESS = 0.01  # width of the shrinkage's step, in thresholds
CORESET_POOL = 30_000  # positions that a coreset is chosen from; the choice takes seconds
MAX_EMPTY_ROWS = 0.01  # share of queries whose weights are all shrunk to zero; above it the memory is dying


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


class FeatureStorage(nn.Module):
    """NFS: every position of F3 is replaced by what a learned memory of normal features recalls for it (section 4).

    The shrinkage threshold is lambda / slots, never a fixed number: with cosines and a softmax at temperature 1 the largest
    possible weight is e / (e + slots - 1), and a threshold above it empties the memory for good (A-4).

    Deviation: the shrinkage divides by |w - lambda| + 0.01 lambda, where the public MemAE code adds 1e-12. With 1e-12 a weight
    jumps from 0 to lambda at the threshold, so that rounding decides what is recalled, another way in every runner (seen:
    layer maps 2e-3 apart), and ONNX Runtime drops so small a sum as a no-op, which leaves 0 / 0.
    """

    def __init__(
        self, slots: int, channels: int, temperature: float, lambda_times_slots: float, addressing: str
    ) -> None:
        super().__init__()
        bound = channels**-0.5
        self.memory = nn.Parameter(torch.empty(slots, channels).uniform_(-bound, bound))
        self.temperature = temperature
        self.threshold = lambda_times_slots / slots
        self.addressing = addressing

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The recalled features (N, C, H, W) and the weights (N*H*W, slots) that equation 5 takes the entropy of; FP32."""
        with torch.autocast(features.device.type, enabled=False):
            return self.recall_rows(features) if self.training else self.recall(features)

    def recall(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, for a graph.

        Both products are 1x1 convolutions: no reshape needs the batch's size, so nothing but the first cast reads the
        uint8 input (TensorRT refuses even its shape).
        """
        queries, keys = self.compared(features)
        weights = self.weigh(functional.conv2d(queries, keys[:, :, None, None]))
        recalled = functional.conv2d(weights, self.memory.t()[:, :, None, None])
        return recalled, weights.permute(0, 2, 3, 1).flatten(0, 2)

    def recall_rows(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, by matrix products over the positions: for FP32 1x1 convolutions a CPU copies everything."""
        queries, keys = self.compared(features.permute(0, 2, 3, 1).flatten(0, 2))
        weights = self.weigh(queries @ keys.t())
        recalled = (weights @ self.memory).unflatten(0, (len(features), *features.shape[2:]))
        return recalled.permute(0, 3, 1, 2), weights

    def compared(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The queries, channels in dimension 1, and the slots (slots, C), as they are compared; FP32."""
        if self.addressing == "dot_softmax":
            return queries.float(), self.memory
        return unit(queries), unit(self.memory)

    def weigh(self, similarity: Tensor) -> Tensor:
        """Weights, non-negative and summing to 1 over the slots, which are dimension 1 of `similarity`."""
        if self.addressing == "cos_relu":
            weights = torch.relu(similarity)
        else:
            weights = torch.softmax(similarity / self.temperature, dim=1)
        over = weights - self.threshold
        weights = torch.relu(over) * weights / (over.abs() + SHRINK_SOFTNESS * self.threshold)
        return weights / weights.sum(dim=1, keepdim=True).clamp_min(NORM_EPSILON)

    @torch.no_grad()
    def remember(self, features: Tensor, generator: torch.Generator, spread: bool) -> None:
        """Start the memory from positions of `features` (N, C, H, W): drawn at random, or a coreset where `spread`."""
        rows = features.permute(0, 2, 3, 1).flatten(0, 2)
        drawn = torch.randperm(len(rows), generator=generator)[: CORESET_POOL if spread else len(self.memory)]
        rows = rows[drawn].float()
        if spread:
            rows = rows[choose_coreset(rows, len(self.memory))]
        if len(rows) < len(self.memory):  # fewer positions than slots: some are kept twice
            rows = rows[torch.arange(len(self.memory)) % len(rows)]
        self.memory.copy_(rows)


def choose_coreset(rows: Tensor, count: int) -> Tensor:
    """Indices of at most `count` of `rows` (n, C), each the farthest by cosine from those before it (greedy k-centre)."""
    rows = unit(rows)
    chosen = [0]
    distance = 1 - rows @ rows[0]
    while len(chosen) < min(count, len(rows)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, 1 - rows @ rows[chosen[-1]])
    return torch.tensor(chosen)


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
        self, backbone: Backbone, ends_in_relu: bool, order: str = "encoder", recall_residual: bool = False
    ) -> None:
        super().__init__()
        counts: Sequence[int] = backbone.decoder_blocks if order == "encoder" else backbone.decoder_blocks[::-1]
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
