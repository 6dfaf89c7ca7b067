"""Pictures as a labelling tool knows them: what all its formats share.

A picture without a mark is good, one with marks shows a defect. Good ones are learned, unless they lie in a part for tests (a
folder, a subset or a label file called test, val, valid, validation); defects are never learned, wherever they lie: they are
the test. A class called good, ok, normal or background marks nothing; of one called ignore, a picture with nothing
else is not used. One mark without an area, as a tag or the box of a
detector, makes its picture a defect without a mask.

A label file names pictures; it opens none. A name is looked for among the pictures of the set, by as many of its last parts
as fit, so that neither an absolute path nor `..` reads anything outside.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from nnet_edge.data.dataset import GOOD, Found, Sample, count
from nnet_edge.data.folders import find_files, visible
from nnet_edge.data.shapes import Drawing, Shape, Size
from nnet_edge.data.trees import GOOD_NAMES, categories_of, home_of
from nnet_edge.errors import DataError, MissingExtraError
from nnet_edge.files import IMAGE_SUFFIXES, read_regular

UNMARKED = (*GOOD_NAMES, "background")  # classes that mark no defect
IGNORED = "ignore"  # a class of labelme's: who can tell
JUDGED = ("test", "val", "valid", "validation")  # parts of a set that are never learned
PARTS = (*JUDGED, "train", "training")
COMBINED = "combined"  # the kind of a picture with defects of several kinds
SCANNED = 1 << 20  # bytes looked through at once


@dataclass(frozen=True, slots=True)
class Mark:
    """A defect in a picture."""

    kind: str
    shape: Shape | None  # None: it has no area


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture and its marks."""

    image: Path
    where: str  # label file and entry, for messages
    marks: tuple[Mark, ...]
    size: Size | None = None  # of the picture by the label file
    part: str = ""  # of the set, as "train"; "": the folders say
    is_missing: bool = False  # the tool wrote nothing for it


@dataclass
class Read:
    """What the reader of a tool found in a folder."""

    pictures: list[Labelled] = field(default_factory=list)
    absent: dict[Path, list[str]] = field(default_factory=lambda: defaultdict(list))  # label file -> absent pictures
    notes: list[str] = field(default_factory=list)


class Tool(Protocol):
    """The format of a labelling tool."""

    def is_here(self, folder: Path) -> bool:
        """Whether its label files lie in the folder."""

    def read(self, folder: Path) -> Read:
        """The pictures that they name. Raises DataError."""


