"""COCO JSON, as CVAT, Roboflow, Label Studio and others export it: polygons, and runs of pixels, packed or not."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from nnet_edge.data.folders import folders
from nnet_edge.data.labels import (
    Labelled,
    Mark,
    NamedPictures,
    Read,
    files_of,
    holds,
    part_in,
    read_json,
    reading,
    size_of,
)
from nnet_edge.data.shapes import CocoPolygons, Runs, Shape, points_of

WORDS = (b'"images"', b'"annotations"', b'"categories"')
HOMES = ("annotations", "annotation", "labels")


class Coco:
    """annotations.json beside the pictures or in annotations/; _annotations.coco.json in train/, valid/, test/."""

    def is_here(self, folder: Path) -> bool:
        return bool(self._files(folder))

    def read(self, folder: Path) -> Read:
        read, pictures = Read(), NamedPictures(folder)
        for file in self._files(folder):
            with reading(file, "COCO"):
                self._read_file(file, read_json(file), pictures, read)
        return read

    def _files(self, folder: Path) -> list[Path]:
        homes = [entry for entry in folders(folder) if entry.name.lower() in HOMES or part_in(entry.name)]
        return [path for path in files_of((folder, *homes), ".json") if holds(path, *WORDS)]

    @staticmethod
    def _read_file(file: Path, content: dict[str, Any], pictures: NamedPictures, read: Read) -> None:
        kinds = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        marks: dict[Any, list[Mark]] = defaultdict(list)
        known = {entry["id"] for entry in content["images"]}
        for entry in content["annotations"]:
            if entry["image_id"] not in known:
                raise ValueError(
                    f"annotation {entry.get('id')} is of image {entry['image_id']}, which it does not list"
                )
            kind = kinds.get(entry["category_id"])
            if kind is None:
                raise ValueError(
                    f"annotation {entry.get('id')} is of category {entry['category_id']}, which it does not list"
                )
            marks[entry["image_id"]].append(Mark(kind, _shape_of(entry.get("segmentation"))))
        for entry in content["images"]:
            name = str(entry["file_name"])
            path = pictures.find(name, file.parent)
            if path is None:
                read.absent[file].append(name)
                continue
            size = size_of(entry.get("height"), entry.get("width"))
            part = part_in(file.stem)
            read.pictures.append(Labelled(path, f'{file}, "{name}"', tuple(marks[entry["id"]]), size, part))


def _shape_of(segmentation: Any) -> Shape | None:
    """The shape that COCO writes as a list of polygons, or as runs; None for a box without either."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        return Runs(counts if isinstance(counts, str) else tuple(map(int, counts)), (int(height), int(width)))
    return CocoPolygons(tuple(map(points_of, segmentation)))
