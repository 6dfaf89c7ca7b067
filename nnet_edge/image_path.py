"""Image path: what lens, encoder and colour conversion leave in every picture, measured so that two cameras can be compared.

The network was taught by pictures of one path. Those of another (compressed, resized, sharpened, converted by another matrix)
move the scores of good parts, up or down. Each measure is a number a picture; of a set count the median and the spread, so that
no single part, good or bad, decides. In the manifest:

    image_path.images       held-out pictures that were measured
    image_path.<measure>    {"median": ..., "spread": ...}; those of files where training measured them
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from nnet_edge.errors import BundleError

BLOCK = 8  # pixels: the block of JPEG, MPEG-4 and H.264's transform
FEWEST = 10  # pictures that say what is usual
SPREADS = 4.0  # by which medians of two sets of one path never differ
SAMPLED = 512  # rows and columns in the middle of a picture that are measured
FLOOR = 0.1  # grey levels, added before a logarithm: what rounding leaves
GAP = 0.15  # smallest gap, in doublings, between two kinds of pictures in one set
KIND_SHARE = 0.1  # of a set, at least, that the smaller kind makes


@dataclass(frozen=True)
class Measure:
    """One number of a picture, and how people hear of a change in it."""

    name: str
    least: float  # a smaller change is none, whatever the spread
    less: str
    more: str
    is_ratio: bool = True  # a logarithm to the base 2; else grey levels

    def text(self, change: float) -> str:
        """The change in words."""
        words = self.more if change > 0 else self.less
        return f"{words} ({2**change - 1:+.0%})" if self.is_ratio else f"{words} by {abs(change):.1f} grey levels"


MEASURES = (
    Measure("sharpness", 0.1, "softer", "sharper"),  # finest band against the next coarser
    Measure("grain", 0.15, "less grain", "more grain"),  # mean diagonal detail
    Measure("colour_detail", 0.1, "less colour detail", "more colour detail"),  # finest band of the colours
    Measure("brightness", 8.0, "darker", "brighter", is_ratio=False),
    Measure("red", 3.0, "less red against green", "more red against green", is_ratio=False),
    Measure("blue", 3.0, "less blue against green", "more blue against green", is_ratio=False),
)  # of a picture as the network sees it
FILE_MEASURES = (
    Measure("blockiness", 0.15, "fewer 8x8 blocks", "more 8x8 blocks"),  # steps at every 8th pixel against the others
    Measure("fine_detail", 0.15, "less of the finest detail", "more of the finest detail"),  # against the next coarser
    Measure("fine_colour", 0.3, "less of the finest colour", "more of the finest colour"),  # 4:2:0 leaves none
)  # of a picture as the camera or the file gives it
SIZE = "size"  # doublings of a picture's side: measures of the file are compared between pictures of about one size
SAME_SIZE = 0.6
COLOURS = ("red", "blue")
Values = Mapping[str, np.ndarray]  # measure -> float64 (N,), NaN where a picture does not say


def measure(image: np.ndarray) -> dict[str, float]:
    """The measures of a picture as the network sees it, uint8 RGB (H, W, 3). Takes 1 ms."""
    channels = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb).astype(np.float32))
    coarse, *fine = haar(channels[0])
    _, *next_fine = haar(coarse)
    colours = [haar(channel) for channel in channels[1:]]
    red, green, blue = (float(mean) for mean in cv2.mean(image)[:3])
    edges = rms(fine[0], fine[1])
    return {
        "sharpness": math.log2((edges + FLOOR) / (rms(next_fine[0], next_fine[1]) + FLOOR)),
        "grain": math.log2(float(np.abs(fine[2]).mean()) + FLOOR),
        "colour_detail": math.log2(rms(*(band for _, *bands in colours for band in bands[:2])) + FLOOR),
        "brightness": float(channels[0].mean()),
        "red": red - green,
        "blue": blue - green,
    }


def haar(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, horizontal, vertical and diagonal detail of each 2x2 pixels of `plane` (2H, 2W), float32 (H, W)."""
    left, right = plane[:, ::2], plane[:, 1::2]
    total, change = left + right, left - right
    top, bottom, top_change, bottom_change = total[::2], total[1::2], change[::2], change[1::2]
    return (top + bottom) / 4, (top_change + bottom_change) / 2, (top - bottom) / 2, (top_change - bottom_change) / 2


