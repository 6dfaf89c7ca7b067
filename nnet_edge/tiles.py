"""Tiles and crop of a bundle: its network sees a part of each picture, as a grid of tiles that overlap.

The picture is brought to a canvas, which is as large as its tiles together, in pixels of the network. A tile is a piece of the
canvas at a multiple of STEP pixels, so cells of neighbours' layer maps coincide. The maps of the tiles are stitched to one of
the canvas: where tiles overlap each gives way to its neighbour along a ramp, the weights of all sum to 1, and the outer quarter
of an overlap, where a tile does not see what surrounds it, counts for nothing. With the default overlap, 64 pixels of 256, that
quarter is as wide as the map's Gaussian reaches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError

if TYPE_CHECKING:  # the command line starts without NumPy
    import numpy as np

STEP = 32  # pixels of the network: a multiple of every stride, so that a canvas is an input that a network could have
OVERLAP = 0.25  # of a tile, with its neighbour
LEAST_OVERLAP, MOST_OVERLAP = 0.125, 0.5  # below it seams show, above it a place would lie in three tiles
MOST_TILES = 64
LEAST_CROP = 0.01  # of a picture's width or height


@dataclass(frozen=True)
class Tiles:
    """A grid that covers the canvas. Raises ConfigError for one that no picture can be cut by."""

    rows: int
    columns: int
    overlap: float = OVERLAP  # share of a tile's side
    height: int = 256  # of a tile, pixels of the network
    width: int = 256

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

    @property
    def steps(self) -> tuple[int, int]:
        """How far tiles lie from their neighbours, down and across, pixels of the network."""
        down, across = (
            min(max(round(side * (1 - self.overlap) / STEP), math.ceil(side / 2 / STEP)), side // STEP - 1) * STEP
            for side in (self.height, self.width)
        )
        return down, across

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvas, pixels of the network."""
        down, across = self.steps
        return self.height + (self.rows - 1) * down, self.width + (self.columns - 1) * across

    @property
    def places(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the canvas that each tile covers, row by row."""
        down, across = self.steps
        return [
            (slice(row * down, row * down + self.height), slice(column * across, column * across + self.width))
            for row in range(self.rows)
            for column in range(self.columns)
        ]

    def cut(self, images: np.ndarray, numbers: Sequence[int] | None = None) -> np.ndarray:
        """The tiles (N * T, h, w, ...) of canvases (N, H, W, ...), picture by picture; or those of these numbers alone."""
        import numpy as np

        numbers, places = range(len(images) * self.count) if numbers is None else numbers, self.places
        tiles = np.empty((len(numbers), self.height, self.width, *images.shape[3:]), images.dtype)
        for tile, number in zip(tiles, numbers, strict=True):
            picture, place = divmod(number, self.count)
            tile[...] = images[picture][places[place]]
        return tiles

    def stitch(self, maps: np.ndarray) -> np.ndarray:
        """The maps float32 (N, H, W) of canvases, of those of their tiles (N * T, h, w). A NaN in a tile stays one."""
        import numpy as np

        places, weights = self.places, weights_of(self)
        stitched = np.zeros((len(maps) // self.count, *self.canvas), np.float32)
        for number, one in enumerate(maps):
            picture, place = divmod(number, self.count)
            stitched[picture][places[place]] += one * weights[place]
        return stitched

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest; the size of a tile is that of the network's input."""
        return {"rows": self.rows, "columns": self.columns, "overlap": self.overlap}

    @classmethod
    def parse(cls, text: str, overlap: float, height: int, width: int) -> Tiles:
        """The grid of "2x3", rows x columns. Raises ConfigError."""
        found = re.fullmatch(r"(\d{1,3})[xX](\d{1,3})", text.strip())
        if found is None:
            raise ConfigError(f"--tiles {text} is no grid: give ROWSxCOLUMNS as 2x3, or auto")
        return cls(int(found[1]), int(found[2]), overlap, height, width)

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


@lru_cache(maxsize=16)
def weights_of(tiles: Tiles) -> np.ndarray:
    """How much each tile's map counts at each of its pixels: float32 (T, h, w), read-only; 1 in all at every place."""
    import numpy as np

    def ramp(side: int, step: int, number: int, count: int) -> np.ndarray:
        overlap = side - step
        unused = overlap // 4
        length = overlap - 2 * unused
        rising = np.concatenate([np.zeros(unused), (np.arange(length) + 0.5) / length, np.ones(unused)])
        weights = np.ones(side)
        if number > 0:
            weights[:overlap] = rising
        if number + 1 < count:
            weights[side - overlap :] = 1 - rising
        return weights

    ends = zip((tiles.height, tiles.width), tiles.steps, (tiles.rows, tiles.columns), strict=True)
    down, across = ([ramp(side, step, number, count) for number in range(count)] for side, step, count in ends)
    weights = np.array([np.outer(one, other) for one in down for other in across], np.float32)
    weights.flags.writeable = False
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
        """Top, left, height and width, pixels of a picture of `height` x `width`: at least one each."""
        left, top = min(round(self.x * width), width - 1), min(round(self.y * height), height - 1)
        right, bottom = round((self.x + self.width) * width), round((self.y + self.height) * height)
        return top, left, max(1, bottom - top), max(1, right - left)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)

    @classmethod
    def parse(cls, text: str, size: tuple[int, int] | None) -> CropShare:
        """The crop of "X,Y,WIDTH,HEIGHT": shares where a number has a point or none exceeds 1, else pixels.

        `size` is that of all pictures (height, width), None: they have several. Raises ConfigError.
        """
        try:
            numbers = [float(word) for word in text.split(",")]
            x, y, width, height = numbers
        except ValueError as error:
            raise ConfigError(
                f"--crop {text} is no rectangle: give X,Y,WIDTH,HEIGHT in pixels or as shares, or auto"
            ) from error
        if "." in text or max(numbers) <= 1 or not all(map(math.isfinite, numbers)):
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
