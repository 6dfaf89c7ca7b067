"""Cosine distance: 1 - cosine of two feature maps at every position (equations 1 and 2).

`cosine_distance` is the formula, and what exported graphs hold. `learned_distance` gives the same numbers for a loss; its
gradient is written out, which reads and writes the feature maps half as often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

COSINE_EPSILON = 1e-8  # smallest norm of a feature vector, section 7
NO_ANCHORS = (None, None, None)
SMALLEST_DEVIATION = 1e-3  # share of the mean deviation; a channel that never changes is not blown up


def unit(features: Tensor) -> Tensor:
    """Feature vectors of length 1, FP32; half precision would overflow in the squares."""
    features = features.float()
    squares = features.square().sum(dim=1, keepdim=True)  # clamped before the root, whose slope at 0 is infinite
    return features / squares.clamp_min(COSINE_EPSILON**2).sqrt()


def cosine_distance(target: Tensor, student: Tensor, anchor: Tensor | None = None) -> Tensor:
    """1 - cosine over the channels at every position, (N, 1, H, W) in [0, 2], in FP32 whatever the features are (eq. 1, 2).

    `anchor` is the square of a constant channel that both vectors get beside their own: where a vector is short, as over a
    featureless background, its direction is noise, and the anchor keeps that noise out of the distance (not in the paper).
    """
    with torch.autocast(target.device.type, enabled=False):
        if anchor is None:
            return 1 - (unit(target) * unit(student)).sum(dim=1, keepdim=True)
        target, student = target.float(), student.float()
        product = (target * student).sum(dim=1, keepdim=True) + anchor
        lengths = [value.square().sum(dim=1, keepdim=True) + anchor for value in (target, student)]
        return 1 - product / (lengths[0].sqrt() * lengths[1].sqrt())


def cosine_distances(
    targets: Sequence[Tensor], students: Sequence[Tensor], anchors: Sequence[Tensor | None] = NO_ANCHORS
) -> list[Tensor]:
    """The distance of each pair of feature maps."""
    return [cosine_distance(*triple) for triple in zip(targets, students, anchors, strict=True)]


def learned_distance(target: Tensor, student: Tensor, anchor: Tensor | None = None) -> Tensor:
    """`cosine_distance` with a quick gradient, which reaches both feature maps and not the anchor."""
    return _Distance.apply(target, student, anchor)


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


class _Distance(torch.autograd.Function):
    """With the inverse lengths p and q of t and s: cos = t s p q, and its slope in s is t p q - cos s q^2."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, student: Tensor, anchor: Tensor | None) -> Tensor:
        t, s = target.float(), student.float()
        extra: Tensor | float = 0.0 if anchor is None else anchor
        p, q = (_inverse_length(values.square().sum(dim=1, keepdim=True) + extra) for values in (t, s))
        cosine = ((t * s).sum(dim=1, keepdim=True) + extra) * p * q
        ctx.save_for_backward(target, student, p, q, cosine)
        return 1 - cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        target, student, p, q, cosine = ctx.saved_tensors
        t, s = target.float(), student.float()
        across, along = -gradients[0] * p * q, gradients[0] * cosine
        of_target = (s * across).addcmul_(t, along * _squared(p)) if ctx.needs_input_grad[0] else None
        of_student = (t * across).addcmul_(s, along * _squared(q)) if ctx.needs_input_grad[1] else None
        return _as(of_target, target), _as(of_student, student), None


def _inverse_length(squares: Tensor) -> Tensor:
    return squares.clamp_min(COSINE_EPSILON**2).rsqrt()


def _squared(inverse_length: Tensor) -> Tensor:
    """Its square; 0 where the length was clamped: there it does not depend on the vector."""
    return inverse_length.square() * (inverse_length < 1 / COSINE_EPSILON)


def _as(gradient: Tensor | None, features: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(features.dtype)
