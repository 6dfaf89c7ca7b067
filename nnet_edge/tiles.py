"""Tiles and crop of a bundle: its network sees a part of each picture, as a grid of tiles that overlap.

The picture is brought to a canvas, which is as large as its tiles together, in pixels of the network. A tile is a
piece of the canvas at a multiple of STEP pixels, so cells of neighbours' layer maps coincide. The maps of the tiles are
stitched to one of the canvas: where tiles overlap each gives way to its neighbour along a ramp, the weights of all sum to 1,
and the outer quarter of an overlap, where a tile does not see what surrounds it, counts for nothing. With the default overlap,
64 pixels of 256, that quarter is as wide as the map's Gaussian reaches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.frame import Region
from nnet_edge.geometry import SIDE

Size = tuple[int, int]  # height, width, pixels
NETWORK: Size = (SIDE, SIDE)  # of the network's input
STEP = 32  # pixels of the network: a multiple of every stride, so that a canvas is an input that a network could have
OVERLAP = 0.25  # of a tile, with its neighbour
LEAST_OVERLAP, MOST_OVERLAP = 0.125, 0.5  # below it seams show, above it a place would lie in three tiles
MOST_TILES = 64
MOST_ENLARGED = 2.0  # times: a tile of fewer pixels than half the network's input shows it nothing new
LEAST_CROP = 0.01  # of a picture's width or height
PLACED_SIDE = 1024  # pixels, at most, of a map that is placed in the whole picture: it is only looked at


@dataclass(frozen=True)
class Tiles:
    """A grid that covers the canvas. Raises ConfigError for one that no picture can be cut by."""

    rows: int
    columns: int
    overlap: float = OVERLAP  # share of a tile's side

    def __post_init__(self) -> None:
        are_whole = isinstance(self.rows, int) and isinstance(self.columns, int)
        if not (are_whole and self.rows >= 1 and self.columns >= 1 and 2 <= self.count <= MOST_TILES):
            raise ConfigError(
                f"{self.rows}x{self.columns} tiles are invalid: give ROWSxCOLUMNS, from 1x2 or 2x1 to {MOST_TILES} in all"
            )
        if not LEAST_OVERLAP <= self.overlap <= MOST_OVERLAP:  # NaN is refused, too
            raise ConfigError(
                f"an overlap of {self.overlap} is invalid: give a share of a tile from {LEAST_OVERLAP:g} to {MOST_OVERLAP:g}"
            )

    @property
    def count(self) -> int:
        """Tiles of a picture."""
        return self.rows * self.columns

    def canvas(self, tile: Size = NETWORK) -> Size:
        """Height and width of the canvas that tiles of this size cover."""
        return tuple(side + (n - 1) * self._step(side) for side, n in zip(tile, (self.rows, self.columns), strict=True))  # type: ignore[return-value]

    def _step(self, side: int) -> int:
        steps = max(round(side * (1 - self.overlap) / STEP), math.ceil(side / 2 / STEP))
        return min(steps, side // STEP - 1) * STEP

    def places(self, tile: Size = NETWORK) -> list[tuple[slice, slice]]:
        """Rows and columns of the canvas that each tile covers, row by row."""
        (height, width), (down, across) = tile, map(self._step, tile)
        return [
            (slice(row * down, row * down + height), slice(column * across, column * across + width))
            for row in range(self.rows)
            for column in range(self.columns)
        ]

    def cut(self, images: np.ndarray, tile: Size = NETWORK) -> np.ndarray:
        """The tiles (N * T, h, w, ...) of canvases (N, H, W, ...), picture by picture."""
        places = self.places(tile)
        return np.stack([image[place] for image in images for place in places])

    def weights(self, tile: Size = NETWORK) -> np.ndarray:
        """How much each tile's map counts at each of its pixels: float32 (T, h, w), read-only; 1 in all at every place."""
        return _weights(self, tile)

    def stitch(self, maps: np.ndarray) -> np.ndarray:
        """The maps float32 (N, H, W) of canvases, of those of their tiles (N * T, h, w). A NaN in a tile stays one."""
        tile = maps.shape[1], maps.shape[2]
        places, weights = self.places(tile), self.weights(tile)
        stitched = np.zeros((len(maps) // self.count, *self.canvas(tile)), np.float32)
        for number, one in enumerate(maps):
            picture, place = divmod(number, self.count)
            stitched[picture][places[place]] += one * weights[place]
        return stitched

    @classmethod
    def parse(cls, text: str, overlap: float = OVERLAP) -> Tiles:
        """The grid of "2x3", rows x columns. Raises ConfigError."""
        found = re.fullmatch(r"(\d{1,3})[xX](\d{1,3})", text.strip())
        if found is None:
            raise ConfigError(f"--tiles {text} is no grid: give ROWSxCOLUMNS as 2x3, or auto")
        return cls(int(found[1]), int(found[2]), overlap)

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


@lru_cache(maxsize=16)
def _weights(tiles: Tiles, tile: Size) -> np.ndarray:
    height, width = tile
    down, across = (np.array([_ramp(side, n, count, side - tiles._step(side)) for n in range(count)])
                    for side, count in ((height, tiles.rows), (width, tiles.columns)))  # fmt: skip
    weights = np.einsum("ih,jw->ijhw", down, across).reshape(-1, height, width).astype(np.float32)
    weights.flags.writeable = False
    return weights


def _ramp(side: int, number: int, count: int, overlap: int) -> np.ndarray:
    """The weights (side,) of tile `number` of `count` in a row: 0 at first, then rising, 1, and so down again."""
    unused = overlap // 4
    steps = overlap - 2 * unused
    rising = np.concatenate([np.zeros(unused), (np.arange(steps) + 0.5) / steps, np.ones(unused)])
    weights = np.ones(side)
    if number > 0:
        weights[:overlap] = rising
    if number + 1 < count:
        weights[side - overlap :] = 1 - rising
    return weights


@dataclass(frozen=True)
class CropShare:
    """A rectangle of every picture, in shares of its width and height; nothing else of it is seen."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        edges = (self.x, self.y, self.width, self.height, self.x + self.width, self.y + self.height)
        is_inside = all(math.isfinite(value) and 0 <= value <= 1 + 1e-9 for value in edges)
        if not is_inside or min(self.width, self.height) < LEAST_CROP:
            raise ConfigError(
                f"the crop {self.x:g},{self.y:g},{self.width:g},{self.height:g} lies outside the picture or is smaller than "
                f"{LEAST_CROP:.0%} of it: give X,Y,WIDTH,HEIGHT inside it, in pixels or as shares from 0 to 1"
            )

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Left, top, width and height, pixels of a picture of `height` x `width`. Raises DataError where that is nothing."""
        left, right = round(self.x * width), round((self.x + self.width) * width)
        top, bottom = round(self.y * height), round((self.y + self.height) * height)
        if right <= left or bottom <= top:
            raise DataError(f"the bundle's crop ({self}) leaves nothing of a picture of {width}x{height} pixels")
        return left, top, right - left, bottom - top

    def of(self, image: np.ndarray) -> np.ndarray:
        """A view of that part of a picture (H, W, ...)."""
        left, top, width, height = self.box(*image.shape[:2])
        return image[top : top + height, left : left + width]

    def place(self, values: np.ndarray, height: int, width: int) -> np.ndarray:
        """A map of the crop (h, w) in one of the whole picture of `height` x `width`; 0 outside, and not larger than 1024."""
        _, _, box_width, box_height = self.box(height, width)
        whole = np.array((values.shape[0] * height / box_height, values.shape[1] * width / box_width))
        rows, columns = np.maximum(1, np.round(whole * min(1.0, PLACED_SIDE / whole.max()))).astype(int)
        placed = np.zeros((rows, columns), values.dtype)
        target = self.of(placed)
        fitting = values.view(np.uint8) if values.dtype == bool else values
        if values.shape != target.shape:
            rule = cv2.INTER_NEAREST if values.dtype == bool else cv2.INTER_LINEAR
            fitting = cv2.resize(fitting, target.shape[::-1], interpolation=rule)
        target[...] = fitting
        return placed

    def move(self, regions: Sequence[Region], height: int, width: int) -> tuple[Region, ...]:
        """Regions of the crop as regions of the picture of `height` x `width`."""
        left, top, _, _ = self.box(height, width)
        return tuple(Region(one.x + left, one.y + top, one.width, one.height, one.area, one.peak) for one in regions)

    @classmethod
    def parse(cls, text: str, size: Size | None) -> CropShare:
        """The crop of "X,Y,WIDTH,HEIGHT": shares where a number has a point or none exceeds 1, else pixels.

        `size` is that of all pictures, None: they have several. Raises ConfigError.
        """
        try:
            numbers = [float(word) for word in text.split(",")]
            x, y, width, height = numbers
        except ValueError as error:
            raise ConfigError(
                f"--crop {text} is no rectangle: give X,Y,WIDTH,HEIGHT in pixels or as shares, or auto"
            ) from error
        if "." in text or max(numbers) <= 1:
            return cls(x, y, width, height)
        if size is None:
            raise ConfigError(
                f"--crop {text}: the good images have several sizes, so pixels differ: give shares from 0 to 1"
            )
        rows, columns = size
        if min(x, y) < 0 or min(width, height) < 1 or x + width > columns or y + height > rows:
            raise ConfigError(
                f"--crop {text} lies outside the good images, which have {columns}x{rows} pixels, or is empty"
            )
        return cls(x / columns, y / rows, width / columns, height / rows)

    def __str__(self) -> str:
        right, bottom = self.x + self.width, self.y + self.height
        return f"{self.x:.1%} to {right:.1%} of the width, {self.y:.1%} to {bottom:.1%} of the height"
