"""Supervisely: meta.json, and in each data set img/7.jpg with ann/7.jpg.json; bitmaps, polygons with holes, rectangles."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from nnet_edge.data.dataset import count
from nnet_edge.data.folders import find_part, folders, walk
from nnet_edge.data.labels import Labelled, Mark, NamedPictures, Read, holds, part_in, read_json, reading, size_of
from nnet_edge.data.shapes import Bitmap, Box, Shape, SuperviselyPolygon, points_of
from nnet_edge.errors import DataError


class Supervisely:
    """A project, or one data set of it."""

    def is_here(self, folder: Path) -> bool:
        files = (file for home in self._sets(folder) for file in walk(home / "ann", (".json",)))
        return any(holds(file, b'"objects"') for file in islice(files, 1))

    def read(self, folder: Path) -> Read:
        read, pictures = Read(), NamedPictures(folder)
        labelled = set()
        for home in self._sets(folder):
            for file in walk(home / "ann", (".json",)):
                with reading(file, "Supervisely"):
                    content = read_json(file)
                    name = f"{home.name}/img/{file.relative_to(home / 'ann').with_suffix('').as_posix()}"
                    path = pictures.find(name, home) or pictures.find_stem(name, home)
                    if path is None:
                        read.absent[file].append(file.stem)
                        continue
                    size = content.get("size") or {}
                    marks = [Mark(str(entry["classTitle"]), _shape_of(entry)) for entry in content["objects"]]
                    marks += [Mark(str(tag["name"]), None) for tag in content.get("tags") or () if not marks]
                    known = size_of(size.get("height"), size.get("width"))
                    read.pictures.append(Labelled(path, str(file), tuple(marks), known, part_in(home.name)))
                    labelled.add(path)
        sets = [home / "img" for home in self._sets(folder)]
        bare = [path for path in pictures.all if path not in labelled and any(map(path.is_relative_to, sets))]
        if bare and not read.absent:
            raise DataError(
                f"{count(bare, 'picture')} without its file in ann/, which Supervisely writes for each: export again"
            )
        return read

    @staticmethod
    def _is_set(folder: Path) -> bool:
        return find_part(folder, ("img",)) is not None and find_part(folder, ("ann",)) is not None

    def _sets(self, folder: Path) -> list[Path]:
        """The folders that hold img/ and ann/."""
        found = [folder] if self._is_set(folder) else []
        for entry in folders(folder):
            if self._is_set(entry):
                found.append(entry)
            found += [below for below in folders(entry) if self._is_set(below)]
        return found


def _shape_of(entry: dict[str, Any]) -> Shape:
    kind = entry.get("geometryType") or entry.get("shape")
    if kind == "bitmap":
        left, top = entry["bitmap"]["origin"]
        return Bitmap(str(entry["bitmap"]["data"]), (int(left), int(top)))
    if kind in ("polygon", "rectangle"):
        points = entry["points"]
        exterior = points_of(points["exterior"])
        if kind == "rectangle":
            return Box(exterior)
        return SuperviselyPolygon(exterior, tuple(map(points_of, points.get("interior") or ())))
    raise ValueError(f'a figure of the type "{kind}" is not read: draw a mask, a polygon or a rectangle')
