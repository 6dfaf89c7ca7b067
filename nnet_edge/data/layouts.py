"""Layouts of a dataset on disk: which images of a folder are learned from and which are judged.

"mvtec"   CATEGORY/train/good, CATEGORY/test/<defect>, CATEGORY/ground_truth/<defect>/<stem>_mask.png. The root is a
          category, or holds several. `validation/` (MVTec 3D-AD) is not used; `Dataset.notes` says so.
"visa"    a split CSV with the columns object, split, label, image and mask; paths start at the root. It is looked for
          at split_csv/1cls.csv and 1cls.csv.
"folder"  good images in ROOT/good, or in ROOT itself. ROOT/bad (its sub-folders name kinds of defect) and
          ROOT/test_good are never learned from: they are the test. Without test_good the test holds only defects, and
          measuring it needs good images that training held out. Masks lie in ROOT/masks or ROOT/ground_truth at the
          same place as the image in ROOT/bad, named <stem>_mask.png or <stem>.png.
"auto"    visa when there is a split CSV, mvtec when there is a train/good, else folder.

Either every image of a defect has a mask or none has: a mix would count unmarked defects as good surface. Hidden files
and folders, and files with other suffixes, are passed over; links are followed, each folder once.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import IMAGE_SUFFIXES

Layout = Literal["auto", "mvtec", "visa", "folder"]
SPLIT_FILES = ("split_csv/1cls.csv", "1cls.csv")
SPLIT_COLUMNS = ("object", "split", "label", "image", "mask")
GOOD = "good"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to judge and what is known about it."""

    path: Path
    is_anomalous: bool
    mask_path: Path | None  # None: nothing marked; see the module's docstring
    defect: str  # the kind of defect, "good" for good parts


@dataclass(frozen=True, slots=True)
class Dataset:
    """The good images of one category to learn from and the images to judge; both are sorted by path."""

    root: Path
    layout: str  # "mvtec", "visa" or "folder"
    category: str
    train: tuple[Path, ...]  # good images
    test: tuple[Sample, ...]  # may be empty
    notes: tuple[str, ...] = ()  # what was found and not used, one line each


def read_dataset(
    root: Path, layout: str = "auto", category: str | None = None, split_csv: Path | None = None
) -> Dataset:
    """The dataset under `root`; `layout` is one of the module's docstring. No image is opened.

    Raises ConfigError when `root` is no folder, or `layout`, `category` or `split_csv` do not fit what is there;
    DataError when good images, an image that the CSV names, or some of the masks are missing, or files lie where the
    layout knows no use for them.
    """
    chosen = _choose_layout(root, layout, split_csv)
    if split_csv is not None and chosen != "visa":
        raise ConfigError(f'a split CSV ({split_csv}) belongs to the layout "visa", not "{chosen}"')
    if chosen == "mvtec":
        return _read_mvtec(root, category)
    if chosen == "visa":
        return _read_visa(root, category, split_csv)
    if chosen == "folder":
        return _read_folder(root, category)
    raise ConfigError(f'layout "{layout}" is unknown: choose auto, mvtec, visa or folder')


def find_categories(root: Path, layout: str = "auto", split_csv: Path | None = None) -> tuple[str, ...]:
    """The categories under `root`, sorted: those that `read_dataset` can be asked for; a plain folder is its own.

    Raises ConfigError and DataError as `read_dataset` does for what is no folder or holds no category.
    """
    chosen = _choose_layout(root, layout, split_csv)
    if chosen == "visa":
        return tuple(sorted({row["object"] for _, row in _read_rows(_split_table(root, split_csv))}))
    if chosen == "mvtec" and not _is_category(root):
        return tuple(sorted(entry.name for entry in _folders(root) if _is_category(entry)))
    return (root.resolve().name,)


def find_images(folder: Path) -> list[Path]:
    """The images in `folder` and below, sorted by path; raises DataError when a folder cannot be read."""
    return sorted(_walk(folder, set(folder.resolve().parents)))  # a link upwards would bring in the whole dataset


def _images_if_any(folder: Path) -> list[Path]:
    return find_images(folder) if folder.is_dir() else []


