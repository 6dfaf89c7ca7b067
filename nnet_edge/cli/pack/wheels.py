"""Wheels of a pack: nnet-edge itself, and everything that it needs on the box, also what pip's own markers would miss.

`pip download --python-version` takes wheels of the other Python and decides by the markers of this one: what only the box needs
(`; python_version < "3.11"`) is not downloaded. So the markers are asked again here, for the box, until nothing is missing.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nnet_edge
from nnet_edge.cli.pack.machine import Target
from nnet_edge.errors import ConfigError, DataError, MissingExtraError, missing_library

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PROJECT = "nnet-edge"
SOURCE_ONLY = ("pycuda",)  # built on the box, against its own CUDA
MADE_HERE = ("tensorrt-rtx-cu13",)  # an index has its source alone, which names two others: a wheel of any machine
NOT_OF_A_WHEEL = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")  # of a dist-info folder
MOST_ROUNDS = 6
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def project_wheel(folder: Path) -> Path:
    """The wheel of this very nnet-edge, in `folder`: built of its source tree, or of its installed files.

    Raises DataError where neither can be: no build tools, or installed files that somebody changed.
    """
    root = Path(nnet_edge.__file__).resolve().parent.parent
    if (root / "setup.py").is_file() and (root / "pyproject.toml").is_file():
        with tempfile.TemporaryDirectory() as place:  # not build/ of the tree: what was deleted since may lie there
            settings = Path(place, "setup.cfg")
            settings.write_text(f"[build]\nbuild_base = {place}/build\n")
            run_pip(["wheel", "--no-deps", "--wheel-dir", str(folder), str(root)], f"no wheel can be built of {root}",
                    {"DIST_EXTRA_CONFIG": str(settings)})  # fmt: skip
    else:
        wheel_of_installed(metadata.distribution(PROJECT), folder)
    (found,) = folder.glob("nnet_edge-*.whl")
    return found


def wheel_of_installed(dist: metadata.Distribution, folder: Path) -> None:
    """A wheel of the installed files, as their RECORD names them. Raises DataError for one that was changed, or is missing."""
    record, names = io.StringIO(), sorted(dist.files or (), key=str)
    rows = csv.writer(record, lineterminator="\n")
    stem = f"{dist.metadata['Name'].replace('-', '_')}-{dist.version}"
    target, info = folder / f"{stem}-py3-none-any.whl", f"{stem}.dist-info"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in names:
            parts = name.parts
            if ".." in parts or "__pycache__" in parts or name.suffix == ".pth" or name.name in NOT_OF_A_WHEEL:
                continue
            place = Path(str(name.locate()))
            content = place.read_bytes() if place.is_file() else b""
            digest = hash_of(content)
            if name.hash is None or name.hash.value != digest:
                raise DataError(f"{place} is not as it was installed: install nnet-edge again, then pack")
            wheel.writestr(str(name), content)
            rows.writerow([str(name), f"sha256={digest}", len(content)])
        rows.writerow([f"{info}/RECORD", "", ""])
        wheel.writestr(f"{info}/RECORD", record.getvalue())
    if len(names) < 2 or not any(name.name == "__init__.py" for name in names):
        raise DataError(f"this nnet-edge has neither a source tree nor installed files ({target.name} would be empty)")


def hash_of(content: bytes) -> str:
    """The SHA-256 as a RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def run_pip(arguments: list[str], otherwise: str, variables: Mapping[str, str] | None = None) -> None:
    """Run pip. Raises DataError that begins with `otherwise` and gives pip's reason, MissingExtraError without pip."""
    done = subprocess.run([*PIP, *arguments], capture_output=True, text=True, env={**os.environ, **(variables or {})})
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no reason"]
    if "No module named pip" in done.stderr:
        raise MissingExtraError("pip is not installed here: python -m ensurepip")
    if any("No space left on device" in line for line in said):
        raise DataError("no space is left where the wheels go: free some, or set TMPDIR and --out to another disk")
    reasons = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")] or said[-1:]
    raise DataError(f"{otherwise}: {reasons[-1]}")


def requirements_of(about: Message, target: Target, extras: Iterable[str]) -> list[Requirement]:
    """What a package asks for on the target, with these extras."""
    from packaging.requirements import Requirement

    found = []
    for text in about.get_all("Requires-Dist") or []:
        asked, environment = Requirement(text), target.environment()
        if asked.marker is None or any(asked.marker.evaluate({**environment, "extra": one}) for one in ("", *extras)):
            found.append(asked)
    return found


def metadata_of(file: Path) -> Message:
    """The metadata in a wheel or a source archive."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            (name,) = (one for one in wheel.namelist() if one.endswith(".dist-info/METADATA") and one.count("/") == 1)
            return message_from_bytes(wheel.read(name))
    with tarfile.open(file) as archive:
        name = min((one for one in archive.getnames() if one.endswith("/PKG-INFO")), key=len)
        found = archive.extractfile(name)
        assert found is not None
        return message_from_bytes(found.read())


def name_of(text: str) -> str:
    """A package's name as indexes compare it."""
    return text.lower().replace("_", "-").replace(".", "-")


