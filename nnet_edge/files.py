"""Atomic writes of files and folders, the SHA-256 of a file, and how the names of pictures end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nnet_edge.errors import ConfigError

READ_BYTES = 1 << 20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
DRAFT_S = 1.0  # a younger draft may not be held yet by who writes it
LARGEST_FILE = 1 << 30  # bytes of a picture; the largest that may be decoded has half as many


def sha256(path: Path) -> str:
    """The SHA-256 of the file at `path`, 64 hexadecimal digits; `hashlib.sha256` has that of bytes in hand."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_regular(path: Path) -> bytes:
    """All of the regular file at `path`; a pipe or a device, which could be waited for without end, is not read.

    Raises OSError, also for one of more than LARGEST_FILE.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        if facts.st_size > LARGEST_FILE:
            raise OSError(errno.EFBIG, f"it has {facts.st_size:,} bytes, more than {LARGEST_FILE:,}", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(LARGEST_FILE)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write `content` to `path`: a reader, or a power cut, meets the old file or the new one, never a part.

    Raises OSError, and leaves the old file, when the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            hold(handle)
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


def hold(handle: int) -> bool:
    """Whether this process now holds the open file or folder; a draft that is held is being written."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else does, or the file system knows no locks
        return False
    return True


def remove_drafts(path: Path) -> None:
    """Delete what writers of the file or folder `path` that were killed left beside it; what is being written stays."""
    old = r"(\.old)?" if path.exists() else ""  # else it is all that is left of a folder that was being replaced
    name = re.compile(rf"\.{re.escape(path.name)}{old}\.[a-z0-9_]{{8}}")
    with contextlib.suppress(OSError):
        for draft in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
            facts = draft.lstat()
            if stat.S_ISLNK(facts.st_mode) or time.time() - facts.st_mtime < DRAFT_S:
                continue
            handle = os.open(draft, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if hold(handle):
                    shutil.rmtree(draft) if stat.S_ISDIR(facts.st_mode) else draft.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def writing_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """A new folder to fill; it becomes `out` when the block succeeds and is deleted when it fails.

    Raises ConfigError when `out` exists and `replace` is off.
    """
    if out.exists() and not replace:
        raise ConfigError(f"{out} exists already; choose another --out, or say --force to replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_drafts(out)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    handle = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        hold(handle)
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
        os.close(handle)