class NamedPictures:
    """The pictures of a set, found by the names that label files give them."""

    def __init__(self, folder: Path) -> None:
        self.all = [path for path in find_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
        self._named: dict[str, list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
        for path in self.all:
            parts = _parts_of(path.relative_to(folder).as_posix())
            self._named[parts[-1]].append((parts, path))
        self._folder = folder

    def find(self, name: str, home: Path) -> Path | None:
        """The picture that a label file in the folder `home` calls `name`; None when it is absent.

        Raises DataError when two fit equally well.
        """
        parts = _parts_of(name)
        if not parts:
            return None
        near = _parts_of(home.relative_to(self._folder).as_posix())
        fitting = [
            ((_shared(parts[::-1], own[::-1]), _shared(near, own[:-1])), path)
            for own, path in self._named.get(parts[-1], ())
        ]
        best = max((rank for rank, _ in fitting), default=None)
        found = [path for rank, path in fitting if rank == best]
        if len(found) > 1:
            raise DataError(f'"{name}" in {home} fits two pictures, {found[0]} and {found[1]}: rename one of them')
        return found[0] if found else None

    def find_stem(self, stem: str, home: Path) -> Path | None:
        """The picture of that name, whatever its suffix. Raises DataError when two fit."""
        suffixes = {path.suffix for path in self.all}
        found = [path for suffix in sorted(suffixes) if (path := self.find(stem + suffix, home)) is not None]
        if len(found) > 1:
            raise DataError(f'"{stem}" in {home} fits two pictures, {found[0]} and {found[1]}: rename one of them')
        return found[0] if found else None


def _parts_of(name: str) -> tuple[str, ...]:
    """The folders and the name, without drive, `.` and `..`; Windows' separators, too."""
    parts = re.split(r"[\\/]+", unicodedata.normalize("NFC", name))
    return tuple(part for part in parts if part not in ("", ".", "..") and not part.endswith(":"))


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts are equal from the start on."""
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def to_found(name: str, tool: Tool, root: Path, category: str | None) -> Found:
    """The pictures of a category that the tool of that name labelled. Raises DataError, ConfigError."""
    home = home_of(root, category, tool.is_here)
    if not tool.is_here(home):
        raise DataError(f"{root} holds no label files of {name}: docs/data.md says where they lie")
    read = tool.read(home)
    for file, names in read.absent.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DataError(f'{file} names pictures that are not in {home}: "{names[0]}"{more}; put them beside it')
    train, test, notes = [], [], list(read.notes)
    seen: dict[Path, str] = {}
    missing, ignored = 0, []
    for picture in sorted(read.pictures, key=lambda one: one.image):
        if picture.image in seen:
            raise DataError(
                f"{picture.image} is labelled twice, in {seen[picture.image]} and {picture.where}: keep one"
            )
        seen[picture.image] = picture.where
        marks = [mark for mark in picture.marks if _class_of(mark) not in UNMARKED]
        if marks and all(_class_of(mark) == IGNORED for mark in marks):
            ignored.append(picture.image)
            continue
        marks = [mark for mark in marks if _class_of(mark) != IGNORED]
        is_judged = _is_judged(picture, home)
        missing += picture.is_missing
        if not marks and not is_judged:
            train.append(picture.image)
            continue
        kinds = {mark.kind for mark in marks} or {GOOD}
        shapes = tuple(mark.shape for mark in marks if mark.shape is not None)
        drawing = Drawing(picture.where, picture.size, shapes) if marks and len(shapes) == len(marks) else None
        kind = kinds.pop() if len(kinds) == 1 else COMBINED
        test.append(Sample(picture.image, bool(marks), None, kind, drawing=drawing))
    if missing:
        notes.append(f"{missing} of {len(read.pictures)} pictures have no label file and count as good")
    if ignored:
        notes.append(f"not used: {count(ignored, 'picture')} with nothing but {IGNORED}")
    if not train:
        raise DataError(
            f"{home}: of {len(read.pictures)} pictures none is good to learn, without a mark and in no part for tests: "
            "add photographs of good parts, without marks"
        )
    return Found(home.resolve().name, train, test, home, ignored, tuple(notes))


def _class_of(mark: Mark) -> str:
    return mark.kind.lower().strip("_ ")


def _is_judged(picture: Labelled, home: Path) -> bool:
    words = [picture.part] if picture.part else picture.image.relative_to(home).parts[:-1]
    return any(part_in(word) in JUDGED for word in words)


def part_in(name: str) -> str:
    """The part of a set that a name speaks of, as "val" of instances_val2017; "" for none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((word for word in words if word in PARTS), "")


def is_here_or_below(tool: Tool, root: Path) -> bool:
    """Whether the tool's files lie in the folder or in one of its folders."""
    return tool.is_here(root) or any(tool.is_here(entry) for entry in visible(root) if entry.is_dir())


def names_of(tool: Tool, root: Path) -> list[str]:
    """The categories in `root`."""
    return categories_of(root, tool.is_here)


def files_of(folders: Iterable[Path], suffix: str) -> list[Path]:
    """The files directly in the folders whose names end so."""
    return [path for folder in folders if folder.is_dir() for path in visible(folder)
            if path.suffix.lower() == suffix and path.is_file()]  # fmt: skip


def holds(path: Path, *words: bytes) -> bool:
    """Whether each of the words stands in the file; it is read piece by piece, and not parsed."""
    missing, tail = set(words), b""
    try:
        with path.open("rb") as file:
            while missing and (block := file.read(SCANNED)):
                text = tail + block
                missing = {word for word in missing if word not in text}
                tail = text[-max(map(len, words)) :]
    except OSError:
        return False
    return not missing


@contextmanager
def reading(path: Path, tool: str) -> Iterator[None]:
    """What goes wrong in the block becomes a DataError that names the file and the tool."""
    try:
        yield
    except (DataError, MissingExtraError):
        raise
    except KeyError as error:
        raise DataError(f"{path} is no label file of {tool}: {error.args[0]!r} is missing") from error
    except Exception as error:  # any type of content stands where another was meant
        raise DataError(f"{path} is no label file of {tool}: {error}") from error


def read_json(path: Path) -> Any:
    """What the JSON file holds. Raises ValueError, OSError."""
    try:
        return json.loads(read_regular(path).decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def size_of(height: Any, width: Any) -> Size | None:
    """(height, width) of a picture; None where the file does not say both."""
    return (int(height), int(width)) if height and width else None
