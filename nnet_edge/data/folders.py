"""Folders of a dataset: the pictures in them, the folder that plays a part by its name, and what in them nobody uses."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import IMAGE_SUFFIXES, MASK_SUFFIXES

MASK_FOLDERS = ("masks", "mask", "ground_truth", "groundtruth", "gt", "label", "labels", "segmentation")
UNREAD_SUFFIXES = (  # pictures and videos, too, which nothing here reads: they are named, not passed over in silence
    ".arw", ".avi", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe",
    ".jxl", ".mkv", ".mov", ".mp4", ".nef", ".npy", ".orf", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".raf", ".raw", ".rw2",
    ".tga",
)  # fmt: skip
NAMED_AT_MOST = 20  # lines about unused folders


def find_images(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """The images in `folder` and below, sorted by path; raises DataError when a folder cannot be read."""
    return sorted(walk(folder, suffixes))


def walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The files in `folder` and below that end so, folder by folder."""
    return _walk(folder, set(folder.resolve().parents), suffixes)  # a link upwards would bring in all the data


def find_files(folder: Path | None) -> list[Path]:
    """The images in `folder` and below that may be pictures or masks; none when there is no such folder."""
    return find_images(folder, MASK_SUFFIXES) if folder is not None and folder.is_dir() else []


def direct_files(folder: Path, suffixes: tuple[str, ...] = MASK_SUFFIXES) -> list[Path]:
    """The images directly in `folder`; by default those that may be pictures or masks."""
    return [path for path in visible(folder) if path.suffix.lower() in suffixes and not path.is_dir()]


def folders(folder: Path) -> list[Path]:
    """The folders in `folder`."""
    return [entry for entry in visible(folder) if entry.is_dir()]


def visible(folder: Path) -> list[Path]:
    """What `folder` holds, sorted, without hidden files. Raises DataError when it cannot be read."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from error
    return [folder / name for name in names if not name.startswith(".") and name != "__MACOSX"]


def find_part(folder: Path, names: Iterable[str]) -> Path | None:
    """The folder in `folder` that has one of the `names`, in capitals or not; None when none is there.

    Raises DataError when two are there.
    """
    wanted = tuple(names)
    found = [entry for entry in folders(folder) if entry.name.lower() in wanted] if folder.is_dir() else []
    if len(found) > 1:
        raise DataError(f"{folder} holds both {found[0].name}/ and {found[1].name}/: keep one of them")
    return found[0] if found else None


def choose_category(found: Iterable[str], asked: str | None, where: Path) -> str:
    """The category asked for, or the only one. Raises ConfigError."""
    names = sorted(found)
    if asked in names:
        return str(asked)
    if asked is not None:
        raise ConfigError(f'no category "{asked}" in {where}: choose one of {", ".join(names)}')
    if len(names) > 1:
        raise ConfigError(f"{where} holds {len(names)} categories: choose one with --category: {', '.join(names)}")
    return names[0]


def learnable(folder: Path, images: Iterable[Path]) -> list[Path]:
    """The good `images` of `folder`. Raises DataError, with what else lies there, when there are none."""
    good = list(images)
    if not good:
        entries = visible(folder) if folder.is_dir() else []
        others = sum(1 for entry in entries if entry.is_file())
        beside = f" ({others} files of other kinds)" if others else ""
        homes = [f"{entry.name}/" for entry in entries if entry.is_dir() and find_images(entry)]
        below = f", where {', '.join(homes[:5])} hold images" if homes else ""
        raise DataError(
            f"no good images in {folder}{beside}{below}: put photographs of good parts there or into good/, as PNG, JPEG, ..."
        )
    return good


def _walk(folder: Path, entered: set[Path], suffixes: tuple[str, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in entered:  # a link that leads back; it would never end
        return
    entered.add(real)
    for entry in visible(folder):
        if entry.is_dir():
            yield from _walk(entry, entered, suffixes)
        elif entry.suffix.lower() in suffixes:
            yield entry


@dataclass
class _Branch:
    """A folder and what of its pictures is used, in it and below."""

    path: Path
    unused: list[Path] = field(default_factory=list)  # directly in it
    below: list[_Branch] = field(default_factory=list)
    used: int = 0  # in it and below

    def all_unused(self) -> list[Path]:
        return [*self.unused, *(path for branch in self.below for path in branch.all_unused())]

    def lines(self, root: Path) -> Iterator[str]:
        """One for this folder, and for each below that is used in part."""
        found = self.unused if self.used else self.all_unused()
        if found:
            kinds = ", ".join(f"{n} {suffix}" for suffix, n in Counter(p.suffix.lower() for p in found).most_common())
            place = self.path.relative_to(root).as_posix()
            first = found[0].relative_to(self.path).as_posix()
            yield f"not used: {kinds} in {f'{place}/' if place != '.' else root} (first: {first})"
        if self.used:
            for branch in self.below:
                yield from branch.lines(root)


def name_unused(root: Path, used: Iterable[Path]) -> tuple[str, ...]:
    """One line for each folder in `root` with pictures, or files that look like some, that are not among the `used`."""
    real_folders: dict[Path, str] = {}

    def real(path: Path) -> tuple[str, str]:  # a file may be reached by two links
        if path.parent not in real_folders:
            real_folders[path.parent] = os.path.realpath(path.parent)
        return real_folders[path.parent], path.name

    known = {real(path) for path in used}
    entered: set[str] = set()

    def look(folder: Path) -> _Branch:
        branch = _Branch(folder)
        if (place := os.path.realpath(folder)) in entered:
            return branch
        entered.add(place)
        for entry in visible(folder):
            suffix = entry.suffix.lower()
            if entry.is_dir():
                branch.below.append(look(entry))
            elif (place, entry.name) in known:
                branch.used += 1
            elif suffix in MASK_SUFFIXES or suffix in UNREAD_SUFFIXES:
                branch.unused.append(entry)
        branch.used += sum(below.used for below in branch.below)
        return branch

    lines = list(look(root).lines(root))
    more = len(lines) - NAMED_AT_MOST
    return (*lines[:NAMED_AT_MOST], *([f"not used: pictures in {more} more folders of {root}"] if more > 0 else []))