def rms(*planes: np.ndarray) -> float:
    """The root mean square of planes of one size."""
    return math.sqrt(sum(float(np.mean(np.square(plane))) for plane in planes) / len(planes))


def measure_file(image: np.ndarray) -> dict[str, float]:
    """The measures of a picture as it was captured, 8 bits, (H, W) or (H, W, C), RGB or BGR; NaN for one that is too small.

    It must have its own pixels, not be resized; where its 8x8 blocks begin does not matter. Of a large picture the middle
    counts. Takes up to 5 ms.
    """
    height, width = image.shape[:2]
    found = {SIZE: math.log2(height * width) / 2} | dict.fromkeys((one.name for one in FILE_MEASURES), math.nan)
    if min(height, width) <= 8 * BLOCK:
        return found
    rows, columns = (middle(length) for length in (height, width))
    channels = [channel.astype(np.float32) for channel in cv2.split(image[rows, columns])[:3]]
    green = channels[min(1, len(channels) - 1)]
    coarse, *_, diagonal = haar(green)
    next_diagonal = haar(coarse)[3]
    fine, next_fine = (float(np.abs(band).mean()) for band in (diagonal, next_diagonal))
    colours = [haar(channel - green)[1:] for channel in channels[::2]] if len(channels) > 2 else []
    colour = float(np.mean([np.abs(band).mean() for bands in colours for band in bands])) if colours else 0.0
    return found | {
        "blockiness": (stands_out(green) + stands_out(green.T)) / 2,
        "fine_detail": math.log2((fine + FLOOR) / (next_fine + FLOOR)),
        "fine_colour": math.log2(colour + FLOOR),
    }


def middle(length: int) -> slice:
    """The middle of so many pixels, SAMPLED at most; a multiple of four."""
    taken = min(length, SAMPLED) // 4 * 4
    start = (length - taken) // 2
    return slice(start, start + taken)


