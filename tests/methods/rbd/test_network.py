"""RBD's corruption and losses against written-out computations on small tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.rbd.network import RBD, Reconstructions, corrupt, draw_cells, rbd_losses
from nnet_edge.methods.rbd.settings import DESIGN, ModelSettings

SHAPES = ((3, 4, 16, 16), (3, 5, 8, 8), (3, 6, 8, 8))


def features(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second, third = (torch.randn(shape, generator=generator) for shape in SHAPES)
    return first, second, third


def written_out(target: tuple[Tensor, ...], student: tuple[Tensor, ...]) -> float:
    total = 0.0
    for one, other in zip(target, student, strict=True):
        x, y = one.double().numpy(), other.double().numpy()
        cosine = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
        total += float((1 - cosine).mean())
    return total


def network() -> RBD:
    torch.manual_seed(0)
    return RBD(ModelSettings(), build_encoder(find_backbone("efficientnet_lite0")))


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.5])
def test_losses_written_out(weight: float) -> None:
    teacher, whole, corrupted = features(1), features(2), features(3)
    terms = rbd_losses(Reconstructions(teacher, whole, corrupted), replace(DESIGN, consistency_weight=weight))
    assert float(terms["reconstruction"]) == pytest.approx(written_out(teacher, corrupted), abs=1e-5)
    expected = weight * (written_out(whole, corrupted) + written_out(teacher, whole))
    assert float(terms.get("consistency", torch.tensor(0.0))) == pytest.approx(expected, abs=1e-5)
    held_out = rbd_losses(Reconstructions(teacher, whole, None), DESIGN)
    assert float(held_out["reconstruction"]) == pytest.approx(written_out(teacher, whole), abs=1e-5)


def test_consistency_pulls_the_corrupted_prediction_to_the_whole_one_alone() -> None:
    whole, corrupted = (tuple(value.requires_grad_() for value in features(seed)) for seed in (2, 3))
    fixed = tuple(value.detach() for value in whole)
    first = rbd_losses(Reconstructions(fixed, whole, corrupted), DESIGN)["consistency"]  # type: ignore[arg-type]
    first.backward()
    assert all(
        float(value.grad.abs().max()) < 1e-5 for value in whole if value.grad is not None
    )  # it is its own target
    assert all(float(value.grad.abs().max()) > 1e-5 for value in corrupted if value.grad is not None)


def test_cells_cover_the_share_asked_for() -> None:
    cells = draw_cells(200, (8, 8), replace(DESIGN, mask_least=0.3, mask_most=0.5), np.random.default_rng(0))
    assert cells.shape == (200, 1, 8, 8)
    shares = cells.mean(axis=(1, 2, 3))
    assert shares.min() >= 0.3 - 0.5 / 64
    assert shares.max() <= 0.5 + 0.5 / 64
    assert shares.std() > 0.03
    assert 0.3 < cells.mean(axis=0).min() <= cells.mean(axis=0).max() < 0.5  # every cell has its turn


def test_the_same_cells_are_masked_at_every_scale_and_nothing_else() -> None:
    rbd = network()
    sizes = zip(rbd.backbone.channels, (64, 32, 16), strict=True)
    teacher = tuple(torch.ones(2, channels, side, side) for channels, side in sizes)
    cells = torch.from_numpy(draw_cells(2, (8, 8), DESIGN, np.random.default_rng(1)))
    for value, token in zip(rbd.masked(teacher, cells), rbd.tokens, strict=True):  # type: ignore[arg-type]
        step = value.shape[-1] // 8
        for image, row, column in np.ndindex(2, 8, 8):
            place = value[image, :, row * step : (row + 1) * step, column * step : (column + 1) * step]
            wanted = token[0].expand_as(place) if bool(cells[image, 0, row, column]) else torch.ones_like(place)
            torch.testing.assert_close(place, wanted)


@pytest.mark.parametrize(("corruption", "share"), [("both", 0.5), ("both", 0.0), ("synthesis", 0.5), ("mask", 1.0)])
def test_each_image_is_corrupted_in_one_way(corruption: str, share: float) -> None:
    rbd, settings = network(), replace(DESIGN, corruption=corruption, synthesis_share=share)
    shapes = [(16, channels, side, side) for channels, side in zip(rbd.backbone.channels, (64, 32, 16), strict=True)]
    teacher, damaged = (tuple(torch.full(shape, value) for shape in shapes) for value in (1.0, 5.0))
    found = corrupt(rbd, teacher, damaged, settings, np.random.default_rng(3))  # type: ignore[arg-type]
    is_damaged = [bool((found[0][image] == 5.0).all()) for image in range(16)]
    assert all(bool((value[image] == 5.0).any()) == is_damaged[image] for value in found for image in range(16))
    wanted = {"synthesis": 1.0, "mask": 0.0}.get(corruption, share)
    assert np.mean(is_damaged) == pytest.approx(wanted, abs=0.3 if 0 < wanted < 1 else 0)


def test_the_graph_has_no_forward_student() -> None:
    names = [name for name, _ in network().named_parameters()]
    assert not any("forward" in name for name in names)
