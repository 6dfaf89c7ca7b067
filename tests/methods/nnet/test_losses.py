"""The losses of equations 1 to 7 against loops, closed forms and their schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nnet_edge.methods.cosine import NO_ANCHORS, cosine_distance, distillation_loss, learned_distance
from nnet_edge.methods.nnet.network import Branches, empty_row_share, nnet_losses, query_entropy
from nnet_edge.methods.nnet.settings import PAPER

SHAPES = ((2, 3, 4, 4), (2, 5, 2, 2), (2, 7, 1, 1))


def random_maps(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second, third = (torch.randn(shape, generator=generator) for shape in SHAPES)
    return first, second, third


def slow_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def slow_loss(target: tuple[Tensor, ...], student: tuple[Tensor, ...], distance: str) -> float:
    total = 0.0
    for a, b in zip(target, student, strict=True):
        x, y = a.double().numpy(), b.double().numpy()
        if distance == "global":
            found = [slow_distance(x[n].ravel(), y[n].ravel()) for n in range(len(x))]
        else:
            places = np.ndindex(len(x), *x.shape[2:])
            found = [slow_distance(x[n, :, row, column], y[n, :, row, column]) for n, row, column in places]
        total += sum(found) / len(found)
    return total


@pytest.mark.parametrize("distance", ["pixel", "global"])
def test_distillation_loss_against_loops(distance: str) -> None:
    target, student = random_maps(1), random_maps(2)
    found = float(distillation_loss(target, student, distance))
    assert found == pytest.approx(slow_loss(target, student, distance), abs=1e-6)


def test_the_two_distances_differ() -> None:
    target, student = random_maps(1), tuple(value * value.abs().mean(dim=1, keepdim=True) for value in random_maps(2))
    assert float(distillation_loss(target, student, "pixel")) != pytest.approx(
        float(distillation_loss(target, student, "global")), abs=1e-3
    )


@pytest.mark.parametrize("distance", ["pixel", "global"])
@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (250.0, 0.0), (-0.01, 6.0)])
def test_closed_forms_of_the_distance(distance: str, factor: float, expected: float) -> None:
    """0 for the same direction, 2 a scale for the opposite one; the length never counts."""
    maps = random_maps(3)
    scaled = tuple(factor * value for value in maps)
    assert float(distillation_loss(maps, scaled, distance)) == pytest.approx(expected, abs=1e-5)


def test_orthogonal_features_are_at_distance_one() -> None:
    left, right = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    left[:, 0], right[:, 1] = 4.0, 0.5
    assert torch.equal(cosine_distance(left, right), torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize("anchor", [0.25, 9.0])
def test_anchor_is_one_more_channel_that_never_changes(anchor: float) -> None:
    target, student = random_maps(1)[0], random_maps(2)[0]
    channel = torch.full((2, 1, 4, 4), math.sqrt(anchor))
    longer = (torch.cat([target, channel], dim=1), torch.cat([student, channel], dim=1))
    found = cosine_distance(target, student, torch.tensor(anchor))
    torch.testing.assert_close(found, cosine_distance(*longer), atol=1e-6, rtol=0)


def test_anchors_belong_to_their_own_terms() -> None:
    plain = some_branches()
    anchors = tuple(torch.tensor(value) for value in (1.0, 2.0, 3.0))
    anchored = replace(plain, teacher_anchors=anchors)
    before, after = (nnet_losses(branches, PAPER, epoch=0) for branches in (plain, anchored))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"reverse"}
    after = nnet_losses(replace(plain, projected_anchors=anchors), PAPER, epoch=0)
    assert "forward" in {name for name in before if not torch.equal(before[name], after[name])}
    assert torch.equal(before["reverse"], after["reverse"])


@pytest.mark.parametrize("distance", [cosine_distance, learned_distance])
def test_empty_features_give_a_number_and_a_gradient(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = torch.zeros(1, 4, 2, 2, requires_grad=True)
    found = distance(torch.ones(1, 4, 2, 2), student)
    found.sum().backward()
    assert torch.equal(found.detach(), torch.ones(1, 1, 2, 2))
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


@pytest.mark.parametrize("distance", [cosine_distance, learned_distance])
def test_large_half_precision_features_do_not_overflow(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    features = torch.full((1, 8, 2, 2), 60000.0, dtype=torch.float16)
    assert float(distance(features, features).max()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("anchor", [None, 0.25, 9.0])
@pytest.mark.parametrize("is_target_learned", [True, False])
def test_written_out_gradient_is_that_of_the_formula(anchor: float | None, is_target_learned: bool) -> None:
    target, student = random_maps(1)[0], random_maps(2)[0]
    student[0, :, 0, 0] = 0.0  # a vector without a direction
    anchors = None if anchor is None else torch.tensor(anchor)
    found = []
    for distance in (cosine_distance, learned_distance):
        leaves = target.clone().requires_grad_(is_target_learned), student.clone().requires_grad_()
        values = distance(*leaves, anchors)
        (values * torch.linspace(-1, 1, values.numel()).reshape(values.shape)).sum().backward()
        found.append([values, *(leaf.grad for leaf in leaves if leaf.requires_grad)])
    assert len(found[1]) == 2 + is_target_learned
    for expected, value in zip(*found, strict=True):
        # beside the empty vector the slope is 1e8, as the formula has it
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_gradient_has_the_precision_of_its_features() -> None:
    student = random_maps(2)[0].bfloat16().requires_grad_()
    learned_distance(random_maps(1)[0], student).sum().backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [1, 2, 5, 8])
def test_entropy_of_equal_weights_is_the_logarithm_of_their_number(kept: int) -> None:
    weights = torch.zeros(6, 8)
    weights[:, :kept] = 1 / kept
    assert float(query_entropy(weights)) == pytest.approx(math.log(kept), abs=1e-6)


def test_entropy_is_the_mean_over_the_queries() -> None:
    weights = torch.softmax(torch.randn(5, 9, generator=torch.Generator().manual_seed(0)), dim=1)
    rows = [-sum(w * math.log(w) for w in row) for row in weights.double().tolist()]
    assert float(query_entropy(weights)) == pytest.approx(sum(rows) / 5, abs=1e-6)


def test_share_of_empty_rows() -> None:
    weights = torch.ones(8, 3)
    weights[1:3] = 0
    assert empty_row_share(weights) == 0.25


def some_branches() -> Branches:
    weights = torch.softmax(torch.randn(10, 6, generator=torch.Generator().manual_seed(9)), dim=1)
    return Branches(
        teacher=random_maps(4),
        projected=random_maps(5),
        reverse=random_maps(6),
        forward=random_maps(7),
        forward_projected=random_maps(8),
        memory_weights=weights,
        teacher_anchors=NO_ANCHORS,
        projected_anchors=NO_ANCHORS,
    )


def test_terms_of_equation_7() -> None:
    branches = some_branches()
    assert branches.forward is not None
    assert branches.forward_projected is not None
    assert branches.memory_weights is not None
    terms = nnet_losses(branches, PAPER, epoch=0)
    expected = {
        "reverse": slow_loss(branches.teacher, branches.reverse, "pixel"),
        "forward": 1.2 * slow_loss(branches.projected, branches.forward_projected, "pixel"),
        "align": slow_loss(branches.forward, branches.projected, "pixel"),
        "query": 0.002 * float(query_entropy(branches.memory_weights)),
    }
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("epoch", "is_aligned"), [(0, True), (19, True), (20, False), (199, False)])
def test_alignment_ends_after_twenty_epochs(epoch: int, is_aligned: bool) -> None:
    assert ("align" in nnet_losses(some_branches(), PAPER, epoch)) == is_aligned


@pytest.mark.parametrize(
    ("weight", "term"), [("kd_weight", "forward"), ("align_weight", "align"), ("query_weight", "query")]
)
def test_a_term_of_weight_zero_is_not_computed(weight: str, term: str) -> None:
    settings = replace(PAPER, **{weight: 0.0})
    terms = nnet_losses(some_branches(), settings, epoch=0)
    assert set(terms) == {"reverse", "forward", "align", "query"} - {term}


def test_absent_parts_have_no_terms() -> None:
    branches = replace(some_branches(), forward=None, forward_projected=None, memory_weights=None)
    assert set(nnet_losses(branches, PAPER, epoch=0)) == {"reverse"}
