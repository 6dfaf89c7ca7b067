"""Groups of good images: parts, days, cameras, neighbours in a video. Whole groups are learned or held out, for a part to come
belongs to none of them.

Where they come from, the first that fits:

a table   `--groups FILE`, else groups.csv in the folder of the good images or above it, in the data: the columns file and
          group, a row for each good image. A file is named by its path from the table's folder, or by its name where that is
          unique.
folders   the first folder below the one that holds all good images, where they lie in at least three such folders.
names     the name up to its last part, where that part is a word for "another picture of it" (VIEW) and a number or a letter,
          as part_01_view2: only where every name ends so, what is left always holds a digit, and there are at least three
          groups of which one has two images.
none      each image is a group of its own (`--groups none`).
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.data.dataset import Dataset, count
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import read_regular
from nnet_edge.text import printable

TABLE = "groups.csv"
AUTO, NONE = "auto", "none"  # of --groups
VIEW = re.compile(
    r"(?P<part>.*\d.*?)[ _.-]+(view|cam|camera|side|angle|pose|shot|frame|image|img|photo|pic|crop|rot)[ _-]?(\d+|[a-z])",
    re.I,
)
FEWEST_FOUND = 3  # groups that are looked for and not told: one to hold out, two to learn from


@dataclass(frozen=True)
class Groups:
    """The group of each image."""

    names: tuple[str, ...]
    source: str  # "groups.csv", "folders", "names", or the table's name

    @property
    def count(self) -> int:
        """How many there are."""
        return len(set(self.names))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        sizes = Counter(self.names)
        return {"by": self.source, "count": len(sizes), "smallest": min(sizes.values()), "largest": max(sizes.values())}


def find_groups(dataset: Dataset, paths: Sequence[Path], asked: str = AUTO) -> Groups | None:
    """The groups of the good images `paths` of `dataset`; None where each is its own.

    `asked` is "auto", "none" or the path of a table. Raises DataError for a table that cannot be used.
    """
    if asked == NONE or not paths:
        return None
    if asked != AUTO:
        return read_table(Path(asked), dataset, paths)
    home = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    root = dataset.root.absolute()
    for folder in (home, *home.parents):
        if (folder / TABLE).is_file():
            return read_table(folder / TABLE, dataset, paths)
        if folder == root or not folder.is_relative_to(root):
            break
    return by_folder(home, paths) or by_name(paths)


def by_folder(home: Path, paths: Sequence[Path]) -> Groups | None:
    """Groups by the folders in `home`; those directly in it are one. None for fewer than three."""
    below = [path.absolute().parent.relative_to(home).parts for path in paths]
    groups = Groups(tuple(printable(parts[0]) if parts else "." for parts in below), "folders")
    return groups if groups.count >= FEWEST_FOUND else None


def by_name(paths: Sequence[Path]) -> Groups | None:
    """Groups by what the names say before their view; None where that is not safe."""
    found = [VIEW.fullmatch(path.stem) for path in paths]
    names = [printable(match["part"]) for match in found if match is not None]
    groups = Groups(tuple(names), "names")
    if len(names) < len(paths) or not FEWEST_FOUND <= groups.count < len(paths):
        return None
    return groups


def read_table(table: Path, dataset: Dataset, paths: Sequence[Path]) -> Groups:
    """The groups that a CSV table names. Raises DataError for one that misses a good image, names an absent one, or is none."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_regular(table).decode("utf-8-sig"), newline=""), strict=True))
    except OSError as error:
        raise DataError(
            f"--groups {table}: {error.strerror or error}; give a CSV file with the columns file and group"
        ) from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{table} is no CSV table ({error}): write the columns file and group") from error
    if not rows or not {"file", "group"} <= set(rows[0]):
        raise DataError(f"{table} needs the columns file and group, and a row for each good image")
    if lame := [
        number
        for number, row in enumerate(rows, 2)
        if not (row["file"] or "").strip() or not (row["group"] or "").strip()
    ]:
        raise DataError(f"{table}, line {lame[0]}: file and group must both be said")
    known = [*paths, *dataset.train, *(sample.path for sample in dataset.test)]
    places = {os.path.normpath(path.absolute()): path for path in known}
    called: dict[str, list[Path]] = {}
    for image in places.values():
        called.setdefault(image.name, []).append(image)
    group_of: dict[Path, str] = {}
    absent: list[Path] = []
    for row in rows:
        name, group = row["file"].strip(), printable(row["group"].strip())
        place = os.path.normpath((table.parent / name.replace("\\", "/")).absolute())
        path: Path | None = places.get(place)
        if path is None and "/" not in name and len(called.get(name, ())) == 1:
            path = called[name][0]
        if path is None:
            if not os.path.exists(place):
                absent.append(Path(name))
            continue
        if group_of.setdefault(path, group) != group:
            raise DataError(f"{table} puts {name} into {group_of[path]} and into {group}: keep one row")
    if absent:
        raise DataError(f"{table} names {count(absent, 'image')} that the data do not hold: correct or remove the rows")
    if missing := [path for path in paths if path not in group_of]:
        raise DataError(f"{table} misses {count(missing, 'good image')}: give each a group")
    groups = Groups(tuple(group_of[path] for path in paths), printable(table.name))
    if groups.count < 2:
        raise DataError(
            f"{table} puts all good images into one group: nothing is left to hold out; name more, or say --groups none"
        )
    return groups


def units_of(parts: Sequence[int], groups: Sequence[str] | None) -> list[int]:
    """A number for each image: the same for those that share a part or a group, directly or through others."""
    numbers = np.array(parts, int)
    if groups is not None:
        for name in dict.fromkeys(groups):
            is_in = np.array([group == name for group in groups])
            numbers[np.isin(numbers, np.unique(numbers[is_in]))] = numbers[is_in].min()
    ascending: dict[int, int] = {}
    return [ascending.setdefault(number, len(ascending)) for number in numbers.tolist()]


def deal(units: Sequence[int], folds: int, seed: int) -> list[int]:
    """The fold (from 0) of each image: whole units, in an order drawn by `seed`, the largest first, to the emptiest fold.

    Raises ConfigError for more folds than units, or fewer than two.
    """
    sizes = Counter(units)
    if folds < 2:
        raise ConfigError(f"--folds {folds}: give 1 to hold images out, or 2 and more")
    if folds > len(sizes):
        raise ConfigError(
            f"--folds {folds} is more than the {len(sizes)} groups of good images (an image alone is one): give at most "
            f"--folds {len(sizes)}"
        )
    order = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    order.sort(key=lambda unit: -sizes[unit])
    filled, fold_of = [0] * folds, {}
    for unit in order:
        fold_of[unit] = filled.index(min(filled))
        filled[fold_of[unit]] += sizes[unit]
    return [fold_of[unit] for unit in units]
