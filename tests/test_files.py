"""Files on disk: what a killed writer leaves is removed at the next start, and only regular files are read."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnet_edge.files import read_regular, remove_drafts, write_atomically, writing_folder


def old(path: Path, content: bytes | None = b"half") -> Path:
    """A draft that was last written a minute ago: a file, or with None a folder."""
    if content is None:
        path.mkdir()
        (path / "part").write_bytes(b"half")
    else:
        path.write_bytes(content)
    os.utime(path, (os.stat(path).st_mtime - 60,) * 2)
    return path


def test_a_writer_that_is_killed_leaves_nothing_for_long(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; import nnet_edge.files as files\n"
        "files.os.fsync = lambda handle: os.kill(os.getpid(), 9)\n"
        "files.write_atomically(Path(sys.argv[1]), b'x' * 100000)"
    )
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", program, tmp_path / "checkpoint.safetensors"], timeout=60)
        assert killed.returncode == -signal.SIGKILL
    drafts = list(tmp_path.iterdir())
    assert len(drafts) == 2
    for draft in drafts:
        os.utime(draft, (os.stat(draft).st_mtime - 60,) * 2)
    remove_drafts(tmp_path / "checkpoint.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_only_abandoned_drafts_of_that_name_are_removed(tmp_path: Path) -> None:
    gone = [
        old(tmp_path / ".bundle.abcd_123"),
        old(tmp_path / ".bundle.00000000", None),
        old(tmp_path / ".bundle.old.aaaaaaaa"),
    ]
    (tmp_path / "bundle").mkdir()
    link = tmp_path / ".bundle.linklink"
    link.symlink_to(tmp_path / "stranger")
    stays = [
        old(tmp_path / "stranger"), old(tmp_path / ".bundle.json"), old(tmp_path / ".bundle2.abcd_123"),
        old(tmp_path / "bundle.abcd_123"), link,
    ]  # fmt: skip
    held = old(tmp_path / ".bundle.heldheld")
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_drafts(tmp_path / "bundle")
        assert all(os.path.lexists(path) for path in [*stays, held])
    assert not any(path.exists() for path in gone)


def test_what_was_replaced_half_is_kept_while_it_is_all_there_is(tmp_path: Path) -> None:
    last = old(tmp_path / ".bundle.old.aaaaaaaa", None)
    with writing_folder(tmp_path / "bundle") as draft:
        (draft / "file").touch()
        assert last.exists()
    with writing_folder(tmp_path / "bundle", lambda folder: None):
        assert not last.exists()


def test_a_draft_that_is_being_written_is_not_removed(tmp_path: Path) -> None:
    with writing_folder(tmp_path / "out") as draft:
        os.utime(draft, (0, 0))
        remove_drafts(tmp_path / "out")
        assert draft.exists()
    write_atomically(tmp_path / "file", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="it is not a file"):
            read_regular(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 31)  # takes no room on the disk
    with pytest.raises(OSError, match="more than"):
        read_regular(tmp_path / "large")
