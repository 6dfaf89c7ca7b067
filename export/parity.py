"""Parity of two runners on real images, checked before a bundle is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nnet_edge.errors import ParityError
from nnet_edge.frame import Outputs
from nnet_edge.runtime.runners.base import Runner, infer_all

LAYER_MAP_ATOL = 1e-4  # FP32 sums in another order; layer maps lie in [0, 2]
SCORE_RTOL = 1e-4  # the score is a product of three sums of layer maps


@dataclass(frozen=True)
class Parity:
    """How far `runner` is from `reference` on the same images."""

    reference: str
    runner: str
    images: int
    layer_map_error: float  # largest absolute difference of any layer map, which lie in [0, 2]
    score_error: float  # largest relative difference of an image score
    flipped_verdicts: int | None  # None before there is a threshold

    @property
    def holds(self) -> bool:
        """Whether all three stay within the stated tolerances."""
        return self.layer_map_error <= LAYER_MAP_ATOL and self.score_error <= SCORE_RTOL and not self.flipped_verdicts

    def sentence(self) -> str:
        """The comparison in one line."""
        flips = "" if self.flipped_verdicts is None else f", {self.flipped_verdicts} flipped verdicts"
        within = f"layer maps within {self.layer_map_error:.1e}, scores within {self.score_error:.1e} relative"
        return f"{self.runner} against {self.reference} on {self.images} images: {within}{flips}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def check_parity(
    reference: Runner, runners: Sequence[Runner], images: np.ndarray, threshold: float | None = None
) -> list[Parity]:
    """Each runner against `reference` on uint8 RGB images (N, 256, 256, 3). Raises ParityError when one is too far off."""
    expected = infer_all(reference, images)
    if fault := expected.fault():
        raise ParityError(
            f"the network gives NaN or infinite scores ({reference.name}, of the held-out frames: {fault}): train longer, or "
            "with a lower --learning-rate"
        )
    found = []
    for runner in runners:
        outputs = infer_all(runner, images)
        if fault := outputs.fault():
            raise ParityError(
                f"nnet.onnx on {runner.name}, of the held-out frames: {fault}, where {reference.name} gives numbers. "
                "No bundle was written; report the versions that `nnet-edge doctor` prints"
            )
        parity = compare(reference.name, runner.name, expected, outputs, threshold)
        if not parity.holds:
            raise ParityError(
                f"{parity.sentence()}; allowed are {LAYER_MAP_ATOL:.0e} and {SCORE_RTOL:.0e} and no flip. "
                "No bundle was written; report the versions that `nnet-edge doctor` prints"
            )
        found.append(parity)
    return found


def compare(reference: str, runner: str, expected: Outputs, found: Outputs, threshold: float | None) -> Parity:
    """The differences between the outputs of two runners for the same images."""
    errors = [np.abs(value - found.layer_maps[name]).max() for name, value in expected.layer_maps.items()]
    layer_maps = float(max(errors)) if np.isfinite(errors).all() else float("inf")
    scale = np.maximum(np.abs(expected.image_score), np.finfo(np.float32).tiny)
    scores = float((np.abs(expected.image_score - found.image_score) / scale).max())
    flipped = None
    if threshold is not None:
        flipped = int(((expected.image_score > threshold) != (found.image_score > threshold)).sum())
    return Parity(reference, runner, len(expected.image_score), layer_maps, scores, flipped)
