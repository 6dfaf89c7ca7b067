"""Each part of N-Net against a slow computation written out in NumPy, and against the specification's table of costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnet_edge.methods.backbone import BACKBONES, Backbone, build_encoder, find_backbone
from nnet_edge.methods.blocks import BasicBlock, BottleneckBlock, Decoder, FeatureFusion, FeatureProjection
from nnet_edge.methods.nnet import parts
from nnet_edge.methods.nnet.network import build_memory, build_projections, empty_row_share
from nnet_edge.methods.nnet.parts import (
    MAX_EMPTY_ROWS,
    SHRINK_SOFTNESS,
    FeatureStorage,
    choose_coreset,
)
from nnet_edge.methods.nnet.settings import ModelSettings

SUM_ATOL = 2e-5  # FP32 sums of some hundred products of numbers near 1
TINY_BASIC = replace(find_backbone("resnet18"), channels=(2, 3, 4), decoder_blocks=(2, 1, 1))
TINY_BOTTLENECK = replace(find_backbone("wide_resnet50_2"), channels=(4, 8, 12), decoder_blocks=(1, 1, 1))


def random_state(part: nn.Module, seed: int) -> nn.Module:
    """`part` in evaluation mode, every weight and statistic random and none at its neutral start."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in part.state_dict().items():
        if value.dtype.is_floating_point:
            drawn = torch.rand(value.shape, generator=generator)
            value.copy_(drawn + 0.5 if name.endswith("running_var") else drawn - 0.5)
    return part.eval()


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_conv(x: np.ndarray, weight: np.ndarray, stride: int = 1, bias: np.ndarray | None = None) -> np.ndarray:
    """Cross-correlation of (N, C, H, W), zero-padded by half the kernel, one output position at a time."""
    kernel = weight.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (kernel // 2, kernel // 2), (kernel // 2, kernel // 2)))
    height, width = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
    out = np.zeros((len(x), len(weight), height, width))
    for row in range(height):
        for column in range(width):
            window = padded[:, :, row * stride : row * stride + kernel, column * stride : column * stride + kernel]
            out[:, :, row, column] = np.einsum("nckl,ockl->no", window, weight)
    return out if bias is None else out + bias[None, :, None, None]


def slow_enlarge(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Transposed 2 x 2 convolution with stride 2: every input position paints its own 2 x 2 square."""
    out = np.zeros((len(x), weight.shape[1], 2 * x.shape[2], 2 * x.shape[3]))
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            square = np.einsum("nc,cokl->nokl", x[:, :, row, column], weight)
            out[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = square
    return out


def slow_sequence(modules: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """Convolutions, batch norms in evaluation mode and ReLUs, one after the other."""
    for module in modules:
        weights = {name: value.double().numpy() for name, value in module.state_dict().items()}
        if isinstance(module, nn.Sequential):
            x = slow_sequence(module, x)
        elif isinstance(module, nn.ConvTranspose2d):
            x = slow_enlarge(x, weights["weight"])
        elif isinstance(module, nn.Conv2d):
            x = slow_conv(x, weights["weight"], int(module.stride[0]), weights.get("bias"))
        elif isinstance(module, nn.BatchNorm2d):
            slope = weights["weight"] / np.sqrt(weights["running_var"] + module.eps)
            offset = weights["bias"] - weights["running_mean"] * slope
            x = x * slope[None, :, None, None] + offset[None, :, None, None]
        elif isinstance(module, nn.ReLU):
            x = np.maximum(x, 0)
        elif isinstance(module, BasicBlock | BottleneckBlock):
            x = slow_block(module, x)
        else:
            raise AssertionError(f"the slow computation knows no {module}")
    return x


def slow_block(block: BasicBlock | BottleneckBlock, x: np.ndarray) -> np.ndarray:
    shortcut = slow_sequence(block.shortcut, x) if isinstance(block.shortcut, nn.Sequential) else x
    total = slow_sequence(block.body, x) + shortcut
    return np.maximum(total, 0) if isinstance(block.end, nn.ReLU) else total


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("mid", ["bn_hswish", "none"])
def test_projection_is_coordinate_attention_written_out(mid: str) -> None:
    part = random_state(FeatureProjection(20, reduction=2, mid=mid), seed=1)
    x = random_features(2, 20, 5, 7, seed=2)
    weights = {name: value.double().numpy() for name, value in part.state_dict().items()}

    def reduced(vector: np.ndarray) -> np.ndarray:  # one pooled position: (N, C) -> (N, 10)
        y = vector @ weights["reduce.weight"][:, :, 0, 0].T + weights["reduce.bias"]
        if mid == "bn_hswish":
            y = (y - weights["mid.0.running_mean"]) / np.sqrt(weights["mid.0.running_var"] + 1e-5)
            y = y * weights["mid.0.weight"] + weights["mid.0.bias"]
            y = y * np.clip(y + 3, 0, 6) / 6
        return y

    pixels = x.double().numpy()
    expected = np.empty_like(pixels)
    for row in range(5):
        for column in range(7):
            of_row = reduced(pixels[:, :, row, :].mean(axis=2)) @ weights["restore_height.weight"][:, :, 0, 0].T
            of_column = reduced(pixels[:, :, :, column].mean(axis=2)) @ weights["restore_width.weight"][:, :, 0, 0].T
            gates = sigmoid(of_row + weights["restore_height.bias"]) * sigmoid(
                of_column + weights["restore_width.bias"]
            )
            expected[:, :, row, column] = pixels[:, :, row, column] * gates
    with torch.no_grad():
        np.testing.assert_allclose(part(x).numpy(), expected, atol=SUM_ATOL)


def test_projection_keeps_signs_and_only_shrinks() -> None:
    x = random_features(1, 16, 8, 8)
    with torch.no_grad():
        projected = random_state(FeatureProjection(16), seed=3)(x)
    assert torch.equal(projected.sign(), x.sign())
    assert bool((projected.abs() < x.abs()).all())


@pytest.mark.parametrize(("channels", "width"), [(256, 8), (512, 16), (1024, 32), (24, 8)])
def test_width_of_the_projection(channels: int, width: int) -> None:
    assert FeatureProjection(channels).reduce.out_channels == width


def slow_recall(
    query: np.ndarray, memory: np.ndarray, addressing: str, temperature: float, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """What one query recalls, and the weights of the slots."""
    weights = np.empty(len(memory))
    for slot, row in enumerate(memory):
        weights[slot] = query @ row
        if addressing != "dot_softmax":
            weights[slot] /= np.sqrt(query @ query) * np.sqrt(row @ row)
    if addressing == "cos_relu":
        weights = np.maximum(weights, 0)
    else:
        weights = np.exp(weights / temperature) / np.exp(weights / temperature).sum()
    kept = [max(w - threshold, 0) * w / (abs(w - threshold) + SHRINK_SOFTNESS * threshold) for w in weights]
    shrunk = np.array(kept) / sum(kept)
    return shrunk @ memory, shrunk


@pytest.mark.parametrize("addressing", ["cos_softmax", "dot_softmax", "cos_relu"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_memory_recalls_position_by_position(addressing: str, temperature: float) -> None:
    part = random_state(FeatureStorage(12, 6, temperature, 1.0, addressing), seed=4)
    features = random_features(2, 6, 3, 5, seed=5)
    with torch.no_grad():
        recalled, weights = part(features)
    queries, memory = features.double().numpy(), part.memory.detach().double().numpy()
    rows = []
    for image in range(2):
        for row in range(3):
            for column in range(5):
                expected, slots = slow_recall(queries[image, :, row, column], memory, addressing, temperature, 1 / 12)
                np.testing.assert_allclose(recalled[image, :, row, column], expected, atol=SUM_ATOL)
                rows.append(slots)
    np.testing.assert_allclose(weights.numpy(), np.stack(rows), atol=SUM_ATOL)  # one row a position, images first
    assert (np.stack(rows) == 0).any(), "no weight was shrunk: the case tests nothing"


@pytest.mark.parametrize("addressing", ["cos_softmax", "dot_softmax", "cos_relu"])
def test_memory_in_training_recalls_and_learns_as_the_graph_does(addressing: str) -> None:
    part = random_state(FeatureStorage(24, 6, 0.1, 1.0, addressing), seed=9)
    found = []
    for is_training in (False, True):
        features = random_features(2, 6, 3, 5, seed=10).requires_grad_()
        part.memory.grad = None
        recalled, weights = part.train(is_training)(features)
        (
            recalled.square().sum() + (weights * torch.linspace(-1, 1, weights.numel()).reshape(weights.shape)).sum()
        ).backward()
        found.append((recalled, weights, features.grad, part.memory.grad))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_softer_shrinkage_stays_near_the_published_one() -> None:
    memory = random_state(FeatureStorage(32, 16, 0.1, 1.0, "cos_softmax"), seed=6)
    features = random_features(1, 16, 4, 4, seed=7)
    with torch.no_grad():
        cosines = nn.functional.normalize(features[0].flatten(1).T) @ nn.functional.normalize(memory.memory).T
        hard = torch.softmax(cosines / 0.1, dim=1)
        hard = torch.where(hard > 1 / 32, hard, 0)
        hard = hard / hard.sum(dim=1, keepdim=True)
        _, soft = memory(features)
    assert float((soft - hard).abs().max()) < 1 / 32  # at the step itself, one threshold high
    assert float((soft - hard).abs().mean()) < 0.02 / 32  # everywhere else: the step is 1 % of the threshold wide


def test_memory_lives_at_its_defaults_and_dies_above_the_threshold() -> None:
    """The trap of A-4: cosines, a softmax at temperature 1, and lambda of 3 / slots leave nothing."""
    features = random_features(1, 112, 4, 4).relu()

    def empty_share(lambda_times_slots: float) -> float:
        torch.manual_seed(0)
        settings = ModelSettings(memory_lambda_times_slots=lambda_times_slots)
        with torch.no_grad():
            return empty_row_share(build_memory(settings, find_backbone("efficientnet_lite0"))(features)[1])

    assert empty_share(1.0) == 0
    assert empty_share(3.0) == 1 > MAX_EMPTY_ROWS


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize(("slots", "different"), [(5, 5), (48, 48), (60, 48)])
def test_memory_starts_from_features_that_it_is_shown(spread: bool, slots: int, different: int) -> None:
    memory = FeatureStorage(slots, 6, 1.0, 1.0, "cos_softmax")
    features = random_features(3, 6, 4, 4)
    memory.remember(features, torch.Generator().manual_seed(1), spread)
    positions = {tuple(position) for position in features.permute(0, 2, 3, 1).reshape(-1, 6).tolist()}
    chosen = [tuple(slot) for slot in memory.memory.tolist()]
    assert set(chosen) <= positions
    assert len(chosen) == slots
    assert len(set(chosen)) == different


def test_coreset_takes_the_farthest_each_time() -> None:
    rows = random_features(40, 5)
    unit_rows = rows.double().numpy() / np.linalg.norm(rows.double().numpy(), axis=1, keepdims=True)
    expected = [0]
    while len(expected) < 12:
        nearest = [max(float(row @ unit_rows[one]) for one in expected) for row in unit_rows]
        expected.append(int(np.argmin(nearest)))
    assert choose_coreset(rows, 12).tolist() == expected


def test_memory_computes_in_fp32_under_autocast() -> None:
    memory = random_state(FeatureStorage(64, 16, 1.0, 1.0, "cos_softmax"), seed=8)
    features = random_features(1, 16, 4, 4).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        recalled, weights = memory(features)
    with torch.no_grad():
        expected, _ = memory(features.float())
    assert recalled.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(recalled, expected)


@pytest.mark.parametrize("use_ffc", [True, False])
@pytest.mark.parametrize("backbone", [TINY_BASIC, TINY_BOTTLENECK], ids=lambda backbone: backbone.block)
def test_fusion_written_out(backbone: Backbone, use_ffc: bool) -> None:
    part = random_state(FeatureFusion(backbone, 2, use_ffc), seed=9)
    first, second, third = backbone.channels
    projected = (
        random_features(1, first, 16, 16, seed=1),
        random_features(1, second, 8, 8, seed=2),
        random_features(1, third, 4, 4, seed=3),
    )
    p1, p2, p3 = (value.double().numpy() for value in projected)
    aligned_1, aligned_2 = slow_sequence(part.align_first, p1), slow_sequence(part.align_second, p2)
    if use_ffc:  # equation 6, and the 1x1 convolution that only FFC has
        stacked = np.concatenate([aligned_1 + aligned_2 + p3, aligned_2 + p3, p3], axis=1)
        stacked = slow_sequence(part.mix, stacked)
    else:
        stacked = np.concatenate([aligned_1, aligned_2, p3], axis=1)
    expected = slow_sequence(part.residual, stacked)
    assert len(part.residual) == (2 if use_ffc else 3)
    with torch.no_grad():
        fused = part(projected).numpy()
    assert fused.shape == (1, 2 * third, 2, 2)
    np.testing.assert_allclose(fused, expected, atol=SUM_ATOL, rtol=1e-4)


@pytest.mark.parametrize("ends_in_relu", [True, False])
@pytest.mark.parametrize("backbone", [TINY_BASIC, TINY_BOTTLENECK], ids=lambda backbone: backbone.block)
def test_decoder_written_out(backbone: Backbone, ends_in_relu: bool) -> None:
    part = random_state(Decoder(backbone, ends_in_relu), seed=10)
    fused = random_features(2, backbone.fusion_channels, 2, 2)
    recalled = random_features(2, backbone.channels[2], 4, 4, seed=1)
    third = slow_sequence(part.stages[0], fused.double().numpy())
    second = slow_sequence(part.stages[1], third)
    first = slow_sequence(part.stages[2], second)
    with torch.no_grad():
        found = part(fused, recalled)
    for value, expected, channels, side in zip(
        found, (first, second, third), backbone.channels, (16, 8, 4), strict=True
    ):
        assert value.shape == (2, channels, side, side)
        np.testing.assert_allclose(value.numpy(), expected, atol=SUM_ATOL, rtol=1e-4)
        assert (float(value.min()) < 0) == (not ends_in_relu)


def test_decoder_that_corrects_the_recall_starts_as_the_recall() -> None:
    torch.manual_seed(0)
    part = Decoder(TINY_BASIC, ends_in_relu=False, recall_residual=True).eval()
    fused, recalled = random_features(1, 8, 2, 2), random_features(1, 4, 4, 4, seed=1)
    assert part.gain is not None
    with torch.no_grad():
        assert torch.equal(part(fused, recalled)[2], recalled)
        part.gain.fill_(0.5)
        first, second, third = part(fused, recalled)
        torch.testing.assert_close(third, recalled + 0.5 * part.stages[0](fused))
        assert torch.equal(second, part.stages[1](third)), "the finer scales are decoded from what was corrected"
        assert torch.equal(first, part.stages[2](second))


@pytest.mark.parametrize(("order", "blocks"), [("encoder", (3, 4, 6)), ("mirrored", (6, 4, 3))])
def test_order_of_the_decoder(order: str, blocks: tuple[int, ...]) -> None:
    with torch.device("meta"):
        decoder = Decoder(find_backbone("wide_resnet50_2"), True, order)
    assert tuple(len(stage) for stage in decoder.stages) == blocks


def millions(part: nn.Module) -> float:
    return sum(value.numel() for value in part.parameters()) / 1e6


def gmacs(part: nn.Module, *inputs: object) -> float:
    with FlopCounterMode(display=False) as counter:
        part(*inputs)
    return counter.get_total_flops() / 2e9


WIDE = find_backbone("wide_resnet50_2")


def wide_features() -> tuple[torch.Tensor, ...]:
    sides = (64, 32, 16)
    return tuple(torch.empty(1, channels, side, side) for channels, side in zip(WIDE.channels, sides, strict=True))


@pytest.mark.parametrize(
    ("name", "parameters", "cost"),
    [
        ("encoder", 24.863, 11.999),
        ("memory 512", 0.524, 0.268),
        ("memory 2000", 2.048, 1.049),
        ("projections", 0.133, 0.004),
        ("fusion", 81.968, 10.603),
        ("decoder", 24.918, 11.140),
    ],
)
def test_cost_of_each_part_of_the_paper_s_model(name: str, parameters: float, cost: float) -> None:
    """The rows of the specification's table, 256 x 256 pixels."""
    with FakeTensorMode():  # shapes without values
        features = wide_features()
        if name == "encoder":
            part: nn.Module = build_encoder(WIDE)
            found = gmacs(part, torch.empty(1, 3, 256, 256))
        elif name.startswith("memory"):
            part = build_memory(ModelSettings(WIDE.name, memory_slots=int(name.split()[1])), WIDE)
            found = gmacs(part, features[2])
        elif name == "projections":
            part = build_projections(ModelSettings(WIDE.name), WIDE)
            found = sum(gmacs(projection, value) for projection, value in zip(part, features, strict=True))
        elif name == "fusion":
            part = FeatureFusion(WIDE)
            found = gmacs(part, features)
        else:
            part = Decoder(WIDE, True)
            found = gmacs(part, torch.empty(1, 2048, 8, 8), features[2])
    assert millions(part) == pytest.approx(parameters, abs=0.0006)
    assert found == pytest.approx(cost, abs=0.0006)


@pytest.mark.parametrize(("blocks", "parameters"), [(1, 20.98), (2, 34.62), (3, 48.26), (4, 61.90), (5, 75.54)])
def test_cost_of_the_residual_blocks(blocks: int, parameters: float) -> None:
    with torch.device("meta"):
        assert millions(FeatureFusion(WIDE, blocks).residual) == pytest.approx(parameters, abs=0.006)


def test_mirrored_decoder_costs_what_the_specification_says() -> None:
    with torch.device("meta"):
        assert millions(Decoder(WIDE, True, "mirrored")) == pytest.approx(34.51, abs=0.006)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda backbone: backbone.name)
def test_parts_fit_together_for_every_backbone(backbone: Backbone) -> None:
    with torch.device("meta"):
        features = build_encoder(backbone)(torch.empty(1, 3, 256, 256))
        fused = FeatureFusion(backbone)(features)
        decoded = Decoder(backbone, True)(fused, features[2])
    assert fused.shape == (1, backbone.fusion_channels, 8, 8)
    assert [value.shape for value in decoded] == [value.shape for value in features]


@pytest.mark.parametrize("addressing", ["cos_softmax", "dot_softmax"])
def test_weights_made_in_pieces_have_the_plain_gradient(addressing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS", 5)
    torch.manual_seed(0)
    memory = FeatureStorage(12, 8, 0.5, 1.0, addressing).train()
    features = torch.randn(2, 8, 3, 4)
    found = []
    for addressed in (memory.recall, memory.recall_rows):
        given = features.clone().requires_grad_()
        recalled, weights = addressed(given)
        slope = torch.linspace(-1, 1, weights.numel()).reshape(weights.shape)
        ((recalled**2).sum() + (weights * slope).sum()).backward()
        found.append((recalled.detach(), weights.detach(), given.grad, memory.memory.grad.clone()))
        memory.memory.grad = None
    assert 0 < float((found[0][1] == 0).float().mean()) < 1  # some are shrunk away
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
