"""The quick depthwise convolution gives what the plain one gives, forwards and backwards."""

from __future__ import annotations

import copy

import pytest
import torch

from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.depthwise import DepthwiseConv2d, spread_input_gradient, with_quick_depthwise


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_one_convolution(kernel: int, stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False).double()
    quick = DepthwiseConv2d(copy.deepcopy(plain)).train()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    results = []
    for network in (plain, quick):
        leaf = x.clone().requires_grad_()
        output = network(leaf)
        (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape)).sum().backward()
        results.append((output, leaf.grad, network.weight.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 0), (3, 2, 1), (5, 2, 0), (5, 2, 2)])
def test_gradient_of_the_input_from_the_spread_out_one(kernel: int, stride: int, padding: int) -> None:
    """Called itself: a convolution at stride 2 takes this way in BF16 only, which would hide an error of a border."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 15, 18, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(6, 1, kernel, kernel, dtype=torch.float64, generator=generator)
    output = torch.nn.functional.conv2d(x, weight, None, stride, padding, groups=6)
    gradient = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    (expected,) = torch.autograd.grad(output, x, gradient)
    found = spread_input_gradient(x, weight, gradient, stride, padding)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_whole_student() -> None:
    torch.manual_seed(0)
    plain = build_encoder(find_backbone("efficientnet_lite0")).double().train()
    quick = with_quick_depthwise(copy.deepcopy(plain)).train()
    assert list(plain.state_dict()) == list(quick.state_dict())
    assert sum(isinstance(module, DepthwiseConv2d) for module in quick.modules()) == 11
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for network in (plain, quick):
        sum(feature.square().mean() for feature in network(x)).backward()
    for expected, found in zip(plain.parameters(), quick.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-12)
