"""Pixels that a shape marks: those of the library of its own tool."""

from __future__ import annotations

import base64
import io
import math
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from nnet_edge.data.shapes import (
    Bitmap,
    Box,
    CocoPolygons,
    CvatEllipse,
    Drawing,
    LabelmeShape,
    Points,
    Runs,
    Shape,
    SuperviselyPolygon,
    unpack_counts,
)
from nnet_edge.errors import DataError, MissingExtraError

SIZE = (100, 120)
SQUARE: Points = ((10, 10), (30, 10), (30, 30), (10, 30))
SCRATCH: Points = ((10, 20), (80, 40), (80, 42), (10, 22))  # 70 pixels long, 2 wide


def drawn(shape: Shape, size: tuple[int, int] = SIZE) -> np.ndarray:
    return Drawing("a.json", size, (shape,)).mask(size)


def polygons(count: int) -> list[Points]:
    """Random ones, of whole and of broken coordinates, some of them a little outside the picture."""
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        points = random.uniform(-3, 1.03 * max(SIZE), (random.integers(3, 9), 2))
        found.append(tuple((float(x), float(y)) for x, y in (points.round() if number % 2 else points)))
    return found


def test_polygons_of_coco_are_those_of_pycocotools_as_its_own_reader_draws_them() -> None:
    coco = pytest.importorskip("pycocotools.coco").COCO()
    warnings.filterwarnings("ignore", ".*copy keyword", DeprecationWarning)  # its own, with NumPy 2
    for polygon in polygons(60):
        rings = [np.ravel(polygon).tolist(), np.ravel(SQUARE).tolist()]
        coco.imgs = {1: {"height": SIZE[0], "width": SIZE[1]}}
        expected = coco.annToMask({"image_id": 1, "segmentation": rings}).astype(bool)
        assert np.array_equal(drawn(CocoPolygons((polygon, SQUARE))), expected)


def test_a_square_and_a_scratch_in_each_tool() -> None:
    """The figures of docs/data.md."""
    counts = {
        "coco": [int(drawn(CocoPolygons((shape,))).sum()) for shape in (SQUARE, SCRATCH)],
        "labelme": [int(drawn(LabelmeShape("polygon", shape)).sum()) for shape in (SQUARE, SCRATCH)],
        "supervisely": [int(drawn(SuperviselyPolygon(shape)).sum()) for shape in (SQUARE, SCRATCH)],
    }
    assert counts == {"coco": [400, 140], "labelme": [441, 153], "supervisely": [441, 213]}


def test_polygons_of_labelme_are_pillows_and_those_of_supervisely_opencvs() -> None:
    for polygon in polygons(30):
        picture = Image.new("L", SIZE[::-1])
        ImageDraw.Draw(picture).polygon(list(polygon), outline=1, fill=1)
        assert np.array_equal(drawn(LabelmeShape("polygon", polygon)), np.asarray(picture) > 0)
        filled = np.zeros(SIZE, np.uint8)
        cv2.fillPoly(filled, [np.floor(polygon).astype(np.int32)], 1)
        assert np.array_equal(drawn(SuperviselyPolygon(polygon)), filled > 0)


def test_a_hole_of_supervisely_takes_its_outline_with_it() -> None:
    hole: Points = ((15, 15), (25, 15), (25, 25), (15, 25))
    assert drawn(SuperviselyPolygon(SQUARE, (hole,))).sum() == 441 - 121


def test_other_shapes_of_labelme() -> None:
    assert drawn(LabelmeShape("rectangle", ((30, 30), (10, 10)))).sum() == 441
    assert drawn(LabelmeShape("circle", ((50, 50), (50, 60)))).sum() == pytest.approx(math.pi * 10.5**2, rel=0.03)
    assert drawn(LabelmeShape("point", ((50, 50),))).sum() == pytest.approx(math.pi * 5.5**2, rel=0.05)
    line = drawn(LabelmeShape("line", ((10, 50), (90, 50))))
    assert line[:, 50].sum() == 10
    assert np.array_equal(line, drawn(LabelmeShape("linestrip", ((10, 50), (90, 50)))))
    assert np.array_equal(drawn(LabelmeShape("oriented_rectangle", SQUARE)), drawn(LabelmeShape("polygon", SQUARE)))


