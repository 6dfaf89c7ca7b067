"""Shapes that labelling tools write, and the pixels that each marks.

One rule: a shape marks the pixels that the library of its own tool marks, pixel for pixel. So the same outline may be another
mask in another tool: a square of 20 x 20 pixels is 400 pixels in COCO, CVAT and YOLO and 441 in labelme and Supervisely, which
colour the outline, too. docs/data.md has the table.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, hypot
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image, ImageDraw

from nnet_edge.errors import DataError, missing_library
from nnet_edge.image_files import decode_labels

Points = tuple[tuple[float, float], ...]  # (x, y) in pixels
Size = tuple[int, int]  # (height, width)
LONGEST = 1_000_000  # pixels of an outline; rasterising takes memory by its length
LABELME_LINE, LABELME_POINT = 10, 5  # pixels: width of a line, radius of a point
PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PNG = 1 << 26  # bytes of a mask in a label file


def points_of(values: Any) -> Points:
    """(x, y) pairs of [x, y, x, y, ...] or [[x, y], ...]. Raises ValueError."""
    pairs = (
        values if values and isinstance(values[0], list | tuple) else list(zip(values[::2], values[1::2], strict=True))
    )
    return tuple((float(x), float(y)) for x, y in pairs)


class Shape(Protocol):
    """What marks an area of a picture."""

    def draw(self, mask: np.ndarray) -> None:
        """Set what the shape marks in `mask`, bool (H, W). Raises ValueError, half a sentence, where it does not fit."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """The shapes of one picture; together they mark its defects."""

    where: str  # label file and entry, for messages
    size: Size | None  # (height, width) of the picture by the label file; None: it does not say
    shapes: tuple[Shape, ...]

    def mask(self, size: Size) -> np.ndarray:
        """Where the shapes mark a picture of that size, bool (H, W). Raises DataError where they do not fit it."""
        if self.size not in (None, size):
            assert self.size is not None
            said, found = (f"{height} x {width}" for height, width in (self.size, size))
            raise DataError(
                f"{self.where} was drawn on a picture of {said} pixels (height x width) and the picture has {found}: "
                "label the picture that is here (an image's EXIF turn counts), or put back the one that was labelled"
            )
        mask = np.zeros(size, bool)
        for shape in self.shapes:
            try:
                shape.draw(mask)
            except ValueError as error:
                raise DataError(f"{self.where}: {error}") from error
        return mask


@dataclass(frozen=True, slots=True)
class CocoPolygons:
    """Polygons as pycocotools fills them, for COCO, CVAT and YOLO: the outline itself does not count."""

    rings: tuple[Points, ...]

    def draw(self, mask: np.ndarray) -> None:
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise missing_library("pycocotools", "train", error) from error
        for ring in self.rings:
            _require_drawable(ring, mask.shape, 3)
            (runs,) = coco.frPyObjects([np.ravel(ring).tolist()], *mask.shape)
            Runs(runs["counts"].decode(), mask.shape).draw(mask)  # its own decode warns with NumPy 2


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of pixels, unmarked and marked in turn, within a box: column by column (COCO) or row by row (CVAT)."""

    counts: tuple[int, ...] | str  # a str: as COCO packs them
    size: Size  # of the box
    origin: tuple[int, int] = (0, 0)  # (left, top) of the box
    by_column: bool = True

    def draw(self, mask: np.ndarray) -> None:
        height, width = self.size
        left, top = self.origin
        if (
            min(left, top) < 0
            or height < 1
            or width < 1
            or top + height > mask.shape[0]
            or left + width > mask.shape[1]
        ):
            raise ValueError(f"runs of a box of {height} x {width} at ({left}, {top}) reach beyond the picture")
        counts = unpack_counts(self.counts) if isinstance(self.counts, str) else self.counts
        if min(counts, default=0) < 0 or sum(counts) != height * width:
            raise ValueError(f"runs of {sum(counts)} pixels do not fill their box of {height} x {width}")
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        box = flat.reshape(width, height).T if self.by_column else flat.reshape(height, width)
        mask[top : top + height, left : left + width] |= box


def unpack_counts(text: str) -> tuple[int, ...]:
    """The runs that COCO packed into `text`: 5 bits a character, from the third on as differences to the run before the last.

    Raises ValueError for text that is none.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii", "replace"):
        digit = code - 48
        if not 0 <= digit < 64 or shift > 60:
            raise ValueError("runs are packed in a way that COCO does not know")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) * bool(digit & 16)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("runs are packed in a way that COCO does not know")
    return tuple(counts)


@dataclass(frozen=True, slots=True)
class CvatEllipse:
    """An ellipse as CVAT fills it."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    degrees: float

    def draw(self, mask: np.ndarray) -> None:
        (x, y), (across, down) = self.centre, self.radii
        _require_drawable(((x - across, y - down), (x + across, y + down)), mask.shape)
        filled = np.zeros(mask.shape, np.uint8)
        centre, radii = (round(x), round(y)), (round(across), round(down))
        cv2.ellipse(filled, centre, radii, self.degrees, 0, 360, 1, thickness=-1)
        mask |= filled > 0


