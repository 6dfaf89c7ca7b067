"""The house as it stands: who imports whom, what the command line loads, what the wheel holds and runs with."""

from __future__ import annotations

import ast
import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("export", "runtime", "calibration", "benchmarks")
ONE_IMPORTER = {  # heavy library -> the only module of a part that may import it
    "openvino": ("nnet_edge.runtime.runners.openvino_runner",),
    "onnxruntime": (
        "nnet_edge.runtime.runners.onnx_runner",
        "nnet_edge.runtime.runners.trt.cuda_engine",
        "nnet_edge.calibration.ranges",
    ),
    "modelopt": ("nnet_edge.calibration.quantize",),
    "starlette": ("nnet_edge.runtime.web.app", "nnet_edge.runtime.serve.app"),
    "uvicorn": ("nnet_edge.runtime.web.listening",),
    "prometheus_client": ("nnet_edge.runtime.web.metrics",),
    "paho": ("nnet_edge.runtime.sinks.mqtt",),
    "pymodbus": ("nnet_edge.runtime.sinks.modbus",),
    "asyncua": ("nnet_edge.runtime.sinks.opcua",),
    "gpiod": ("nnet_edge.runtime.sinks.gpio",),
    "harvesters": ("nnet_edge.runtime.sources.gentl",),
    "genicam": ("nnet_edge.runtime.sources.gentl",),
    "av": ("nnet_edge.runtime.pyav_video",),
    "simplejpeg": ("nnet_edge.jpeg",),
    "pycocotools": ("nnet_edge.data.shapes",),
    "yaml": ("nnet_edge.data.tools.yolo",),
    "pycuda": ("nnet_edge.runtime.runners.trt.kernels",),
    "nvidia": ("nnet_edge.runtime.gpu_jpegs",),
    "torchvision": ("nnet_edge.methods.torchvision_operators",),
    "timm": ("nnet_edge.methods.backbone",),
    "onnx_graphsurgeon": ("nnet_edge.export.onnx_graph",),
    "mlflow": ("nnet_edge.training.trackers.in_mlflow",),
    "ray": ("nnet_edge.cli.fleet.cluster",),
    "wandb": ("nnet_edge.training.trackers.in_wandb",),
}
NEVER_BELOW_RUNTIME = {"torch", "torchvision", "timm", "scipy", "skimage", "matplotlib", "sklearn"}
RANKS = (  # an arrow points to a folder further down, or stays in its own; in a row, none points to its neighbour
    ("nnet_edge.cli",),
    ("nnet_edge.benchmarks",),
    ("nnet_edge.export",),
    ("nnet_edge.calibration",),
    ("nnet_edge.evaluation",),
    ("nnet_edge.training",),
    ("nnet_edge.methods",),
    ("nnet_edge.data",),
    ("nnet_edge.runtime.serve",),
    ("nnet_edge.runtime.web",),
    ("nnet_edge.runtime.inspector",),
    ("nnet_edge.runtime.stream",),
    ("nnet_edge.runtime.sources", "nnet_edge.runtime.sinks"),
    ("nnet_edge.runtime.history",),
    ("nnet_edge.runtime",),
    ("nnet_edge.runtime.runners",),
    ("nnet_edge.settings",),
    ("nnet_edge",),
)


FRONT_DOOR = "nnet_edge"  # its names come from above when they are asked for; type checkers are told where from


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, prefix in [("nnet_edge", "nnet_edge"), *((part, f"nnet_edge.{part}") for part in PARTS)]:
        for path in (ROOT / folder).rglob("*.py"):
            names = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((prefix, *(name for name in names if name != "__init__")))] = path
    return found


@functools.cache
def imports_of(path: Path, only_at_start: bool = False) -> set[str]:
    """The modules that the file imports; `only_at_start` leaves out those inside functions and for type checkers."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if only_at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        if only_at_start and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
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


def arrows(only_at_start: bool = False) -> dict[str, set[str]]:
    """Module -> modules of this package that it imports."""
    known = modules()
    return {
        name: {
            target
            for target in imports_of(path, only_at_start or name == FRONT_DOOR)
            if target in known and target != name
        }
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


def place_of(module: str) -> tuple[int, str]:
    """The rank of the folder that the module lies in, 0 on top, and the folder."""
    folders = [(rank, folder) for rank, row in enumerate(RANKS) for folder in row]
    return max(
        ((rank, folder) for rank, folder in folders if module == folder or module.startswith(f"{folder}.")),
        key=lambda place: len(place[1]),
    )


def climbing(graph: dict[str, set[str]]) -> list[str]:
    """The arrows from one folder to another that is not further down."""
    found = []
    for module, targets in graph.items():
        rank, folder = place_of(module)
        for target in targets:
            target_rank, target_folder = place_of(target)
            if folder != target_folder and target_rank <= rank:
                found.append(f"{module} -> {target}")
    return sorted(found)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The modules that lead to themselves."""
    graph = {name: targets - {"nnet_edge"} for name, targets in graph.items()}
    return sorted(name for name in graph if name in reachable(name, graph))


