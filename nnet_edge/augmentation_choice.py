"""Which augmentation suits the parts, decided on good images alone.

Parts that lie on the line any way round are better known when the memory holds turned copies too; for parts that always lie
the same way such copies only take room. So every candidate's copies are held against good images that were left aside: the
candidate whose copies come nearest to them, with as many stored vectors as the others, wins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nnet_edge.augment import augmented_copies
from nnet_edge.feature_bank import chunks, to_device
from nnet_edge.model.nnet import NNet
from nnet_edge.model.parts import unit
from nnet_edge.settings import Augmentation

CANDIDATES = {
    "none": Augmentation(),
    "small": Augmentation(rotation_degrees=3, zoom=0.03, shift=0.03, brightness=0.08, contrast=0.08),
    "turned": Augmentation(
        rotation_degrees=180, zoom=0.1, shift=0.05, brightness=0.08, contrast=0.08, flip_horizontal=True
    ),
}
STORED_IMAGES, ASIDE_IMAGES = 45, 15  # enough to tell the candidates apart in seconds
POSITIONS = 256  # vectors of F3 in one image


@dataclass(frozen=True)
class Choice:
    """The candidate that won and what each one reached."""

    name: str
    augmentation: Augmentation
    distances: dict[str, float]  # mean of 1 - cosine to the nearest stored vector, smaller is better

    def sentence(self) -> str:
        """The choice in one line."""
        measured = ", ".join(f"{name} {value:.4f}" for name, value in self.distances.items())
        return f"augmentation: {self.name}, {self.augmentation.copies} copies (distance of good images: {measured})"


def choose_augmentation(
    network: NNet,
    images: np.ndarray,
    copies: int,
    seed: int,
    autocast: Callable[[], contextlib.AbstractContextManager],
) -> Choice:
    """The candidate, with `copies`, that suits uint8 RGB `images` (N, 256, 256, 3); the network is standardised already.

    With `copies` 1, or fewer than 4 images, there is nothing to choose: none.
    """
    if copies == 1 or len(images) < 4:
        return Choice("none", CANDIDATES["none"], {})
    order = np.random.default_rng([seed, 2]).permutation(len(images))[: STORED_IMAGES + ASIDE_IMAGES]
    aside_count = max(1, len(order) * ASIDE_IMAGES // (STORED_IMAGES + ASIDE_IMAGES))
    aside = deepest_vectors(network, images[order[:aside_count]], autocast)
    stored = images[order[aside_count:]]
    distances = {}
    for name, candidate in CANDIDATES.items():
        shown = stored if name == "none" else augmented_copies(stored, replace(candidate, copies=copies), seed)
        vectors = deepest_vectors(network, shown, autocast)
        kept = np.random.default_rng([seed, 3]).permutation(len(vectors))[: len(stored) * POSITIONS]
        distances[name] = nearest_distance(aside, vectors[torch.from_numpy(kept)])
    best = min(distances, key=lambda name: distances[name])
    chosen = CANDIDATES[best] if best == "none" else replace(CANDIDATES[best], copies=copies)
    return Choice(best, chosen, distances)


@torch.no_grad()
def deepest_vectors(
    network: NNet, images: np.ndarray, autocast: Callable[[], contextlib.AbstractContextManager]
) -> Tensor:
    """The vectors of F3 of all images, of length 1, (N * 256, C) in FP32."""
    found = []
    for chunk in chunks(images):
        with autocast():
            third = network.teacher_features(network.normalise(to_device(chunk, network)))[2]
        found.append(third.float().permute(0, 2, 3, 1).flatten(0, 2))
    return unit(torch.cat(found))


def nearest_distance(queries: Tensor, stored: Tensor) -> float:
    """Mean over `queries` (n, C) of 1 - cosine to the nearest of `stored` (m, C), all of length 1."""
    nearest = [1 - (part @ stored.t()).amax(dim=1) for part in queries.split(1024)]
    return float(torch.cat(nearest).mean())
