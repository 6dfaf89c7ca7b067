"""Old module names, kept for one release: importing one warns and gives the new module.

`python -m OLD.NAME` works too. Names that are packages today (`nnet_edge.runtime.sources`) forward their old contents by
`forward`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

NAMES = {  # below nnet_edge
    "artefacts": "bundle", "augment": "data.augment", "checkpoint": "training.checkpoint", "config": "settings.runner",
    "damage": "data.synthetic", "demo_parts": "data.example_parts", "doctor": "cli.doctor",
    "evaluate": "evaluation.evaluate", "evaluate_verb": "evaluation.artefact", "good_scores": "scoring",
    "layouts": "data.layouts", "line_config": "settings.line", "model": "methods", "model.backbone": "methods.backbone",
    "model.losses": "methods.nnet.losses", "model.nnet": "methods.nnet.network", "model.parts": "methods.nnet.parts",
    "model.teacher_weights": "methods.teacher_weights", "model.torch_runner": "methods.torch_runner",
    "protocol": "methods.nnet.settings", "stream_settings": "settings.stream", "train": "training.loop",
    "training_data": "data.images", "web_settings": "settings.web", "runtime.camera": "runtime.sources.camera",
    "runtime.delivery": "runtime.sinks.queued", "runtime.graph_runner": "runtime.runners.graph",
    "runtime.http_source": "runtime.sources.http", "runtime.image_source": "runtime.sources.images",
    "runtime.kernels": "runtime.runners.trt.kernels", "runtime.line": "runtime.stream.line",
    "runtime.models": "runtime.stream.model", "runtime.onnx_runner": "runtime.runners.onnx_runner",
    "runtime.opening": "runtime.stream.model", "runtime.openvino_runner": "runtime.runners.openvino_runner",
    "runtime.overlay": "runtime.sinks.overlay", "runtime.runner": "runtime.runners.base",
    "runtime.source": "runtime.sources.base", "runtime.spool": "runtime.sinks.spool",
    "runtime.synthetic_source": "runtime.sources.synthetic", "runtime.trt_runner": "runtime.runners.trt.trt_runner",
    "runtime.video_source": "runtime.sources.video", "benchmarks.accuracy.grid": "benchmarks.accuracy.trainings",
    "benchmarks.bare_graph": "benchmarks.harness.bare_graph", "benchmarks.claims": "benchmarks.harness.grid",
    "benchmarks.encoder_pair": "benchmarks.experiments.encoder_pair", "benchmarks.faults": "benchmarks.line.faults",
    "benchmarks.frame_choices": "benchmarks.experiments.frame_choices",
    "benchmarks.gpu_question": "benchmarks.gpu.question", "benchmarks.harness.memory": "benchmarks.speed.memory",
    "benchmarks.inference_choices": "benchmarks.experiments.inference_choices",
    "benchmarks.memory_probe": "benchmarks.speed.memory", "benchmarks.page": "benchmarks.line.page",
    "benchmarks.random_bundle": "benchmarks.harness.random_bundle", "benchmarks.sinks": "benchmarks.line.sinks",
    "benchmarks.soak": "benchmarks.line.soak", "benchmarks.start": "benchmarks.speed.start",
    "benchmarks.start_probe": "benchmarks.speed.start_probe",
    "benchmarks.training_steps": "benchmarks.experiments.training_steps",
}  # fmt: skip
MOVED = {f"nnet_edge.{old}": f"nnet_edge.{new}" for old, new in NAMES.items()}


class MovedLoader(InspectLoader):
    """Loads the new module under its old name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warn(spec.name, self.name)
        module = importlib.import_module(self.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old name's here

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs."""
        return self._new_loader().get_code(self.name)

    def get_source(self, fullname: str) -> str | None:
        return self._new_loader().get_source(self.name)

    def _new_loader(self) -> InspectLoader:
        spec = importlib.util.find_spec(self.name)
        assert spec is not None
        assert isinstance(spec.loader, InspectLoader)
        return spec.loader

    def is_package(self, fullname: str) -> bool:
        return importlib.import_module(self.name).__spec__.submodule_search_locations is not None  # type: ignore[union-attr]


class MovedFinder(MetaPathFinder):
    """Finds the old names, after everything that exists."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        new = MOVED[fullname]
        found = importlib.util.find_spec(new)
        origin = None if found is None else found.origin
        return ModuleSpec(fullname, MovedLoader(new), origin=origin, is_package=new == "nnet_edge.methods")


def warn(old: str, new: str) -> None:
    """Say that a name has moved, at the line that uses it."""
    warnings.warn(f"{old} has moved to {new}; the old name goes with the next release", DeprecationWarning, 2)


def forward(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package that was a module: `homes` says which module holds each of its old names today."""

    def attribute(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warn(f"{package}.{name}", f"{homes[name]}.{name}")
        return getattr(importlib.import_module(homes[name]), name)

    return attribute


def install() -> None:
    """Let old names be found; once."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
