"""BiKD's losses against written-out computations on small tensors, and their ramp."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nnet_edge.methods.bikd.network import View, Views, bikd_losses
from nnet_edge.methods.bikd.settings import DESIGN, TUNED

SHAPES = ((2, 3, 4, 4), (2, 5, 2, 2), (2, 7, 1, 1))
ADAPTER = replace(DESIGN, model=replace(DESIGN.model, backward="teacher_adapter"))


def features(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second, third = (torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES)
    return first, second, third


def written_out(target: tuple[Tensor, ...], student: tuple[Tensor, ...]) -> float:
    total = 0.0
    for one, other in zip(target, student, strict=True):
        x, y = (value.detach().double().numpy() for value in (one, other))
        total += float((1 - (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))).mean())
    return total


TEACHER, GOOD, DAMAGED = features(0), View(features(1), features(2)), View(features(3), features(4))


def test_losses_of_both_images_written_out() -> None:
    settings = replace(DESIGN, forward_weight=0.7, backward_weight=1.3, exchange_epochs=0)
    terms = bikd_losses(Views(TEACHER, GOOD, DAMAGED), settings, 0)
    assert terms["forward"].item() == pytest.approx(
        0.7 * (written_out(TEACHER, GOOD.forward) + written_out(TEACHER, DAMAGED.forward)), abs=1e-5
    )
    assert terms["backward"].item() == pytest.approx(
        1.3 * (written_out(TEACHER, GOOD.backward) + written_out(TEACHER, DAMAGED.backward)), abs=1e-5
    )
    assert terms["exchange"].item() == pytest.approx(0.1 * 2 * written_out(DAMAGED.forward, DAMAGED.backward), abs=1e-5)


def test_an_adapter_learns_from_the_student() -> None:
    terms = bikd_losses(Views(TEACHER, GOOD, None), replace(ADAPTER, exchange_epochs=0), 0)
    assert terms["backward"].item() == pytest.approx(written_out(GOOD.forward, GOOD.backward), abs=1e-5)
    assert terms["exchange"].item() == pytest.approx(0.1 * written_out(GOOD.forward, GOOD.backward), abs=1e-5)


@pytest.mark.parametrize("settings", [DESIGN, ADAPTER], ids=["reverse_student", "teacher_adapter"])
def test_each_side_of_the_exchange_moves_one_branch(settings: object) -> None:
    assert isinstance(settings, type(DESIGN))
    for values in (*GOOD.forward, *GOOD.backward):
        values.grad = None
    bikd_losses(Views(TEACHER, GOOD, None), settings, 99)["backward"].backward()
    assert all(value.grad is None for value in GOOD.forward)
    assert all(value.grad is not None for value in GOOD.backward)


def test_the_exchange_is_ramped_up() -> None:
    weights = [DESIGN.exchange_at(epoch) for epoch in range(30)]
    assert weights[0] == pytest.approx(0.1 / 20)
    assert weights[9] == pytest.approx(0.05)
    assert weights[19:] == [0.1] * 11
    assert replace(DESIGN, exchange_epochs=0).exchange_at(0) == 0.1
    assert "exchange" not in bikd_losses(Views(TEACHER, GOOD, None), replace(DESIGN, exchange_weight=0.0), 50)


def test_a_length_in_images_ramps_over_a_tenth() -> None:
    settings = replace(TUNED, image_steps=1000).with_length_for(20)
    assert (settings.epochs, settings.exchange_epochs) == (50, 5)
    assert DESIGN.with_length_for(20) == DESIGN


def test_settings_choose_maps_and_fusion() -> None:
    assert list(DESIGN.model.map_strides) == [f"{b}_{s}" for b in ("forward", "backward") for s in (64, 32, 16)]
    one = replace(DESIGN.model, maps="backward", fusion_rule="sum")
    assert list(one.map_strides) == ["backward_64", "backward_32", "backward_16"]
    assert (one.fusion.branches, one.fusion.rule) == (("backward",), "sum")
    assert torch.equal(TEACHER[0], features(0)[0])
