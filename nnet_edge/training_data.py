"""Good photographs to learn from, good photographs held out, and what the manifest must know of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.data import Dataset, Sample, Skipped, find_duplicates, fingerprint, hold_out, load_images

HELD_OUT_SHARE = 0.15
HELD_OUT_AT_LEAST = 10


@dataclass(frozen=True)
class TrainingData:
    """What a training is given."""

    learned: np.ndarray  # uint8 RGB (N, 256, 256, 3)
    held_out: np.ndarray  # uint8 RGB (H, 256, 256, 3), never learned from: the threshold is chosen on them
    skipped: tuple[Skipped, ...]  # images that could not be read
    duplicates: tuple[tuple[Path, Path], ...]  # the same pixels in the training and in the test images
    facts: dict[str, Any]  # for the manifest


def load_training_data(
    dataset: Dataset,
    seed: int,
    share: float = HELD_OUT_SHARE,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingData:
    """The good images of `dataset`, `share` of them (at least 10) held out by `seed`.

    Raises DataError for images that cannot be read (unless `skip_bad`) or are too few, ConfigError for a share that cannot be.
    """
    images = load_images(dataset.train, skip_bad, progress)
    learned, held_out = hold_out(images.paths, seed, share, HELD_OUT_AT_LEAST)
    row_of = {path: row for row, path in enumerate(images.paths)}
    duplicates = tuple(find_duplicates(dataset))
    facts = {
        "name": dataset.category,
        "layout": dataset.layout,
        "fingerprint": fingerprint(images.paths),
        "learned": len(learned),
        "held_out": len(held_out),
        "held_out_share": share,
        "seed": seed,
        "skipped": len(images.skipped),
        "duplicates_of_test_images": len(duplicates),
    }
    return TrainingData(
        images.images[[row_of[path] for path in learned]],
        images.images[[row_of[path] for path in held_out]],
        images.skipped,
        duplicates,
        facts,
    )


def with_held_out_images(dataset: Dataset, facts: Mapping[str, Any]) -> Dataset:
    """`dataset` with the held-out good images as test images where it has no good test images of its own.

    Only when its good images are those of `facts`, the manifest's "data"; otherwise `dataset` as it is.
    """
    if any(not sample.is_anomalous for sample in dataset.test) or fingerprint(dataset.train) != facts["fingerprint"]:
        return dataset
    _, held_out = hold_out(dataset.train, facts["seed"], facts["held_out_share"], HELD_OUT_AT_LEAST)
    good = tuple(Sample(path, False, None, "good") for path in held_out)
    note = f"no good test images: the {len(good)} held-out images, which chose the threshold, stand in for them"
    return replace(dataset, test=(*good, *dataset.test), notes=(*dataset.notes, note))
