"""A dataset of any layout written as a plain folder: good/, test_good/, bad/KIND/, and masks/KIND/ for the defects."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from nnet_edge.data.dataset import GOOD, Dataset, Sample
from nnet_edge.data.folders import MASK_FOLDERS
from nnet_edge.data.masks import ask, read_marks
from nnet_edge.data.pairing import DEPTH_FOLDERS, PICTURE_FOLDERS, is_named_like_mask
from nnet_edge.data.trees import GOOD_NAMES
from nnet_edge.errors import ConfigError
from nnet_edge.files import writing_folder

TAKEN = {*GOOD_NAMES, *MASK_FOLDERS, *DEPTH_FOLDERS, *PICTURE_FOLDERS}  # folders that mean something else
MASK_LEVEL = 6  # of PNG's compression


def convert(dataset: Dataset, out: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write `dataset` into the new or empty folder `out`, all of it or nothing: files as they are, masks as PNGs of 0 and 255.

    Names stay unless two meet. Raises ConfigError for an `out` that is not empty, or lies in the data; DataError for a mask
    that cannot be used.
    """
    if out.resolve().is_relative_to(dataset.root.resolve()):
        raise ConfigError(f"{out} lies in the data itself: choose a folder elsewhere")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is no folder: choose another")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty, and nothing of it is replaced: choose another folder")
    count = len(dataset.train) + len(dataset.test)
    with writing_folder(out, lambda _: "is not empty") as draft:
        names = _Names(dataset.root, draft)
        for done, path in enumerate(dataset.train, 1):
            shutil.copyfile(path, names.place(path, draft / GOOD))
            if progress is not None:
                progress(done, count)
        for done, sample in enumerate(dataset.test, len(dataset.train) + 1):
            _write(sample, names, draft)
            if progress is not None:
                progress(done, count)


def _write(sample: Sample, names: _Names, draft: Path) -> None:
    if not sample.is_anomalous:
        shutil.copyfile(sample.path, names.place(sample.path, draft / "test_good"))
        return
    kind = names.folder_of(sample.defect)
    place = names.place(sample.path, draft / "bad" / kind)
    shutil.copyfile(sample.path, place)
    if sample.has_mask:
        marks, doubts = read_marks(sample)
        ask(doubts, len(sample.masks))
        mask = draft / "masks" / kind / f"{place.stem}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(marks).convert("L").save(mask, compress_level=MASK_LEVEL)


class _Names:
    """Names of files and folders below `draft` that a plain folder reads as what they are."""

    def __init__(self, root: Path, draft: Path) -> None:
        self._root = root
        self._kinds: dict[str, str] = {}  # kind of defect -> its folder
        self._taken: set[Path] = set()  # without suffix, as a mask has its own

    def place(self, path: Path, folder: Path) -> Path:
        """Where the picture goes in `folder`, which is made: by its name, by its place in the data where that is taken."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = path.relative_to(self._root).parts if path.is_relative_to(self._root) else path.parts[-2:]
        stems = [path.stem, "_".join((*parts[:-1], path.stem))]
        stems += [f"{stems[1]}_{number}" for number in range(2, len(self._taken) + 3)]
        free = (stem for stem in map(_unlike_mask, stems) if folder / stem.lower() not in self._taken)
        stem = next(free)
        self._taken.add(folder / stem.lower())
        return folder / f"{stem}{path.suffix}"

    def folder_of(self, kind: str) -> str:
        """The folder in bad/ for a kind of defect, "" for one that has no name; a label file may call it anything."""
        if kind == "bad":
            return ""
        if kind not in self._kinds:
            name = re.sub(r"[^\w.-]+", "_", kind).strip("._-")[:100] or "defect"
            name = f"{name}_defect" if name.lower() in TAKEN else name
            others = {other.lower() for other in self._kinds.values()}
            free = (
                one for one in (name, *(f"{name}_{n}" for n in range(2, len(others) + 3))) if one.lower() not in others
            )
            self._kinds[kind] = next(free)
        return self._kinds[kind]


def _unlike_mask(stem: str) -> str:
    return f"{stem}_picture" if is_named_like_mask(stem) else stem