class Wheels:
    """The folder of a pack's wheels."""

    def __init__(self, folder: Path, target: Target, wheelhouse: Path | None, constraint: Path | None) -> None:
        self.folder, self._target = folder, target
        self._from = [] if wheelhouse is None else ["--no-index", "--find-links", str(wheelhouse)]
        self._from += [] if constraint is None else ["--constraint", str(constraint)]

    def fill(self, say: Callable[[str], None]) -> None:
        """Put nnet-edge and everything that it needs on the target there. Raises DataError that names what has no wheel."""
        say("building the wheel of nnet-edge")
        project = metadata_of(project_wheel(self.folder))
        first = requirements_of(project, self._target, self._target.extras)
        wanted = [self._plain(one) for one in first if name_of(one.name) not in (*SOURCE_ONLY, *MADE_HERE)]
        for one in first:
            if name_of(one.name) in SOURCE_ONLY:
                wanted += self._fetch_source(one, say)
            elif name_of(one.name) in MADE_HERE:
                wanted += self._make_wheel(one, say)
        wanted.append("pip")
        for _ in range(MOST_ROUNDS):
            say(f"downloading the wheels for {self._target.words}")
            otherwise = f"the wheels for {self._target.words} cannot be had"
            run_pip(["download", "--dest", str(self.folder), *self._target.pip_tags(), *self._from, *wanted], otherwise)
            reached, missing = self._closure(wanted)
            if not missing:
                break
            wanted += missing
        else:
            raise DataError(f"the wheels for {self._target.words} need one another without end: {', '.join(missing)}")
        for name, file in self.files().items():  # what only this machine needs
            if name not in reached and name != PROJECT:
                file.unlink()

    @staticmethod
    def _plain(asked: Requirement) -> str:
        """The requirement without its marker, which was asked."""
        extras = f"[{','.join(sorted(asked.extras))}]" if asked.extras else ""
        return f"{asked.name}{extras}{asked.specifier}"

    def _fetch_source(self, asked: Requirement, say: Callable[[str], None]) -> list[str]:
        """Put the source archive there; gives what it needs to be built and to run."""
        say(f"fetching the source of {asked.name}, which the box builds against its own CUDA")
        run_pip(["download", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(self.folder),
                 *self._from, self._plain(asked)], f"the source of {asked.name} cannot be had")  # fmt: skip
        file = self.files()[name_of(asked.name)]
        needs = [self._plain(one) for one in requirements_of(metadata_of(file), self._target, ())]
        return [*needs, *build_requirements(file)]

    def _make_wheel(self, asked: Requirement, say: Callable[[str], None]) -> list[str]:
        """Put a wheel of it there, which must fit any machine; gives what it needs to run."""
        say(f"making the wheel of {asked.name}")
        otherwise = f"the wheel of {asked.name} cannot be made"
        run_pip(["wheel", "--no-deps", "--wheel-dir", str(self.folder), *self._from, self._plain(asked)], otherwise)
        file = self.files()[name_of(asked.name)]
        if not file.name.endswith("-none-any.whl"):
            raise DataError(f"{otherwise}: {file.name} is of this machine, not of {self._target.words}")
        return [self._plain(one) for one in requirements_of(metadata_of(file), self._target, ())]

    def files(self) -> dict[str, Path]:
        """The files by the names of their packages."""
        found = [file for file in self.folder.iterdir() if file.suffix in (".whl", ".gz")]
        return {name_of(file.name.partition("-")[0]): file for file in found}

    def _closure(self, wanted: list[str]) -> tuple[set[str], list[str]]:
        """Names that are reached from `wanted` on the target, and requirements among them that no file meets."""
        from packaging.requirements import Requirement

        files, missing, seen = self.files(), list[str](), set[tuple[str, frozenset[str]]]()
        waiting = [Requirement(text) for text in wanted]
        while waiting:
            asked = waiting.pop()
            name, extras = name_of(asked.name), frozenset(asked.extras)
            if (name, extras) in seen:
                continue
            seen.add((name, extras))
            if name not in files:
                missing.append(self._plain(asked))
            else:
                waiting += requirements_of(metadata_of(files[name]), self._target, extras)
        return {name for name, _ in seen} | {*SOURCE_ONLY, *MADE_HERE}, missing


def build_requirements(archive: Path) -> list[str]:
    """What the source archive's pyproject.toml asks for to be built."""
    from nnet_edge.settings.line import toml_of

    with tarfile.open(archive) as content:
        names = [one for one in content.getnames() if one.endswith("/pyproject.toml") and one.count("/") == 1]
        found = content.extractfile(names[0]) if names else None
        table: dict[str, Any] = {} if found is None else toml_of(found.read(), archive)
    return list(table.get("build-system", {}).get("requires", ["setuptools"]))


def require_possible(target: Target) -> None:
    """Raise ConfigError for a Python or an extra that this nnet-edge does not have."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError as error:
        raise missing_library("packaging", "pack", error) from error
    about = metadata.metadata(PROJECT)
    allowed, extras = about["Requires-Python"], about.get_all("Provides-Extra") or []
    if f"{target.python}.9" not in SpecifierSet(allowed):
        raise ConfigError(f"--python {target.python}: nnet-edge needs {allowed}")
    for extra in target.more:
        if extra not in extras:
            raise ConfigError(f"--extra {extra}: nnet-edge has no such extra, but {', '.join(extras)}")