def _walk(folder: Path, entered: set[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in entered:  # a link that leads back; it would never end
        return
    entered.add(real)
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(entry, entered)
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            yield entry


def _visible(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from error
    return [folder / name for name in names if not name.startswith(".") and name != "__MACOSX"]


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _direct_images(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]


def _choose_layout(root: Path, layout: str, split_csv: Path | None) -> str:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise ConfigError(f"data folder {root} {what}: give the folder that holds the images")
    if layout != "auto":
        return layout
    if split_csv is not None or any((root / name).is_file() for name in SPLIT_FILES):
        return "visa"
    return "mvtec" if _is_category(root) or any(map(_is_category, _folders(root))) else "folder"


def _is_category(folder: Path) -> bool:
    return (folder / "train" / GOOD).is_dir()


def _choose_category(found: Iterable[str], asked: str | None, where: Path) -> str:
    names = sorted(found)
    if asked in names:
        return str(asked)
    if asked is not None:
        raise ConfigError(f'no category "{asked}" in {where}: choose one of {", ".join(names)}')
    if len(names) > 1:
        raise ConfigError(f"{where} holds {len(names)} categories: choose one with --category: {', '.join(names)}")
    return names[0]


def _learnable(folder: Path, images: Iterable[Path]) -> tuple[Path, ...]:
    good = tuple(images)
    if not good:
        others = sum(1 for entry in _visible(folder) if entry.is_file()) if folder.is_dir() else 0
        beside = f" ({others} files of other kinds)" if others else ""
        raise DataError(f"no good images in {folder}{beside}: put photographs of good parts there, as PNG, JPEG, ...")
    return good


# --- MVTec AD


def _read_mvtec(root: Path, category: str | None) -> Dataset:
    folder = root
    if not _is_category(root):
        categories = [entry.name for entry in _folders(root) if _is_category(entry)]
        if not categories:
            raise DataError(f"{root} holds neither train/good nor categories with it: see the MVTec AD layout")
        folder = root / _choose_category(categories, category, root)
    elif category not in (None, root.resolve().name):
        raise ConfigError(f'{root} is a category itself, not the home of "{category}": leave --category out')
    validation, test = folder / "validation", folder / "test"
    unused = len(_images_if_any(validation))
    notes = (f"{unused} images in {validation} are not used",) if unused else ()
    _refuse_strays(folder / "train", known=(GOOD,))
    for part in (folder / "train", test):
        if strays := _direct_images(part) if part.is_dir() else []:
            raise DataError(f"{_count(strays, 'image')} directly in {part}: move to good/ or to a folder of their own")
    train = _learnable(folder / "train" / GOOD, find_images(folder / "train" / GOOD))
    found = _images_if_any(test)
    samples = _with_masks({path: path.relative_to(test).parts[0] for path in found}, test, folder / "ground_truth")
    return Dataset(root, "mvtec", folder.resolve().name, train, tuple(samples), notes)


# --- plain folder


def _read_folder(root: Path, category: str | None) -> Dataset:
    name = root.resolve().name
    if category not in (None, name):
        raise ConfigError(f'{root} is a plain folder and holds no category "{category}": leave --category out')
    mask_folders = [root / known for known in ("masks", "ground_truth") if (root / known).is_dir()]
    if len(mask_folders) > 1:
        raise DataError(f"{root} holds both masks/ and ground_truth/: keep one of them")
    good, bad = root / GOOD, root / "bad"
    direct = _direct_images(root)
    if good.is_dir() and direct:
        raise DataError(f"{_count(direct, 'image')} lie beside {good}: move them into it, or into bad/")
    train = _learnable(good, find_images(good)) if good.is_dir() else _learnable(root, direct)
    _refuse_strays(root, known=(GOOD, "bad", "test_good", "masks", "ground_truth"))
    parts = {path: path.relative_to(bad).parts for path in _images_if_any(bad)}
    images = {path: names[0] if len(names) > 1 else "bad" for path, names in parts.items()}
    if GOOD in images.values():
        raise DataError(f"{bad / GOOD} would be good and bad at once: move its images to {root / 'test_good'}")
    test = [Sample(path, False, None, GOOD) for path in _images_if_any(root / "test_good")]
    test += _with_masks(images, bad, mask_folders[0] if mask_folders else root / "masks")
    return Dataset(root, "folder", name, train, tuple(sorted(test, key=lambda sample: sample.path)))


def _refuse_strays(folder: Path, known: tuple[str, ...]) -> None:
    """Raise DataError when a folder that the layout does not know holds images: learned or not, it would be a guess."""
    for entry in _folders(folder):
        if entry.name not in known and (images := find_images(entry)):
            names = ", ".join(f"{name}/" for name in known)
            raise DataError(f"{entry} holds images of no known use (first: {images[0]}): {folder} may hold {names}")


# --- masks


def _with_masks(images: dict[Path, str], image_root: Path, mask_root: Path) -> list[Sample]:
    """Samples of `images` (path -> kind), each with the mask at its place under `mask_root`."""
    masks: dict[Path, Path] = {}  # mask file without its suffix -> mask file
    for mask in _images_if_any(mask_root):
        if (twin := masks.setdefault(mask.with_suffix(""), mask)) != mask:
            raise DataError(f"two masks of one name, {twin} and {mask}: keep one")
    samples: list[Sample] = []
    owners: dict[Path, Path] = {}  # mask -> image
    for image, kind in images.items():
        place = mask_root / image.relative_to(image_root).with_suffix("")
        found = [masks[key] for key in (place.with_name(f"{place.name}_mask"), place) if key in masks]
        if len(found) > 1:
            raise DataError(f"image {image} has two masks, {found[0]} and {found[1]}: keep one")
        if found and owners.setdefault(found[0], image) != image:
            raise DataError(f"mask {found[0]} fits two images, {owners[found[0]]} and {image}: rename one of them")
        samples.append(Sample(image, kind != GOOD, found[0] if found else None, kind))
    if orphans := [mask for mask in masks.values() if mask not in owners]:
        raise DataError(f"{_count(orphans, 'mask')} without an image of that name in {image_root}: rename or remove")
    return _all_or_no_masks(samples)


def _all_or_no_masks(samples: list[Sample]) -> list[Sample]:
    defects = [sample for sample in samples if sample.is_anomalous]
    bare = [sample.path for sample in defects if sample.mask_path is None]
    if bare and len(bare) < len(defects):
        raise DataError(
            f"{_count(bare, 'image')} of a defect without a mask, while {len(defects) - len(bare)} others have one: "
            "mark every defect or remove all masks"
        )
    return samples


def _count(paths: list[Path], noun: str) -> str:
    """For example "3 masks (first: a/b_mask.png)"."""
    return f"{len(paths)} {noun}{'s' if len(paths) > 1 else ''} (first: {paths[0]})"


# --- VisA


def _read_visa(root: Path, category: str | None, split_csv: Path | None) -> Dataset:
    table = _split_table(root, split_csv)
    rows = _read_rows(table)
    chosen = _choose_category({row["object"] for _, row in rows}, category, table)
    train: list[Path] = []
    test: list[Sample] = []
    for line, row in rows:
        if row["object"] != chosen:
            continue
        path, is_anomalous = _existing(root, row["image"], table, line), row["label"] == "anomaly"
        if row["split"] == "test":
            mask = _existing(root, row["mask"], table, line) if row["mask"] else None
            test.append(Sample(path, is_anomalous, mask, "anomaly" if is_anomalous else GOOD))
        elif is_anomalous:
            fault = "an anomaly in the train split; training learns from good images only"
            raise DataError(f"{table}, line {line}: {fault}")
        else:
            train.append(path)
    _all_or_no_masks(test)
    good = _learnable(table, sorted(train))
    return Dataset(root, "visa", chosen, good, tuple(sorted(test, key=lambda sample: sample.path)))


def _split_table(root: Path, split_csv: Path | None) -> Path:
    table = split_csv or next((root / name for name in SPLIT_FILES if (root / name).is_file()), None)
    if table is None or not table.is_file():
        wanted = table or " or ".join(str(root / name) for name in SPLIT_FILES)
        raise ConfigError(f"no split CSV at {wanted}: give it with --split-csv")
    return table


def _read_rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of every row, with the words checked."""
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
    for line, row in rows:
        is_known = row["split"] in ("train", "test") and row["label"] in ("normal", "anomaly")
        if not (is_known and row["image"] and row["object"]):
            wanted = "split must be train or test, label normal or anomaly, image and object filled"
            raise DataError(f"{table}, line {line}: {wanted}")
    return rows


def _existing(root: Path, name: str, table: Path, line: int) -> Path:
    path = root / name.replace("\\", "/")
    if not path.is_file():
        raise DataError(f"{table}, line {line}: {path} does not exist; the paths must start at the data folder")
    return path
