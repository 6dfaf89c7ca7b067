"""Every name of TensorRT that the code uses, held against the snapshots of the versions that it supports.

Read from the source: attributes of `trt`, and of variables that are named after TensorRT's classes. How a snapshot is made:
tests/export/api_snapshot.py.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.export.engine import DATA_DEPENDENT
from nnet_edge.export.engine_settings import RTX_TARGETS

ROOT = Path(__file__).parent.parent.parent
SNAPSHOTS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "tests/data/tensorrt_api").glob("*.json"))
}
NAMES = {name: snapshot["names"] for name, snapshot in SNAPSHOTS.items()}
EVERYWHERE = {
    "tensorrt-10.3", "tensorrt-10.7", "tensorrt-10.13", "tensorrt-10.16", "tensorrt-11.4", "tensorrt_rtx-1.7",
}  # fmt: skip
SINCE_10_13 = {"tensorrt-10.13", "tensorrt-10.16", "tensorrt-11.4", "tensorrt_rtx-1.7"}
ONLY_RTX = {"tensorrt_rtx-1.7"}
GUARDED = {  # used behind a question for the flavour or a hasattr -> where it exists
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": SINCE_10_13,
    "ComputeCapability": ONLY_RTX,
    "ComputeCapability.CURRENT": ONLY_RTX,
    "IBuilderConfig.num_compute_capabilities": ONLY_RTX,
    "IBuilderConfig.set_compute_capability": ONLY_RTX,
    "ICudaEngine.create_runtime_config": SINCE_10_13,
    "IRuntimeConfig.cuda_graph_strategy": ONLY_RTX,
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": ONLY_RTX,
    "IRuntimeConfig.create_runtime_cache": ONLY_RTX,
    "IRuntimeConfig.set_runtime_cache": ONLY_RTX,
    "IRuntimeConfig.set_execution_context_allocation_strategy": SINCE_10_13,
    "CudaGraphStrategy": ONLY_RTX,
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": ONLY_RTX,
    "DynamicShapesKernelSpecializationStrategy": ONLY_RTX,
    "DynamicShapesKernelSpecializationStrategy.EAGER": ONLY_RTX,
}
CLASSES = {  # what a variable is called -> what it is
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "complaint": "ParserError",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "timings": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "inspector": "EngineInspector",
}
SOURCES = sorted(
    path
    for part in ("runtime", "export", "benchmarks")
    for path in (ROOT / part).rglob("*.py")
    if re.search(r"\btrt\b|tensorrt", path.read_text(encoding="utf-8"))
)


def names_used(source: str) -> set[str]:
    """The names of TensorRT in `source`, as "Builder.create_network" or "ILogger.Severity.ERROR"."""
    tree = ast.parse(source)
    knows_tensorrt = any(
        isinstance(node, ast.Name | ast.arg | ast.alias) and _name(node) in ("trt", "TensorrtLibrary")
        for node in ast.walk(tree)
    )
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = _parts(node)
            if "trt" in parts[:-1]:
                found.add(".".join(parts[parts.index("trt") + 1 :]))
            elif knows_tensorrt and len(parts) == 2 + (parts[0] == "self"):
                owner = CLASSES.get(parts[-2].strip("_"))
                found |= {f"{owner}.{parts[-1]}"} if owner else set()
        if isinstance(node, ast.ClassDef):  # what a subclass overrides, TensorRT calls by name
            for base in (_parts(base) for base in node.bases if isinstance(base, ast.Attribute)):
                if base[:1] == ["trt"]:
                    found |= {f"{base[-1]}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return {name for name in found if "__" not in name}


def _name(node: ast.Name | ast.arg | ast.alias) -> str:
    return node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else node.name


def _parts(node: ast.expr) -> list[str]:
    """["self", "library", "trt", "Builder"] of that expression; [""] in place of what is no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id if isinstance(node, ast.Name) else "", *parts]


def exists(name: str, names: dict[str, Any]) -> bool:
    """Whether a snapshot has the name; of "Enum.MEMBER.name" the member is what counts."""
    if name in names:
        return True
    owner, _, member = name.rpartition(".")
    if owner in names:
        return names[owner] is not None and member in names[owner]
    return bool(owner) and member in ("name", "value") and exists(owner, names)


