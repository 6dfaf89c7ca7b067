"""CVAT for images 1.1: one XML for all pictures; polygons, boxes, ellipses, masks and tags."""

from __future__ import annotations

from math import cos, radians, sin
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

from nnet_edge.data.folders import folders
from nnet_edge.data.labels import Labelled, Mark, NamedPictures, Read, files_of, holds, reading, size_of
from nnet_edge.data.shapes import CocoPolygons, CvatEllipse, Points, Runs, Shape
from nnet_edge.files import read_regular

ROOT, ENTRIES = b"<annotations", (b"<image ", b"<track ")


class Cvat:
    """annotations.xml beside the pictures or images/, or in annotations/."""

    def is_here(self, folder: Path) -> bool:
        return bool(self._files(folder))

    def read(self, folder: Path) -> Read:
        read, pictures = Read(), NamedPictures(folder)
        for file in self._files(folder):
            with reading(file, "CVAT"):
                data = read_regular(file)
                if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
                    raise ValueError("it declares a document type, which CVAT does not write")
                annotations = fromstring(data)
                if annotations.find("track") is not None:
                    raise ValueError("it holds the tracks of a video: export it as CVAT for images 1.1")
                for number, image in enumerate(annotations.iter("image")):
                    name, part = image.attrib["name"], image.get("subset", "")
                    path = pictures.find(f"{part}/{name}", file.parent)  # the folders of a project are its subsets
                    if path is None:
                        read.absent[file].append(name)
                        continue
                    marks = tuple(_mark_of(entry) for entry in image)
                    size = size_of(image.get("height"), image.get("width"))
                    where = f'{file}, image {image.get("id", number)} "{name}"'
                    read.pictures.append(Labelled(path, where, marks, size, part))
        return read

    def _files(self, folder: Path) -> list[Path]:
        homes = (folder, *(entry for entry in folders(folder) if entry.name.lower() == "annotations"))
        return [
            path
            for path in files_of(homes, ".xml")
            if holds(path, ROOT) and any(holds(path, entry) for entry in ENTRIES)
        ]


def _mark_of(entry: Element) -> Mark:
    return Mark(entry.attrib["label"], None if entry.tag == "tag" else _shape_of(entry))


def _shape_of(entry: Element) -> Shape:
    def numbers(*names: str) -> list[float]:
        return [float(entry.attrib[name]) for name in names]

    degrees = float(entry.get("rotation", 0))
    if entry.tag == "polygon":
        pairs = (point.split(",") for point in entry.attrib["points"].split(";"))
        return CocoPolygons((tuple((float(x), float(y)) for x, y in pairs),))
    if entry.tag == "box":
        return CocoPolygons((_turned(numbers("xtl", "ytl", "xbr", "ybr"), radians(degrees)),))
    if entry.tag == "ellipse":
        x, y, across, down = numbers("cx", "cy", "rx", "ry")
        return CvatEllipse((x, y), (across, down), degrees)
    if entry.tag == "mask":
        left, top, width, height = (int(number) for number in numbers("left", "top", "width", "height"))
        counts = tuple(int(count) for count in entry.attrib["rle"].split(","))
        return Runs(counts, (height, width), (left, top), by_column=False)
    raise ValueError(f"a {entry.tag} marks no area: draw a polygon, a box, an ellipse or a mask, or set a tag")


def _turned(box: list[float], angle: float) -> Points:
    """The corners of a box (left, top, right, bottom), turned about its middle by `angle`."""
    left, top, right, bottom = box
    x, y, c, s = (left + right) / 2, (top + bottom) / 2, cos(angle), sin(angle)
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    if not angle:
        return corners
    return tuple((x + c * (a - x) - s * (b - y), y + s * (a - x) + c * (b - y)) for a, b in corners)
