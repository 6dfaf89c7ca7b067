"""Writing of a pack: a folder that a box without a network is set up from, or pieces of it of a given size."""

from __future__ import annotations

import errno
import json
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nnet_edge import __version__
from nnet_edge.bundle import read_bundle
from nnet_edge.cli.pack.machine import HINTS, Target
from nnet_edge.cli.pack.wheels import PROJECT, Wheels, require_possible
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import READ_BYTES, sha256, writing_folder

SUMS, PIECES, FACTS, LINE = "SHA256SUMS", "PIECES", "pack.json", "line"
TEMPLATES = Path(__file__).parent
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}
SMALLEST_PIECE, MOST_PIECES = 100_000, 10_000


def parse_size(text: str) -> int:
    """60,000,000 of "60M" (K, M, G are powers of 1000). Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,12})([KMG]?)B?", text.strip().upper())
    size = int(found[1]) * UNITS.get(found[2], 1) if found else 0
    if size < SMALLEST_PIECE:
        raise ConfigError(f"--split {text}: give a size as 60M, {SMALLEST_PIECE // 1000}K at least")
    return size


def write_pack(
    bundle: Path, target: Target, out: Path, line: Path | None = None, piece_bytes: int | None = None,
    wheelhouse: Path | None = None, constraint: Path | None = None, say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the pack to `out`, which appears whole or not at all; gives its facts.

    Raises ConfigError, BundleError, DataError.
    """
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: give another --out, or empty it")
    for what, path in (("--wheelhouse", wheelhouse), ("--constraint", constraint)):
        if path is not None and not path.exists():
            raise ConfigError(f"{what} {path} is not there")
    require_possible(target)
    read_bundle(bundle)
    files = {"bundle": bundle} if line is None else line_files(line, bundle)
    began = time.monotonic()
    with explained(out), writing_folder(out, lambda path: "is not empty") as draft:
        place = draft if piece_bytes is None else Path(tempfile.mkdtemp(prefix=".pack.", dir=draft)) / pack_name(target)
        (place / "wheels").mkdir(parents=True)
        Wheels(place / "wheels", target, wheelhouse, constraint).fill(say)
        for name, path in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, place / name) if path.is_dir() else shutil.copy(path, place / name)
        facts = {
            "nnet_edge": __version__, "for": target.kind, "python": target.python, "machine": target.machine,
            "glibc": f"2.{target.glibc}", "extras": list(target.extras), "bundle": bundle.resolve().name,
            "wheels": sorted(file.name for file in (place / "wheels").iterdir()),
        }  # fmt: skip
        (place / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        write_scripts(place, target, line is not None)
        write_sums(place, place / SUMS)
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        pieces = 0
        if piece_bytes is not None:
            say("cutting it into pieces")
            pieces = split(place, draft, piece_bytes)
            shutil.rmtree(place.parent)
    return {**facts, "bytes": size, "pieces": pieces, "seconds": round(time.monotonic() - began, 1), "out": str(out)}


def pack_name(target: Target) -> str:
    """What the pack's folder is called where it is joined."""
    return f"nnet-edge-{__version__}-{target.kind}-py{target.python}"


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """A full disk, and a folder that cannot be written, as one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(
                f"no space is left on the disk of {out}: free some, or give --out on another disk"
            ) from error
        raise ConfigError(f"{out} cannot be written ({error.strerror or error}): give another --out") from error


def line_files(line: Path, bundle: Path) -> dict[str, Path]:
    """Place in the pack -> file or folder: the line's file, its bundles and mask pictures, at the same relative places.

    Raises ConfigError for a file that lies elsewhere, a bundle that is absent, or a BUNDLE that the line does not name.
    """
    from nnet_edge.settings.line import line_settings, read_toml

    folder = line.resolve().parent
    settings = line_settings(read_toml(line), line.name, folder)
    named = list(dict.fromkeys(settings.bundles))
    for one in named:
        try:
            read_bundle(one)
        except Exception as error:
            raise ConfigError(f"{line.name}: the bundle {one} cannot be packed: {error}") from error
    if bundle.resolve() not in [one.resolve() for one in named]:
        raise ConfigError(f"{line.name} judges by {', '.join(map(str, named))}, not by {bundle}: give that one")
    found = {f"{LINE}/line.toml": line}
    for path in dict.fromkeys([*named, *pictures_of(settings)]):
        try:
            inside = path.resolve().relative_to(folder)
        except ValueError as error:
            raise ConfigError(
                f"{line.name} names {path}, which lies outside {folder}: put it below, and name it relative to the file"
            ) from error
        if str(path) != str(folder / inside):
            raise ConfigError(f"{line.name} names {path} by another way than {inside}: name it so")
        found[f"{LINE}/{inside}"] = path
    return found


def pictures_of(settings: Any) -> list[Path]:
    """The mask pictures that the settings name, wherever they stand."""
    if isinstance(settings, Sequence) and not isinstance(settings, str):
        return [path for one in settings for path in pictures_of(one)]
    if not is_dataclass(settings):
        return []
    found = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        is_picture = field.name in ("interest_picture", "ignored_picture")
        found += ([value] if value is not None else []) if is_picture else pictures_of(value)
    return found


def write_scripts(place: Path, target: Target, has_line: bool) -> None:
    """install.sh, and the service of a line."""
    values = {
        "PYTHON": target.python, "MACHINE": target.machine, "HINT": HINTS[target.kind],
        "WANTED": f"{PROJECT}[{','.join(target.extras)}]=={__version__}",
        "VENV": "--system-site-packages " if target.kind == "jetson" else "",  # where TensorRT is
    }  # fmt: skip
    write_script("install.sh", place, values)
    if has_line:
        shutil.copy(TEMPLATES / "nnet-edge.service", place)


def write_script(name: str, folder: Path, values: dict[str, str]) -> None:
    """The template of that name with its values, executable."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    (folder / name).write_text(text, encoding="utf-8")
    (folder / name).chmod(0o755)


def write_sums(folder: Path, target: Path) -> None:
    """The SHA-256 of every file below the folder, as sha256sum reads them."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path != target
    )
    target.write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names), encoding="utf-8")


def split(place: Path, out: Path, piece_bytes: int) -> int:
    """The folder as pieces of an archive in `out`, with their hashes and what joins them; gives how many there are."""
    with PieceWriter(out, piece_bytes) as writer, tarfile.open(fileobj=writer, mode="w|") as archive:  # type: ignore[arg-type]
        archive.add(place, place.name)
    names = [path.name for path in writer.paths]
    (out / PIECES).write_text("".join(f"{sha256(out / name)}  {name}\n" for name in names))
    write_script("join.sh", out, {"NAME": place.name})
    return len(names)


class PieceWriter:
    """A file that is written into pieces of a given size."""

    def __init__(self, folder: Path, piece_bytes: int) -> None:
        self._folder, self._piece_bytes = folder, piece_bytes
        self.paths: list[Path] = []
        self._file: BinaryIO | None = None
        self._room = 0

    def __enter__(self) -> PieceWriter:
        return self

    def __exit__(self, *about: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, content: bytes) -> int:
        """Write everything, beginning new pieces where one is full. Raises ConfigError for too many."""
        rest = memoryview(content)
        while rest:
            if self._room == 0:
                if len(self.paths) == MOST_PIECES:
                    raise ConfigError(f"--split makes more than {MOST_PIECES} pieces: give a larger size")
                self.__exit__()
                self.paths.append(self._folder / f"pack.tar.{len(self.paths):04d}")
                self._file, self._room = self.paths[-1].open("wb"), self._piece_bytes
            assert self._file is not None
            part = rest[: min(self._room, READ_BYTES)]
            self._file.write(part)
            self._room -= len(part)
            rest = rest[len(part) :]
        return len(content)
