"""Images of a dataset: loading, masks, duplicates, the fingerprint of a training set, the held-out images.

`layouts.py` says which files are which; its `Sample`, `Dataset` and `read_dataset` are offered here too.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.data.layouts import Dataset, Sample
from nnet_edge.data.layouts import read_dataset as read_dataset
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.imaging import SIDE, MaskRule, read_image, read_mask, read_size, resize, resize_mask
from nnet_edge.text import printable

Progress = Callable[[int, int], None]  # (images done, images in all)
LEAST_TO_LEARN = 2  # batch normalisation needs two images
HELD_OUT_SHARE = 0.15
HELD_OUT_AT_LEAST = 10
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Images:
    """Pictures at the size of the graph's input; `images[i]` was read from `paths[i]`."""

    images: np.ndarray  # uint8 RGB (N, 256, 256, 3)
    paths: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()


def load_images(paths: Sequence[Path], skip_bad: bool = False, progress: Progress | None = None) -> Images:
    """The images at `paths`, resized, in the same order; with `skip_bad` those that cannot be read are left out.

    Needs 192 KiB an image. Calls `progress` after each image in the caller's thread.
    Raises DataError, naming the file, at the first image that cannot be read, or when every one was left out.
    """
    images = np.empty((len(paths), SIDE, SIDE, 3), np.uint8)
    kept: list[Path] = []
    skipped: list[Skipped] = []

    def load(path: Path) -> np.ndarray | DataError:
        try:
            return resize(read_image(path))
        except DataError as error:
            if skip_bad:
                return error
            raise

    pool = ThreadPoolExecutor(THREADS)  # Pillow lets go of the interpreter while it decodes
    try:
        for done, (path, loaded) in enumerate(zip(paths, pool.map(load, paths), strict=True), start=1):
            if isinstance(loaded, DataError):
                skipped.append(Skipped(path, str(loaded)))
            else:
                images[len(kept)] = loaded
                kept.append(path)
            if progress is not None:
                progress(done, len(paths))
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C does not wait for the images that are left
    if skipped and not kept:
        raise DataError(f"none of {len(paths)} images could be read; the first: {skipped[0].reason}")
    return Images(images[: len(kept)], tuple(kept), tuple(skipped))


def load_mask(sample: Sample, rule: MaskRule = "half") -> np.ndarray:
    """Where `sample` is marked as defective, by the rule of `imaging.resize_mask`: bool (256, 256).

    A good sample without a mask gives all False. Raises DataError when the mask cannot be read, has another size than
    its image, or when an anomalous sample has none.
    """
    if sample.mask_path is None:
        if sample.is_anomalous:
            raise DataError(f"{sample.path} shows a defect and has no mask: pixel metrics need one")
        return np.zeros((SIDE, SIDE), bool)
    mask, size = read_mask(sample.mask_path), read_size(sample.path)
    if mask.shape != size:
        sizes = [f"{height} x {width} (height x width)" for height, width in (mask.shape, size)]
        raise DataError(
            f"mask {sample.mask_path} has {sizes[0]} pixels and its image {sample.path} {sizes[1]}: "
            "make them the same (an image's EXIF turn counts)"
        )
    return resize_mask(mask, SIDE, rule)


def load_masks(samples: Sequence[Sample], rule: MaskRule = "half") -> tuple[np.ndarray, np.ndarray]:
    """The masks of `samples`, bool (N, 256, 256), and whether each is known, bool (N,); it is for every good image."""
    masks = np.zeros((len(samples), SIDE, SIDE), bool)
    for mask, sample in zip(masks, samples, strict=True):
        if sample.mask_path is not None:
            mask[:] = load_mask(sample, rule)
    return masks, np.array([sample.mask_path is not None or not sample.is_anomalous for sample in samples])


