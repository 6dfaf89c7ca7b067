"""Augmentation: which suits the parts, chosen on good images alone; and the augmented copies.

Some good images are laid aside and compared with the others, as they are, turned by half and by a quarter either way. Where
turned ones are not much stranger, parts lie on the line any way round, and turned copies teach what the photographs only hint
at. Where quarter turns are clearly stranger than half turns, the part has a direction (brushed metal, a tray of pockets, a
squeezed picture): then half turns are normal at most. Else parts always lie the same way, and only small changes are normal.
Only what happens to a good part on the line may be switched on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from nnet_edge.geometry import Box
from nnet_edge.methods.compute import Compute, chunks, to_device
from nnet_edge.methods.cosine import SMALLEST_DEVIATION, unit
from nnet_edge.methods.network import Network
from nnet_edge.settings.augmentation import Augmentation

NONE = Augmentation()
SMALL = Augmentation(rotation_degrees=3, zoom=0.03, shift=0.03, brightness=0.08, contrast=0.08)
TURNED = Augmentation(rotation_degrees=180, zoom=0.1, shift=0.05, brightness=0.08, contrast=0.08, flip_horizontal=True)
HALF = replace(SMALL, half_turns=True)
STRANGER_WHEN_TURNED = 2.0  # measured: parts that lie any way 1.0 to 1.6 by half and by a quarter; one way 2.8 to 7.6
STRANGER_BY_A_QUARTER = (
    1.2  # times a half turn: 1.0 any way; brushed metal 1.7, magnetic tiles 1.3, a tray of pockets 3.2
)
STRANGER_BY_HALF = (
    1.3  # where quarter turns are strange: brushed metal 1.0; a tray, of which a half turn is a defect, 1.5
)
IMAGES = 60  # compared, a quarter of them laid aside
FEWEST_IMAGES = 4


@dataclass(frozen=True)
class AugmentationChoice:
    """The augmentation and what it was chosen on."""

    augmentation: Augmentation
    stranger_when_turned: (
        float | None
    )  # distance of half-turned good images over that of unturned ones; None: not measured
    stranger_by_a_quarter: float | None = None  # the same of quarter turns, the mean of both ways

    @property
    def lie_any_way(self) -> bool:
        """Whether parts lie on the line any way round."""
        return self.augmentation.turns_any_way

    def sentence(self) -> str:
        """The choice in one line."""
        if self.stranger_when_turned is None:
            return "augmentation: none"
        kind = "small changes and half turns" if self.augmentation.half_turns else "small changes"
        return (
            f"augmentation: {self.augmentation.copies} copies, {'turned any way' if self.lie_any_way else kind} (good images "
            f"turned by half are {self.stranger_when_turned:.1f} times as strange, by a quarter "
            f"{self.stranger_by_a_quarter:.1f} times)"
        )


def choose_augmentation(
    network: Network, images: np.ndarray, copies: int, seed: int, compute: Compute
) -> AugmentationChoice:
    """What suits uint8 RGB `images` (N, H, W, 3), with `copies`.

    Distances are cosines of F3 brought to mean 0 and deviation 1 a channel over the compared images: else the channels'
    constant part, which all images share, outweighs what differs. With `copies` 1, or fewer than 4 images, there is nothing
    to choose: none.
    """
    if copies == 1 or len(images) < FEWEST_IMAGES:
        return AugmentationChoice(NONE, None)
    order = np.random.default_rng([seed, 2]).permutation(len(images))[:IMAGES]
    aside = images[order[: len(order) // 4]]
    stored = deepest_vectors(network, images[order[len(order) // 4 :]], compute)
    deviation, mean = torch.std_mean(stored, dim=0)
    deviation = deviation.clamp_min(SMALLEST_DEVIATION * float(deviation.mean()) + 1e-12)
    known = unit((stored - mean) / deviation)
    unturned, half, *quarters = (
        nearest_distance(unit((deepest_vectors(network, shown, compute) - mean) / deviation), known)
        for shown in (np.ascontiguousarray(np.rot90(aside, turns, (1, 2))) for turns in (0, 2, *quarter_turns(aside)))
    )
    by_half = half / max(unturned, 1e-6)
    by_quarter = sum(quarters) / len(quarters) / max(unturned, 1e-6) if quarters else np.inf
    return AugmentationChoice(replace(suitable(by_half, by_quarter), copies=copies), by_half, by_quarter)


def quarter_turns(images: np.ndarray) -> tuple[int, ...]:
    """The quarter turns that keep the shape of images (N, H, W, 3): none of such as are not square."""
    return (1, 3) if images.shape[1] == images.shape[2] else ()


def suitable(by_half: float, by_quarter: float) -> Augmentation:
    """The augmentation of parts that are so many times as strange when turned by half and by a quarter."""
    if max(by_half, by_quarter) <= STRANGER_WHEN_TURNED and by_quarter <= STRANGER_BY_A_QUARTER * by_half:
        return TURNED
    return HALF if by_half <= STRANGER_BY_HALF else SMALL


@torch.no_grad()
def deepest_vectors(network: Network, images: np.ndarray, compute: Compute) -> Tensor:
    """The vectors of F3 of all images, (N * positions, C) in FP32."""
    found = []
    for chunk in chunks(images):
        with compute.autocast():
            third = network.teacher_features(network.normalise(to_device(chunk, network.mean.device)))[2]
        found.append(third.float().permute(0, 2, 3, 1).flatten(0, 2))
    return torch.cat(found)


def nearest_distance(queries: Tensor, stored: Tensor) -> float:
    """Mean over `queries` (n, C) of 1 - cosine to the nearest of `stored` (m, C), all of length 1."""
    nearest = [1 - (part @ stored.t()).amax(dim=1) for part in queries.split(1024)]
    return float(torch.cat(nearest).mean())


def augmented_copies(images: np.ndarray, settings: Augmentation, seed: int, window: Box | None = None) -> np.ndarray:
    """The images, uint8 (N, H, W, 3), followed by `settings.copies - 1` copies of all of them, altered in their `window`.

    Made once, before training, so that the teacher's features of each can be kept; every number is drawn from the seed.
    """
    rng = np.random.default_rng([seed, 1])
    copies = [images]
    inside = (slice(None), slice(None)) if window is None else window.inside
    for _ in range(settings.copies - 1):
        copy = images.copy()
        for image in copy:
            image[inside] = augment(image[inside], settings, rng)
        copies.append(copy)
    return np.concatenate(copies) if len(copies) > 1 else images


def augment(image: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """One altered copy of a uint8 image (H, W, 3); what leaves the picture is filled by its mirror image."""
    height, width = image.shape[:2]
    angle = rng.uniform(-settings.rotation_degrees, settings.rotation_degrees)
    zoom = 1 + rng.uniform(-settings.zoom, settings.zoom)
    turn: np.ndarray = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, zoom)
    turn[:, 2] += rng.uniform(-settings.shift, settings.shift, 2) * (width, height)
    moved = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if settings.flip_horizontal and rng.random() < 0.5:
        moved = moved[:, ::-1]
    if settings.flip_vertical and rng.random() < 0.5:
        moved = moved[::-1]
    if settings.half_turns and rng.random() < 0.5:
        moved = moved[::-1, ::-1]
    contrast = 1 + rng.uniform(-settings.contrast, settings.contrast)
    brightness = 1 + rng.uniform(-settings.brightness, settings.brightness)
    mean = moved.mean()
    return np.rint(((moved - mean) * contrast + mean) * brightness).clip(0, 255).astype(np.uint8)
