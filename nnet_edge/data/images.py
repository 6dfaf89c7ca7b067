"""Images of a dataset: loading, duplicates, the fingerprint of a training set, the held-out images.

`layouts.py` says which files are which, `masks.py` reads masks; what others need of them is offered here too.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnet_edge.bits import MOST, Depth, depth_of, kept_bits
from nnet_edge.data.copies import equal_parts, near_parts
from nnet_edge.data.dataset import Dataset, Sample
from nnet_edge.data.layouts import read_dataset as read_dataset
from nnet_edge.data.masks import THREADS, find_mask_like
from nnet_edge.data.masks import load_mask as load_mask
from nnet_edge.data.masks import load_masks as load_masks
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import read_regular
from nnet_edge.image_path import columns_of, measure_file, other_kind, usual_of
from nnet_edge.imaging import SIDE, Picture, read_image, read_picture, resize
from nnet_edge.text import printable

Together = Literal["equal", "near"]
Progress = Callable[[int, int], None]  # (images done, images in all)
Loaded = tuple[np.ndarray, dict[str, float]]  # a picture at the size of the graph's input, and the measures of its file
NAMED = 10  # damaged images in an error
LEAST_TO_LEARN = 2  # batch normalisation needs two images
HELD_OUT_SHARE = 0.15
HELD_OUT_AT_LEAST = 10


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
    depth: Depth | None = None  # of those of 16 bits; None: there are none
    files: tuple[Mapping[str, float], ...] = ()  # of each picture in its own size: nnet_edge.image_path.measure_file


def load_images(
    paths: Sequence[Path], skip_bad: bool = False, progress: Progress | None = None, bits: int | None = None
) -> Images:
    """The images at `paths`, resized, in the same order; with `skip_bad` those that cannot be read are left out.

    Those of 16 bits are read with `bits`, None: with the bits that all of them together show, which takes a second look at
    each. Needs 192 KiB an image. Calls `progress` after each image in the caller's thread.
    Raises DataError, naming the files, when some cannot be read, or every one was left out.
    """
    images = np.empty((len(paths), SIDE, SIDE, 3), np.uint8)
    kept: list[Path] = []
    skipped: list[Skipped] = []
    deep: dict[int, Picture] = {}  # row -> its brightest pixel, with the bits that the file declares
    files: dict[int, Mapping[str, float]] = {}

    def load(path: Path) -> Loaded | Picture | DataError:
        try:
            picture = read_picture(path)
        except DataError as error:
            return error
        is_deep = picture.pixels.dtype == np.uint16
        return Picture(picture.pixels.max(keepdims=True), picture.bits) if is_deep else to_size(picture.pixels)

    pool = ThreadPoolExecutor(THREADS)  # the readers let go of the interpreter while they decode
    try:
        for done, (path, loaded) in enumerate(zip(paths, pool.map(load, paths), strict=True), start=1):
            if isinstance(loaded, DataError):
                skipped.append(Skipped(path, str(loaded)))
            else:
                if isinstance(loaded, Picture):
                    deep[len(kept)] = loaded
                else:
                    images[len(kept)], files[len(kept)] = loaded
                kept.append(path)
            if progress is not None:
                progress(done, len(paths))
        require_readable(skipped, len(paths), skip_bad)
        depth = depth_of_set(deep.values(), bits) if deep else None
        again = pool.map(lambda row: to_size(read_image(kept[row], depth.bits if depth else MOST)), deep)
        for row, loaded in zip(deep, again, strict=True):
            images[row], files[row] = loaded
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C does not wait for the images that are left
    return Images(
        images[: len(kept)], tuple(kept), tuple(skipped), depth, tuple(files[row] for row in range(len(kept)))
    )


def to_size(pixels: np.ndarray) -> Loaded:
    """The picture, uint8 RGB (H, W, 3), at the size of the graph's input, and the measures of its file."""
    return resize(pixels), measure_file(pixels)


def require_readable(skipped: Sequence[Skipped], images: int, skip_bad: bool) -> None:
    """Raise DataError that names the images that cannot be read, unless they may be passed over and some are left."""
    if skipped and len(skipped) == images and skip_bad:
        raise DataError(f"none of {images} images could be read; the first: {skipped[0].reason}")
    if skipped and not skip_bad:
        names = ", ".join(str(one.path) for one in skipped[:NAMED]) + ", ..." * (len(skipped) > NAMED)
        raise DataError(
            f"{len(skipped)} of {images} images cannot be used: {names}; the first: {skipped[0].reason}; or pass over them "
            "with --skip-bad-images"
        )


def depth_of_set(brightest: Iterable[Picture], said: int | None) -> Depth:
    """The depth of pictures of which the brightest pixel is known."""
    found = list(brightest)
    declared = max((one.bits for one in found if one.bits is not None), default=None)
    return depth_of(max(int(one.pixels.max()) for one in found), declared, said)


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
        contents = sorted(hashlib.sha256(read_regular(path)).digest() for path in paths)
    except OSError as error:
        raise DataError(f"cannot read {error.filename} for the fingerprint: {error.strerror}") from error
    return hashlib.sha256(b"".join(contents)).hexdigest()


