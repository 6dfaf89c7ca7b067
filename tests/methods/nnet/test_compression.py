"""What a trained N-Net becomes: the strongest channels, the first blocks, and the losses that it goes on with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnet_edge.errors import ConfigError
from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.base import Batch
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.network import TorchRunner
from nnet_edge.methods.nnet.compression import NNetCompressor
from nnet_edge.methods.nnet.network import NNet, build_nnet
from nnet_edge.methods.nnet.settings import LEAN, PAPER, TUNED, Compression, ModelSettings, TrainSettings
from nnet_edge.methods.nnet.student import cut_student, measure_strengths
from nnet_edge.methods.teacher_weights import RANDOM, load_teacher

CPU = Compute("cpu", "fp32")
NOTHING = Compression(images=8, student_width=1.0, student_depths=(0, 0, 0), shared_stem=False, residual_blocks=4)


def images_of(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def network_of(settings: TrainSettings) -> NNet:
    """N-Net with a random teacher, in evaluation mode, whose norms have seen images."""
    network = build_nnet(settings.model, load_teacher(find_backbone(settings.model.backbone), RANDOM), seed=0)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            images = network.normalise(torch.from_numpy(images_of(4)))
            network.branches(network.student_input(images), network.teacher_features(images))
    return network.eval().requires_grad_(False)


def settings_of(compression: Compression, **model: object) -> TrainSettings:
    return replace(PAPER, model=ModelSettings(memory_slots=16, **model), compression=compression)  # type: ignore[arg-type]


def batch_of(network: NNet, count: int) -> Batch:
    images = network.normalise(torch.from_numpy(images_of(count)))
    return Batch(images, network.teacher_features(images))


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18", "resnet50"])
def test_what_is_made_no_smaller_gives_the_same_maps(backbone: str) -> None:
    settings = settings_of(NOTHING, backbone=backbone)
    whole = network_of(settings)
    small, after = NNetCompressor(settings).begin(whole, images_of(4), CPU)
    assert after == replace(settings, compression=Compression())
    images = images_of(2)
    expected, found = (TorchRunner(one).infer(images, layer_maps=True).layer_maps for one in (whole, small))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18", "resnet50", "wide_resnet50_2"])
def test_a_small_network_has_maps_of_the_same_shapes_and_fewer_weights(backbone: str) -> None:
    settings = settings_of(Compression(images=8), backbone=backbone)
    whole = network_of(settings)
    small, after = NNetCompressor(settings).begin(whole, images_of(4), CPU)
    model = after.model
    assert (model.student_width, model.student_depths, model.shared_stem, model.residual_blocks) == (
        0.5,
        (1, 1, 1),
        True,
        2,
    )
    images = images_of(1)
    expected, found = (TorchRunner(one).infer(images, layer_maps=True) for one in (whole, small))
    assert not found.fault()
    assert {name: values.shape for name, values in found.layer_maps.items()} == {
        name: values.shape for name, values in expected.layer_maps.items()
    }
    counts = [sum(value.numel() for value in one.trained_parameters()) for one in (small, whole)]
    assert counts[0] < 0.8 * counts[1]
    assert set(small.state_dict()) == set(
        build_nnet(model, load_teacher(find_backbone(backbone), RANDOM), 0).state_dict()
    )


def test_memory_teacher_and_its_projections_stay_and_learn_no_more() -> None:
    settings = settings_of(Compression(images=8))
    whole = network_of(settings)
    small, _ = NNetCompressor(settings).begin(whole, images_of(4), CPU)
    assert not small.training
    kept = [name for name, value in small.named_parameters() if not value.requires_grad]
    assert {name.partition(".")[0] for name in kept} == {"teacher", "teacher_projections", "memory"}
    mine, old = small.state_dict(), whole.state_dict()
    assert all(torch.equal(mine[name], old[name]) for name in kept)
    blocks = [name for name in mine if name.startswith("fusion.residual.") or name.startswith("reverse_student.")]
    assert {name.split(".")[2] for name in blocks if name.startswith("fusion.")} == {"0", "1"}
    assert all(torch.equal(mine[name], old[name]) for name in blocks)  # they begin with what they had learned


@pytest.mark.parametrize(("backbone", "path"), [("efficientnet_lite0", "1.0.0"), ("resnet18", "1.0.0")])
def test_the_strongest_channels_stay_with_their_weights(backbone: str, path: str) -> None:
    """Some channels are multiplied with ten times the weights: those are kept, in their order."""
    encoder = build_encoder(find_backbone(backbone)).eval()
    block = encoder.stages.get_submodule(path)
    first, last, norm = (
        (block.conv_pw, block.conv_pwl, block.bn1)
        if hasattr(block, "conv_pw")
        else (block.conv1, block.conv2, block.bn1)
    )
    strong = torch.arange(3, last.in_channels, 4)[:32]
    with torch.no_grad():
        for between in (one for one in block.modules() if isinstance(one, torch.nn.BatchNorm2d)):
            between.bias.fill_(1.0)  # every channel has values of the same size
            between.weight.fill_(0.1)
        last.weight[:, strong] *= 10
    weights, reading = first.weight[strong].clone(), last.weight[:, strong].clone()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    strengths = measure_strengths(encoder, images)
    assert strengths[last].shape == (last.in_channels,)
    cut_student(encoder, ModelSettings(student_width=len(strong) / last.in_channels), strengths)
    assert torch.equal(first.weight[: len(strong)], weights)
    assert torch.equal(last.weight[:, : len(strong)], reading)
    assert norm.num_features == len(first.weight) == last.weight.shape[1]


def test_a_good_image_is_compared_with_the_teacher_and_a_damaged_one_with_the_trained_network() -> None:
    """A small network that is the trained one has no loss on damaged images, and on good ones the mean of its layer maps."""
    whole = network_of(settings_of(NOTHING))
    small, _ = NNetCompressor(settings_of(NOTHING)).begin(whole, images_of(4), CPU)
    batch = batch_of(whole, 4)
    with torch.no_grad():
        maps = dict(zip(small.output_names, small(torch.from_numpy(images_of(4))), strict=True))
    for anomalous in (0, 3):
        compressor = NNetCompressor(settings_of(replace(NOTHING, anomalous=anomalous / 4)))
        assert compressor.anomalous == anomalous
        terms = compressor.losses(small, whole, batch)
        for branch, term in terms.items():
            good = [
                values[anomalous:].sum(dim=0).mean() / 4 for name, values in maps.items() if name.startswith(branch)
            ]
            assert float(term.detach()) == pytest.approx(float(sum(good)), rel=1e-4)  # type: ignore[arg-type]
    assert set(terms) == {"reverse", "forward"}


def test_the_gradient_reaches_the_students_alone() -> None:
    settings = settings_of(Compression(images=8))
    whole = network_of(settings)
    compressor = NNetCompressor(settings)
    small, _ = compressor.begin(whole, images_of(4), CPU)
    sum(compressor.losses(small, whole, batch_of(whole, 4)).values()).backward()  # type: ignore[union-attr]
    for name, value in small.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name
    assert all(value.grad is None for value in whole.parameters())


@pytest.mark.parametrize(
    "changes", [{"use_forward": False}, {"use_nfs": False}, {"use_ffc": False}, {"use_fpm": False}]
)
def test_a_network_without_one_of_its_parts_is_made_small_too(changes: dict[str, bool]) -> None:
    settings = settings_of(Compression(images=8), **changes)
    whole = network_of(settings)
    compressor = NNetCompressor(settings)
    small, _ = compressor.begin(whole, images_of(4), CPU)
    terms = compressor.losses(small, whole, batch_of(whole, 4))
    assert set(terms) == ({"reverse"} if changes == {"use_forward": False} else {"reverse", "forward"})
    assert all(torch.isfinite(value) for value in terms.values())


def test_only_the_lean_protocol_makes_a_network_smaller() -> None:
    assert replace(TUNED, compression=Compression(images=400)) == LEAN
    assert "compression" not in TUNED.as_dict()
    assert TrainSettings.from_dict(LEAN.as_dict()) == LEAN
    assert LEAN.overridden("compression.images=0") == TUNED == TUNED.as_deployed()
    small = replace(TUNED.model, student_width=0.5, student_depths=(1, 1, 1), shared_stem=True, residual_blocks=2)
    assert LEAN.as_deployed() == replace(TUNED, model=small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("compression.images=-1", "compression.images is -1"),
        ("compression.batch=1", "compression.batch is 1"),
        ("compression.anomalous=1", "compression.anomalous is 1"),
        ("compression.student_width=0", "compression.student_width is 0"),
        ("compression.student_width=2", "compression.student_width is 2"),
        ("compression.residual_blocks=5", "more than the model's 4"),
        ("compression.residual_blocks=0", "compression.residual_blocks is 0"),
        ("model.student_width=0.5", "begins with a forward student of full size"),
        ("model.shared_stem=true", "set compression.images to 0"),
        ("compression.slots=1", "there is no setting compression.slots"),
    ],
)
def test_a_compression_that_cannot_be_is_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LEAN.overridden(change)
    assert message in str(raised.value)
