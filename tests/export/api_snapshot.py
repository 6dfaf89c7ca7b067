"""API snapshot: the names of one TensorRT version, from its bindings, to check code against versions that are not here.

    python -m tests.export.api_snapshot tensorrt-cu12-bindings==10.3.0 tests/data/tensorrt_api/tensorrt-10.3.json
    python -m tests.export.api_snapshot tensorrt_rtx tests/data/tensorrt_api/tensorrt_rtx-1.7.json

The first form takes the wheel of the bindings through pip, the second what is installed here (on a Jetson: `tensorrt`). The
bindings of a wheel load without TensorRT's own libraries: empty ones, compiled here, stand in for them, since no function
of theirs is called when a name is looked up. Needs gcc and readelf for a wheel.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from nnet_edge.errors import ConfigError, NnetEdgeError
from nnet_edge.runtime.runners.trt.library import FLAVOURS

BINDINGS = re.compile(r"(tensorrt_bindings|tensorrt_rtx_bindings)/(tensorrt|tensorrt_rtx)\.so$")
SYSTEM_LIBRARIES = re.compile(r"lib(stdc\+\+|m|gcc_s|c|rt|dl|pthread)\.so|ld-linux")
ENTRY_POINTS = re.compile(r"(create|get|init)(Infer|Nv|Builder|Plugin|Lib)\w*")  # what the bindings ask of TensorRT


def snapshot(module: ModuleType) -> dict[str, Any]:
    """Every public name of the module: of a class its members, of an enum their numbers, null for the rest."""
    names: dict[str, Any] = {}
    for name in sorted(public(module)):
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            continue
        if not isinstance(value, type):
            names[name] = None
        elif members := getattr(value, "__members__", None):
            names[name] = {member: int(number) for member, number in sorted(members.items())}
        else:
            names[name] = sorted(public(value))
            for member in names[name]:
                inner = getattr(value, member)
                if isinstance(inner, type) and (numbers := getattr(inner, "__members__", None)):
                    names[f"{name}.{member}"] = {word: int(number) for word, number in sorted(numbers.items())}
    return names


def public(thing: object) -> Iterable[str]:
    """The names of `thing` that are meant for others."""
    return [name for name in dir(thing) if not name.startswith("_")]


def snapshot_of_wheel(requirement: str, folder: Path) -> dict[str, Any]:
    """The snapshot of the bindings that pip finds for `requirement`, "tensorrt-cu12-bindings==10.3.0"."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    finished = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    if finished.returncode != 0:
        raise ConfigError(f"pip finds no wheel for {requirement}: {finished.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if BINDINGS.search(name)]
        binary = Path(archive.extract(name, folder))
    stand_in(binary, folder)
    loader = ExtensionFileLoader(binary.stem, str(binary))
    spec = spec_from_loader(binary.stem, loader)
    assert spec is not None  # a loader was given
    module = module_from_spec(spec)
    loader.exec_module(module)
    with zipfile.ZipFile(wheel) as archive:
        functions = functions_of(archive.read(str(Path(name).with_name("__init__.py"))))
    origin = {"wheel": wheel.name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    return head(binary.stem, wheel.name.split("-")[1], origin) | {"names": snapshot(module) | functions}


def functions_of(source: bytes) -> dict[str, None]:
    """The public functions of the bindings' own `__init__.py` (nptype, for one), as a snapshot names them."""
    names = (node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return dict.fromkeys(name for name in names if not name.startswith("_"))


def stand_in(binary: Path, folder: Path) -> None:
    """Load an empty library for each one of TensorRT's that `binary` needs: the loader asks for them by their name alone."""
    import ctypes

    dynamic = subprocess.check_output(["readelf", "--dynamic", "--wide", str(binary)], text=True)
    needed = [name for name in re.findall(r"NEEDED.*\[(.+)\]", dynamic) if not SYSTEM_LIBRARIES.match(name)]
    symbols = subprocess.check_output(["readelf", "--dyn-syms", "--wide", str(binary)], text=True)
    wanted = sorted({name for name in re.findall(r"UND (\w+)$", symbols, re.MULTILINE) if ENTRY_POINTS.fullmatch(name)})
    source = folder / "empty.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in wanted))
    for name in needed:
        library = folder / name
        subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", library, source], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def snapshot_of_installed(flavour: str) -> dict[str, Any]:
    """The snapshot of the flavour that is installed here."""
    importlib.import_module(flavour)
    module = importlib.import_module(f"{flavour}_bindings.{flavour}")
    functions = functions_of(Path(module.__file__ or "").with_name("__init__.py").read_bytes())
    version = str(importlib.import_module(flavour).__version__)
    return head(flavour, version, {"installed": flavour}) | {"names": snapshot(module) | functions}


def head(flavour: str, version: str, origin: dict[str, str]) -> dict[str, Any]:
    """What the names are of."""
    return {"flavour": flavour, "version": version, "made_from": origin}


def to_json(found: dict[str, Any]) -> str:
    """The snapshot as JSON with one line a name, so that two versions can be compared line by line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in found["names"].items()]
    start = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in found.items() if name != "names"]
    return "\n".join(["{", *start, ' "names": {', ",\n".join(lines), " }", "}", ""])


@click.command()
@click.argument("what")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def command(what: str, out: Path) -> None:
    """Write the names of WHAT, an installed flavour or a requirement of a bindings wheel, to OUT."""
    try:
        with tempfile.TemporaryDirectory(prefix="nnet-edge-api-") as folder:
            found = snapshot_of_installed(what) if what in FLAVOURS else snapshot_of_wheel(what, Path(folder))
    except (NnetEdgeError, ImportError, OSError, subprocess.CalledProcessError) as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(to_json(found), encoding="utf-8")
    click.echo(f"{out}: {found['flavour']} {found['version']}, {len(found['names'])} names")


if __name__ == "__main__":
    command()
