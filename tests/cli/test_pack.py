"""A pack for a box without a network: what it holds, that it installs there, and what it is refused for."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import nnet_edge
from nnet_edge.cli.main import run
from nnet_edge.cli.pack import KINDS, wheels
from nnet_edge.cli.pack.machine import EXTRAS, HINTS, SYSTEMS, Target
from nnet_edge.cli.pack.wheels import Wheels, metadata_of, project_wheel, requirements_of, wheel_of_installed
from nnet_edge.errors import DataError
from tests.private_network import private_network

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
SAYS_ITS_VERSION = "def main() -> None:\n    print('nnet-edge, version of a stand-in')\n"


def stand_in(folder: Path, name: str, version: str = "1.0", needs: tuple[str, ...] = (), tag: str = "py3-none-any",
             module: str = "") -> Path:  # fmt: skip
    """A wheel that holds nothing but its name and what it asks for, and a program where there is a module."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-{tag}.whl"
    extras = {extra for need in needs for extra in re.findall(r"extra == ['\"]([^'\"]+)", need)}
    about = "".join(f"Requires-Dist: {need}\n" for need in needs) + "".join(
        f"Provides-Extra: {one}\n" for one in extras
    )
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{about}",
        f"{stem}.dist-info/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
        **({} if not module else {"nnet_edge_stand_in.py": module,
            f"{stem}.dist-info/entry_points.txt": "[console_scripts]\nnnet-edge = nnet_edge_stand_in:main\n"}),
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as wheel:
        for place, content in files.items():
            wheel.writestr(place, content)
        wheel.writestr(
            f"{stem}.dist-info/RECORD", "".join(f"{place},,\n" for place in (*files, f"{stem}.dist-info/RECORD"))
        )
    return path


