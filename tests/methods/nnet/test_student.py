"""The forward student, narrower and shallower than the teacher, and with the teacher's stem."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnet_edge.errors import ConfigError
from nnet_edge.export.onnx_graph import export_onnx, facts_of
from nnet_edge.geometry import Geometry
from nnet_edge.methods.backbone import Encoder, build_encoder, find_backbone
from nnet_edge.methods.folding import folded
from nnet_edge.methods.network import TorchRunner, start_network
from nnet_edge.methods.nnet.network import NNet, build_nnet
from nnet_edge.methods.nnet.settings import PAPER, TUNED, ModelSettings, TrainSettings
from nnet_edge.methods.nnet.student import build_student
from nnet_edge.methods.teacher_weights import RANDOM, load_teacher
from nnet_edge.training.checkpoint import read_checkpoint
from nnet_edge.training.loop import TrainOptions, train

LITE0 = find_backbone("efficientnet_lite0")
LEAN = ModelSettings(
    student_width=0.5, student_depths=(1, 1, 1), shared_stem=True, residual_blocks=1, decoder_depth=1, memory_slots=16
)


def network_of(settings: ModelSettings) -> NNet:
    """N-Net on a random teacher, in evaluation mode."""
    return build_nnet(settings, load_teacher(find_backbone(settings.backbone), RANDOM), seed=0).eval()


def block_of(encoder: Encoder, *names: str | int) -> torch.nn.Module:
    """The part of an encoder at that path."""
    return encoder.stages.get_submodule(".".join(map(str, names)))


def test_by_default_the_student_is_built_as_the_teacher_is() -> None:
    student, teacher = build_student(PAPER.model, LITE0), build_encoder(LITE0)
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (student, teacher)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "efficientnet_lite2", "resnet18", "resnet50", "wide_resnet50_2"]
)
def test_a_lean_student_gives_maps_of_the_teachers_shapes(name: str) -> None:
    backbone = find_backbone(name)
    teacher, student = build_encoder(backbone).eval(), build_student(LEAN, backbone).eval()
    images = torch.zeros(1, 3, 64, 96)
    wanted, found = teacher(images), student(teacher.stem(images))
    assert [value.shape for value in found] == [value.shape for value in wanted]
    weights = [sum(value.numel() for value in one.parameters()) for one in (student, teacher)]
    assert weights[0] < 0.3 * weights[1]


def test_the_inside_of_a_block_is_narrower_and_its_outside_is_not() -> None:
    student = build_student(ModelSettings(student_width=0.5), LITE0)
    block = block_of(student, 0, 3, 0)  # 16 -> 96 -> 24 channels
    sizes = [(one.in_channels, one.out_channels, one.groups) for one in (block.conv_pw, block.conv_dw, block.conv_pwl)]
    assert sizes == [(16, 48, 1), (48, 48, 48), (48, 24, 1)]
    assert block.bn1.num_features == len(block.bn1.running_mean) == 48
    assert [len(block_of(student, 2, stage)) for stage in (0, 1)] == [3, 3]


def test_a_width_is_a_multiple_of_eight_channels_and_never_none() -> None:
    block = block_of(build_student(ModelSettings(student_width=0.01), LITE0), 0, 3, 0)
    assert block.conv_dw.groups == 8
    block = block_of(build_student(ModelSettings(student_width=0.3), LITE0), 0, 3, 0)
    assert block.conv_dw.groups == 32  # 0.3 * 96 = 28.8


def test_depth_leaves_the_blocks_that_change_the_shape() -> None:
    student = build_student(ModelSettings(student_depths=(1, 1, 1)), LITE0)
    assert [len(block_of(student, *path)) for path in ((0, 3), (1, 0), (2, 0), (2, 1))] == [1, 1, 1, 1]
    student = build_student(ModelSettings(student_depths=(2, 2, 2)), LITE0)
    assert [len(block_of(student, *path)) for path in ((0, 3), (1, 0), (2, 0), (2, 1))] == [2, 2, 2, 2]
    student = build_student(ModelSettings(student_depths=(1, 0, 2)), LITE0)
    assert [len(block_of(student, *path)) for path in ((0, 3), (1, 0), (2, 0), (2, 1))] == [1, 2, 2, 2]


def test_with_a_shared_stem_the_maps_are_those_of_the_students_own_path() -> None:
    network = network_of(LEAN)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        found = network(images)
        normalised = network.normalise(images)
        apart = network.branches(network.teacher.stem(normalised), network.teacher_features(normalised))
        assert network.forward_student is not None
        assert torch.equal(apart.forward[2], network.forward_student(network.teacher.stem(normalised))[2])  # type: ignore[index]
        for one, other in zip(found, network.layer_maps(apart), strict=True):
            assert torch.equal(one, other)


def test_a_shared_stem_is_computed_once_in_the_graph_and_is_not_trained() -> None:
    apart, shared = (network_of(replace(LEAN, shared_stem=is_shared)) for is_shared in (False, True))
    counts = [
        sum(node.op_type == "Conv" for node in export_onnx(one, facts_of(one)).graph.node) for one in (apart, shared)
    ]
    assert counts[0] - counts[1] == 3  # the stem, and the two convolutions of the first stage
    shared.train()
    images = shared.normalise(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8))
    begun = shared.student_input(images)
    assert not begun.requires_grad
    maps = shared.layer_maps(shared.branches(begun, shared.teacher_features(images)))
    sum(value.sum() for value in maps).backward()  # type: ignore[union-attr]
    assert all(value.grad is None for value in shared.teacher.parameters())
    assert all(value.grad is not None for value in shared.forward_student.parameters())  # type: ignore[union-attr]


def test_a_lean_training_learns_the_student_and_leaves_the_stem_alone(
    small_washers: np.ndarray, tmp_path: Path
) -> None:
    lean = replace(TUNED.model, student_width=0.5, student_depths=(1, 1, 1), shared_stem=True)
    settings = replace(TUNED, model=lean, image_steps=0, epochs=2, look_every=0, augmentation_copies=0, place_powers=(),
                       batch=2, input=Geometry(64, 64))  # fmt: skip
    train(small_washers[:4], small_washers[4:], settings, tmp_path, TrainOptions("cpu", "fp32", teacher_weights=RANDOM))
    trained = read_checkpoint(tmp_path).build_network()
    start = start_network(settings, load_teacher(LITE0, RANDOM, settings.seed))
    one, other = trained.state_dict(), start.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one if name.startswith("teacher."))
    changed = [name for name in one if name.startswith("forward_student.") and name.endswith("weight")]
    assert changed
    assert not any(torch.equal(one[name], other[name]) for name in changed)
    images = small_washers[:2]
    expected = TorchRunner(trained).infer(images, layer_maps=True)
    found = TorchRunner(folded(trained)).infer(images, layer_maps=True)
    assert expected.fault() == ""
    for name, values in expected.layer_maps.items():
        np.testing.assert_allclose(found.layer_maps[name], values, atol=1e-5)


def test_a_student_is_no_copy_of_a_random_teacher_of_the_same_seed() -> None:
    """Of two equal encoders a compiler computes one, and what was measured was not the speed of N-Net."""
    for seed in (0, 1):
        teacher = load_teacher(LITE0, RANDOM, seed)
        student = build_nnet(PAPER.model, teacher, seed).forward_student
        pairs = zip(teacher.encoder.named_parameters(), student.named_parameters(), strict=True)  # type: ignore[union-attr]
        assert not any(torch.equal(one, other) for (name, one), (_, other) in pairs if name.endswith("conv_pw.weight"))


def test_settings_from_before_there_was_a_choice_mean_what_they_meant() -> None:
    before = PAPER.as_dict()
    assert "student_width" not in before["model"]
    assert TrainSettings.from_dict(before) == PAPER
    changed = TUNED.overridden("model.student_width=0.5").overridden("model.shared_stem=true")
    assert changed.as_dict()["model"]["student_width"] == 0.5
    assert TrainSettings.from_dict(changed.as_dict()) == changed


@pytest.mark.parametrize(
    "change",
    [
        "student_width=0",
        "student_width=1.5",
        "student_depths=-1,0,0",
        "student_depths=1",
        "student_depths=0.5,0,0",
        "decoder_depth=-1",
    ],
)
def test_wrong_settings(change: str) -> None:
    with pytest.raises(ConfigError, match=change.partition("=")[0]):
        TUNED.overridden(f"model.{change}")
