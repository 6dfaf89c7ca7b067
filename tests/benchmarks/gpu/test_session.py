"""The session on a GPU and the kit for it, without a GPU: order, time-outs, results that are whole after every step."""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from click import Command
from click.testing import CliRunner

from nnet_edge.benchmarks.gpu import all as measuring
from nnet_edge.benchmarks.gpu import kernels, kit, question, session
from nnet_edge.benchmarks.gpu.kit import copy_project, make_kit, require_small, wheel_names
from nnet_edge.benchmarks.gpu.session import STEPS, Step, run_session, support_of
from nnet_edge.benchmarks.harness import random_bundle
from nnet_edge.benchmarks.line import film, stages
from nnet_edge.cli.main import commands
from nnet_edge.errors import ConfigError
from nnet_edge.gpu import GpuFacts

PYTHON = ("{python}", "-c")
H200 = GpuFacts("NVIDIA H200", "9.0", "580.1", "13.0", 141_000)
MODULES: dict[str, Command] = {
    "nnet_edge.benchmarks.gpu.question": question.command, "nnet_edge.benchmarks.gpu.kernels": kernels.command,
    "nnet_edge.benchmarks.gpu": measuring.command, "nnet_edge.benchmarks.random_bundle": random_bundle.command,
    "nnet_edge.benchmarks.line.stages": stages.command, "nnet_edge.benchmarks.line.film": film.command,
}  # fmt: skip


def test_every_step_is_a_command_that_is_understood(tmp_path: Path) -> None:
    """Names of modules, commands, options: as click parses them, without running any."""
    (tmp_path / "data").mkdir()
    for step in STEPS:
        places = {"out": tmp_path, "kit": tmp_path, "python": "python", "bin": "bin", "images": tmp_path}
        words = [part.format(**places) for part in step.command]
        if words[0] == "bin/nnet-edge":
            command = commands.get_command(
                commands.make_context("nnet-edge", ["--help"], resilient_parsing=True), words[1]
            )
            assert command is not None
            command.make_context(words[1], words[2:])
        elif words[2] != "pytest":
            MODULES[words[2]].make_context(words[2], words[3:])
    assert [step.name for step in STEPS][:3] == ["question", "tests", "kernels"]
    assert all(step.help != step.command for step in STEPS)


def test_a_step_that_hangs_or_fails_ends_itself_alone_and_results_are_whole(tmp_path: Path) -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    look = "import json, pathlib; print(json.dumps(len(json.loads(pathlib.Path('{out}/session.json').read_text())['steps'])))"
    steps = (
        Step("hangs", (*PYTHON, f"{child} print('begun', file=sys.stderr, flush=True); time.sleep(60)"), 2),
        Step("fails", (*PYTHON, "import sys; sys.stdin.read(); print('no luck', file=sys.stderr); sys.exit(3)"), 20),
        Step("chats", (*PYTHON, "print('x' * 300_000); print('{{\"a\": 1}}')"), 20),
        Step("looks", (*PYTHON, look), 20),
    )
    began = time.monotonic()
    report = run_session(tmp_path / "out", tmp_path, False, 60, steps)
    assert time.monotonic() - began < 30
    hung, failed, chatted, looked = report["steps"]
    assert (hung["timed_out"], hung["last_lines"]) == (True, ("begun",))
    assert (failed["code"], failed["last_lines"], failed["timed_out"]) == (3, ("no luck",), False)
    assert chatted["said"] == {"a": 1}
    assert looked["said"] == 3  # what was there while it ran
    assert json.loads((tmp_path / "out/session.json").read_text())["note"].startswith("nothing ran on a GPU")
    assert report["support"] == {}


def test_what_has_no_time_left_is_not_begun(tmp_path: Path) -> None:
    report = run_session(tmp_path, tmp_path, False, 0.5, (Step("late", (*PYTHON, "raise SystemExit"), 9),))
    assert report["steps"][0]["code"] is None
    assert report["steps"][0]["why"] == "no time is left"


