"""The whole network: its costs, its layer maps, where gradients go, and that every setting builds and learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnet_edge.anomaly_map import LAYER_MAPS
from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.cosine import distillation_loss
from nnet_edge.methods.nnet.network import NNet, build_nnet, nnet_losses
from nnet_edge.methods.nnet.settings import ABLATIONS, PAPER, TUNED, ModelSettings, TrainSettings, ablated
from nnet_edge.methods.teacher_weights import Teacher, load_teacher

SIDE = 64  # a quarter of the real one: the network has no weight that depends on it
BFLOAT16_RTOL = 0.05  # 8 significant bits through some 60 layers


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(find_backbone("efficientnet_lite0"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    return torch.from_numpy(small.repeat(8, axis=1).repeat(8, axis=2))


def one_step(settings: TrainSettings, teacher: Teacher, images: torch.Tensor) -> tuple[NNet, dict[str, float]]:
    """A network after one step of Adam, and the terms of its loss before the step."""
    network = build_nnet(settings.model, teacher, settings.seed).train()
    optimiser = torch.optim.Adam(list(network.trained_parameters()), settings.learning_rate, settings.betas)
    normalised = network.normalise(images)
    branches = network.branches(normalised, network.teacher_features(normalised))
    terms = nnet_losses(branches, settings, epoch=0)
    torch.stack(list(terms.values())).sum().backward()
    optimiser.step()
    return network, {name: float(value.detach()) for name, value in terms.items()}


@pytest.mark.parametrize(
    ("settings", "parameters", "trained", "cost"),
    [
        (ModelSettings("wide_resnet50_2"), 157.40, 132.54, 46.02),
        (ModelSettings("wide_resnet50_2", memory_slots=2000), 158.92, 134.06, 46.80),
        (ModelSettings("resnet18"), 31.14, None, 6.98),
    ],
    ids=["paper, 512 slots", "paper, 2000 slots", "resnet18"],
)
def test_cost_of_the_whole(settings: ModelSettings, parameters: float, trained: float | None, cost: float) -> None:
    """The totals of the specification, in millions and in GMACs at 256 x 256 pixels."""
    with FakeTensorMode():  # shapes without values
        network = NNet(settings, build_encoder(find_backbone(settings.backbone))).eval()
        images = torch.empty(1, 256, 256, 3, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter:
            network(images)
    assert counter.get_total_flops() / 2e9 == pytest.approx(cost, abs=0.006)
    assert sum(value.numel() for value in network.parameters()) / 1e6 == pytest.approx(parameters, abs=0.006)
    if trained is not None:
        assert sum(value.numel() for value in network.trained_parameters()) / 1e6 == pytest.approx(trained, abs=0.006)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, LAYER_MAPS),
        ({"maps": "reverse"}, LAYER_MAPS[3:]),
        ({"maps": "forward"}, LAYER_MAPS[:3]),
        ({"use_forward": False}, LAYER_MAPS[3:]),
    ],
)
def test_layer_maps_have_the_names_shapes_and_range_of_the_contract(
    change: dict[str, object], names: tuple[str, ...], teacher: Teacher, images: torch.Tensor
) -> None:
    network = build_nnet(replace(PAPER.model, **change), teacher, seed=0).eval()
    with torch.no_grad():
        maps = network(images)
    assert network.output_names == names
    for name, found in zip(names, maps, strict=True):
        side = int(name.split("_")[1]) * SIDE // 256
        assert found.shape == (2, 1, side, side)
        assert found.dtype == torch.float32
        assert float(found.min()) >= -1e-6
        assert float(found.max()) <= 2 + 1e-6


def test_layer_maps_compare_what_equations_1_and_2_compare(teacher: Teacher, images: torch.Tensor) -> None:
    network = build_nnet(PAPER.model, teacher, seed=0).eval()
    with torch.no_grad():
        normalised = network.normalise(images)
        branches = network.branches(normalised, network.teacher_features(normalised))
        maps = dict(zip(network.output_names, network(images), strict=True))
        raw = teacher.encoder(normalised)
    assert branches.forward_projected is not None
    pairs = [*zip(branches.projected, branches.forward_projected, strict=True)]
    pairs += [*zip(raw, branches.reverse, strict=True)]  # the teacher's own F3, not what the memory recalled
    for name, (left, right) in zip(LAYER_MAPS, pairs, strict=True):
        expected = 1 - torch.cosine_similarity(left, right, dim=1, eps=1e-8)
        torch.testing.assert_close(maps[name][:, 0], expected, atol=1e-5, rtol=0)


def test_normalisation_is_the_teacher_s_own(teacher: Teacher, images: torch.Tensor) -> None:
    network = build_nnet(PAPER.model, teacher, seed=0)
    backbone = find_backbone("efficientnet_lite0")
    expected = (images.numpy() / 255 - np.array(backbone.mean)) / np.array(backbone.std)
    np.testing.assert_allclose(network.normalise(images).numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_same_seed_same_weights_other_seed_other_weights(teacher: Teacher) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, same, other = (build_nnet(PAPER.model, teacher, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before), "building must not touch the caller's random numbers"
    assert all(torch.equal(one[name], same[name]) for name in one)
    weights = [name for name in one if name.endswith("weight") and one[name].dim() > 1]
    different = [name for name in weights if not torch.equal(one[name], other[name])]
    assert different == [name for name in weights if not name.startswith("teacher.")]


def test_teacher_stays_frozen_and_everything_else_learns(teacher: Teacher, images: torch.Tensor) -> None:
    before = {name: value.clone() for name, value in teacher.encoder.state_dict().items()}
    start = build_nnet(PAPER.model, teacher, PAPER.seed).state_dict()
    network, _ = one_step(PAPER, teacher, images)
    assert all(torch.equal(value, before[name]) for name, value in network.teacher.state_dict().items())
    assert all(value.grad is None for value in network.teacher.parameters())
    assert not any(module.training for module in network.teacher.modules())
    assert network.reverse_student.training
    trained = {name for name, _ in network.named_parameters() if not name.startswith("teacher.")}
    without = {name for name, value in network.named_parameters() if name in trained and value.grad is None}
    assert not without
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, start[name])}
    assert moved <= trained
    for part in (
        "forward_student",
        "reverse_student",
        "teacher_projections",
        "student_projections",
        "memory",
        "fusion",
    ):
        assert any(name.startswith(part) for name in moved), f"{part} did not learn"


def gradient_of_forward_loss(change: dict[str, object], teacher: Teacher, images: torch.Tensor) -> dict[str, bool]:
    """Which parts the gradient of L_KD alone reaches."""
    network = build_nnet(replace(PAPER.model, **change), teacher, seed=0).train()
    normalised = network.normalise(images)
    branches = network.branches(normalised, network.teacher_features(normalised))
    assert branches.forward_projected is not None
    distillation_loss(branches.projected, branches.forward_projected).backward()
    reached = {name for name, value in network.named_parameters() if value.grad is not None and value.grad.any()}
    parts = ("teacher.", "teacher_projections", "memory", "fusion", "reverse_student", "forward_student")
    return {part: any(name.startswith(part) for name in reached) for part in parts}


def test_gradient_of_forward_distillation_reaches_the_teacher_s_projections(
    teacher: Teacher, images: torch.Tensor
) -> None:
    """A-11: no stop-gradient on P; A-5: P3 is what the memory recalled, so the memory learns from it too."""
    assert gradient_of_forward_loss({}, teacher, images) == {
        "teacher.": False,
        "teacher_projections": True,
        "memory": True,
        "fusion": False,
        "reverse_student": False,
        "forward_student": True,
    }
    raw = gradient_of_forward_loss({"forward_p3_source": "raw"}, teacher, images)
    assert not raw["memory"]
    assert raw["teacher_projections"]


@pytest.fixture(scope="module")
def usual_terms(teacher: Teacher, images: torch.Tensor) -> dict[str, float]:
    """The terms of the paper's protocol, to compare the alternatives with."""
    return one_step(PAPER, teacher, images)[1]


