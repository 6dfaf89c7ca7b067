"""The quick expansion gives what convolution, batch norm and ReLU6 give, forwards, backwards and in the running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.expansion import QuickResidual, with_quick_training


def gradients_of(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    leaf = images.clone().requires_grad_()
    outputs = network(leaf)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(one.shape, generator=generator).to(one.dtype) for one in outputs]
    sum((one * weight).sum() for one, weight in zip(outputs, weights, strict=True)).backward()
    return [*(one.detach() for one in outputs), leaf.grad, *(value.grad for value in network.parameters())]


@pytest.mark.parametrize("size", [(64, 64), (96, 32)])
def test_the_whole_student(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = build_encoder(find_backbone("efficientnet_lite0")).double().train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):  # gains of both signs, and outputs on both ends of the ReLU6
            nn.init.uniform_(module.weight, -3, 3)
            nn.init.uniform_(module.bias, -2, 4)
    quick = with_quick_training(copy.deepcopy(plain)).train()
    assert list(plain.state_dict()) == list(quick.state_dict())
    assert sum(isinstance(module, QuickResidual) for module in quick.modules()) == 5
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    for expected, found in zip(gradients_of(plain, images), gradients_of(quick, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(quick.state_dict()[name], expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for expected, found in zip(plain.eval()(images), quick.eval()(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_bf16_rounds_no_more_than_the_plain_block() -> None:
    """Of a block, both against FP64: the gradients' errors are those of BF16."""
    torch.manual_seed(0)
    block = build_encoder(find_backbone("efficientnet_lite0")).stages[0][3][0].train()
    images = torch.randn(4, 16, 32, 32) + torch.randn(1, 16, 1, 1)
    wrapped = nn.ModuleList([copy.deepcopy(block)])
    quick = with_quick_training(wrapped)[0]
    assert isinstance(quick, QuickResidual)

    def found(network: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
        whole = copy.deepcopy(network).to(torch.float64 if dtype == torch.float64 else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return gradients_of(lambda_of(whole), images.to(whole.bn1.weight.dtype))

    exact, rounded, made = (
        found(network, dtype)
        for network, dtype in ((block, torch.float64), (block, torch.bfloat16), (quick, torch.bfloat16))
    )
    for truth, plain, one in zip(exact, rounded, made, strict=True):
        errors = [float((value.double() - truth).norm() / truth.norm().clamp_min(1e-3)) for value in (plain, one)]
        assert errors[1] <= 1.5 * errors[0] + 0.01, errors


def lambda_of(block: nn.Module) -> nn.Module:
    """The block with a tuple as its output, as an encoder gives one."""

    class Tuple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.block(x),)

    return Tuple()