def test_boxes_and_ellipses() -> None:
    assert drawn(Box(((30, 30), (10, 10)))).sum() == 441
    expected = np.zeros(SIZE, np.uint8)
    cv2.ellipse(expected, (50, 40), (20, 10), 30, 0, 360, 1, thickness=-1)
    assert np.array_equal(drawn(CvatEllipse((50.4, 39.6), (20.2, 10), 30)), expected > 0)


def some_mask() -> np.ndarray:
    mask = np.random.default_rng(1).random((7, 9)) < 0.5
    mask[0, 0] = True  # an empty first run
    return mask


def runs_of(flat: np.ndarray) -> tuple[int, ...]:
    """The lengths of runs, the first of which is not marked."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    return tuple(np.diff([0, *edges, len(flat)]).tolist())


def test_runs_by_column_and_by_row() -> None:
    mask = some_mask()
    assert np.array_equal(drawn(Runs(runs_of(mask.T.ravel()), mask.shape), mask.shape), mask)
    placed = drawn(Runs(runs_of(mask.ravel()), mask.shape, (30, 20), by_column=False))
    assert np.array_equal(placed[20:27, 30:39], mask)
    assert placed.sum() == mask.sum()


def test_packed_runs_are_those_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(2)
    for share in (0, 0.01, 0.5, 1):
        mask = random.random((300, 200)) < share
        packed = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        assert np.array_equal(drawn(Runs(packed, mask.shape), mask.shape), mask)


def png(mask: np.ndarray, palette: bool = False) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(mask.astype(np.uint8) * (1 if palette else 255))
    if palette:  # as Supervisely saves them
        picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(file, "PNG", **({"transparency": 0} if palette else {}))
    return file.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_bitmaps(packed: bool) -> None:
    mask = some_mask()
    data = zlib.compress(png(mask, palette=True)) if packed else png(mask)
    placed = drawn(Bitmap(base64.b64encode(data).decode(), (30, 20)))
    assert np.array_equal(placed[20:27, 30:39], mask)
    assert placed.sum() == mask.sum()


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (CocoPolygons((((1, 1), (2, 2)),)), "a shape of 2 points: it needs 3"),
        (CocoPolygons((((1, 1), (2, 2), (1e9, 1)),)), "a point lies far outside the picture of 100 x 120 pixels"),
        (LabelmeShape("polygon", ((1, 1), (2, 2), (math.nan, 1))), "a point lies far outside"),
        (CocoPolygons((((0, 0), (100, 100)) * 20_000,)), "an outline of more than 1,000,000 pixels"),
        (LabelmeShape("circle", SQUARE), "a circle of 4 points: it has 2"),
        (Runs((5, 5), SIZE), "runs of 10 pixels do not fill their box of 100 x 120"),
        (Runs((-1, 12_001), SIZE), "do not fill their box"),
        (Runs((4,), (2, 2), (119, 99)), r"at \(119, 99\) reach beyond the picture"),
        (Runs("\x7f", SIZE), "packed in a way that COCO does not know"),
        (Runs("P", SIZE), "packed in a way that COCO does not know"),
        (Bitmap("AAAA", (0, 0)), "a mask that cannot be unpacked"),
        (Bitmap("%", (0, 0)), "a mask that is no picture"),
        (Bitmap(base64.b64encode(png(some_mask())).decode(), (115, 0)), r"a mask of 7 x 9 pixels at \(115, 0\) reaches beyond"),
        (Bitmap(base64.b64encode(png(some_mask())[:40]).decode(), (0, 0)), "a mask that is no picture"),
    ],
)  # fmt: skip
def test_a_shape_that_cannot_be_drawn_is_one_sentence(shape: Shape, told: str) -> None:
    with pytest.raises(DataError, match=f"^a.json: .*{told}"):
        drawn(shape)


def test_a_picture_of_another_size() -> None:
    told = r"^a.json was drawn on a picture of 100 x 120 pixels \(height x width\) and the picture has 120 x 100: label the"
    with pytest.raises(DataError, match=told):
        Drawing("a.json", SIZE, (CocoPolygons((SQUARE,)),)).mask(SIZE[::-1])


def test_without_pycocotools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtraError, match=r"pycocotools.*nnet-edge\[train\]"):
        drawn(CocoPolygons((SQUARE,)))


def test_unpacking_nothing() -> None:
    assert unpack_counts("") == ()
