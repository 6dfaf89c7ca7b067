"""A network whose batch norms are folded into its convolutions gives what the plain one gives."""

from __future__ import annotations

import pytest
import torch

from nnet_edge.geometry import Geometry
from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.base import METHODS
from nnet_edge.methods.blocks import conv_bn_relu
from nnet_edge.methods.folding import KnownTeacher, folded
from nnet_edge.methods.network import Network


def with_statistics(network: torch.nn.Module) -> torch.nn.Module:
    """The network in evaluation mode, its batch norms as a training leaves them: none is the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (*module.parameters(), *module.buffers()):
                if values.is_floating_point():
                    values.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def count(network: torch.nn.Module) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("method", [method.name for method in METHODS])
@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18"])
def test_every_method(method: str, backbone: str) -> None:
    torch.manual_seed(0)
    found = METHODS.find(method)
    model = found.settings.model_type(backbone=backbone)
    network: Network = found.build(model, build_encoder(find_backbone(backbone))).at(Geometry(64, 64))
    with_statistics(network)
    quick = folded(network)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        for expected, maps in zip(network(images), quick(images), strict=True):
            torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)  # FP32 sums in another order
    projections = count(network) - count(quick)
    assert projections > 30
    assert count(quick) in (0, 6)  # those of N-Net's projections stand behind a concatenation


def test_a_norm_of_other_channels_or_without_statistics_stays() -> None:
    network = with_statistics(
        torch.nn.Sequential(
            conv_bn_relu(3, 4), torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4, track_running_stats=False)
        )
    )
    assert count(folded(network)) == 1
    assert count(network) == 2


def test_a_teacher_computes_a_picture_once() -> None:
    torch.manual_seed(0)
    teacher = with_statistics(build_encoder(find_backbone("efficientnet_lite0")))
    known = KnownTeacher(teacher)
    calls = []
    known.stages[0].register_forward_pre_hook(lambda *given: calls.append(given))
    one, other = torch.randn(2, 2, 3, 64, 64)
    with torch.no_grad():
        for images in (one, other, one.clone(), other):
            for expected, features in zip(teacher(images), known(images), strict=True):
                torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
    assert len(calls) == 2