def asked(*extras: str) -> list[str]:
    """Names that nnet-edge asks for on a PC."""
    about = metadata.metadata("nnet-edge")
    return sorted({one.name for one in requirements_of(about, Target("cpu", PYTHON), extras)})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins for what nnet-edge needs on a PC with this Python, and the pip that runs here."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    for name in asked("cpu"):
        stand_in(folder, name, "9999", tag=f"{TAG}-{TAG}-manylinux2014_x86_64" if name == "numpy" else "py3-none-any")
    wheel_of_installed(metadata.distribution("pip"), folder)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnet-edge itself is a stand-in too: its wheel is built for real by the slow test."""

    def build(folder: Path) -> Path:
        needs = tuple(metadata.requires("nnet-edge") or ())
        return stand_in(folder, "nnet-edge", nnet_edge.__version__, needs, module=SAYS_ITS_VERSION)

    monkeypatch.setattr(wheels, "project_wheel", build)


@pytest.fixture
def bundle(second_run: Path) -> Path:
    return second_run / "run/bundle"


Pack = Callable[..., tuple[int, str]]


@pytest.fixture
def pack(quick: None, bundle: Path, wheelhouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pack:
    """Packs to tmp_path/pack as `more` asks; gives the exit code and what was said."""

    def command(*more: object, bundle: Path = bundle, out: Path = tmp_path / "pack") -> tuple[int, str]:
        places = ["--out", out, "--wheelhouse", wheelhouse]
        basic = [] if "--python" in more else ["--python", PYTHON]
        code = run([str(one) for one in ["pack", bundle, "--for", "cpu", *basic, *places, *more]])
        return code, capsys.readouterr().err

    return command


def install(folder: Path, prefix: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(prefix.parent)}
    return subprocess.run(["sh", folder / "install.sh", prefix], capture_output=True, text=True, env=environment)


def test_it_installs_from_pieces_without_a_network(pack: Pack, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "station"
    shutil.copytree(bundle, folder / "bundles/bolt")
    line = folder / "station-3.toml"
    line.write_text('bundle = "bundles/bolt"\n[[stream]]\nname = "left"\ncamera.address = "0"\n')
    code, said = pack("--line", line, "--split", "700K", bundle=folder / "bundles/bolt")
    assert code == 0, said
    pieces = sorted((tmp_path / "pack").glob("pack.tar.part-*"))
    assert len(pieces) >= 2
    assert {piece.stat().st_size for piece in pieces[:-1]} == {700 << 10}
    with private_network():
        whole = pieces[1].read_bytes()
        pieces[1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert subprocess.run(["sh", tmp_path / "pack/join.sh"], capture_output=True).returncode != 0
        pieces[1].write_bytes(whole)
        subprocess.run(["sh", tmp_path / "pack/join.sh"], capture_output=True, check=True)
        subprocess.run(["tar", "-xf", tmp_path / "pack/pack.tar", "-C", tmp_path], check=True)
        place = tmp_path / f"nnet-edge-{nnet_edge.__version__}-cpu-py{PYTHON}"
        done = install(place, tmp_path / "box")
        assert done.returncode == 0, done.stderr
        assert "nnet-edge stream --config" in done.stdout
        site = tmp_path / f"box/env/lib/python{PYTHON}/site-packages"
        there = {one.metadata["Name"] for one in metadata.distributions(path=[str(site)])}
        assert there == {"nnet-edge", *asked("cpu")}
        assert (tmp_path / "box/line/line.toml").read_text() == line.read_text()
        assert (tmp_path / "box/line/bundles/bolt/manifest.json").is_file()
        assert f"ExecStart={tmp_path}/box/env/bin/nnet-edge" in (tmp_path / "box/nnet-edge.service").read_text()
        again = install(place, tmp_path / "box")
        assert (again.returncode, "is there already" in again.stderr) == (1, True)
        stand_in(place / "wheels", "numpy", "99999")
        assert "that SHA256SUMS does not list" in install(place, tmp_path / "other").stderr
        (place / "wheels/numpy-99999-py3-none-any.whl").unlink()
        (place / "line/bundles/bolt/manifest.json").write_text("{}")
        damaged = install(place, tmp_path / "other")
        assert (damaged.returncode, damaged.stdout) == (1, "")
        assert "line/bundles/bolt/manifest.json: FAILED" in damaged.stderr
        assert not (tmp_path / "other").exists()


def test_what_it_holds(pack: Pack, bundle: Path, tmp_path: Path) -> None:
    code, said = pack("--json")
    assert code == 0, said
    folder = tmp_path / "pack"
    assert {path.name for path in folder.iterdir()} == {"SHA256SUMS", "bundle", "install.sh", "pack.json", "wheels"}
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert sums.keys() == files.keys() - {"SHA256SUMS"}
    assert all(hashlib.sha256(files[name].read_bytes()).hexdigest() == sums[name] for name in sums)
    assert json.loads((folder / "pack.json").read_text())["extras"] == ["cpu"]
    assert "@" not in (folder / "install.sh").read_text().replace('"$@"', "").replace("[cpu]", "")


def test_a_wheel_that_only_the_box_needs_is_packed_and_one_that_it_does_not_is_not(
    quick: None, bundle: Path, wheelhouse: Path, tmp_path: Path
) -> None:
    """pip decides by the markers of the Python that it runs on."""
    house = shutil.copytree(wheelhouse, tmp_path / "house")
    target = Target("cpu", "3.10")
    (house / f"numpy-9999-{TAG}-{TAG}-manylinux2014_x86_64.whl").unlink()
    stand_in(house, "numpy", "9999", ("backport; python_version < '3.11'", "forward>=1; python_version >= '3.11'"))
    stand_in(house, "backport", needs=("deeper[fast]==2.0; platform_machine == 'x86_64'",))
    stand_in(house, "deeper", "2.0", ("speed; extra == 'fast'", "slow; extra == 'other'"))
    for name in ("speed", "slow", "forward", "tomli"):
        stand_in(house, name, "9")
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheels.Wheels(folder, target, house, None).fill(lambda line: None)
    names = {file.name.partition("-")[0] for file in folder.iterdir()}
    assert {"backport", "deeper", "speed", "tomli"} <= names
    assert not {"forward", "slow"} & names


def test_what_cannot_be_packed_is_one_sentence(pack: Pack, bundle: Path, tmp_path: Path) -> None:
    line = tmp_path / "line.toml"
    line.write_text('bundle = "no/bundle"\n[[stream]]\nname = "left"\ncamera.address = "0"\n')
    elsewhere = tmp_path / "deep/line.toml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(line.read_text().replace("no/bundle", str(bundle)))
    refused = {
        ("--python", "3.99"): "cannot be had: No matching distribution found for numpy",
        ("--python", "2.7"): "--python 2.7: give the box's version from 3.10 on",
        ("--python", "3.9"): "--python 3.9: give the box's version",
        ("--line", line): "line.toml: the bundle",
        ("--line", elsewhere): "which lies outside",
        ("--split", "many"): "'many' is no size of a piece",
        ("--wheelhouse", tmp_path / "none"): "--wheelhouse was given twice",
        ("--constraint", tmp_path / "none"): "is not there",
        ("--extra", "tortoise"): "nnet-edge has no such extra",
    }
    for more, words in refused.items():
        code, said = pack(*more)
        last = said.splitlines()[-1]
        assert (code in (1, 2), words in last, last.startswith("nnet-edge: error: ")) == (True, True, True), said
        assert not (tmp_path / "pack").exists()
    code, said = pack(bundle=tmp_path / "nothing")
    assert code == 1
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/mine.txt").write_text("mine")
    code, said = pack()
    assert (code, "is not empty: give another --out" in said) == (2, True)
    assert [path.name for path in (tmp_path / "pack").iterdir()] == ["mine.txt"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(pack: Pack, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("NOT RUN: a small disk needs the right to mount: run as root")
    try:
        code, said = pack(out=disk / "pack")
        assert code == 1
        assert "no space is left" in said.splitlines()[-1]
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_installed_files_become_the_wheel_that_they_came_from(tmp_path: Path, wheelhouse: Path) -> None:
    site, out = tmp_path / "site", tmp_path / "out"
    out.mkdir()
    (pip,) = wheelhouse.glob("pip-*.whl")
    with zipfile.ZipFile(pip) as wheel:
        wheel.extractall(site)
    (info,) = site.glob("*.dist-info")
    dist = metadata.PathDistribution(info)
    wheel_of_installed(dist, out)
    (made,) = out.iterdir()
    with zipfile.ZipFile(pip) as one, zipfile.ZipFile(made) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        assert all(one.read(name) == other.read(name) for name in one.namelist())
    (site / "pip/__init__.py").write_text("changed = True\n")
    with pytest.raises(DataError, match="is not as it was installed: install nnet-edge again"):
        wheel_of_installed(dist, out)


def test_a_jetson_has_tensorrt_from_jetpack_alone() -> None:
    about = metadata.metadata("nnet-edge")
    for python in ("3.10", "3.12"):
        target = Target("jetson", python)
        names = {one.name for one in requirements_of(about, target, target.extras)}  # type: ignore[arg-type]
        assert not [name for name in names if name.startswith("tensorrt")]
        assert "pycuda" in names
    assert "never from pip" in HINTS["jetson"]
    target = Target("rtx", "3.12")
    assert "tensorrt-rtx-cu13" in {one.name for one in requirements_of(about, target, target.extras)}  # type: ignore[arg-type]
    assert set(KINDS) == EXTRAS.keys() == SYSTEMS.keys() == HINTS.keys()


BACKEND = """import pathlib, shutil
def build_wheel(folder, config_settings=None, metadata_directory=None):
    (wheel,) = pathlib.Path().glob("*.whl")
    return pathlib.Path(shutil.copy(wheel, folder)).name
