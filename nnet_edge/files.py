"""Atomic writes of files and folders, the SHA-256 of a file, and how the names of pictures end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nnet_edge.errors import ConfigError

READ_BYTES = 1 << 20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")


def sha256(path: Path) -> str:
    """The SHA-256 of the file at `path`, 64 hexadecimal digits; `hashlib.sha256` has that of bytes in hand."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write `content` to `path`: a reader, or a power cut, meets the old file or the new one, never a part.

    Raises OSError, and leaves the old file, when the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(mode)
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def writing_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill; it becomes `out` when the block succeeds and is deleted when it fails.

    Raises ConfigError when `out` exists and `replace` is off.
    """
    if out.exists() and not replace:
        raise ConfigError(f"{out} exists already; choose another --out, or say --force to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield draft
        draft.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
            out.replace(old / "bundle")
            draft.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
