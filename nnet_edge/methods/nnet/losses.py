"""The losses of the paper's equations 1 to 7."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnet_edge.methods.cosine import NO_ANCHORS, learned_distance
from nnet_edge.methods.nnet.network import Branches
from nnet_edge.methods.nnet.settings import TrainSettings

ENTROPY_EPSILON = 1e-12


def distillation_loss(
    target: Sequence[Tensor],
    student: Sequence[Tensor],
    distance: str = "pixel",
    anchors: Sequence[Tensor | None] = NO_ANCHORS,
) -> Tensor:
    """Sum over the scales of the mean of 1 - cos(target, student); equations 1 and 2.

    `distance` "pixel": one cosine a position, the paper's formula; "global": one a sample over channels and positions,
    as the public reverse-distillation code computes it (A-10). `anchors` as in `cosine_distance`.
    """
    if distance == "global":
        target, student = [value.flatten(1) for value in target], [value.flatten(1) for value in student]
    losses = [learned_distance(*triple).mean() for triple in zip(target, student, anchors, strict=True)]
    return torch.stack(losses).sum()


def query_entropy(weights: Tensor) -> Tensor:
    """Mean over the queries of the entropy of the memory's weights (rows, slots); equation 5 with the mean of A-4."""
    return -(weights * torch.log(weights + ENTROPY_EPSILON)).sum(dim=1).mean()


def empty_row_share(weights: Tensor) -> float:
    """Share of the queries whose weights were all shrunk to zero, 0 to 1; above 1 % the memory is dying."""
    return float((weights.sum(dim=1) == 0).float().mean())


def nnet_losses(branches: Branches, settings: TrainSettings, epoch: int) -> dict[str, Tensor]:
    """The weighted terms of equation 7 that are active in `epoch` (from 0); their sum is the loss.

    reverse: L_RKD (eq. 2). forward: alpha L_KD (eq. 1), its gradient reaches the projections of the teacher (A-11).
    align: beta L_align (eq. 3, 4), only while beta is above 0. query: delta L_query (eq. 5).
    """
    terms = {
        "reverse": distillation_loss(branches.teacher, branches.reverse, settings.distance, branches.teacher_anchors)
    }
    if branches.forward is not None and branches.forward_projected is not None:
        if settings.kd_weight:
            kd = distillation_loss(
                branches.projected, branches.forward_projected, settings.distance, branches.projected_anchors
            )
            terms["forward"] = settings.kd_weight * kd
        if settings.align_weight and epoch < settings.align_epochs:
            align = distillation_loss(branches.forward, branches.projected, settings.distance)
            terms["align"] = settings.align_weight * align
    if branches.memory_weights is not None and settings.query_weight:
        terms["query"] = settings.query_weight * query_entropy(branches.memory_weights)
    return terms
