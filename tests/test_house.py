"""The house as it stands: who imports whom, what the command line loads, what the wheel holds and runs with."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("export", "runtime", "calibration", "benchmarks")
ONE_IMPORTER = {  # heavy library -> the only module of a part that may import it
    "openvino": ("nnet_edge.runtime.runners.openvino_runner",),
    "onnxruntime": ("nnet_edge.runtime.runners.onnx_runner", "nnet_edge.calibration.probe"),
    "modelopt": ("nnet_edge.calibration.modelopt_ranges",),
    "starlette": ("nnet_edge.runtime.web.app", "nnet_edge.runtime.web.app"),
    "uvicorn": ("nnet_edge.runtime.web.server",),
    "prometheus_client": ("nnet_edge.runtime.web.metrics",),
    "paho": ("nnet_edge.runtime.sinks.mqtt",),
    "simplejpeg": ("nnet_edge.runtime.sources.jpeg",),
    "pycuda": ("nnet_edge.runtime.runners.trt.kernels",),
    "torchvision": ("nnet_edge.methods.torchvision_operators",),
    "timm": ("nnet_edge.methods.backbone",),
    "onnx_graphsurgeon": ("nnet_edge.export.surgery",),
}
NEVER_BELOW_RUNTIME = {"torch", "torchvision", "timm", "scipy", "skimage", "matplotlib", "sklearn"}
RANK = {"benchmarks": 5, "export": 4, "calibration": 3, "runtime": 2}  # an arrow may only point to a lower rank


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, prefix in [("nnet_edge", "nnet_edge"), *((part, f"nnet_edge.{part}") for part in PARTS)]:
        for path in (ROOT / folder).rglob("*.py"):
            names = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((prefix, *(name for name in names if name != "__init__")))] = path
    return found


def imports_of(path: Path, only_at_start: bool) -> set[str]:
    """The modules that the file imports; `only_at_start` leaves out those inside functions and for type checkers."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if only_at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def arrows(only_at_start: bool) -> dict[str, set[str]]:
    """Module -> modules of this package that it imports."""
    known = modules()
    return {
        name: {target for target in imports_of(path, only_at_start) if target in known and target != name}
        for name, path in known.items()
    }


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    """All modules that `start` leads to."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def part_of(module: str) -> str | None:
    """The top-level folder that the module lies in, None for the words and the model."""
    name = module.split(".")[1] if "." in module else ""
    return name if name in PARTS else None


def test_there_is_no_circle() -> None:
    graph = {name: targets - {"nnet_edge"} for name, targets in arrows(only_at_start=False).items()}
    circles = sorted(name for name in graph if name in reachable(name, graph))
    assert not circles, f"these modules import themselves in a circle: {circles}"


def test_arrows_between_the_parts_point_one_way() -> None:
    wrong = []
    for module, targets in arrows(only_at_start=False).items():
        for target in targets:
            ours, theirs = part_of(module), part_of(target)
            if ours and theirs and ours != theirs and RANK[ours] <= RANK[theirs]:
                wrong.append(f"{module} -> {target}")
            if ours in ("runtime", "calibration") and target.startswith(
                ("nnet_edge.methods", "nnet_edge.training.loop")
            ):
                wrong.append(f"{module} -> {target}")
    assert not wrong


def test_no_torch_below_runtime() -> None:
    graph = arrows(only_at_start=False)
    known = modules()
    for module in (name for name in graph if part_of(name) == "runtime"):
        for name in {module} | reachable(module, arrows(only_at_start=True)):
            heavy = {
                target.split(".")[0] for target in imports_of(known[name], only_at_start=True)
            } & NEVER_BELOW_RUNTIME
            assert not heavy, f"{module} leads to {name}, which imports {heavy}"


def test_one_file_knows_each_heavy_library() -> None:
    for module, path in modules().items():
        for target in imports_of(path, only_at_start=False):
            owners = ONE_IMPORTER.get(target.split(".")[0], (module,))
            assert module in owners, f"{module} imports {target}: only {owners} may"


def test_every_folder_with_code_has_an_init() -> None:
    folders = {path.parent for path in modules().values()}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_the_command_line_starts_light() -> None:
    probe = "import sys, nnet_edge.cli as c; c.run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    finished = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = {name.strip("'") for name in finished.stderr.strip("[]\n").split(", ")}
    assert not loaded & {
        "torch",
        "cv2",
        "numpy",
        "PIL",
        "pycuda",
        "tensorrt",
        "tensorrt_rtx",
        "openvino",
        "onnxruntime",
    }
    assert "Usage" in finished.stdout


def test_help_takes_less_than_400_ms_of_cpu() -> None:
    used = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([Path(sys.executable).with_name("nnet-edge"), "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(used) < 0.4


@pytest.fixture(scope="session")
def camera_box(made_once: Callable[..., Path]) -> Path:
    """An empty environment with the wheel and its runtime extra; gives its folder of programs."""
    return made_once("box", fill_box) / "env" / "bin"


def fill_box(folder: Path) -> None:
    quiet = ["-q", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    subprocess.run(
        [folder / "env/bin/python", "-m", "pip", "install", *quiet, f"{wheel}[cpu]", "-c", ROOT / "constraints.txt"],
        check=True,
    )


@pytest.mark.slow
def test_the_wheel_runs_a_bundle_without_torch(
    camera_box: Path, trained_run: Path, parts_folder: Path, tmp_path: Path
) -> None:
    installed = json.loads(
        subprocess.check_output([camera_box / "python", "-m", "pip", "list", "--format=json"], text=True)
    )
    names = {package["name"].lower() for package in installed}
    assert "torch" not in names
    assert "nnet-edge" in names
    lines = tmp_path / "lines.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for kind in ("openvino", "onnxruntime"):
        command = [camera_box / "nnet-edge", "stream", parts_folder / "bad/stain", "--bundle", trained_run / "bundle"]
        finished = subprocess.run(
            [*command, "--runner", kind, "--json", lines], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
        assert len(lines.read_text().splitlines()) == 4


@pytest.mark.slow
def test_every_module_of_the_runtime_imports_on_the_camera_box(camera_box: Path, tmp_path: Path) -> None:
    needs_more = (
        "kernels",
        "runtime.web.app",
        "runtime.web.answers",
    )  # pycuda and nvcc; Starlette: the extra that brings it is named
    names = [name for name in modules() if part_of(name) == "runtime" and not any(part in name for part in needs_more)]
    probe = (
        "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; assert 'torch' not in sys.modules"
    )
    finished = subprocess.run(
        [camera_box / "python", "-c", probe, *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