def stands_out(lines: np.ndarray) -> float:
    """By how many doublings the steps at one of 8 places along the lines (M, L) exceed those at the others."""
    steps = np.abs(np.diff(lines, axis=1)).mean(axis=0)
    places = steps[: len(steps) // BLOCK * BLOCK].reshape(-1, BLOCK).mean(axis=0)
    return math.log2((float(places.max()) + FLOOR) / (middle_of(places) + FLOOR))


def middle_of(values: np.ndarray) -> float:
    """The median of finite values (N,). NumPy's own would bring its masked arrays onto a line, 2 MB and 10 ms."""
    ordered = np.sort(values)
    return float((ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2)


def measure_all(images: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of pictures as the network sees them, uint8 RGB (N, H, W, 3)."""
    return columns_of([measure(image) for image in images])


def columns_of(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """The measures of pictures, one row each, by name."""
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]} if rows else {}


@dataclass(frozen=True)
class Usual:
    """What is usual of a measure in a set of pictures."""

    median: float
    spread: (
        float  # standard deviation, or that of a normal distribution with the same median deviation where it is larger
    )

    @classmethod
    def of(cls, values: np.ndarray) -> Usual | None:
        """Of values (N,) without their NaN; None for fewer than FEWEST."""
        known = values[np.isfinite(values)]
        if len(known) < FEWEST:
            return None
        median = middle_of(known)
        return cls(median, max(float(known.std()), 1.4826 * middle_of(np.abs(known - median))))

    def as_dict(self) -> dict[str, float]:
        """Plain values for the manifest."""
        return {"median": round(self.median, 5), "spread": round(self.spread, 5)}

    @classmethod
    def from_dict(cls, fields: Any) -> Usual:
        """What `as_dict` wrote. Raises BundleError."""
        try:
            found = cls(float(fields["median"]), float(fields["spread"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(
                f"the manifest's image_path cannot be read ({error!r}): export the bundle again"
            ) from error
        if not (math.isfinite(found.median) and math.isfinite(found.spread) and found.spread >= 0):
            raise BundleError(f"the manifest's image_path holds {found}: export the bundle again")
        return found


@dataclass(frozen=True)
class ImagePath:
    """What is usual in the pictures that a bundle's threshold was chosen on."""

    images: int
    usual: Mapping[str, Usual]  # measure -> what is usual of it; one that is not known is absent

    @classmethod
    def of(cls, held_out: np.ndarray, files: Mapping[str, Any] | None = None) -> ImagePath | None:
        """That of the frames uint8 RGB (N, H, W, 3), with what `usual_of` said of their files; None for too few frames."""
        usual = usual_of(measure_all(held_out))
        if not usual:
            return None
        return cls(len(held_out), usual | {name: Usual.from_dict(fields) for name, fields in (files or {}).items()})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {"images": self.images} | {name: one.as_dict() for name, one in self.usual.items()}

    @classmethod
    def in_manifest(cls, manifest: Mapping[str, Any]) -> ImagePath | None:
        """That of a bundle; None for a bundle of before. Raises BundleError."""
        fields = manifest.get("image_path")
        if fields is None:
            return None
        if not isinstance(fields, Mapping) or not isinstance(fields.get("images"), int) or fields["images"] < 1:
            raise BundleError("the manifest's image_path is no table with a number of images: export the bundle again")
        known = [*(one.name for one in (*MEASURES, *FILE_MEASURES)), SIZE]
        return cls(fields["images"], {name: Usual.from_dict(fields[name]) for name in known if name in fields})

    def changes(self, values: Values) -> dict[str, float]:
        """Measure -> how far the median of other pictures lies from the usual one, where that is no chance.

        Nothing for fewer than FEWEST pictures. Of few held-out pictures the spread is less certain, so more is allowed.
        """
        allowed = SPREADS * (1 + FEWEST / (2 * self.images))
        now = usual_of(values)
        compared: tuple[Measure, ...] = MEASURES
        if SIZE in now and SIZE in self.usual and abs(now[SIZE].median - self.usual[SIZE].median) < SAME_SIZE:
            compared += FILE_MEASURES
        found = {}
        for one in compared:
            if one.name in now and one.name in self.usual:
                usual = self.usual[one.name]
                change = now[one.name].median - usual.median
                if abs(change) > max(one.least, allowed * usual.spread):
                    found[one.name] = change
        return found


def usual_of(values: Values) -> dict[str, Usual]:
    """What is usual of each measure that enough of the pictures say something of."""
    found = {name: Usual.of(of_images) for name, of_images in values.items()}
    return {name: one for name, one in found.items() if one is not None}


def in_words(changes: Mapping[str, float]) -> str:
    """The changes as people say them."""
    return ", ".join(one.text(changes[one.name]) for one in (*MEASURES, *FILE_MEASURES) if one.name in changes)


def advice(changes: Mapping[str, float]) -> str:
    """What to do about them at the camera; the threshold comes after that."""
    found = []
    if any(name not in (*COLOURS, "brightness") for name in changes):
        found.append("compare compression, focus and resolution with those of training")
    if any(name in changes for name in COLOURS):
        found.append("try another --colour-matrix, and look at the white balance")
    if "brightness" in changes:
        found.append("look at light and exposure")
    return "; ".join(found)


def other_kind(values: Values) -> np.ndarray | None:
    """Where a set holds a second kind of pictures, as JPEGs among lossless ones: bool (N,), the smaller kind; None: nowhere.

    Both kinds lie apart by a gap in a measure of the file that is wider than either kind spreads.
    """
    for name in (one.name for one in FILE_MEASURES):
        of_images = values.get(name, np.empty(0))
        known = np.sort(of_images[np.isfinite(of_images)])
        least = max(3, math.ceil(KIND_SHARE * len(known)))
        if len(known) < 2 * least:
            continue
        gaps = np.diff(known)[least - 1 : len(known) - least]
        place = least + int(np.argmax(gaps))
        spread = max(float(known[:place].std()), float(known[place:].std()))
        if gaps.max() > max(GAP, 2 * spread):
            is_above = of_images > (known[place - 1] + known[place]) / 2
            return np.asarray(is_above if is_above.sum() <= len(known) / 2 else ~is_above & np.isfinite(of_images))
    return None
