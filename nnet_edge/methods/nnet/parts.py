"""The trained parts of N-Net that no other method has: NFS (specification section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nnet_edge.methods.cosine import unit
from nnet_edge.methods.depthwise import is_quick

NORM_EPSILON = 1e-12  # smallest sum of the memory's weights
SHRINK_SOFTNESS = 0.01  # width of the shrinkage's step, in thresholds
ROWS = 64  # queries of a piece: with 1,024 slots a quarter of a MiB
CORESET_POOL = 30_000  # positions that a coreset is chosen from; the choice takes seconds
MAX_EMPTY_ROWS = 0.01  # share of queries whose weights are all shrunk to zero; above it the memory is dying


class FeatureStorage(nn.Module):
    """NFS: every position of F3 is replaced by what a learned memory of normal features recalls for it (section 4).

    The shrinkage threshold is lambda / slots, never a fixed number: with cosines and a softmax at temperature 1 the largest
    possible weight is e / (e + slots - 1), and a threshold above it empties the memory for good (A-4).

    Deviation: the shrinkage divides by |w - lambda| + 0.01 lambda, where the public MemAE code adds 1e-12. With 1e-12 a weight
    jumps from 0 to lambda at the threshold, so that rounding decides what is recalled, another way in every runner (seen:
    layer maps 2e-3 apart), and ONNX Runtime drops so small a sum as a no-op, which leaves 0 / 0.
    """

    def __init__(
        self, slots: int, channels: int, temperature: float, lambda_times_slots: float, addressing: str
    ) -> None:
        super().__init__()
        bound = channels**-0.5
        self.memory = nn.Parameter(torch.empty(slots, channels).uniform_(-bound, bound))
        self.temperature = temperature
        self.threshold = lambda_times_slots / slots
        self.addressing = addressing

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The recalled features (N, C, H, W) and the weights (N*H*W, slots) that equation 5 takes the entropy of; FP32."""
        with torch.autocast(features.device.type, enabled=False):
            return self.recall(features) if torch.compiler.is_exporting() else self.recall_rows(features)

    def recall(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, for a graph.

        Both products are 1x1 convolutions: no reshape needs the batch's size, so nothing but the first cast reads the
        uint8 input (TensorRT refuses even its shape).
        """
        queries, keys = self.compared(features)
        weights = self.weigh(functional.conv2d(queries, keys[:, :, None, None]))
        recalled = functional.conv2d(weights, self.memory.t()[:, :, None, None])
        return recalled, weights.permute(0, 2, 3, 1).flatten(0, 2)

    def recall_rows(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, by matrix products over the positions: for FP32 1x1 convolutions a CPU copies everything."""
        queries, keys = self.compared(features.permute(0, 2, 3, 1).flatten(0, 2))
        similarity = queries @ keys.t()
        is_quick_one = is_quick(self, similarity) and self.addressing != "cos_relu"
        weights = _Weigh.apply(similarity, self.temperature, self.threshold) if is_quick_one else self.weigh(similarity)
        recalled = (weights @ self.memory).unflatten(0, (len(features), *features.shape[2:]))
        return recalled.permute(0, 3, 1, 2), weights

    def compared(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The queries, channels in dimension 1, and the slots (slots, C), as they are compared; FP32."""
        if self.addressing == "dot_softmax":
            return queries.float(), self.memory
        return unit(queries), unit(self.memory)

    def weigh(self, similarity: Tensor) -> Tensor:
        """Weights, non-negative and summing to 1 over the slots, which are dimension 1 of `similarity`."""
        if self.addressing == "cos_relu":
            weights = torch.relu(similarity)
        else:
            weights = torch.softmax(similarity / self.temperature, dim=1)
        weights = shrunk(weights, self.threshold)
        return weights / weights.sum(dim=1, keepdim=True).clamp_min(NORM_EPSILON)

    @torch.no_grad()
    def remember(self, features: Tensor, generator: torch.Generator, spread: bool) -> None:
        """Start the memory from positions of `features` (N, C, H, W): drawn at random, or a coreset where `spread`."""
        rows = features.permute(0, 2, 3, 1).flatten(0, 2)
        drawn = torch.randperm(len(rows), generator=generator)[: CORESET_POOL if spread else len(self.memory)]
        rows = rows[drawn].float()
        if spread:
            rows = rows[choose_coreset(rows, len(self.memory))]
        if len(rows) < len(self.memory):  # fewer positions than slots: some are kept twice
            rows = rows[torch.arange(len(self.memory)) % len(rows)]
        self.memory.copy_(rows)


def shrunk(weights: Tensor, threshold: float) -> Tensor:
    """The weights above the threshold, less the nearer they are to it; the others are 0."""
    over = weights - threshold
    return torch.relu(over) * weights / (over.abs() + SHRINK_SOFTNESS * threshold)


class _Weigh(torch.autograd.Function):
    """`FeatureStorage.weigh` of similarities (rows, slots) by a softmax, some rows at a time: they stay in the cache."""

    @staticmethod
    def forward(ctx: Any, similarity: Tensor, temperature: float, threshold: float) -> Tensor:
        soft, weights = torch.empty_like(similarity), torch.empty_like(similarity)
        totals = similarity.new_empty((len(similarity), 1))
        for given, share, weight, total in _in_pieces(similarity, soft, weights, totals):
            share.copy_(torch.softmax(given / temperature, dim=1))
            found = shrunk(share, threshold)
            total.copy_(found.sum(dim=1, keepdim=True).clamp_min_(NORM_EPSILON))
            torch.div(found, total, out=weight)
        ctx.save_for_backward(soft, weights, totals)
        ctx.temperature, ctx.threshold = temperature, threshold
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        of_similarity = torch.empty_like(gradients[0])
        softness = SHRINK_SOFTNESS * ctx.threshold
        for gradient, share, weight, total, out in _in_pieces(gradients[0], *ctx.saved_tensors, of_similarity):
            of_shrunk = (gradient - (gradient * weight).sum(dim=1, keepdim=True)).div_(total)
            over = share - ctx.threshold
            slope = (over + share).addcmul_(weight, total, value=-1).div_(over + softness)
            of_share = of_shrunk.mul_(slope).masked_fill_(over <= 0, 0)
            inner = (of_share * share).sum(dim=1, keepdim=True)
            torch.mul(of_share.sub_(inner), share, out=out).div_(ctx.temperature)
        return of_similarity, None, None


def _in_pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(ROWS) for tensor in tensors), strict=True)


def choose_coreset(rows: Tensor, count: int) -> Tensor:
    """Indices of at most `count` of `rows` (n, C), each the farthest by cosine from those before it (greedy k-centre)."""
    rows = unit(rows)
    chosen = [0]
    distance = 1 - rows @ rows[0]
    while len(chosen) < min(count, len(rows)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, 1 - rows @ rows[chosen[-1]])
    return torch.tensor(chosen)
