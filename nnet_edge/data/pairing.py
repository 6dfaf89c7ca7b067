"""Pairing of masks and pictures, by place and name.

A mask of `bad/cut/7.png` lies in a tree of its own (`masks/cut/7.png`, `7_mask.png`, `7/0.png`), in a folder beside
(`bad/cut/gt/7.png`) or beside the picture itself (`7_mask.png`, `7_GT.png`, `7_label.png`; `7.png` of `7.jpg`), when it looks
like a mask.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from nnet_edge.data.dataset import count
from nnet_edge.data.folders import MASK_FOLDERS
from nnet_edge.data.masks import THREADS, looks_like_mask
from nnet_edge.errors import DataError
from nnet_edge.files import IMAGE_SUFFIXES

PICTURE_FOLDERS = ("rgb", "images", "image", "img")  # may hold the pictures of a folder that holds their masks, too
DEPTH_FOLDERS = ("xyz", "depth", "normals", "pcd", "pointcloud")  # beside rgb/: no pictures
_NAME_OF_MASK = re.compile(
    r"(?i)(.+?)[ _.-](?:mask|gt|ground[_-]?truth|label|seg|segmentation|anno|annotation)s?(?P<number>[ _.-]?\d+)?"
)


def is_named_like_mask(stem: str) -> bool:
    """Whether a file of that name would be looked at as a mask of another."""
    return _NAME_OF_MASK.fullmatch(stem) is not None


@dataclass
class Pictures:
    """The pictures of a folder, sorted, and the masks that lie among them."""

    paths: list[Path]
    masks: dict[Path, tuple[Path, ...]] = field(default_factory=dict)  # picture -> its masks


def split_masks(folder: Path, files: Sequence[Path]) -> Pictures:
    """The pictures among the `files`, which lie in `folder` and below, and their masks.

    Raises DataError for a mask that lies among others and fits no picture, or does not fit one alone.
    """
    in_mask_folder: dict[Path, list[Path]] = defaultdict(list)  # mask folder -> its files
    pictures = []
    with_rgb = {path.parent.parent for path in files if path.parent.name.lower() == "rgb"}
    for path in files:
        places = [place for place in path.parents if place != folder and place.is_relative_to(folder)]
        home = next((place for place in places[::-1] if place.name.lower() in MASK_FOLDERS), None)
        if home is not None:
            in_mask_folder[home].append(path)
        elif not (path.parent.name.lower() in DEPTH_FOLDERS and path.parent.parent in with_rgb):
            pictures.append(path)
    beside = _masks_beside(pictures)
    pictures = [path for path in pictures if path not in beside and path.suffix.lower() in IMAGE_SUFFIXES]
    masks = Masks(pictures)
    for home, found in in_mask_folder.items():
        if not masks.own(found, home, (home.parent, *(home.parent / name for name in PICTURE_FOLDERS)), all_fit=False):
            if all(map(looks_like_mask, found[:5])):
                refuse_orphans(found, home.parent)
            pictures += [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]  # a kind of that name
    masks.own(beside, folder, (folder,))
    return Pictures(sorted(pictures), masks.of)


class Masks:
    """The masks of some pictures, found one place after another."""

    def __init__(self, pictures: Iterable[Path]) -> None:
        self.of: dict[Path, tuple[Path, ...]] = {}  # picture -> masks
        self._at: dict[Path, list[Path]] = defaultdict(list)  # path without suffix -> pictures
        for path in pictures:
            self._at[path.with_suffix("")].append(path)

    def own(self, masks: Sequence[Path], root: Path, homes: Sequence[Path], all_fit: bool = True) -> bool:
        """Give each mask under `root` to the picture at its place under one of the `homes`; False when none fits any.

        Raises DataError for masks that do not fit one picture alone, or none; with `all_fit` off, none while others do.
        """
        twins: dict[Path, Path] = {}
        owned: dict[Path, list[tuple[Path, bool]]] = defaultdict(list)  # picture -> mask, whether it is one of several
        orphans = []
        for mask in masks:
            if (twin := twins.setdefault(mask.with_suffix(""), mask)) != mask:
                raise DataError(f"two masks of one name, {twin} and {mask}: keep one")
            fitting, is_one_of_several = self._fitting(mask.relative_to(root).with_suffix(""), homes)
            fitting = [picture for picture in fitting if picture != mask]
            if len(fitting) > 1:
                raise DataError(f"mask {mask} fits two images, {fitting[0]} and {fitting[1]}: rename one of them")
            if fitting:
                owned[fitting[0]].append((mask, is_one_of_several))
            else:
                orphans.append(mask)
        if not owned and not all_fit:
            return False
        for picture, found in owned.items():
            paths = (*self.of.get(picture, ()), *(mask for mask, _ in found))
            if len(paths) > 1 and not all(is_one_of_several for _, is_one_of_several in found):
                raise DataError(f"image {picture} has two masks, {paths[0]} and {paths[1]}: keep one")
            self.of[picture] = paths
        refuse_orphans(orphans, homes[0])
        return True

    def _fitting(self, place: Path, homes: Sequence[Path]) -> tuple[list[Path], bool]:
        """The pictures that a mask at `place` may belong to, and whether it is one of several of its picture."""
        names = [(place, False)]
        if match := _NAME_OF_MASK.fullmatch(place.name):
            names.append((place.with_name(match[1]), match["number"] is not None))
        if place.parent.name:
            names.append((place.parent, True))
        for name, is_one_of_several in names:
            if found := [picture for home in homes for picture in self._at.get(home / name, ())]:
                return found, is_one_of_several
        return [], False


def refuse_orphans(orphans: list[Path], where: Path) -> None:
    """Raise DataError when there are masks that belong to no picture."""
    if orphans:
        raise DataError(f"{count(orphans, 'mask')} without an image of that name in {where}: rename or remove")


def _masks_beside(files: Sequence[Path]) -> list[Path]:
    """Those of the `files` that are masks of others in the same folder, by name and look."""
    at: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        at[path.with_suffix("")].append(path)
    named: list[Path] = []
    alone: list[Path] = []
    alike: list[Path] = []
    for path in files:
        match = _NAME_OF_MASK.fullmatch(path.stem)
        if match:
            (named if path.with_name(match[1]) in at else alone).append(path)
        elif len(at[path.with_suffix("")]) > 1 and path.suffix.lower() not in (".jpg", ".jpeg"):
            alike.append(path)
    asked = [*named, *(alone if named else ()), *alike]  # alone: named like the masks of others, its picture is missing
    with ThreadPoolExecutor(THREADS) as pool:
        looks = dict(zip(asked, pool.map(looks_like_mask, asked), strict=True))
    for path in alike:  # were all of them masks, none would be a picture
        if all(looks.get(other, False) for other in at[path.with_suffix("")]):
            looks[path] = False
    return [path for path, looks_so in looks.items() if looks_so]
