"""Rows that several processes share: whoever claims a row's folder does it, the others pass on to the next.

The claim is a lock of the kernel's on FOLDER/.claim. It ends with the process that holds it, however that one ends, so the
row of a killed process is free again at once and no stale claim has to be recognised. The file itself stays: to remove it
would let two processes lock two files of one name.
"""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLAIM = ".claim"


@contextmanager
def claiming(folder: Path) -> Iterator[bool]:
    """Whether this process may work in `folder`, which is made; if so no other one may until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CLAIM).open("a+b") as file:
        is_mine = try_lock(file.fileno())
        if is_mine:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
            file.flush()
        yield is_mine


def holder(folder: Path) -> str:
    """Who claimed `folder` last, as "process 12 on bench-3"; for a message, the lock alone decides."""
    try:
        return (folder / CLAIM).read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"


def try_lock(descriptor: int) -> bool:
    """Whether the exclusive lock on an open file could be had without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
