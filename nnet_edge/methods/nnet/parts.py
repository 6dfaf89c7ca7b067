"""The trained parts of N-Net that no other method has: NFS (specification section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnet_edge.methods.cosine import unit

NORM_EPSILON = 1e-12  # smallest sum of the memory's weights
SHRINK_SOFTNESS = 0.01  # width of the shrinkage's step, in thresholds
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
        weights = self.weigh(queries @ keys.t())
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
        over = weights - self.threshold
        weights = torch.relu(over) * weights / (over.abs() + SHRINK_SOFTNESS * self.threshold)
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


def choose_coreset(rows: Tensor, count: int) -> Tensor:
    """Indices of at most `count` of `rows` (n, C), each the farthest by cosine from those before it (greedy k-centre)."""
    rows = unit(rows)
    chosen = [0]
    distance = 1 - rows @ rows[0]
    while len(chosen) < min(count, len(rows)):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, 1 - rows @ rows[chosen[-1]])
    return torch.tensor(chosen)
