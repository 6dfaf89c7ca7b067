"""A file in pieces: no piece is too large, a shell joins them, and a damaged one is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.pieces import parse_bytes, split_file


@pytest.mark.parametrize(
    ("text", "size"), [("60M", 60 << 20), ("1.5g", 3 << 29), ("900KiB", 900 << 10), ("4096", 4096)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "60 MB of it", "0", "3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size of a piece: write 60M"):
        parse_bytes(text)


@pytest.mark.parametrize("size", [0, 1, 1024, 3000, 3072, (1 << 20) + 5])
def test_a_shell_joins_what_was_split(size: int, tmp_path: Path) -> None:
    file = tmp_path / "kit.tar"
    file.write_bytes(bytes(index * 7 % 251 for index in range(size)))
    pieces = split_file(file, tmp_path / "out", 1024)
    assert len(pieces) == -(-size // 1024)
    assert all(piece.stat().st_size <= 1024 for piece in pieces)
    if not pieces:
        return
    done = subprocess.run(["sh", tmp_path / "out/join.sh", tmp_path / "there"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == file.read_bytes()
    pieces[-1].write_bytes(b"x" + pieces[-1].read_bytes()[1:] if size > 1 else b"y")
    assert subprocess.run(["sh", tmp_path / "out/join.sh", tmp_path / "again"], capture_output=True).returncode != 0
    file.write_bytes(b"short" * 300)
    assert len(split_file(file, tmp_path / "out", 1024)) == len(list((tmp_path / "out").glob("*.part-*"))) == 2
