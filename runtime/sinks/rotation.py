"""Rotation of files: the full one gets the next number, the oldest go, a torn last line is cut off."""

from __future__ import annotations

import os
import re
from pathlib import Path

READ_BYTES = 1 << 16  # looked through at once for the end of the last whole line


def rotated_files(path: Path) -> list[Path]:
    """The files that `path` was renamed to, oldest first: its name with a number of 6 digits or more."""
    pattern = re.compile(re.escape(path.stem) + r"\.(\d{6,})" + re.escape(path.suffix))
    found = [(int(match[1]), entry) for entry in path.parent.iterdir() if (match := pattern.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found)]


def next_rotated(path: Path) -> Path:
    """The name that the next file of `path` gets: its own with the number after the highest that is there."""
    files = rotated_files(path)
    number = 1 + (int(files[-1].name[len(path.stem) + 1 : len(files[-1].name) - len(path.suffix)]) if files else 0)
    return path.with_name(f"{path.stem}.{number:06d}{path.suffix}")


def rotate(path: Path) -> Path:
    """Rename the file at `path` to its next number, and give the new path. Raises OSError."""
    target = next_rotated(path)
    path.rename(target)
    return target


def remove_oldest(path: Path, keep: int) -> None:
    """Remove the oldest files that `path` was renamed to, until `keep` are left. Raises OSError."""
    files = rotated_files(path)
    for file in files[: max(0, len(files) - keep)]:
        file.unlink(missing_ok=True)


def cut_torn_line(path: Path) -> int:
    """Cut off what follows the last line end of the file at `path`; gives the bytes that went. Raises OSError.

    A process that is killed while it writes, or a power cut, leaves the beginning of a line there. What is no regular
    file, or is not there, stays as it is.
    """
    if not path.is_file():
        return 0
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        whole = position = end
        while position > 0:
            start = max(0, position - READ_BYTES)
            file.seek(start)
            at = file.read(position - start).rfind(b"\n")
            if at >= 0:
                whole = start + at + 1
                break
            position = whole = start
        if whole < end:
            file.truncate(whole)
        return end - whole
