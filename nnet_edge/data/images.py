"""Images of a dataset: loading, duplicates, the fingerprint of a training set, the held-out images.

`layouts.py` says which files are which, `masks.py` reads masks; what others need of them is offered here too.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnet_edge.bits import MOST, Depth, depth_of, kept_bits
from nnet_edge.data.copies import equal_parts, near_parts
from nnet_edge.data.dataset import Dataset, Sample
from nnet_edge.data.groups import NONE, deal, find_groups, units_of
from nnet_edge.data.layouts import read_dataset as read_dataset
from nnet_edge.data.masks import THREADS, find_mask_like
from nnet_edge.data.masks import load_mask as load_mask
from nnet_edge.data.masks import load_masks as load_masks
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import read_regular
from nnet_edge.geometry import DEFAULT, Geometry, PictureSizes, default_fit, most_frequent
from nnet_edge.image_files import Picture, read_image, read_picture, read_size
from nnet_edge.image_path import columns_of, measure_file, other_kind, usual_of
from nnet_edge.imaging import resize
from nnet_edge.scoring import HELD_OUT_AT_LEAST, HELD_OUT_SHARE
from nnet_edge.text import printable
from nnet_edge.tiles import CropShare

Together = Literal["equal", "near"]
Progress = Callable[[int, int], None]  # (images done, images in all)
Size = tuple[int, int]  # (height, width) of a picture
Loaded = tuple[np.ndarray, dict[str, float], Size]  # a picture as the graph's input, and the measures of its file
NAMED = 10  # damaged images in an error
LEAST_TO_LEARN = 2  # batch normalisation needs two images


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Images:
    """Pictures at the size of the graph's input; `images[i]` was read from `paths[i]`."""

    images: np.ndarray  # uint8 RGB (N, height, width, 3)
    paths: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()
    depth: Depth | None = None  # of those of 16 bits; None: there are none
    files: tuple[Mapping[str, float], ...] = ()  # of each picture in its own size: nnet_edge.image_path.measure_file
    sizes: tuple[Size, ...] = ()  # of each picture


def load_images(
    paths: Sequence[Path],
    skip_bad: bool = False,
    progress: Progress | None = None,
    bits: int | None = None,
    geometry: Geometry = DEFAULT,
) -> Images:
    """The images at `paths` as inputs of that geometry, in the same order; with `skip_bad` unreadable ones are left out.

    Those of 16 bits are read with `bits`, None: with the bits that all of them together show, which takes a second look at
    each. Needs 192 KiB an image at 256x256. Calls `progress` after each image in the caller's thread.
    Raises DataError, naming the files, when some cannot be read, or every one was left out.
    """
    images = np.empty((len(paths), *geometry.shape), np.uint8)
    kept: list[Path] = []
    skipped: list[Skipped] = []
    deep: dict[int, Picture] = {}  # row -> its brightest pixel, with the bits that the file declares
    files: dict[int, Mapping[str, float]] = {}
    sizes: dict[int, Size] = {}

    def load(path: Path) -> Loaded | Picture | DataError:
        try:
            picture = read_picture(path)
        except DataError as error:
            return error
        is_deep = picture.pixels.dtype == np.uint16
        return (
            Picture(picture.pixels.max(keepdims=True), picture.bits) if is_deep else to_size(picture.pixels, geometry)
        )

    pool = ThreadPoolExecutor(THREADS)  # the readers let go of the interpreter while they decode
    try:
        for done, (path, loaded) in enumerate(zip(paths, pool.map(load, paths), strict=True), start=1):
            if isinstance(loaded, DataError):
                skipped.append(Skipped(path, str(loaded)))
            else:
                if isinstance(loaded, Picture):
                    deep[len(kept)] = loaded
                else:
                    images[len(kept)], files[len(kept)], sizes[len(kept)] = loaded
                kept.append(path)
            if progress is not None:
                progress(done, len(paths))
        require_readable(skipped, len(paths), skip_bad)
        depth = depth_of_set(deep.values(), bits) if deep else None
        again = pool.map(lambda row: to_size(read_image(kept[row], depth.bits if depth else MOST), geometry), deep)
        for row, loaded in zip(deep, again, strict=True):
            images[row], files[row], sizes[row] = loaded
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C does not wait for the images that are left
    rows = range(len(kept))
    return Images(images[: len(kept)], tuple(kept), tuple(skipped), depth, tuple(files[row] for row in rows),
                  tuple(sizes[row] for row in rows))  # fmt: skip


def to_size(pixels: np.ndarray, geometry: Geometry) -> Loaded:
    """The picture, uint8 RGB (H, W, 3), as an input of that geometry, the measures of its file, and its own size."""
    return resize(pixels, geometry), measure_file(geometry.cropped(pixels)), (pixels.shape[0], pixels.shape[1])


def sizes_of(paths: Sequence[Path]) -> list[Size]:
    """(height, width) of the pictures at `paths`; those that cannot be read are passed over: loading them names them."""

    def size_of(path: Path) -> Size | None:
        try:
            return read_size(path)
        except DataError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for found in pool.map(size_of, paths) if found is not None]


