"""DMDD's losses and head against written-out computations on small tensors, and its two stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.base import METHODS, Batch
from nnet_edge.methods.dmdd.network import DMDD, Compared, Decoupled, dmdd_losses
from nnet_edge.methods.dmdd.settings import DESIGN, TUNED, ModelSettings, TrainSettings

SHAPES = ((2, 3, 8, 8), (2, 5, 4, 4), (2, 7, 2, 2))
MASKS = torch.zeros(2, 1, 15, 15, dtype=torch.bool)
MASKS[0, :, 2:9, 3:11] = True
METHOD = METHODS.find("dmdd")


def features(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second, third = (torch.randn(shape, generator=generator) for shape in SHAPES)
    return first, second, third


def distances(target: Tensor, student: Tensor) -> np.ndarray:
    x, y = target.double().numpy(), student.double().numpy()
    return np.asarray(1 - (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1)))


def mask_at(side: int) -> np.ndarray:
    """Bilinear with corners aligned, 1 from one half on, by loops."""
    found = np.zeros((2, side, side))
    values = MASKS[:, 0].double().numpy()
    for image, row, column in np.ndindex(2, side, side):
        y, x = (14 * place / (side - 1) for place in (row, column))
        top, left = min(int(y), 13), min(int(x), 13)
        down, across = y - top, x - left
        four = values[image, top : top + 2, left : left + 2]
        found[image, row, column] = (1 - down) * ((1 - across) * four[0, 0] + across * four[0, 1]) + down * (
            (1 - across) * four[1, 0] + across * four[1, 1]
        )
    return (found >= 0.5).astype(float)


TEACHER, OF_DAMAGED = features(0), features(1)
GOOD, DAMAGED = Decoupled(features(2), features(3)), Decoupled(features(4), features(5))
FIRST_STAGE = Compared(TEACHER, GOOD, OF_DAMAGED, DAMAGED, MASKS)


@pytest.mark.parametrize("target", ["anomalous", "normal"])
@pytest.mark.parametrize("kind", ["mask", "hinge"])
def test_losses_of_the_first_stage_written_out(target: str, kind: str) -> None:
    settings = replace(DESIGN, abnormality_target=target, abnormality_loss=kind, normality_weight=0.5)
    terms = dmdd_losses(FIRST_STAGE, settings)
    normality = sum(
        distances(t, n).mean() for part in (GOOD, DAMAGED) for t, n in zip(TEACHER, part.normality, strict=True)
    )
    abnormality = sum(distances(t, a).mean() for t, a in zip(TEACHER, GOOD.abnormality, strict=True))
    for t, a in zip(OF_DAMAGED if target == "anomalous" else TEACHER, DAMAGED.abnormality, strict=True):
        distance, mask = distances(t, a), mask_at(t.shape[-1])
        if kind == "mask":
            abnormality += np.abs(distance - mask).mean()
        else:
            abnormality += (mask * np.maximum(1 - distance, 0)).sum() / max(mask.sum(), 1)
    assert set(terms) == {"normality", "abnormality"}
    assert float(terms["normality"]) == pytest.approx(0.5 * normality, abs=1e-5)
    assert float(terms["abnormality"]) == pytest.approx(abnormality, abs=1e-5)


def test_loss_of_the_second_stage_written_out() -> None:
    share = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(7))
    terms = dmdd_losses(Compared(TEACHER, masks=MASKS, segmentation=share), replace(DESIGN, segmentation_weight=2.0))
    p, mask = share[:, 0].double().numpy(), mask_at(5)
    right = np.where(mask > 0, p, 1 - p)
    expected = (-((1 - right) ** 4) * np.log(right)).mean() + np.abs(p - mask).mean()
    assert float(terms["segmentation"]) == pytest.approx(2 * expected, rel=1e-5)


def test_a_certain_head_has_a_finite_loss() -> None:
    for value in (0.0, 1.0):
        share = torch.full((2, 1, 5, 5), value)
        loss = dmdd_losses(Compared(TEACHER, masks=MASKS, segmentation=share), DESIGN)["segmentation"]
        assert torch.isfinite(loss)


def network(settings: TrainSettings = TUNED) -> DMDD:
    torch.manual_seed(0)
    return DMDD(settings.model, build_encoder(find_backbone("efficientnet_lite0")))


def test_the_stages_train_one_part_each() -> None:
    settings = replace(TUNED, epochs=10, head_share=0.4, head_rate=0.2)
    assert settings.head_from == 6
    dmdd = network().train()
    batch = Batch(torch.randn(2, 3, 256, 256), dmdd.teacher_features(torch.randn(2, 3, 256, 256)),
                  torch.randn(2, 3, 256, 256), torch.rand(2, 1, 256, 256) > 0.5)  # fmt: skip
    for epoch, learns, stands in ((5, ("student", "decouple"), ("head",)), (6, ("head",), ("student", "decouple"))):
        dmdd.train()
        METHOD.begin_epoch(dmdd, settings, epoch)
        dmdd.zero_grad(set_to_none=True)
        before = {name: value.clone() for name, value in dmdd.state_dict().items() if name.split(".")[0] in stands}
        terms = METHOD.losses(METHOD.forward(dmdd, batch, settings), settings, epoch)
        torch.stack(list(terms.values())).sum().backward()
        grads = {name.split(".")[0] for name, value in dmdd.named_parameters() if value.grad is not None}
        assert grads == set(learns)
        assert all(torch.equal(value, dmdd.state_dict()[name]) for name, value in before.items())  # statistics too


def test_early_stopping_waits_for_the_head() -> None:
    settings = replace(TUNED, epochs=10, head_share=0.4, head_rate=0.2)
    assert METHOD.validates_from(settings) == 6
    distances_only = settings.overridden("model.maps=both")
    assert METHOD.validates_from(distances_only) == 0
    assert distances_only.head_from == 10
    assert METHOD.parameter_groups(settings) == {"head.": 0.2}
    assert METHOD.parameter_groups(distances_only) == {}
    assert replace(TUNED, epochs=1).head_from == 0  # the head is never left out


def test_the_head_reads_both_kinds_of_features() -> None:
    dmdd = network().eval().requires_grad_(False)
    shapes = [(1, channels, side, side) for channels, side in zip(dmdd.backbone.channels, (64, 32, 16), strict=True)]
    teacher, normality, abnormality, other = ([torch.randn(shape) for shape in shapes] for _ in range(4))
    first = dmdd.segment(teacher, Decoupled(normality, abnormality))  # type: ignore[arg-type]
    assert first.shape == (1, 1, 64, 64)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    for changed in (Decoupled(other, abnormality), Decoupled(normality, other)):  # type: ignore[arg-type]
        assert not torch.allclose(dmdd.segment(teacher, changed), first)  # type: ignore[arg-type]
    scaled = [3 * value for value in normality]
    torch.testing.assert_close(dmdd.segment(teacher, Decoupled(scaled, abnormality)), first)  # type: ignore[arg-type]


def test_settings_choose_maps_and_fusion() -> None:
    assert dict(ModelSettings().map_strides) == {"segmentation_64": 4}
    assert ModelSettings().fusion.branches == ("segmentation",)
    both = ModelSettings(maps="both", fusion_rule="sum")
    assert list(both.map_strides) == [f"{b}_{s}" for b in ("abnormality", "normality") for s in (64, 32, 16)]
    assert (both.fusion.branches, both.fusion.rule) == (("abnormality", "normality"), "sum")
    assert next(iter(ModelSettings(maps="normality").map_strides)) == "normality_64"
