"""YOLO segmentation, as Ultralytics, Roboflow, CVAT and Label Studio write it: a text file for each picture that has marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnet_edge.data.dataset import count
from nnet_edge.data.folders import walk
from nnet_edge.data.labels import Labelled, Mark, NamedPictures, Read, files_of, holds, reading
from nnet_edge.data.shapes import CocoPolygons, Points, points_of
from nnet_edge.errors import DataError, missing_library
from nnet_edge.files import read_regular
from nnet_edge.image_files import read_size

NAMES = ("classes.txt", "obj.names")  # a class a line
LISTS = (*NAMES, "train.txt", "val.txt", "valid.txt", "test.txt")  # texts that label no picture
BOX = 5  # words of a row that is a box: class, centre, width and height


class Yolo:
    """data.yaml (or classes.txt) with the classes; images/7.jpg and labels/7.txt, or 7.txt beside 7.jpg."""

    def is_here(self, folder: Path) -> bool:
        return self._classes_in(folder) is not None and next(self._texts(folder), None) is not None

    def read(self, folder: Path) -> Read:
        file = self._classes_in(folder)
        assert file is not None
        with reading(file, "YOLO"):
            kinds = _classes_of(file)
        read, pictures = Read(), NamedPictures(folder)
        texts = {path.with_suffix("").relative_to(folder).parts: path for path in self._texts(folder)}
        homes = {place[:-1] for place in texts}
        for path in pictures.all:
            place = path.with_suffix("").relative_to(folder).parts
            if "images" not in place[:-1] and place[:-1] not in homes:
                continue  # a chart of a training, for one
            text = next((texts.pop(one) for one in (_label_place(place), place) if one in texts), None)
            marks: tuple[Mark, ...] = ()
            if text is not None:
                with reading(text, "YOLO"):
                    marks = _marks_of(text, path, kinds)
            read.pictures.append(Labelled(path, str(text or path), marks, is_missing=text is None))
        if texts:
            raise DataError(
                f"{count(list(texts.values()), 'label file')} without a picture of that name in images/: "
                "put the picture there, or remove the file"
            )
        return read

    @staticmethod
    def _classes_in(folder: Path) -> Path | None:
        tables = [path for suffix in (".yaml", ".yml") for path in files_of((folder,), suffix) if holds(path, b"names")]
        plain = [path for path in files_of((folder,), ".txt") + files_of((folder,), ".names") if path.name in NAMES]
        return next(iter([*tables, *plain]), None)

    @staticmethod
    def _texts(folder: Path) -> Any:
        """Files that may label a picture: those below labels/, and those that lie beside one."""
        for path in walk(folder, (".txt",)):
            if path.name in LISTS or path.name.lower().startswith("readme"):
                continue
            places = [part.lower() for part in path.relative_to(folder).parts[:-1]]
            if "labels" in places or any(
                path.with_suffix(suffix).exists() for suffix in (".jpg", ".png", ".jpeg", ".bmp")
            ):
                yield path


def _label_place(place: tuple[str, ...]) -> tuple[str, ...]:
    """Where the labels of a picture lie: the last images/ of its place becomes labels/."""
    last = max((index for index, part in enumerate(place[:-1]) if part == "images"), default=None)
    return place if last is None else (*place[:last], "labels", *place[last + 1 :])


def _classes_of(file: Path) -> dict[int, str]:
    text = read_regular(file).decode("utf-8-sig")
    if file.name in NAMES:
        return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    try:
        import yaml
    except ImportError as error:
        raise missing_library("yaml", "train", error) from error
    names = (yaml.safe_load(text) or {})["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): str(name) for number, name in pairs}


def _marks_of(text: Path, picture: Path, kinds: dict[int, str]) -> tuple[Mark, ...]:
    rows = [line.split() for line in read_regular(text).decode("utf-8-sig").splitlines() if line.strip()]
    size = read_size(picture) if any(len(row) > BOX for row in rows) else (1, 1)
    marks = []
    for number, row in enumerate(rows, 1):
        if (kind := kinds.get(int(float(row[0])))) is None:
            raise ValueError(f"line {number} is of class {row[0]}, and there are {len(kinds)} classes, from 0")
        if len(row) < BOX or len(row) == BOX + 1 or len(row) % 2 == 0:
            raise ValueError(f"line {number} has {len(row)} numbers: a class and x y of at least 3 points are wanted")
        marks.append(Mark(kind, None if len(row) == BOX else CocoPolygons((_points(row[1:], size),))))
    return tuple(marks)


def _points(words: Sequence[str], size: tuple[int, int]) -> Points:
    height, width = size
    return tuple((x * width, y * height) for x, y in points_of([float(word) for word in words]))
