"""Atomic writes, files that nobody else can have put there, the SHA-256 of a file, and how names of pictures end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

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


def new_draft(folder: Path, suffix: str = ".part", stem: str = "") -> tuple[BinaryIO, Path]:
    """A new file in `folder`, open for writing, and its path: hidden, its name drawn, so that no link lies there before.

    Raises OSError where the folder cannot be written.
    """
    path = folder / f".{stem}{secrets.token_hex(8)}{suffix}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.fdopen(os.open(path, flags, 0o666), "wb"), path


def require_writable(folder: Path) -> None:
    """Raise OSError unless a file can be made in `folder`; nothing that lies there is touched."""
    file, path = new_draft(folder, ".probe")
    file.close()
    path.unlink()


def require_private(path: Path, what: str) -> Path:
    """`path`, a file or folder whose content will be run or trusted, where nobody but this user and root can have put it.

    Raises ConfigError, which calls it `what`, where it or its folder belongs to another user, it may be written by all, or a
    folder above it may (a sticky one, as /tmp is, may not be changed by others). What is not there yet passes.
    """
    if not hasattr(os, "geteuid"):
        return path
    place = Path(os.path.realpath(path))
    trusted = {os.geteuid(), 0}
    for number, part in enumerate((place, *place.parents)):
        try:
            facts = part.stat()
        except FileNotFoundError:
            continue
        is_sticky = number > 0 and bool(facts.st_mode & stat.S_ISVTX)
        if number < 2 and facts.st_uid not in trusted and not is_sticky:
            raise ConfigError(
                f"{what} {path} is not used: {part} belongs to user {facts.st_uid}; remove it, or give another"
            )
        if facts.st_mode & stat.S_IWOTH and not is_sticky:
            raise ConfigError(f"{what} {path} is not used: anybody may write {part}; chmod o-w it, or give another")
    return path


def user_cache(name: str) -> Path:
    """Where this user's files of that kind are kept: below XDG_CACHE_HOME or ~/.cache. Raises ConfigError without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnet-edge" / name
    except RuntimeError as error:
        raise ConfigError(f"this user has no home for the {name} to be kept in: set XDG_CACHE_HOME or HOME") from error


Refusal = Callable[[Path], str | None]  # why a folder may not be replaced; None where it may


@contextlib.contextmanager
def writing_folder(out: Path, refusal: Refusal | None = None) -> Iterator[Path]:
    """A new folder to fill; it becomes `out` when the block succeeds and is deleted when it fails.

    Raises ConfigError when `out` exists, unless it is an empty folder or `refusal` lets it be replaced.
    """
    out = Path(os.path.abspath(out))  # "." has no name
    require_replaceable(out, refusal)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_drafts(out)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    handle = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        hold(handle)
        yield draft
        draft.chmod(0o755)
        if os.path.lexists(out):
            require_replaceable(out, refusal)  # again: minutes have passed
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
            out.replace(old / "bundle")
            draft.rename(out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(handle)


def require_replaceable(out: Path, refusal: Refusal | None) -> None:
    """Raise ConfigError unless `out` is not there or may be replaced."""
    if not os.path.lexists(out):
        return
    if refusal is None:
        raise ConfigError(f"{out} exists already; choose another --out, or say --force to replace it")
    if not out.is_dir():
        raise ConfigError(f"{out} is no folder, and is not replaced: choose another --out, or remove it yourself")
    if any(out.iterdir()) and (reason := refusal(out)) is not None:
        raise ConfigError(f"{out} {reason}, and is not replaced: choose another --out, or remove it yourself")