def test_the_support_table_gets_what_went_well_alone() -> None:
    refuses = {"name": "question", "said": [{"flavour": "tensorrt_rtx", "runs": False}], "code": 0}
    steps = [refuses, {"name": "tests", "code": 0}, {"name": "training", "code": 1}, {"name": "stream", "code": 0}]
    assert support_of(steps, H200, "2026-12-24") == {
        "CUDA kernels": "agree with their references on an NVIDIA H200 (2026-12-24)",
        "ONNX Runtime on CUDA": "ran on an NVIDIA H200 (2026-12-24)",
        "TensorRT-RTX": "refuses an NVIDIA H200 (2026-12-24)",
    }


def test_a_session_without_a_gpu_must_be_dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(session.command, [str(tmp_path / "out")])
    assert isinstance(done.exception, ConfigError)
    assert "say --dry-run" in str(done.exception)


def test_the_first_steps_begin_without_a_gpu(tmp_path: Path) -> None:
    """The dry run itself, of two of its steps; `sh run.sh` with DRY=1 begins them all."""
    steps = tuple(step for step in STEPS if step.name in ("question", "measure"))
    report = run_session(tmp_path, Path.cwd(), True, 120, steps)
    assert [step["code"] for step in report["steps"]] == [0, 0], report["steps"]


def test_the_kit_holds_project_and_data_and_its_scripts_are_sound(tmp_path: Path) -> None:
    data = tmp_path / "parts/good"
    data.mkdir(parents=True)
    (data / "one.png").write_bytes(b"picture")
    pieces = make_kit(tmp_path / "out", "3.12", 300_000, data.parent, with_wheels=False)
    assert len(pieces) > 3
    assert all(piece.stat().st_size <= 300_000 for piece in pieces)
    done = subprocess.run(["sh", tmp_path / "out/join.sh", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "kit.tar") as archive:
        names = set(archive.getnames())
        build = archive.extractfile("build_pycuda.sh")
        assert build is not None
        (tmp_path / "build_pycuda.sh").write_bytes(build.read())
    assert {"setup.py", "runtime/runners/trt/kernels/staged.h", "data/good/one.png", "wheels"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv"))]
    for script in (tmp_path / "out/run.sh", tmp_path / "build_pycuda.sh"):
        assert subprocess.run(["sh", "-n", script], capture_output=True, text=True).stderr == ""
    assert "python3.12 -m venv" in (tmp_path / "out/run.sh").read_text()


def test_data_that_may_not_travel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        require_small(tmp_path / "absent")
    with pytest.raises(ConfigError, match="holds 0 bytes of pictures"):
        require_small(tmp_path)
    (tmp_path / "large.png").write_bytes(b"x" * 100)
    monkeypatch.setattr(kit, "MOST_DATA", 99)
    with pytest.raises(ConfigError, match="holds 100 bytes of pictures: give up to 99"):
        require_small(tmp_path)
    monkeypatch.setattr(kit, "ROOT", tmp_path)
    with pytest.raises(ConfigError, match="is no checkout of nnet-edge"):
        copy_project(tmp_path / "copy")


def test_wheels_are_what_a_session_needs_in_the_versions_of_the_constraints() -> None:
    names = wheel_names((kit.ROOT / "constraints.txt").read_text(encoding="utf-8"))
    packages = {name.partition("==")[0].lower() for name in names}
    assert packages >= {
        "numpy",
        "openvino",
        "onnx",
        "timm",
        "huggingface_hub",
        "pytest",
        "pluggy",
        "onnxruntime-gpu",
        "wheel",
    }
    assert not packages & {"torch", "onnxruntime", "pycuda", "ruff", "mypy", "starlette", "ray", "mlflow"}
    assert all("==" in name for name in names if name not in ("onnxruntime-gpu", "setuptools", "wheel"))


def test_nothing_waits_for_what_is_typed() -> None:
    assert "</dev/null" in kit.RUN
