"""Sealed files: what a library caches on disk, each with its hash beside it, so that a damaged or exchanged one is never used.

Beside `NAME` lies `NAME.sha256`, one line as sha256sum writes it: the hash and the name that it belongs to.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from nnet_edge.files import write_atomically

log = logging.getLogger(__name__)
SUFFIX = ".sha256"


def seal(file: Path, content: bytes) -> None:
    """Write the hash of `content`, which the file holds, beside it."""
    write_atomically(
        file.with_name(file.name + SUFFIX), f"{hashlib.sha256(content).hexdigest()}  {file.name}\n".encode()
    )


def read_sealed(file: Path) -> bytes | None:
    """The bytes of a sealed file; None, with a line in the log, for one that is not what was sealed: it is deleted."""
    try:
        content = file.read_bytes()
    except OSError:
        content = b""
    return content if is_sealed(file, content) else None


def is_sealed(file: Path, content: bytes | memoryview) -> bool:
    """Whether `content`, of the file, is what was sealed; else the file is deleted, with a line in the log."""
    seal_of = file.with_name(file.name + SUFFIX)
    try:
        line = seal_of.read_bytes()
    except OSError:
        line = b""
    if line == f"{hashlib.sha256(content).hexdigest()}  {file.name}\n".encode():
        return True
    log.warning("the cached file %s is not what was written there: it is discarded and made again", file)
    for each in (file, seal_of):
        each.unlink(missing_ok=True)
    return False
