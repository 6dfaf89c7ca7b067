"""Encoders: the taps are where the specification puts them, with the values that the published networks compute."""

from __future__ import annotations

import pytest
import torch

from nnet_edge.errors import ConfigError
from nnet_edge.methods.backbone import BACKBONES, Backbone, build_encoder, build_network, find_backbone, to_encoder
from nnet_edge.methods.torchvision_operators import import_torchvision

RESNETS = ("wide_resnet50_2", "resnet50", "resnet34", "resnet18")


def random_images(side: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=lambda backbone: backbone.name)
def test_shapes_of_the_feature_maps(backbone: Backbone) -> None:
    with torch.device("meta"):
        maps = build_encoder(backbone)(torch.empty(1, 3, 256, 256))
    expected = [(1, channels, side, side) for channels, side in zip(backbone.channels, (64, 32, 16), strict=True)]
    assert [tuple(value.shape) for value in maps] == expected


@pytest.mark.parametrize("name", RESNETS)
def test_other_input_sizes_keep_the_strides(name: str) -> None:
    with torch.device("meta"):
        maps = build_encoder(find_backbone(name))(torch.empty(1, 3, 96, 160))
    assert [tuple(value.shape[2:]) for value in maps] == [(24, 40), (12, 20), (6, 10)]


def test_resnet_taps_are_the_outputs_of_its_layers() -> None:
    network = build_network(find_backbone("resnet18")).eval()
    images = random_images()
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        expected = []
        for layer in (network.layer1, network.layer2, network.layer3):
            x = layer(x)
            expected.append(x)
        found = to_encoder(find_backbone("resnet18"), network)(images)
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other)
        assert float(value.min()) >= 0


@pytest.mark.parametrize("size", [0, 1, 2])
def test_efficientnet_taps_are_those_of_timm_s_feature_extractor(size: int) -> None:
    backbone = find_backbone(f"efficientnet_lite{size}")
    import_torchvision()  # before timm, which imports it too
    import timm

    network = build_network(backbone).eval()
    reference = timm.create_model(
        f"tf_efficientnet_lite{size}", features_only=True, out_indices=(1, 2, 3), pretrained=False
    )
    state = network.state_dict()
    reference.load_state_dict({name: state[name] for name in reference.state_dict()})
    images = random_images()
    with torch.no_grad():
        found, expected = to_encoder(backbone, network)(images), reference.eval()(images)
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other)
        assert float(value.min()) < 0, "linear bottlenecks have both signs"
    assert backbone.has_linear_taps


@pytest.mark.parametrize(("size", "depths"), [(0, (1, 2, 2, 3, 3)), (1, (1, 3, 3, 4, 4)), (2, (1, 3, 3, 4, 4))])
def test_efficientnets_are_scaled_as_published(size: int, depths: tuple[int, ...]) -> None:
    """Blocks of the first five stages: 1.1 and 1.2 times those of Lite0, rounded up, but for the first stage of all."""
    backbone = find_backbone(f"efficientnet_lite{size}")
    with torch.device("meta"):
        stages = list(build_network(backbone).blocks.children())
    assert tuple(len(stage) for stage in stages[:5]) == depths


@pytest.mark.parametrize("name", RESNETS)
def test_layers_behind_the_taps_are_not_built(name: str) -> None:
    with torch.device("meta"):
        encoder = build_encoder(find_backbone(name))
    widest = max(value.shape[0] for value in encoder.parameters())
    assert widest == find_backbone(name).channels[2]


def test_unknown_backbone_is_wrong_use_and_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"vgg16.*efficientnet_lite0.*wide_resnet50_2"):
        find_backbone("vgg16")