def find_duplicates(dataset: Dataset) -> list[tuple[Path, Path]]:
    """(train image, test image) for each two with the same pixels, whatever their file formats.

    Every image is decoded once; those that cannot be read are left out, as loading them names them anyway.
    """
    tests = [sample.path for sample in dataset.test]
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(_pixel_hash, [*dataset.train, *tests])) if tests else []
    learned: dict[bytes, list[Path]] = defaultdict(list)
    for path, pixels in zip(dataset.train, hashes, strict=False):  # the hashes of the test follow
        if pixels is not None:
            learned[pixels].append(path)
    judged = zip(tests, hashes[len(dataset.train) :], strict=True)
    return [(train, test) for test, pixels in judged if pixels is not None for train in learned.get(pixels, ())]


def fingerprint(paths: Sequence[Path]) -> str:
    """SHA-256, in hex, of what the files hold; their names, places and order do not count.

    Raises DataError when a file cannot be read.
    """
    try:
        contents = sorted(hashlib.sha256(path.read_bytes()).digest() for path in paths)
    except OSError as error:
        raise DataError(f"cannot read {error.filename} for the fingerprint: {error.strerror}") from error
    return hashlib.sha256(b"".join(contents)).hexdigest()


def hold_out(
    paths: Sequence[Path], seed: int, share: float = HELD_OUT_SHARE, at_least: int = HELD_OUT_AT_LEAST
) -> tuple[list[Path], list[Path]]:
    """(to learn from, held out), both sorted: `share` of `paths`, rounded up, but `at_least` so many, are held out.

    The same names and `seed` give the same choice. Two images at least remain to learn from.
    Raises DataError when there are fewer than `at_least` + 2 images, ConfigError for an impossible share.
    """
    if not 0 <= share < 1 or at_least < 0:
        raise ConfigError(f"cannot hold out a share of {share} and at least {at_least}: 0 <= share < 1, at least >= 0")
    needed = at_least + LEAST_TO_LEARN
    if len(paths) < needed:
        raise DataError(
            f"{len(paths)} good images are too few: at least {needed} are needed, {at_least} to hold out for the "
            f"threshold and {LEAST_TO_LEARN} to learn from"
        )
    ordered = sorted(paths)
    count = min(max(ceil(share * len(ordered)), at_least), len(ordered) - LEAST_TO_LEARN)
    chosen = set(np.random.default_rng(seed).permutation(len(ordered))[:count].tolist())
    learned = [path for index, path in enumerate(ordered) if index not in chosen]
    return learned, [ordered[index] for index in sorted(chosen)]


def _pixel_hash(path: Path) -> bytes | None:
    try:
        image = read_image(path)
    except DataError:
        return None
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


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
    progress: Progress | None = None,
) -> TrainingData:
    """The good images of `dataset`, `share` of them (at least 10) held out by `seed`.

    Raises DataError for images that cannot be read (unless `skip_bad`) or are too few, ConfigError for an invalid share.
    """
    images = load_images(dataset.train, skip_bad, progress)
    learned, held_out = hold_out(images.paths, seed, share)
    row_of = {path: row for row, path in enumerate(images.paths)}
    duplicates = tuple(find_duplicates(dataset))
    facts = {
        "name": printable(dataset.category),
        "layout": dataset.layout,
        "fingerprint": fingerprint(images.paths),
        "learned": len(learned),
        "held_out": len(held_out),
        "held_out_share": share,
        "seed": seed,
        "skipped": len(images.skipped),
        "duplicates_of_test_images": len(duplicates),
    }
    parts = [images.images[[row_of[path] for path in part]] for part in (learned, held_out)]
    return TrainingData(parts[0], parts[1], images.skipped, duplicates, facts)


def with_held_out_images(dataset: Dataset, facts: Mapping[str, Any]) -> Dataset:
    """`dataset` with the held-out good images as test images where it has no good test images of its own.

    Only when its good images are those of `facts`, the manifest's "data"; otherwise `dataset` as it is.
    """
    if any(not sample.is_anomalous for sample in dataset.test) or fingerprint(dataset.train) != facts["fingerprint"]:
        return dataset
    _, held_out = hold_out(dataset.train, facts["seed"], facts["held_out_share"])
    good = tuple(Sample(path, False, None, "good") for path in held_out)
    note = f"no good test images: the {len(good)} held-out images, which chose the threshold, stand in for them"
    return replace(dataset, test=(*good, *dataset.test), notes=(*dataset.notes, note))
