"""Images of a dataset: loading, duplicates, the fingerprint of a training set.

`layouts.py` says which files are which, `masks.py` reads masks; what others need of them is offered here too.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnet_edge.bits import MOST, Depth, depth_of
from nnet_edge.data.dataset import Dataset
from nnet_edge.data.layouts import read_dataset as read_dataset
from nnet_edge.data.masks import THREADS
from nnet_edge.data.masks import load_mask as load_mask
from nnet_edge.data.masks import load_masks as load_masks
from nnet_edge.errors import DataError
from nnet_edge.files import read_regular
from nnet_edge.geometry import DEFAULT, Geometry, default_fit, most_frequent
from nnet_edge.image_files import Picture, read_image, read_picture, read_size
from nnet_edge.image_path import measure_file
from nnet_edge.imaging import resize
from nnet_edge.tiles import CropShare

Progress = Callable[[int, int], None]  # (images done, images in all)
Size = tuple[int, int]  # (height, width) of a picture
Loaded = tuple[np.ndarray, dict[str, float], Size]  # a picture as the graph's input, and the measures of its file
NAMED = 10  # damaged images in an error


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


def _pixel_hash(path: Path) -> bytes | None:
    try:
        image = read_picture(path).pixels
    except DataError:
        return None
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of what the file holds."""
    return short(digest_of(path))


def short(digest: bytes) -> str:
    """Its first 16 hexadecimal digits, as manifests name files."""
    return digest.hex()[:16]
