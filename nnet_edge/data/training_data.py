"""What a training is given: the good images as inputs, learned and held out, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnet_edge.bits import Depth
from nnet_edge.data.copies import equal_parts, near_parts
from nnet_edge.data.dataset import Dataset
from nnet_edge.data.groups import NONE, find_groups
from nnet_edge.data.holding_out import NOTHING_BEFORE, Before, Folds, hold_out, in_folds_of
from nnet_edge.data.images import Progress, Skipped, digests_of, find_duplicates, fingerprint_of, load_images, short
from nnet_edge.data.masks import find_mask_like
from nnet_edge.geometry import DEFAULT, Geometry, PictureSizes
from nnet_edge.image_path import columns_of, other_kind, usual_of
from nnet_edge.scoring import HELD_OUT_SHARE
from nnet_edge.text import printable

Together = Literal["equal", "near"]


@dataclass(frozen=True)
class TrainingData:
    """What a training is given."""

    learned: np.ndarray  # uint8 RGB (N, height, width, 3)
    held_out: np.ndarray  # uint8 RGB (H, height, width, 3), never learned from: the threshold is chosen on them
    skipped: tuple[Skipped, ...]  # images that could not be read
    duplicates: tuple[tuple[Path, Path], ...]  # the same pixels in the training and in the test images
    facts: dict[str, Any]  # for the manifest
    near: tuple[Path, Path] | None = None  # two near copies that are not kept together
    mask_like: tuple[Path, ...] = ()  # good images that look like masks
    depth: Depth | None = None  # of its pictures of 16 bits; None: there are none
    other_kind: tuple[Path, ...] = ()  # good images that were made otherwise than most, as JPEGs among lossless ones
    folds: Folds | None = None  # None: the held-out images are not among the learned

    @property
    def is_dark(self) -> bool:
        """Whether no picture exceeds a quarter of its range, once scaled and resized."""
        return all(part.max(initial=0) <= 255 // 4 for part in (self.learned, self.held_out))


def load_training_data(
    dataset: Dataset,
    seed: int,
    share: float = HELD_OUT_SHARE,
    skip_bad: bool = False,
    progress: Progress | None = None,
    together: Together = "equal",
    bits: int | None = None,
    groups: str = NONE,
    folds: int = 1,
    geometry: Geometry = DEFAULT,
    before: Before = NOTHING_BEFORE,
) -> TrainingData:
    """The good images of `dataset` as inputs, `share` of the parts that they show (at least 10) held out by `seed`.

    Images of equal pixels show one part; with `together` "near", near copies do as well. `groups` says where the groups come
    from that are held out whole (groups.py). What an earlier training learned or held out stays so. With `folds` above 1 all
    are learned and all are held out, see Folds. Raises DataError for images that cannot be read (unless `skip_bad`) or are
    too few, and for a table of groups that does not fit, ConfigError for an invalid share or number of folds.
    """
    images = load_images(dataset.train, skip_bad, progress, bits, geometry)
    equal = equal_parts(images.images)
    near = near_parts(images.images, equal)
    parts = near if together == "near" else equal
    grouped = find_groups(dataset, images.paths, groups)
    names = None if grouped is None else grouped.names
    in_folds = None if folds == 1 else in_folds_of(parts, names, folds, seed)
    if in_folds is None:
        row_of = {path: row for row, path in enumerate(images.paths)}
        rows = [
            [row_of[path] for path in part]
            for part in hold_out(images.paths, seed, share, parts=parts, groups=names, before=before)
        ]
    else:
        rows = [list(range(len(images.paths))), in_folds.judged.tolist()]
    duplicates = tuple(find_duplicates(dataset))
    digests = digests_of(images.paths)
    facts = {
        "name": printable(dataset.category),
        "layout": dataset.layout,
        "fingerprint": fingerprint_of(digests),
        "learned": len(rows[0]),
        "held_out": len(rows[1]),
        "folds": folds,
        "held_out_share": share,
        "seed": seed,
        "skipped": len(images.skipped),
        "duplicates_of_test_images": len(duplicates),
        "bits": images.depth.bits if images.depth else bits,
        "distinct": len(set(equal)),
        "distinct_by_near_copies": len(set(near)),
        "together": together,
        "left_out": 0 if in_folds else len(images.paths) - len(rows[0]) - len(rows[1]),
        "groups": None if grouped is None else grouped.as_dict(),
        "held_out_groups": None if names is None else [names[row] for row in rows[1]],
        "held_out_files": [] if in_folds else [short(digests[row]) for row in rows[1]],
        "learned_files": [short(digests[row]) for row in rows[0]],
        "pictures": PictureSizes.of(images.sizes).as_dict(),
    }
    files = columns_of(images.files)
    usual = usual_of({name: values[rows[1]] for name, values in files.items()})
    facts["image_path_of_files"] = {name: one.as_dict() for name, one in usual.items()}
    others = other_kind(files)
    other_paths = () if others is None else tuple(images.paths[row] for row in np.flatnonzero(others))
    pair = _two_of_one(images.paths, near, parts)
    return TrainingData(images.images[rows[0]], images.images[rows[1]], images.skipped, duplicates, facts, pair,
                        tuple(find_mask_like(images.images, images.paths)), images.depth, other_paths, in_folds)  # fmt: skip


def _two_of_one(paths: Sequence[Path], near: Sequence[int], parts: Sequence[int]) -> tuple[Path, Path] | None:
    """Two images that are near copies and count as two parts; None when there are none."""
    first: dict[int, int] = {}
    for row, number in enumerate(near):
        if parts[other := first.setdefault(number, row)] != parts[row]:
            return paths[other], paths[row]
    return None