def hold_out(
    paths: Sequence[Path],
    seed: int,
    share: float = HELD_OUT_SHARE,
    at_least: int = HELD_OUT_AT_LEAST,
    parts: Sequence[int] | None = None,
) -> tuple[list[Path], list[Path]]:
    """(to learn from, held out), both sorted: `share` of the parts, rounded up, but `at_least` so many, are held out.

    `parts` numbers the part that each image shows; without it each shows its own. A part is learned in all its images, or held
    out in the first of them, the others left out; one with many images is learned. The same names, parts and `seed` give the
    same choice. Two parts at least remain to learn from. Raises DataError when there are fewer than `at_least` + 2 parts,
    ConfigError for an impossible share.
    """
    if not 0 <= share < 1 or at_least < 0:
        raise ConfigError(f"cannot hold out a share of {share} and at least {at_least}: 0 <= share < 1, at least >= 0")
    images_of: dict[int, list[Path]] = {}
    for path, part in sorted(zip(paths, range(len(paths)) if parts is None else parts, strict=True)):
        images_of.setdefault(part, []).append(path)
    ordered = list(images_of.values())
    needed = at_least + LEAST_TO_LEARN
    if len(ordered) < needed:
        shown = (
            "" if len(ordered) == len(paths) else f", which show {len(ordered)} distinct parts (the rest are copies),"
        )
        raise DataError(
            f"{len(paths)} good images{shown} are too few: at least {needed} are needed, {at_least} to hold out for the "
            f"threshold and {LEAST_TO_LEARN} to learn from; add photographs of other parts"
        )
    count = min(max(ceil(share * len(ordered)), at_least), len(ordered) - LEAST_TO_LEARN)
    order = np.random.default_rng(seed).permutation(len(ordered)).tolist()
    largest = max(1, ceil(share * len(paths)))  # to hold out a part with more images would waste them
    order.sort(key=lambda index: len(ordered[index]) > largest)
    chosen = set(order[:count])
    learned = [path for index, images in enumerate(ordered) if index not in chosen for path in images]
    return sorted(learned), [ordered[index][0] for index in sorted(chosen)]


def _pixel_hash(path: Path) -> bytes | None:
    try:
        image = read_picture(path).pixels
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
    near: tuple[Path, Path] | None = None  # two near copies that are not kept together
    mask_like: tuple[Path, ...] = ()  # good images that look like masks
    depth: Depth | None = None  # of its pictures of 16 bits; None: there are none
    other_kind: tuple[Path, ...] = ()  # good images that were made otherwise than most, as JPEGs among lossless ones

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
) -> TrainingData:
    """The good images of `dataset`, `share` of the parts that they show (at least 10) held out by `seed`.

    Images of equal pixels show one part; with `together` "near", near copies do as well. Raises DataError for images that
    cannot be read (unless `skip_bad`) or are too few, ConfigError for an invalid share.
    """
    images = load_images(dataset.train, skip_bad, progress, bits)
    equal = equal_parts(images.images)
    near = near_parts(images.images, equal)
    parts = near if together == "near" else equal
    learned, held_out = hold_out(images.paths, seed, share, parts=parts)
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
        "bits": images.depth.bits if images.depth else bits,
        "distinct": len(set(equal)),
        "distinct_by_near_copies": len(set(near)),
        "together": together,
        "left_out": len(images.paths) - len(learned) - len(held_out),
    }
    rows = [[row_of[path] for path in part] for part in (learned, held_out)]
    files = columns_of(images.files)
    usual = usual_of({name: values[rows[1]] for name, values in files.items()})
    facts["image_path_of_files"] = {name: one.as_dict() for name, one in usual.items()}
    others = other_kind(files)
    other_paths = () if others is None else tuple(images.paths[row] for row in np.flatnonzero(others))
    pair = _two_of_one(images.paths, near, parts)
    return TrainingData(images.images[rows[0]], images.images[rows[1]], images.skipped, duplicates, facts, pair,
                        tuple(find_mask_like(images.images, images.paths)), images.depth, other_paths)  # fmt: skip


def _two_of_one(paths: Sequence[Path], near: Sequence[int], parts: Sequence[int]) -> tuple[Path, Path] | None:
    """Two images that are near copies and count as two parts; None when there are none."""
    first: dict[int, int] = {}
    for row, number in enumerate(near):
        if parts[other := first.setdefault(number, row)] != parts[row]:
            return paths[other], paths[row]
    return None


def with_held_out_images(dataset: Dataset, facts: Mapping[str, Any]) -> Dataset:
    """`dataset` with the held-out good images as test images where it has no good test images of its own.

    Only when its good images are those of `facts`, the manifest's "data"; otherwise `dataset` as it is.
    """
    if any(not sample.is_anomalous for sample in dataset.test) or fingerprint(dataset.train) != facts["fingerprint"]:
        return dataset
    parts = None
    is_near = facts.get("together") == "near"
    if facts.get("distinct_by_near_copies" if is_near else "distinct", len(dataset.train)) < len(dataset.train):
        images = load_images(dataset.train, bits=kept_bits({"data": facts})).images
        equal = equal_parts(images)
        parts = near_parts(images, equal) if is_near else equal
    _, held_out = hold_out(dataset.train, facts["seed"], facts["held_out_share"], parts=parts)
    good = tuple(Sample(path, False, None, "good") for path in held_out)
    note = f"no good test images: the {len(good)} held-out images, which chose the threshold, stand in for them"
    return replace(dataset, test=(*good, *dataset.test), notes=(*dataset.notes, note))
