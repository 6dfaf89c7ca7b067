"""Geometry of a bundle: the size of its input, and how pictures of another aspect ratio get into it.

One rule for training, calibration, evaluation, stream and page. The fit is chosen once, by the size of most pictures that were
learned from, as shares of a picture and of the input:

squeeze    the whole picture fills the whole input; the aspect ratio is not kept
letterbox  the whole picture fills the largest window in the middle of the input that keeps the aspect ratio; the rest is
           grey, its map is 0, and it is not judged
crop       the largest part in the middle of the picture that has the input's aspect ratio fills the whole input; what lies
           outside is not judged

A bundle may see a crop of every picture alone, which is cut before all else, and may cut what it sees into tiles (`tiles.py`):
its input is then their canvas, and the network's own input is one tile.

A picture of another size or shape is treated by the same shares: it is brought to the form of those that were learned from.
Layer maps are called after their sides at 256x256: reverse_64 has stride 4 at every size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.tiles import CropShare, Tiles

if TYPE_CHECKING:
    import numpy as np

Fit = Literal["squeeze", "letterbox", "crop"]
FITS: tuple[str, ...] = get_args(Fit)
SIDE = 256  # height and width of the input where nothing else was said: the paper's protocol
MULTIPLE = 32  # the deepest maps have stride 16, and the bottleneck halves them once more
SMALLEST, LARGEST = 64, 2048
LARGEST_CANVAS = 4096  # of tiles
GREY = 128  # beside a picture in its letterbox
SAME_SHAPE = 0.01  # of the aspect ratio: what rounding to whole pixels makes


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def inside(self) -> tuple[slice, slice]:
        """What takes it out of an array (H, W, ...)."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Geometry:
    """Height and width of the input, and the fit, with the size of the pictures that it was chosen by."""

    height: int = SIDE
    width: int = SIDE
    fit: str = "squeeze"
    picture: tuple[int, ...] = ()  # height and width of most pictures that were learned from, or crops; (): not known
    tiles: Tiles | None = None  # whose canvas the input is; None: the network sees it in one piece
    crop: CropShare | None = None  # that every picture is cut to first

    def __post_init__(self) -> None:
        """Raise ConfigError for a size that no network takes, and for an unknown fit."""
        for name, kind in (("tiles", Tiles), ("crop", CropShare)):
            if isinstance(fields := getattr(self, name), Mapping):  # as a checkpoint keeps it
                object.__setattr__(self, name, kind(**fields))
        if self.tiles is not None and self.size != self.tiles.canvas:
            raise ConfigError(f"the input has {self.text} pixels and the canvas of its {self.tiles} tiles other ones")
        if self.tiles is not None and max(self.size) > LARGEST_CANVAS:
            raise ConfigError(
                f"{self.tiles} tiles make a canvas of {self.text} pixels, and {LARGEST_CANVAS} are the most: give fewer tiles"
            )
        if self.fit not in FITS:
            raise ConfigError(f"the fit {self.fit!r} is unknown: choose {', '.join(FITS)}")
        if not all(isinstance(side, int) and side % MULTIPLE == 0 for side in self.size):
            raise ConfigError(
                f"an input of {self.text} pixels is impossible: the maps of stride 16 and the bottleneck below them need "
                f"multiples of {MULTIPLE}; the nearest is {'x'.join(str(nearest(side)) for side in self.size)}"
            )
        if self.picture and not (
            len(self.picture) == 2 and all(isinstance(side, int) and side > 0 for side in self.picture)
        ):
            raise ConfigError(f"the size of the pictures is {self.picture}: it must be their height and width")

    def require_input(self) -> Geometry:
        """The same. Raises ConfigError for a size that no network is given; a canvas of tiles may be larger."""
        network = self.network
        if not all(SMALLEST <= side <= LARGEST for side in network.size):
            raise ConfigError(
                f"an input of {network.text} pixels is impossible: height and width must be from {SMALLEST} to {LARGEST}"
            )
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input and of the anomaly map."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one image."""
        return self.height, self.width, 3

    @property
    def text(self) -> str:
        """The size for people: 256x512 is height x width."""
        return f"{self.height}x{self.width}"

    @property
    def network(self) -> Geometry:
        """That of the network's own input: of one tile, where there are tiles."""
        return self if self.tiles is None else Geometry(self.tiles.height, self.tiles.width)

    def cut(self, images: np.ndarray) -> np.ndarray:
        """The network's inputs (M, h, w, ...) of images (N, height, width, ...): themselves, or their tiles."""
        return images if self.tiles is None else self.tiles.cut(images)

    def stitch(self, maps: np.ndarray) -> np.ndarray:
        """The maps (N, height, width) by those of the network's inputs (M, h, w): themselves, or stitched of tiles."""
        if self.tiles is None:
            return maps
        stitched = self.tiles.stitch(maps)
        if self.window.size == self.size:
            return stitched
        placed, inside = stitched * 0, (slice(None), *self.window.inside)  # beside a letterbox nothing is judged
        placed[inside] = stitched[inside]
        return placed

    @property
    def pieces(self) -> int:
        """How many inputs of the network a picture makes."""
        return 1 if self.tiles is None else self.tiles.count

    def with_tiles(self, tiles: Tiles) -> Geometry:
        """The geometry with the canvas of these tiles as its input."""
        return replace(self, height=tiles.canvas[0], width=tiles.canvas[1], tiles=tiles)

    @cached_property
    def window(self) -> Box:
        """Where in the input a picture lies: everywhere, or in its letterbox."""
        if self.fit != "letterbox":
            return Box(0, 0, self.height, self.width)
        height, width = self._known_picture
        scale = min(self.height / height, self.width / width)
        inner = [
            min(side, max(1, round(scale * length))) for side, length in zip(self.size, (height, width), strict=True)
        ]
        return centred(*self.size, *inner)

    @cached_property
    def shares(self) -> tuple[float, float]:
        """The shares of a picture's height and width that get into the input."""
        if self.fit != "crop":
            return 1.0, 1.0
        height, width = self._known_picture
        scale = max(self.height / height, self.width / width)
        return min(1.0, self.height / (scale * height)), min(1.0, self.width / (scale * width))

    @property
    def is_whole(self) -> bool:
        """Whether the whole picture fills the whole input."""
        return self.window == Box(0, 0, self.height, self.width) and not self.leaves_out

    def part(self, height: int, width: int) -> Box:
        """The part of a picture of that size that gets into the input."""
        top, left, height, width = (0, 0, height, width) if self.crop is None else self.crop.box(height, width)
        down, across = self.shares
        inner = centred(height, width, max(1, round(down * height)), max(1, round(across * width)))
        return replace(inner, top=top + inner.top, left=left + inner.left)

    def cropped(self, image: np.ndarray) -> np.ndarray:
        """A view of the crop of a picture (H, W, ...); the picture itself where there is none."""
        return image if self.crop is None else image[Box(*self.crop.box(*image.shape[:2])).inside]

    @cached_property
    def judged(self) -> tuple[int, int, Box]:
        """Height and width that an anomaly map has once it covers the whole picture, and the box in it that was judged."""
        rows, columns = (math.ceil(side / self.coarser) for side in (self.window.height, self.window.width))
        down, across = self.shares
        height, width = max(rows, round(rows / down)), max(columns, round(columns / across))
        inner = centred(height, width, rows, columns)
        if self.crop is None:
            return height, width, inner
        high, wide = max(height, round(height / self.crop.height)), max(width, round(width / self.crop.width))
        top, left = min(round(self.crop.y * high), high - height), min(round(self.crop.x * wide), wide - width)
        return high, wide, replace(inner, top=top + inner.top, left=left + inner.left)

    @cached_property
    def coarser(self) -> int:
        """How many pixels of the map make one, each way, of a map of the whole picture: one, unless that were too large."""
        if not self.leaves_out:  # then it is as large as the input, which was asked for
            return 1
        crop = (1.0, 1.0) if self.crop is None else (self.crop.height, self.crop.width)
        sides = zip((self.window.height, self.window.width), self.shares, crop, strict=True)
        return math.ceil(max(side / share / part for side, share, part in sides) / LARGEST)

    @property
    def leaves_out(self) -> bool:
        """Whether a part of every picture is not judged."""
        return self.shares != (1.0, 1.0) or self.crop is not None

    def over_picture(self, anomaly_map: np.ndarray) -> np.ndarray:
        """The map (height, width) as one of the whole picture: without the letterbox, and 0 where nothing was judged."""
        if self.is_whole:
            return anomaly_map
        import numpy as np

        inner = anomaly_map[self.window.inside]
        if not self.leaves_out:
            return inner
        height, width, box = self.judged
        if (n := self.coarser) > 1:  # the largest of n x n: what exceeds a threshold still does
            ends = ((0, -inner.shape[0] % n), (0, -inner.shape[1] % n))
            inner = np.pad(inner, ends).reshape(box.height, n, box.width, n).max(axis=(1, 3))
        whole = np.zeros((height, width), anomaly_map.dtype)
        whole[box.inside] = inner
        return whole

    @property
    def _known_picture(self) -> tuple[int, int]:
        if not self.picture:
            raise ConfigError(f"the fit {self.fit} needs the size of the pictures that are learned from: train with it")
        return self.picture[0], self.picture[1]

    def sentence(self) -> str:
        """What the input is, for people and graphs."""
        words = {
            "squeeze": "aspect ratio not kept",
            "letterbox": f"letterbox {self.window.height}x{self.window.width} on grey {GREY}" if self.picture else "",
            "crop": f"middle {self.shares[0]:.4g} x {self.shares[1]:.4g} of the picture" if self.picture else "",
        }
        crop = "" if self.crop is None else f", of the crop {self.crop}"
        tiles = "" if self.tiles is None else f", to {self.text} pixels, of which {self.tiles} tiles are seen"
        return f"Pillow bilinear with antialias, {words[self.fit]}{crop}{tiles}"

    def as_dict(self) -> dict[str, Any]:
        """The bundle's facts, for the manifest's "input"."""
        height, width = self.network.size
        facts: dict[str, Any] = {"height": height, "width": width, "resize": self.sentence(), "fit": self.fit}
        facts |= {"picture": list(self.picture) or None}
        parts = {"tiles": self.tiles, "crop": self.crop}
        return facts | {name: part.as_dict() for name, part in parts.items() if part is not None}

    @classmethod
    def in_manifest(cls, manifest: Mapping[str, Any]) -> Geometry:
        """That of a bundle; 256x256 and squeeze for one that does not say. Raises BundleError."""
        fields = manifest.get("input") or {}
        try:
            picture = tuple(fields.get("picture") or ())
            height, width = fields.get("height", SIDE), fields.get("width", SIDE)
            found = cls(height, width, fields.get("fit", "squeeze"), picture, crop=fields.get("crop"))
            if fields.get("tiles") is not None:
                found = found.with_tiles(Tiles(**fields["tiles"], height=height, width=width))
            found.require_input().window, found.shares
        except (AttributeError, TypeError, ConfigError) as error:
            raise BundleError(f"the manifest's input cannot be used ({error}): export the bundle again") from error
        return found