"""


@pytest.mark.parametrize("tag", ["py3-none-any", f"{TAG}-{TAG}-linux_{platform.machine()}"])
def test_tensorrt_rtx_comes_as_source_and_leaves_as_a_wheel_of_any_machine(tmp_path: Path, tag: str) -> None:
    source, house, out = tmp_path / "tensorrt_rtx_cu13-1.0", tmp_path / "house", tmp_path / "out"
    for folder in (source, house, out):
        folder.mkdir()
    stand_in(source, "tensorrt-rtx-cu13", needs=("tensorrt_rtx_cu13_libs==1.0",), tag=tag)
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: tensorrt-rtx-cu13\nVersion: 1.0\n")
    (source / "backend.py").write_text(BACKEND)
    (source / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    with tarfile.open(house / f"{source.name}.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    made = Wheels(out, Target("rtx", "3.12"), house, None)
    if tag == "py3-none-any":
        assert made._make_wheel(Requirement("tensorrt-rtx-cu13>=1"), lambda _: None) == ["tensorrt_rtx_cu13_libs==1.0"]
        assert [file.name for file in out.iterdir()] == ["tensorrt_rtx_cu13-1.0-py3-none-any.whl"]
    else:
        with pytest.raises(DataError, match=r"is of this machine, not of Python 3\.12"):
            made._make_wheel(Requirement("tensorrt-rtx-cu13>=1"), lambda _: None)


@pytest.mark.slow
def test_the_real_pack_streams_without_a_network(camera_box: Path, second_run: Path, tmp_path: Path) -> None:
    """Installed by install.sh of a pack with the real wheels, into an empty environment with the network off."""
    folder = second_run / "data/bad/stain"
    with private_network():
        command = [camera_box / "nnet-edge", "stream", folder, "--bundle", camera_box.parents[1] / "bundle"]
        lines = tmp_path / "verdicts.jsonl"
        done = subprocess.run([*command, "--json", lines], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert len(lines.read_text().splitlines()) == len(list(folder.iterdir()))


@pytest.mark.slow
def test_the_wheel_of_the_source_tree_holds_the_scripts(camera_pack: Path) -> None:
    (wheel,) = (camera_pack / "wheels").glob("nnet_edge-*.whl")
    with zipfile.ZipFile(wheel) as content:
        assert {"nnet_edge/cli/pack/install.sh", "nnet_edge/runtime/stream/line.py"} <= set(content.namelist())
    assert metadata_of(wheel)["Version"] == nnet_edge.__version__
    assert project_wheel is wheels.project_wheel
