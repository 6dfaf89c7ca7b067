"""Writing of a pack: a folder that a box without a network is set up from, or pieces of it of a given size."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from nnet_edge import __version__
from nnet_edge.bundle import read_bundle
from nnet_edge.cli.pack.machine import HINTS, Target
from nnet_edge.cli.pack.wheels import PROJECT, Wheels, require_possible
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import sha256, writing_folder
from nnet_edge.pieces import split_file

SUMS, ARCHIVE, FACTS, LINE = "SHA256SUMS", "pack.tar", "pack.json", "line"
TEMPLATES = Path(__file__).parent


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
    found: list[Path] = []
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
    text = (TEMPLATES / "install.sh").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    (place / "install.sh").write_text(text, encoding="utf-8")
    (place / "install.sh").chmod(0o755)
    if has_line:
        shutil.copy(TEMPLATES / "nnet-edge.service", place)


def write_sums(folder: Path, target: Path) -> None:
    """The SHA-256 of every file below the folder, as sha256sum reads them."""
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path != target
    )
    target.write_text("".join(f"{sha256(folder / name)}  {name}\n" for name in names), encoding="utf-8")


def split(place: Path, out: Path, piece_bytes: int) -> int:
    """The folder as pieces of an archive in `out`, with their hashes and join.sh; gives how many there are."""
    archive = place.parent / ARCHIVE
    with tarfile.open(archive, "w") as content:
        content.add(place, place.name)
    return len(split_file(archive, out, piece_bytes))
