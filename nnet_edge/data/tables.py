"""Layouts that a table describes: VisA's split CSV, and Real-IAD's JSON of each category.

VisA: the columns object, split, label, image and mask; paths start at the root. Real-IAD: image_path, mask_path and
anomaly_class ("OK" for good parts) of each picture, under "train" and "test"; paths start at the category.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnet_edge.data.dataset import GOOD, Found, Sample
from nnet_edge.data.folders import choose_category, folders, learnable
from nnet_edge.errors import ConfigError, DataError

SPLIT_FILES = ("split_csv/1cls.csv", "1cls.csv")
SPLIT_COLUMNS = ("object", "split", "label", "image", "mask")
JSON_FOLDERS = ("realiad_jsons/realiad_jsons", "realiad_jsons")
SIZES = ("realiad_256", "realiad_512", "realiad_1024", "realiad_raw")  # the first that is there is taken


@dataclass(frozen=True)
class Row:
    """One picture of a table."""

    where: str  # table and line, for messages
    is_learned: bool
    is_anomalous: bool
    defect: str
    image: Path
    mask: Path | None
    home: Path  # whose files it may name


def samples_of(rows: Iterable[Row]) -> tuple[list[Path], list[Sample]]:
    """(pictures to learn from, pictures to judge). Raises DataError for a picture that is absent or learned by mistake."""
    train: list[Path] = []
    test: list[Sample] = []
    for row in rows:
        for path in (row.image, *([row.mask] if row.mask is not None else ())):
            if not os.path.abspath(path).startswith(os.path.join(os.path.abspath(row.home), "")):
                raise DataError(f"{row.where}: {path} lies outside {row.home}; nothing beyond the data folder is read")
            if not path.is_file():
                raise DataError(f"{row.where}: {path} does not exist; the paths must start at the data folder")
        if not row.is_learned:
            test.append(Sample(row.image, row.is_anomalous, row.mask, row.defect))
        elif row.is_anomalous:
            raise DataError(f"{row.where}: an anomaly in the train split; training learns from good images only")
        else:
            train.append(row.image)
    return train, test


# --- VisA


def split_table(root: Path, split_csv: Path | None) -> Path:
    """VisA's split file of the folder `root`. Raises ConfigError when there is none."""
    table = split_csv or next((root / name for name in SPLIT_FILES if (root / name).is_file()), None)
    if table is None or not table.is_file():
        wanted = table or " or ".join(str(root / name) for name in SPLIT_FILES)
        raise ConfigError(f"no split CSV at {wanted}: give it with --split-csv")
    return table


def read_split(table: Path, root: Path) -> dict[str, list[Row]]:
    """The rows of each object. Raises DataError for a file that is no such table, and for words that it does not know."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in SPLIT_COLUMNS if name not in (reader.fieldnames or ())]:
                raise DataError(f"{table} lacks the columns {', '.join(missing)}: it needs {','.join(SPLIT_COLUMNS)}")
            rows = [(reader.line_num, {name: (row[name] or "").strip() for name in SPLIT_COLUMNS}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {table} as a CSV: {error}") from error
    if not rows:
        raise DataError(f"{table} holds no rows: it needs one for each image")
    found: dict[str, list[Row]] = {}
    for line, row in rows:
        where, is_anomalous = f"{table}, line {line}", row["label"] == "anomaly"
        is_known = row["split"] in ("train", "test") and row["label"] in ("normal", "anomaly")
        if not (is_known and row["image"] and row["object"]):
            raise DataError(f"{where}: split must be train or test, label normal or anomaly, image and object filled")
        image, mask = (root / row[name].replace("\\", "/") if row[name] else None for name in ("image", "mask"))
        assert image is not None
        kind = "anomaly" if is_anomalous else GOOD
        found.setdefault(row["object"], []).append(
            Row(where, row["split"] == "train", is_anomalous, kind, image, mask, root)
        )
    return found


# --- Real-IAD


@dataclass(frozen=True)
class RealIad:
    """Where Real-IAD lies."""

    images: Path  # the folder of all categories, in one size
    tables: dict[str, Path]  # category -> its JSON

    def read(self, category: str) -> list[Row]:
        """The rows of a category. Raises DataError for a file that is no such table."""
        table = self.tables[category]
        try:
            fields = json.loads(table.read_text(encoding="utf-8-sig"))
            home = self.images / category
            return [
                self._row(f"{table}, {split} {number}", split == "train", entry, home)
                for split in ("train", "test")
                for number, entry in enumerate(fields[split])
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise DataError(
                f"cannot read {table} as a table of Real-IAD ({what}): take the folder of one category"
            ) from error

    @staticmethod
    def _row(where: str, is_learned: bool, entry: dict[str, Any], home: Path) -> Row:
        kind, mask = entry["anomaly_class"], entry.get("mask_path")
        is_good = kind == "OK"
        return Row(
            where,
            is_learned,
            not is_good,
            GOOD if is_good else kind,
            home / entry["image_path"],
            home / mask if mask else None,
            home,
        )


def find_real_iad(root: Path) -> RealIad | None:
    """Real-IAD when `root` is its folder, that of one size, or that of a category in it."""
    sized = next((root / size for size in SIZES if (root / size).is_dir()), None)
    above = root.resolve().parent
    for base, images in ((root, sized), (above, root), (above.parent, above)):
        tables = next((found for name in JSON_FOLDERS if (found := sorted((base / name).glob("*.json")))), [])
        if tables and images is not None:
            there = {entry.name for entry in folders(images)}
            return RealIad(images, {table.stem: table for table in tables if table.stem in there})
    return None


# --- for layouts.py


def has_split(root: Path) -> bool:
    """Whether VisA's split file lies there."""
    return any((root / name).is_file() for name in SPLIT_FILES)


def objects_of(root: Path, split_csv: Path | None) -> list[str]:
    """VisA's categories."""
    return list(read_split(split_table(root, split_csv), root))


def has_tables(root: Path) -> bool:
    """Whether Real-IAD lies there."""
    return bool(tables_of(root))


def tables_of(root: Path, split_csv: Path | None = None) -> list[str]:
    """Real-IAD's categories."""
    where = find_real_iad(root)
    return [] if where is None else list(where.tables)


def read_visa(root: Path, category: str | None, split_csv: Path | None, mask_mark: str) -> Found:
    table = split_table(root, split_csv)
    rows = read_split(table, root)
    chosen = choose_category(rows, category, table)
    return _of_rows(rows[chosen], chosen, root, table, (row for of_object in rows.values() for row in of_object))


def read_real_iad(root: Path, category: str | None, split_csv: Path | None, mask_mark: str) -> Found:
    where = find_real_iad(root)
    if where is None or not where.tables:
        raise DataError(f"{root} holds no realiad_jsons beside realiad_256 (or _512, _1024): see Real-IAD")
    is_own = root.resolve().parent == where.images.resolve()
    chosen = choose_category(where.tables, root.resolve().name if is_own and category is None else category, root)
    rows = where.read(chosen)
    return _of_rows(rows, chosen, where.images / chosen, where.tables[chosen], rows)


def _of_rows(rows: Sequence[Row], category: str, home: Path, table: Path, known: Iterable[Row]) -> Found:
    train, test = samples_of(rows)
    others = [path for row in known for path in (row.image, row.mask) if path is not None]
    return Found(category, learnable(table, train), test, home, others)
