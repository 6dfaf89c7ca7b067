"""The box at the camera: only the runners' own files know their library, and nothing here knows torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nnet_edge
import nnet_edge.runtime
import nnet_edge.runtime.sinks

BOX = """
import importlib
from importlib.machinery import PathFinder

find_installed = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in {absent} else find_installed(name, *rest)
"""
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "scipy",
    "skimage",
    "matplotlib",
    "sklearn",
    "onnx",
    "tensorrt",
    "pycuda",
    "paho",
}
RUNNERS = {"openvino", "onnxruntime"}
BY_LIBRARY = {
    "openvino_runner": "openvino",
    "onnx_runner": "onnxruntime",
    "cuda_engine": "onnxruntime",
}  # module -> the library that it needs
RUNTIME = Path(nnet_edge.runtime.__file__).parent
ELSEWHERE = {"web", "kernels"}  # what a page and a GPU need is no part of every box
NEUTRAL = sorted(
    ".".join(path.relative_to(RUNTIME).with_suffix("").parts)
    for path in RUNTIME.rglob("*.py")
    if path.stem not in {"__init__", *BY_LIBRARY} and not ELSEWHERE & set(path.parts)
)


def run_in_box(code: str, absent: set[str]) -> subprocess.CompletedProcess[str]:
    """The outcome of `code` where the libraries of `absent` are not installed."""
    script = BOX.format(absent=sorted(absent)) + code
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_every_other_module_works_without_any_runner_library() -> None:
    code = "".join(f"importlib.import_module('nnet_edge.runtime.{name}')\n" for name in NEUTRAL)
    assert len(NEUTRAL) > 40
    done = run_in_box(code, HEAVY | RUNNERS)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for package in (nnet_edge, nnet_edge.runtime.sinks):
        assert all(hasattr(package, name) for name in package.__all__)
        assert not hasattr(package, "nothing")
    assert set(nnet_edge.runtime.sinks.HOMES) == set(nnet_edge.runtime.sinks.__all__)


@pytest.mark.parametrize("library", sorted(RUNNERS))
def test_a_stream_runs_with_one_runner_library_alone(graph: object, library: str) -> None:
    code = f"""
from pathlib import Path
from nnet_edge.settings.stream import VerdictSettings
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.stream.running import run

runner = load_runner(Path({str(graph)!r}))
report = run(open_source("synthetic:3"), runner, [], VerdictSettings(0.9))
assert (runner.name, report.frames) == ({library!r}, 3)
"""
    done = run_in_box(code, HEAVY | RUNNERS - {library})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kind", "says"), [("auto", "neither openvino nor"), ("openvino", "openvino is not")])
def test_a_missing_library_names_the_extra(graph: object, kind: str, says: str) -> None:
    code = f"""
from pathlib import Path
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.errors import MissingExtraError
from nnet_edge.runtime.runners.base import load_runner

try:
    load_runner(Path({str(graph)!r}), RunnerSettings(kind={kind!r}))
except MissingExtraError as error:
    print(error)
"""
    done = run_in_box(code, RUNNERS)
    assert done.stdout.startswith(says), done.stderr
    assert "pip install 'nnet-edge[cpu]'" in done.stdout
