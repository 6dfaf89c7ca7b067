"""Held-out images: the good parts that a training does not learn, on which its threshold is chosen.

The threshold is chosen on parts that no training saw. So what an earlier one learned cannot be held out by one that goes on
from it, and what it held out stays held out; of new parts some are held out as ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.bits import kept_bits
from nnet_edge.data.copies import equal_parts, near_parts
from nnet_edge.data.dataset import Dataset, Sample
from nnet_edge.data.groups import deal, units_of
from nnet_edge.data.images import file_hash, fingerprint, load_images
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.scoring import HELD_OUT_AT_LEAST, HELD_OUT_SHARE

LEAST_TO_LEARN = 2  # batch normalisation needs two images


@dataclass(frozen=True)
class Before:
    """The images that an earlier training learned, and those that it held out."""

    learned: frozenset[Path] = frozenset()
    held_out: frozenset[Path] = frozenset()


NOTHING_BEFORE = Before()


def seen_before(facts: Mapping[str, Any], paths: Sequence[Path], own: Sequence[Path]) -> Before:
    """What of `paths` the training saw whose facts (the manifest's "data") those are, by what the files hold.

    A bundle that does not name the files that it learned may have learned all of `own`, the images without those that are
    added now, and all of `paths` where their fingerprint is that of its own.
    """
    held_hashes, hashes = set(facts.get("held_out_files", ())), {path: hash_of(path) for path in paths}
    held_out = frozenset(path for path, found in hashes.items() if found in held_hashes)
    learned: Collection[Path]
    if "learned_files" in facts:
        learned_hashes = set(facts["learned_files"])
        learned = [path for path, found in hashes.items() if found in learned_hashes]
    else:
        learned = paths if fingerprint(paths) == facts["fingerprint"] else own
    return Before(frozenset(learned) - held_out, held_out)


def hash_of(path: Path) -> str:
    """Of the file's content; "" of one that cannot be read, which is said when its picture is wanted."""
    try:
        return file_hash(path)
    except OSError:
        return ""


def hold_out(
    paths: Sequence[Path],
    seed: int,
    share: float = HELD_OUT_SHARE,
    at_least: int = HELD_OUT_AT_LEAST,
    parts: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    before: Before = NOTHING_BEFORE,
) -> tuple[list[Path], list[Path]]:
    """(to learn from, held out), both sorted: `share` of the parts, rounded up, but `at_least` so many, are held out.

    `parts` numbers the part that each image shows; without it each shows its own. A part is learned in all its images, or held
    out in the first of them, the others left out; one with many images is learned. With `groups`, one for each image, whole
    groups are held out until the parts in them are so many. A part or group of which an earlier training learned an image is
    learned, one that it held out is held out, and the share, rounded down, is one of the others. The same names, parts, groups
    and `seed` give the same choice. Two parts at least remain to learn from. Raises DataError when there are fewer than
    `at_least` + 2 parts, or too few groups, ConfigError for an impossible share.
    """
    if not 0 <= share < 1 or at_least < 0:
        raise ConfigError(f"cannot hold out a share of {share} and at least {at_least}: 0 <= share < 1, at least >= 0")
    units = units_of_parts(paths, parts, groups)
    sizes = [len(unit) for unit in units]  # in parts
    needed = at_least + LEAST_TO_LEARN
    if sum(sizes) < needed:
        shown = "" if sum(sizes) == len(paths) else f", which show {sum(sizes)} distinct parts (the rest are copies),"
        raise DataError(
            f"{len(paths)} good images{shown} are too few: at least {needed} are needed, {at_least} to hold out for the "
            f"threshold and {LEAST_TO_LEARN} to learn from; add photographs of other parts"
        )
    fixed = holding_one_of(units, before.learned)  # to be learned
    chosen = holding_one_of(units, before.held_out) - fixed
    held = sum(sizes[index] for index in chosen)
    new = sum(sizes) - held - sum(sizes[index] for index in fixed)
    if held + new < at_least:
        raise DataError(
            f"all but {held + new} of the good parts were learned by the training before: at least {at_least} that it did not "
            "learn are needed, to hold out for the threshold; add photographs of other parts, or train anew"
        )
    wanted = int(share * new) if fixed or chosen else ceil(share * new)  # few new parts are there to be learned
    count = min(held + max(wanted, at_least - held), sum(sizes) - LEAST_TO_LEARN)
    order = np.random.default_rng(seed).permutation(len(units)).tolist()
    order = [index for index in order if index not in fixed | chosen]
    if groups is None:
        largest = max(1, ceil(share * len(paths)))  # to hold out a part with more images would waste them
        order.sort(key=lambda index: sum(map(len, units[index])) > largest)
    for index in order:
        if held < count and sum(sizes) - held - sizes[index] >= LEAST_TO_LEARN:
            chosen.add(index)
            held += sizes[index]
    if held < count:
        raise DataError(
            f"{len(paths)} good images in {len(units)} groups cannot be parted: {count} are to be held out and at least "
            f"{LEAST_TO_LEARN} learned, in whole groups; add groups, or say --groups none if a part to come may be of these"
        )
    learned = [path for index, unit in enumerate(units) if index not in chosen for images in unit for path in images]
    return sorted(learned), sorted(images[0] for index in chosen for images in units[index])


Unit = list[list[Path]]  # what is held out or learned whole: the images of each of its parts


def units_of_parts(paths: Sequence[Path], parts: Sequence[int] | None, groups: Sequence[str] | None) -> list[Unit]:
    """The images by unit and part, as `hold_out` takes them: a unit is a group, or a part where there are none."""
    numbers = list(range(len(paths))) if parts is None else list(parts)
    units = numbers if groups is None else units_of(numbers, groups)
    images_of: dict[int, dict[int, list[Path]]] = {}
    for path, unit, part in sorted(zip(paths, units, numbers, strict=True)):
        images_of.setdefault(unit, {}).setdefault(part, []).append(path)
    return [list(unit.values()) for unit in images_of.values()]


def holding_one_of(units: Sequence[Unit], paths: frozenset[Path]) -> set[int]:
    """The numbers of the units with one of these images."""
    return {index for index, unit in enumerate(units) if not paths.isdisjoint(chain(*unit))}


@dataclass(frozen=True)
class Folds:
    """The learned images in folds: each is judged by a model that learns the others."""

    count: int
    fold_of: np.ndarray  # int (N,), from 0, of each learned image
    judged: np.ndarray  # int (H,): rows of the learned images that are the held-out ones, one a part


def in_folds_of(parts: Sequence[int], groups: Sequence[str] | None, folds: int, seed: int) -> Folds:
    """The images in folds, by whole groups. Raises DataError for too few parts, ConfigError for too many folds."""
    first = {part: row for row, part in reversed(list(enumerate(parts)))}
    if len(first) < HELD_OUT_AT_LEAST + LEAST_TO_LEARN:
        raise DataError(
            f"{len(parts)} good images, which show {len(first)} distinct parts, are too few: at least "
            f"{HELD_OUT_AT_LEAST + LEAST_TO_LEARN} are needed; add photographs of other parts"
        )
    fold_of = np.array(deal(units_of(parts, groups), folds, seed))
    learned = {
        fold: len({part for part, of in zip(parts, fold_of, strict=True) if of != fold}) for fold in range(folds)
    }
    if min(learned.values()) < LEAST_TO_LEARN:
        raise DataError(
            f"--folds {folds}: a fold would leave {min(learned.values())} part to learn from; one group is too large"
        )
    return Folds(folds, fold_of, np.array(sorted(first.values())))


def with_held_out_images(dataset: Dataset, facts: Mapping[str, Any]) -> Dataset:
    """`dataset` with the held-out good images as test images where it has no good test images of its own.

    Only when its good images are those of `facts`, the manifest's "data"; otherwise `dataset` as it is.
    """
    if any(not sample.is_anomalous for sample in dataset.test) or fingerprint(dataset.train) != facts["fingerprint"]:
        return dataset
    if facts.get("folds", 1) > 1:
        note = "no good test images, and training learned all good ones (--folds): false rejects cannot be counted here"
        return replace(dataset, notes=(*dataset.notes, note))
    held_out = held_out_again(dataset, facts)
    good = tuple(Sample(path, False, None, "good") for path in held_out)
    note = f"no good test images: the {len(good)} held-out images, which chose the threshold, stand in for them"
    return replace(dataset, test=(*good, *dataset.test), notes=(*dataset.notes, note))


def held_out_again(dataset: Dataset, facts: Mapping[str, Any]) -> list[Path]:
    """The good images of `dataset` that the training held out, whose facts those are."""
    if "held_out_files" in facts:
        first = {file_hash(path): path for path in reversed(dataset.train)}  # of equal files
        return sorted(first[name] for name in facts["held_out_files"])
    parts = None
    is_near = facts.get("together") == "near"
    if facts.get("distinct_by_near_copies" if is_near else "distinct", len(dataset.train)) < len(dataset.train):
        images = load_images(dataset.train, bits=kept_bits({"data": facts})).images  # a bundle of before: 256x256
        equal = equal_parts(images)
        parts = near_parts(images, equal) if is_near else equal
    return hold_out(dataset.train, facts["seed"], facts["held_out_share"], parts=parts)[1]