DEFAULT = Geometry()


def centred(height: int, width: int, inner_height: int, inner_width: int) -> Box:
    """A box in the middle of a larger one."""
    return Box((height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width)


def nearest(side: object) -> int:
    """The nearest side that an input may have."""
    number = side if isinstance(side, int) else SIDE
    return min(LARGEST, max(SMALLEST, MULTIPLE * round(number / MULTIPLE)))


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "384" or "256x512". Raises ConfigError for anything else."""
    height, times, width = text.lower().partition("x")
    if not (height.isdecimal() and (width.isdecimal() if times else True) and len(text) < 12):
        raise ConfigError(f"--size {text}: give a side, as 384, or HEIGHTxWIDTH, as 256x512")
    size = int(height), int(width or height)
    return Geometry(*size).require_input().size


def default_fit(pictures: Sequence[tuple[int, int]]) -> str:
    """The fit for pictures of these sizes (height, width) where none was asked for."""
    return "squeeze"  # no other fit won on sets of both shapes that were measured: docs/training.md


def most_frequent(pictures: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size (height, width) of most of them; of several the largest."""
    counts = Counter(pictures)
    return max(counts, key=lambda size: (counts[size], size))


@dataclass(frozen=True)
class PictureSizes:
    """Which sizes and shapes the pictures had that were learned from."""

    heights: tuple[int, int]  # smallest and largest
    widths: tuple[int, int]
    shapes: tuple[float, float]  # smallest and largest width / height

    @classmethod
    def of(cls, pictures: Sequence[tuple[int, int]]) -> PictureSizes:
        """Those of pictures of these sizes (height, width), at least one."""
        heights, widths = zip(*pictures, strict=True)
        shapes = [width / height for height, width in pictures]
        return cls((min(heights), max(heights)), (min(widths), max(widths)), (min(shapes), max(shapes)))

    @classmethod
    def in_manifest(cls, manifest: Mapping[str, Any]) -> PictureSizes | None:
        """Those of a bundle; None for one that does not say. Raises BundleError."""
        fields = (manifest.get("data") or {}).get("pictures")
        if fields is None:
            return None
        try:
            heights, widths, shapes = (tuple(fields[name]) for name in ("height", "width", "shape"))
            (low, high), (left, right), (narrow, wide) = heights, widths, shapes
            return cls((int(low), int(high)), (int(left), int(right)), (float(narrow), float(wide)))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the manifest's data.pictures cannot be read ({error!r}): export the bundle again"
            ) from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        shapes = [round(shape, 5) for shape in self.shapes]
        return {"height": list(self.heights), "width": list(self.widths), "shape": shapes}

    def differs(self, height: int, width: int, geometry: Geometry) -> str:
        """How a picture of that size differs from all that were learned from, and what is done; empty where it does not."""
        narrow, wide = self.shapes
        has_shape = narrow * (1 - SAME_SHAPE) <= width / height <= wide * (1 + SAME_SHAPE)
        has_size = self.heights[0] <= height <= self.heights[1] and self.widths[0] <= width <= self.widths[1]
        if has_shape and has_size:
            return ""
        ranges = (between(self.widths), between(self.heights))
        what = "has another size" if has_shape else "has another shape"
        done = {
            "squeeze": "it is squeezed into the input as they were",
            "letterbox": "it is brought to the window that they had in their letterbox",
            "crop": "the same shares of it are judged as of them",
        }
        return (
            f"a picture of {width}x{height} pixels {what} than those that were learned from ({'x'.join(ranges)}): "
            f"{done[geometry.fit]}, and scores of good parts may move; train on pictures of this camera"
        )


def between(ends: tuple[int, int]) -> str:
    """A range, or the one number that it holds."""
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
