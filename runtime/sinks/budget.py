"""A folder's budget of bytes: what it holds is known, and the oldest goes before something new would exceed it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path


class FolderBudget:
    """Counts the files of `folder` that end in `suffixes`; files of one stem in one folder belong together.

    Other files are neither counted nor touched. Without a limit nothing is counted and nothing goes. Methods raise
    OSError.
    """

    def __init__(self, folder: Path, limit_bytes: int | None, suffixes: Sequence[str]) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._suffixes = sorted(suffixes, key=len, reverse=True)  # `.jpg` must not hide `.original.jpg`
        self._groups: OrderedDict[Path, dict[Path, int]] = OrderedDict()  # path without suffix -> file -> bytes
        self.used_bytes = 0
        self.removed_files = 0

    def scan(self) -> None:
        """Look through the folder and all below it, oldest files first; the parts of pictures that a kill left go."""
        self._groups.clear()
        self.used_bytes = 0
        if self._limit_bytes is None:
            return
        found = []
        for path in self._folder.rglob("*"):
            if path.name.startswith(".") and path.name.endswith(".part"):
                path.unlink(missing_ok=True)
            elif self._stem(path) is not None and path.is_file():
                facts = path.stat()
                found.append((facts.st_mtime_ns, path, facts.st_size))
        for _, path, size_bytes in sorted(found):
            self.add(path, size_bytes)
        self.make_room(0, ())

    def make_room(self, size_bytes: int, replaced: Sequence[Path]) -> bool:
        """Take the oldest groups away until so many bytes more fit; False, with nothing taken, when they never can.

        `replaced` are the files that will hold these bytes: what they hold now goes.
        """
        if self._limit_bytes is None:
            return True
        if size_bytes > self._limit_bytes:
            return False
        for path in replaced:
            self.used_bytes -= self._groups.get(self._require_stem(path), {}).pop(path, 0)
        while self.used_bytes + size_bytes > self._limit_bytes and self._groups:
            stem, files = next(iter(self._groups.items()))
            for path in list(files):
                path.unlink(missing_ok=True)  # a file that a person took away is no fault
                self.used_bytes -= files.pop(path)
                self.removed_files += 1
            del self._groups[stem]
            self._remove_empty(stem.parent)
        return True

    def add(self, path: Path, size_bytes: int) -> None:
        """Count a file that was just written; its group is now the newest."""
        if self._limit_bytes is None:
            return
        stem = self._require_stem(path)
        files = self._groups.setdefault(stem, {})
        self.used_bytes += size_bytes - files.get(path, 0)
        files[path] = size_bytes
        self._groups.move_to_end(stem)

    def _remove_empty(self, folder: Path) -> None:
        """Take away a folder of a session whose pictures are all gone."""
        if folder != self._folder:
            with contextlib.suppress(OSError):  # it holds something else
                folder.rmdir()

    def _stem(self, path: Path) -> Path | None:
        for suffix in self._suffixes:
            if path.name.endswith(suffix):
                return path.with_name(path.name[: -len(suffix)])
        return None

    def _require_stem(self, path: Path) -> Path:
        stem = self._stem(path)
        assert stem is not None, f"{path} is no file of this budget"
        return stem