def test_no_module_leads_to_itself() -> None:
    assert not circles(arrows())


def test_no_arrow_between_folders_climbs() -> None:
    assert not climbing(arrows())


def test_what_climbs_or_turns_in_a_circle_would_be_found() -> None:
    assert climbing({"nnet_edge.settings.line": {"nnet_edge.runtime.stream.line"}})
    assert climbing({"nnet_edge.runtime.sinks.video": {"nnet_edge.runtime.sources.video"}})
    assert climbing({"nnet_edge.bundle": {"nnet_edge.settings.runner"}})
    assert not climbing({"nnet_edge.cli.main": {"nnet_edge.bundle", "nnet_edge.cli.options"}})
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == ["a", "b"]


def test_folders_do_not_import_each_other_both_ways() -> None:
    pairs = {(place_of(module)[1], place_of(target)[1]) for module, targets in arrows().items() for target in targets}
    assert not [(one, other) for one, other in pairs if one < other and (other, one) in pairs]


def test_no_torch_below_runtime() -> None:
    graph, known = arrows(only_at_start=True), modules()
    for module in (name for name in graph if part_of(name) == "runtime"):
        for name in {module} | reachable(module, graph):
            heavy = {
                target.split(".")[0] for target in imports_of(known[name], only_at_start=True)
            } & NEVER_BELOW_RUNTIME
            assert not heavy, f"{module} leads to {name}, which imports {heavy}"


def test_one_file_knows_each_heavy_library() -> None:
    for module, path in modules().items():
        for target in imports_of(path):
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


def test_the_package_starts_light_and_its_front_door_gives_every_name() -> None:
    probe = (
        "import sys, nnet_edge; loaded = set(sys.modules); "
        "print(*sorted(name for name in nnet_edge.__all__ if getattr(nnet_edge, name) is None)); print(*loaded)"
    )
    finished = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    missing, loaded = finished.stdout.splitlines()
    assert not missing
    assert not {"torch", "cv2", "numpy", "PIL", "click", "rich", "openvino", "logging"} & set(loaded.split())


@pytest.mark.alone
def test_the_import_takes_less_than_100_ms_of_cpu() -> None:
    """The interpreter's own start included."""
    assert min(cpu_s([sys.executable, "-c", "import nnet_edge"]) for _ in range(5)) < 0.1


@pytest.mark.alone
def test_help_takes_less_than_400_ms_of_cpu() -> None:
    assert min(cpu_s([Path(sys.executable).with_name("nnet-edge"), "--help"]) for _ in range(3)) < 0.4


def cpu_s(command: list[Path | str]) -> float:
    """Seconds of a processor that the command takes, in the system too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_the_wheel_runs_a_bundle_without_torch(
    camera_box: Path, trained_run: Path, parts_folder: Path, tmp_path: Path
) -> None:
    installed = json.loads(
        subprocess.check_output(
            [sys.executable, "-m", "pip", "--python", camera_box / "python", "list", "--format=json"], text=True
        )
    )
    names = {package["name"].lower() for package in installed}
    assert "torch" not in names
    assert "nnet-edge" in names
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for kind in ("openvino", "onnxruntime"):
        lines = tmp_path / f"{kind}.jsonl"
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
        "runtime.web.metrics",
        "runtime.serve.app",
        "runtime.serve.metrics",
    )  # pycuda and nvcc; Starlette and prometheus_client: the extra that brings them is named
    names = [name for name in modules() if part_of(name) == "runtime" and not any(part in name for part in needs_more)]
    probe = (
        "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; assert 'torch' not in sys.modules"
    )
    finished = subprocess.run(
        [camera_box / "python", "-c", probe, *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
