"""Compiled graphs of OpenVINO, kept on disk: the lines of a machine share one compile, and the next start has none.

A file's name is the hash of all that its content follows from: the graph's bytes, OpenVINO's build, its options, the processor
with what it can compute with, and its cores. Beside it lies its seal (`sealed.py`). Who compiles holds a lock, and others wait.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from nnet_edge.errors import ConfigError
from nnet_edge.files import hold, require_private, require_writable, user_cache, write_atomically
from nnet_edge.machine import cpu_facts
from nnet_edge.sealed import SUFFIX, is_sealed, seal

log = logging.getLogger(__name__)

FORM = "1"  # of the files; another one makes them anew
LARGEST_BYTES = 1 << 30  # of all files of a folder; those used longest ago go first
PATIENCE_S, LOOK_S = 60.0, 0.05  # for who compiles: behind it something hangs, and this process compiles for itself


def default_folder() -> Path | None:
    """The user's cache folder; None, with a line in the log, where it cannot be written."""
    try:
        return writable_folder(user_cache("openvino"))
    except ConfigError as error:
        log.info("compiled graphs are not kept: %s", error)
        return None


def writable_folder(folder: Path) -> Path:
    """`folder`, made if it was absent. Raises ConfigError when it cannot be written, or anybody could write it."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        require_writable(require_private(folder, "the cache folder"))
    except OSError as error:
        raise ConfigError(f"the cache folder {folder} cannot be written ({error.strerror}): give another") from error
    return folder


class KeptGraph:
    """The place of one compiled graph in a cache folder. Raises ConfigError for a folder that cannot be used."""

    def __init__(self, folder: Path, graph_hash: str, build: str, options: Mapping[str, object]) -> None:
        facts = (FORM, graph_hash, build, sorted(options.items()), cpu_facts(), os.cpu_count())
        digest = hashlib.sha256(repr(facts).encode())
        self.file = writable_folder(folder) / f"{digest.hexdigest()[:32]}.blob"

    def read(self) -> np.ndarray | None:
        """The bytes that were kept, None where none were; damaged ones are discarded with a line in the log."""
        try:
            content = np.fromfile(self.file, np.uint8)  # into memory that may be written, as OpenVINO wants it
        except FileNotFoundError:
            return None
        if not is_sealed(self.file, content.data):
            return None
        with suppress(OSError):
            os.utime(self.file)  # it was used now
        return content

    def write(self, content: bytes) -> None:
        """Keep it, and make room; a disk that has none is told in the log."""
        if len(content) > LARGEST_BYTES // 2:
            return
        try:
            seal(self.file, content)  # first: without its seal a file is no good
            write_atomically(self.file, content)
            self._make_room()
        except OSError as error:
            log.warning("the compiled graph is not kept in %s: %s", self.file.parent, error.strerror)

    def discard(self) -> None:
        """Forget it."""
        for each in (self.file, self.file.with_name(self.file.name + SUFFIX)):
            each.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While the block compiles, others that want the same graph wait, at most PATIENCE_S."""
        path, end_s = self.file.with_suffix(".lock"), time.monotonic() + PATIENCE_S
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not hold(handle) and time.monotonic() < end_s:
                time.sleep(LOOK_S)
            yield
        finally:
            os.close(handle)
            path.unlink(missing_ok=True)

    def _make_room(self) -> None:
        facts = {file: file.stat() for file in self.file.parent.glob("*.blob")}
        left = sum(one.st_size for one in facts.values())
        for file in sorted(facts, key=lambda file: facts[file].st_mtime):
            if left > LARGEST_BYTES and file != self.file:
                left -= facts[file].st_size
                for each in (file, file.with_name(file.name + SUFFIX)):
                    each.unlink(missing_ok=True)
