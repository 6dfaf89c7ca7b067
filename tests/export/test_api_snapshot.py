"""The committed snapshots can be made again from the wheels of the real bindings, and are then the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType

import pytest

from tests.export.api_snapshot import functions_of, snapshot, to_json

COMMITTED = Path(__file__).parent.parent / "data" / "tensorrt_api"
OFFLINE = ("connection", "network", "resolve host", "timed out", "proxy")


class Level(IntEnum):
    HIGH = 2
    LOW = 1


class Log:
    Severity = Level

    def write(self) -> None: ...
    def _private(self) -> None: ...


def test_classes_enums_and_values_are_written_down() -> None:
    module = ModuleType("bindings")
    module.Log, module.Level, module.number, module._hidden = Log, Level, 7, 8  # type: ignore[attr-defined]
    module.other = ModuleType("other")  # type: ignore[attr-defined]
    levels = {"HIGH": 2, "LOW": 1}
    found = snapshot(module)
    assert found == {"Level": levels, "Log": ["Severity", "write"], "Log.Severity": levels, "number": None}
    whole = {"flavour": "tensorrt", "version": "10.3.0", "made_from": {"wheel": "x.whl"}, "names": found}
    assert json.loads(to_json(whole)) == whole


def test_functions_of_the_package_are_found() -> None:
    assert functions_of(b"def nptype(kind): ...\ndef _hidden(): ...\nclass Other: ...\n") == {"nptype": None}


@pytest.mark.slow
@pytest.mark.parametrize("requirement", ["tensorrt-cu12-bindings==10.3.0", "tensorrt-cu13-bindings==11.4.0.106"])
def test_a_snapshot_can_be_made_again(requirement: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("readelf") is None or sys.platform != "linux":
        pytest.skip("NOT RUN: a wheel's bindings need gcc and readelf to be loaded without TensorRT")
    known_path = COMMITTED / f"tensorrt-{'.'.join(requirement.split('==')[1].split('.')[:2])}.json"
    out = tmp_path / "made.json"
    command = [sys.executable, "-m", "tests.export.api_snapshot", requirement, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=COMMITTED.parents[2])
    if done.returncode != 0 and any(word in done.stderr.lower() for word in (*OFFLINE, "no wheel")):
        pytest.skip(f"NOT RUN: no wheel of {requirement} for this Python can be had here")
    assert done.returncode == 0, done.stderr
    made, known = (json.loads(path.read_text(encoding="utf-8")) for path in (out, known_path))
    assert made["names"] == known["names"]
    assert (made["flavour"], made["version"]) == (known["flavour"], known["version"])