ABSENT = {"use_fpm": "teacher_projections", "use_nfs": "memory", "use_forward": "forward_student"}


@pytest.mark.parametrize("row", ABLATIONS)
def test_every_ablation_builds_and_takes_a_step(row: str, teacher: Teacher, images: torch.Tensor) -> None:
    settings = ablated(PAPER, row)
    network, terms = one_step(settings, teacher, images)
    expected = {"reverse"}
    if settings.model.use_forward:
        expected |= {"forward"} if settings.kd_weight else set()
        expected |= {"align"} if settings.align_weight else set()
    if settings.model.use_nfs:
        expected |= {"query"}
    assert set(terms) == expected
    assert all(np.isfinite(value) for value in terms.values())
    names = [name for name, _ in network.named_parameters()]
    for switch, part in ABSENT.items():
        assert any(name.startswith(part) for name in names) == getattr(settings.model, switch)
    with torch.no_grad():
        assert len(network.eval()(images)) == len(network.output_names)


ALTERNATIVES: list[dict[str, object]] = [
    {"fpm_mid": "none"},
    {"fpm_reduction": 4},
    {"memory_slots": 50},
    {"memory_temperature": 0.1},
    {"memory_addressing": "dot_softmax"},
    {"memory_addressing": "cos_relu"},
    {"forward_p3_source": "raw"},
    {"residual_blocks": 1},
    {"forward_map": "student"},
    {"decoder_order": "mirrored"},
    {"standardise": True},
    {"standardise": True, "anchor": 0.3},
    {"recall_residual": True},
]


