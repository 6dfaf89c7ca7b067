"""How the files of a spool are opened: nothing of what is written stays in this process, and no other one has the folder."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import IO

from nnet_edge.errors import SinkError


def unbuffered(path: Path, mode: str) -> FileIO:
    """The open file at `path`: what is written is the system's at once, and survives this process."""
    return FileIO(path, mode)


def lock(path: Path) -> IO[bytes]:
    """The open file at `path`, locked for this process. Raises SinkError when another one has it."""
    file = path.open("ab")
    if os.name == "posix":
        import fcntl  # Windows has none, and a second process is not kept away there

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise SinkError(
                f"the spool {path.parent} is used by another process: give each line a spool of its own"
            ) from error
    return file