def choose_geometry(sizes: Sequence[Size], size: Size, fit: str | None, crop: CropShare | None = None) -> Geometry:
    """The geometry of an input of that size for the `crop` of pictures of these sizes; `fit` None: the one that suits them.

    Raises ConfigError for an invalid size or fit.
    """
    if crop is not None:
        boxes = [crop.box(*one) for one in sizes]
        sizes = [(height, width) for _, _, height, width in boxes]
    if not sizes:
        return Geometry(*size, fit or "squeeze", crop=crop)
    return Geometry(*size, fit or default_fit(sizes), most_frequent(sizes), crop=crop)


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
    return fingerprint_of(digests_of(paths))


def digests_of(paths: Sequence[Path]) -> list[bytes]:
    """SHA-256 of what each file holds. Raises DataError when one cannot be read."""
    try:
        return [digest_of(path) for path in paths]
    except OSError as error:
        raise DataError(f"cannot read {error.filename} for the fingerprint: {error.strerror}") from error


def digest_of(path: Path) -> bytes:
    """SHA-256 of what the file holds."""
    return hashlib.sha256(read_regular(path)).digest()


def fingerprint_of(digests: Sequence[bytes]) -> str:
    """Of the files whose digests those are."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def hold_out(
    paths: Sequence[Path],
    seed: int,
    share: float = HELD_OUT_SHARE,
    at_least: int = HELD_OUT_AT_LEAST,
    parts: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    learned_before: Collection[Path] = (),
    held_out_before: Collection[Path] = (),
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
    numbers = list(range(len(paths))) if parts is None else list(parts)
    units = numbers if groups is None else units_of(numbers, groups)
    images_of: dict[int, dict[int, list[Path]]] = {}  # unit -> part -> its images
    for path, unit, part in sorted(zip(paths, units, numbers, strict=True)):
        images_of.setdefault(unit, {}).setdefault(part, []).append(path)
    ordered = list(images_of.values())
    sizes = [len(unit) for unit in ordered]  # in parts
    needed = at_least + LEAST_TO_LEARN
    if sum(sizes) < needed:
        shown = "" if sum(sizes) == len(paths) else f", which show {sum(sizes)} distinct parts (the rest are copies),"
        raise DataError(
            f"{len(paths)} good images{shown} are too few: at least {needed} are needed, {at_least} to hold out for the "
            f"threshold and {LEAST_TO_LEARN} to learn from; add photographs of other parts"
        )
    known = set(learned_before)
    learned_units = {index for index, unit in enumerate(ordered) if not known.isdisjoint(chain(*unit.values()))}
    known = set(held_out_before)
    chosen = {
        index for index, unit in enumerate(ordered) if not known.isdisjoint(chain(*unit.values()))
    } - learned_units
    held = sum(sizes[index] for index in chosen)
    new = sum(sizes) - held - sum(sizes[index] for index in learned_units)
    wanted = int(share * new) if learned_units or chosen else ceil(share * new)  # few new parts are there to be learned
    count = min(held + max(wanted, at_least - held), sum(sizes) - LEAST_TO_LEARN)
    if held + new < at_least:
        raise DataError(
            f"all but {held + new} of the good parts were learned by the training before: at least {at_least} that it did not "
            "learn are needed, to hold out for the threshold; add photographs of other parts, or train anew"
        )
    order = np.random.default_rng(seed).permutation(len(ordered)).tolist()
    order = [index for index in order if index not in learned_units | chosen]
    if groups is None:
        largest = max(1, ceil(share * len(paths)))  # to hold out a part with more images would waste them
        order.sort(key=lambda index: sum(map(len, ordered[index].values())) > largest)
    for index in order:
        if held < count and sum(sizes) - held - sizes[index] >= LEAST_TO_LEARN:
            chosen.add(index)
            held += sizes[index]
    if held < count:
        raise DataError(
            f"{len(paths)} good images in {len(ordered)} groups cannot be parted: {count} are to be held out and at least "
            f"{LEAST_TO_LEARN} learned, in whole groups; add groups, or say --groups none if a part to come may be of these"
        )
    learned = [
        path for index, unit in enumerate(ordered) if index not in chosen for images in unit.values() for path in images
    ]
    return sorted(learned), sorted(images[0] for index in chosen for images in ordered[index].values())


def _pixel_hash(path: Path) -> bytes | None:
    try:
        image = read_picture(path).pixels
    except DataError:
        return None
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


@dataclass(frozen=True)
class Folds:
    """The learned images in folds: each is judged by a model that learns the others."""

    count: int
    fold_of: np.ndarray  # int (N,), from 0, of each learned image
    judged: np.ndarray  # int (H,): rows of the learned images that are the held-out ones, one a part


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
    learned_before: Collection[Path] = (),
    held_out_before: Collection[Path] = (),
) -> TrainingData:
    """The good images of `dataset` as inputs, `share` of the parts that they show (at least 10) held out by `seed`.

    Images of equal pixels show one part; with `together` "near", near copies do as well. `groups` says where the groups come
    from that are held out whole (groups.py). What an earlier training learned or held out stays so (before.py). With `folds`
    above 1 all are learned and all are held out, see Folds. Raises DataError for images that cannot be read (unless
    `skip_bad`) or are too few, and for a table of groups that does not fit, ConfigError for an invalid share or number of
    folds.
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
            for part in hold_out(
                images.paths, seed, share, parts=parts, groups=names, learned_before=learned_before,
                held_out_before=held_out_before,
            )
        ]  # fmt: skip
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


def file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of what the file holds."""
    return short(digest_of(path))


def short(digest: bytes) -> str:
    """Its first 16 hexadecimal digits, as manifests name files."""
    return digest.hex()[:16]