NOT_IN_THE_FIRST_LOSS: list[dict[str, object]] = [  # the maps only; equal counts of blocks; nothing measured yet
    {"forward_map": "student"},
    {"decoder_order": "mirrored"},
    {"standardise": True},
]


@pytest.mark.parametrize("change", ALTERNATIVES, ids=str)
def test_every_alternative_builds_and_takes_a_step(
    change: dict[str, object], teacher: Teacher, images: torch.Tensor, usual_terms: dict[str, float]
) -> None:
    changed = one_step(replace(PAPER, model=replace(PAPER.model, **change)), teacher, images)[1]
    assert all(np.isfinite(value) for value in changed.values())
    if change not in NOT_IN_THE_FIRST_LOSS:
        assert changed != usual_terms, "the setting changes nothing"


def test_loss_of_the_global_distance_is_another(
    teacher: Teacher, images: torch.Tensor, usual_terms: dict[str, float]
) -> None:
    terms = one_step(replace(PAPER, distance="global"), teacher, images)[1]
    assert all(np.isfinite(value) for value in terms.values())
    assert terms["reverse"] != usual_terms["reverse"]


def test_the_tuned_protocol_takes_a_step(teacher: Teacher, images: torch.Tensor) -> None:
    assert all(np.isfinite(value) for value in one_step(TUNED, teacher, images)[1].values())


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnet50", "resnet34", "resnet18"])
def test_gradients_reach_every_weight_of_the_other_backbones(name: str) -> None:
    """Shapes without values: these networks are too large for a quick step."""
    settings = replace(PAPER, model=replace(PAPER.model, backbone=name))
    with FakeTensorMode():
        network = NNet(settings.model, build_encoder(find_backbone(name)).requires_grad_(False)).train()
        normalised = network.normalise(torch.empty(2, SIDE, SIDE, 3, dtype=torch.uint8))
        branches = network.branches(normalised, network.teacher_features(normalised))
        torch.stack(list(nnet_losses(branches, settings, epoch=0).values())).sum().backward()
    assert all(value.grad is not None for value in network.trained_parameters())
    assert all(value.grad is None for value in network.teacher.parameters())


def test_forward_map_of_the_student_compares_before_its_projections(teacher: Teacher, images: torch.Tensor) -> None:
    network = build_nnet(replace(PAPER.model, forward_map="student"), teacher, seed=0).eval()
    with torch.no_grad():
        normalised = network.normalise(images)
        branches = network.branches(normalised, network.teacher_features(normalised))
        assert branches.forward is not None
        expected = 1 - torch.cosine_similarity(branches.projected[0], branches.forward[0], dim=1, eps=1e-8)
        torch.testing.assert_close(network(images)[0][:, 0], expected, atol=1e-5, rtol=0)


def test_bfloat16_is_close_to_fp32(teacher: Teacher, images: torch.Tensor) -> None:
    network = build_nnet(PAPER.model, teacher, seed=0).train()

    def terms(enabled: bool) -> dict[str, float]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            normalised = network.normalise(images)
            branches = network.branches(normalised, network.teacher_features(normalised))
        return {name: float(value) for name, value in nnet_losses(branches, PAPER, epoch=0).items()}

    exact, rounded = terms(False), terms(True)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=BFLOAT16_RTOL)