@dataclass(frozen=True, slots=True)
class LabelmeShape:
    """A shape as labelme fills it: by Pillow, with its outline."""

    kind: str
    points: Points

    def draw(self, mask: np.ndarray) -> None:
        least, most = LABELME_KINDS[self.kind]
        if len(self.points) > most:
            raise ValueError(f"a {self.kind} of {len(self.points)} points: it has {most}")
        _require_drawable(self.points, mask.shape, least)
        drawn = Image.new("L", mask.shape[::-1])
        draw, points = ImageDraw.Draw(drawn), list(self.points)
        if self.kind in ("circle", "point"):
            (x, y), radius = points[0], float(LABELME_POINT)
            if self.kind == "circle":
                radius = hypot(x - points[1][0], y - points[1][1])
            draw.ellipse(((x - radius, y - radius), (x + radius, y + radius)), outline=1, fill=1)
        elif self.kind == "rectangle":
            (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
            draw.rectangle(((left, top), (right, bottom)), outline=1, fill=1)
        elif self.kind in ("line", "linestrip"):
            draw.line(points, fill=1, width=LABELME_LINE)
        else:
            draw.polygon(points, outline=1, fill=1)
        mask |= np.asarray(drawn) > 0


MANY = LONGEST
LABELME_KINDS = {  # kind -> fewest and most points
    "polygon": (3, MANY), "rectangle": (2, 2), "oriented_rectangle": (4, 4), "circle": (2, 2), "line": (2, 2),
    "linestrip": (2, MANY), "point": (1, 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SuperviselyPolygon:
    """A polygon with holes as Supervisely's SDK fills it: by OpenCV, whole pixels, the outline included, that of a hole not."""

    exterior: Points
    interior: tuple[Points, ...] = ()

    def draw(self, mask: np.ndarray) -> None:
        outer, *inner = (self._whole(ring, mask.shape) for ring in (self.exterior, *self.interior))
        filled = np.zeros(mask.shape, np.uint8)
        cv2.fillPoly(filled, [outer], 1)
        if inner:
            cv2.fillPoly(filled, inner, 0)
        mask |= filled > 0

    @staticmethod
    def _whole(ring: Points, size: Size) -> np.ndarray:
        _require_drawable(ring, size, 3)
        return np.array([(floor(x), floor(y)) for x, y in ring], np.int32)


@dataclass(frozen=True, slots=True)
class Box:
    """All pixels from one corner to the other, both included, as Supervisely fills a rectangle."""

    corners: Points

    def draw(self, mask: np.ndarray) -> None:
        _require_drawable(self.corners, mask.shape, 2)
        (left, right), (top, bottom) = (sorted(map(floor, values)) for values in zip(*self.corners, strict=True))
        mask[max(top, 0) : max(bottom + 1, 0), max(left, 0) : max(right + 1, 0)] = True


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A small mask, a PNG in base64 (labelme) or that packed by zlib (Supervisely), at its place in the picture."""

    data: str
    origin: tuple[int, int]  # (left, top)

    def draw(self, mask: np.ndarray) -> None:
        marks = self._marks()
        left, top = self.origin
        height, width = marks.shape
        if min(left, top) < 0 or top + height > mask.shape[0] or left + width > mask.shape[1]:
            raise ValueError(f"a mask of {height} x {width} pixels at ({left}, {top}) reaches beyond the picture")
        mask[top : top + height, left : left + width] |= marks

    def _marks(self) -> np.ndarray:
        try:
            data = base64.b64decode(self.data)
            if not data.startswith(PNG):
                data = zlib.decompressobj().decompress(data, LARGEST_PNG)
            if not data.startswith(PNG):
                raise ValueError("it holds no PNG")
            labels = decode_labels(data)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"a mask that cannot be unpacked ({error})") from error
        except Exception as error:  # as in image_files.read_picture
            raise ValueError(f"a mask that is no picture ({error})") from error
        if labels.alpha is not None:
            return labels.alpha > 0
        return labels.values != 0 if labels.values.ndim == 2 else (labels.values != 0).any(axis=2)


def _require_drawable(points: Sequence[tuple[float, float]], size: Size, least: int = 0) -> None:
    """Raise ValueError for points too few, far outside a picture of that size, or of an outline without end."""
    if len(points) < least:
        raise ValueError(f"a shape of {len(points)} points: it needs {least}")
    where = np.asarray(points, np.float64)
    room = max(size)
    if not (np.isfinite(where).all() and (where > -room).all() and (where < 2 * room).all()):
        raise ValueError(f"a point lies far outside the picture of {size[0]} x {size[1]} pixels (height x width)")
    if np.abs(np.diff(where, axis=0)).max(axis=1, initial=0).sum() > LONGEST:
        raise ValueError(f"an outline of more than {LONGEST:,} pixels")
