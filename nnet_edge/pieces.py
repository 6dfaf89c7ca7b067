"""Files in pieces, for machines that take no large one: split here, joined there by a shell alone.

NAME.part-00000 ...   the pieces
NAME.sha256         one line as sha256sum writes it, of each piece and of the whole
join.sh             joins and checks them: sh join.sh [FOLDER]
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from nnet_edge.errors import ConfigError

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
BLOCK = 1 << 20
SMALLEST = 1 << 10
JOIN = """#!/bin/sh
# Joins the pieces of {name} and checks them. usage: sh join.sh [FOLDER]
set -eu
cd "$(dirname "$0")"
target=$(mkdir -p "${{1:-.}}" && cd "${{1:-.}}" && pwd)
grep '\\.part-' {name}.sha256 | sha256sum -c --quiet -
cat {name}.part-* >"$target/{name}"
(grep -v '\\.part-' {name}.sha256) | (cd "$target" && sha256sum -c --quiet -)
echo "$target/{name}"
"""


def parse_bytes(text: str) -> int:
    """The bytes of "60M", "1.5G" or "900K", in powers of 1024. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    size = int(float(found.group(1)) * UNITS[found.group(2).upper()]) if found else 0
    if size < SMALLEST:
        raise ConfigError(f"{text!r} is no size of a piece: write 60M, 1G or 900K")
    return size


def split_file(file: Path, folder: Path, size: int) -> list[Path]:
    """The pieces of `file` of at most `size` bytes each, in `folder`, with their hashes and join.sh beside them.

    Pieces of an earlier, longer file of that name are deleted. `file` stays as it is; it must not lie in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{file.name}.part-*"):
        old.unlink()
    whole, lines = hashlib.sha256(), list[str]()
    pieces: list[Path] = []
    with file.open("rb") as content:
        while block := content.read(min(size, BLOCK)):
            piece = folder / f"{file.name}.part-{len(pieces):05d}"
            digest, left = hashlib.sha256(), size
            with piece.open("wb") as out:
                while block:
                    out.write(block)
                    digest.update(block)
                    whole.update(block)
                    left -= len(block)
                    block = content.read(min(left, BLOCK)) if left else b""
            pieces.append(piece)
            lines.append(f"{digest.hexdigest()}  {piece.name}\n")
    lines.append(f"{whole.hexdigest()}  {file.name}\n")
    (folder / f"{file.name}.sha256").write_text("".join(lines), encoding="ascii")
    (folder / "join.sh").write_text(JOIN.format(name=file.name), encoding="ascii")
    return pieces