USED = {path.relative_to(ROOT).as_posix(): names_used(path.read_text(encoding="utf-8")) for path in SOURCES}
ALL = set().union(*USED.values())


def test_there_is_a_snapshot_of_every_supported_version() -> None:
    assert set(NAMES) == EVERYWHERE
    for name, snapshot in SNAPSHOTS.items():
        assert name == f"{snapshot['flavour']}-{'.'.join(snapshot['version'].split('.')[:2])}"
        assert snapshot["made_from"].get("wheel") or snapshot["made_from"].get("installed")


def test_the_names_are_really_found_in_the_source() -> None:
    engine = USED["export/engine.py"]
    assert {"OnnxParser.parse", "BuilderFlag.TF32", "MemoryPoolType.WORKSPACE", "ComputeCapability.CURRENT"} <= engine
    assert {
        "Builder.build_serialized_network",
        "IBuilderConfig.progress_monitor",
        "INetworkDefinition.unmark_output",
    } <= engine
    assert {"IProgressMonitor.phase_start", "IProgressMonitor.step_complete"} <= USED["export/engine.py"]
    assert "ILogger.Severity.INTERNAL_ERROR" in USED["runtime/runners/trt/library.py"]
    assert {"ParserError.node_operator", "ParserError.desc"} <= USED["runtime/runners/trt/library.py"]
    assert {"IExecutionContext.execute_async_v3", "ICudaEngine.get_tensor_dtype"} <= USED[
        "runtime/runners/trt/engine.py"
    ]
    assert "ITimingCache.serialize" in engine


@pytest.mark.parametrize("version", sorted(EVERYWHERE))
def test_every_name_exists_where_it_is_used(version: str) -> None:
    missing = {
        (source, name)
        for source, used in USED.items()
        for name in used
        if version in GUARDED.get(name, EVERYWHERE) and not exists(name, NAMES[version])
    }
    assert not missing, f"{version} lacks these"


def test_what_is_declared_guarded_is_used_and_missing_elsewhere() -> None:
    assert set(GUARDED) <= ALL
    for name, versions in GUARDED.items():
        assert {known for known, names in NAMES.items() if exists(name, names)} == versions


@pytest.mark.parametrize(
    "name", ["BuilderFlag.FP16", "BuilderFlag.INT8", "IInt8EntropyCalibrator2", "Builder.platform_has_fast_int8"]
)
def test_what_tensorrt_11_dropped_would_be_noticed(name: str) -> None:
    source = f"trt = library.trt\nprint(trt.{name})"
    assert name in names_used(source)
    assert exists(name, NAMES["tensorrt-10.3"])
    assert not exists(name, NAMES["tensorrt-11.4"])


def test_the_number_of_the_strongly_typed_flag_differs_so_nobody_writes_it_down() -> None:
    flag = "NetworkDefinitionCreationFlag"
    assert NAMES["tensorrt-10.3"][flag]["STRONGLY_TYPED"] != NAMES["tensorrt-11.4"][flag]["STRONGLY_TYPED"]
    for path in SOURCES:
        assert "create_network(1)" not in path.read_text(encoding="utf-8")


def test_the_targets_are_those_of_tensorrt_rtx() -> None:
    known = set(NAMES["tensorrt_rtx-1.7"]["ComputeCapability"]) - {"NONE", "CURRENT"}
    assert {target.upper() for target in RTX_TARGETS} == known
    assert all(target == f"sm{capability.replace('.', '')}" for target, capability in RTX_TARGETS.items())


def test_the_data_dependent_layers_have_those_names_in_every_version() -> None:
    for names in NAMES.values():
        assert set(names["LayerType"]) >= DATA_DEPENDENT


@pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install nnet-edge[test]"
)
def test_the_snapshot_is_what_the_installed_bindings_say() -> None:
    from tests.export.api_snapshot import snapshot_of_installed

    found = snapshot_of_installed("tensorrt_rtx")
    known = SNAPSHOTS["tensorrt_rtx-1.7"]
    if found["version"] != known["version"]:
        pytest.skip(
            f"tensorrt_rtx {found['version']} is installed, the snapshot is of {known['version']}: make it again"
        )
    assert json.loads(json.dumps(found["names"])) == known["names"]
    assert version("tensorrt-rtx-cu13") == found["version"]
    assert "tensorrt_rtx" in sys.modules
