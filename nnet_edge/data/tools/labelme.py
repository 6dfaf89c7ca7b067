"""labelme: a JSON beside each picture that has marks, or in a folder of its own."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from nnet_edge.data.folders import walk
from nnet_edge.data.labels import Labelled, Mark, NamedPictures, Read, holds, read_json, reading, size_of
from nnet_edge.data.shapes import LABELME_KINDS, Bitmap, LabelmeShape, Shape, points_of
from nnet_edge.data.trees import GOOD_NAMES

WORDS = (b'"shapes"', b'"imagePath"')
LOOKED_AT = 10  # JSON files of a folder, before it is said to be none of labelme's


class Labelme:
    """7.json for 7.png, wherever it lies below.

    It writes none for a picture without marks: one beside labelled ones, or in a folder called good, counts as good.
    """

    def is_here(self, folder: Path) -> bool:
        return any(holds(path, *WORDS) for path in islice(walk(folder, (".json",)), LOOKED_AT))

    def read(self, folder: Path) -> Read:
        read, pictures = Read(), NamedPictures(folder)
        labelled = set()
        for file in walk(folder, (".json",)):
            if not holds(file, *WORDS):
                continue
            with reading(file, "labelme"):
                content = read_json(file)
                name = str(content["imagePath"])
                path = pictures.find(name, file.parent) or pictures.find_stem(file.stem, file.parent)
                if path is None:
                    read.absent[file].append(name)
                    continue
                marks = [Mark(str(shape["label"]), _shape_of(shape)) for shape in content["shapes"]]
                marks += [Mark(str(flag), None) for flag, is_set in (content.get("flags") or {}).items() if is_set]
                size = size_of(content.get("imageHeight"), content.get("imageWidth"))
                read.pictures.append(Labelled(path, str(file), tuple(marks), size))
                labelled.add(path)
        homes = {path.parent for path in labelled}
        for path in pictures.all:
            places = path.relative_to(folder).parts[:-1]
            if path not in labelled and (path.parent in homes or any(one.lower() in GOOD_NAMES for one in places)):
                read.pictures.append(Labelled(path, str(path), (), is_missing=True))
        return read


def _shape_of(shape: dict[str, Any]) -> Shape:
    kind, points = shape.get("shape_type") or "polygon", points_of(shape["points"])
    if kind == "mask":
        (left, top), *_ = points
        return Bitmap(str(shape["mask"]), (int(left), int(top)))
    if kind not in LABELME_KINDS:
        raise ValueError(f'a shape of the type "{kind}" is not read: draw {", ".join(LABELME_KINDS)} or mask')
    return LabelmeShape(kind, points)
