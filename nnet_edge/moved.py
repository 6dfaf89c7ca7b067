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

RUNTIME, BENCHMARKS = "nnet_edge.runtime", "nnet_edge.benchmarks"
MOVED = {
    "nnet_edge.artefacts": "nnet_edge.bundle",
    "nnet_edge.augment": "nnet_edge.data.augment",
    "nnet_edge.checkpoint": "nnet_edge.training.checkpoint",
    "nnet_edge.config": "nnet_edge.settings.runner",
    "nnet_edge.damage": "nnet_edge.data.synthetic",
    "nnet_edge.demo_parts": "nnet_edge.data.example_parts",
    "nnet_edge.doctor": "nnet_edge.cli.doctor",
    "nnet_edge.evaluate": "nnet_edge.evaluation.evaluate",
    "nnet_edge.evaluate_verb": "nnet_edge.evaluation.artefact",
    "nnet_edge.good_scores": "nnet_edge.scoring",
    "nnet_edge.layouts": "nnet_edge.data.layouts",
    "nnet_edge.line_config": "nnet_edge.settings.line",
    "nnet_edge.model": "nnet_edge.methods",
    "nnet_edge.model.backbone": "nnet_edge.methods.backbone",
    "nnet_edge.model.losses": "nnet_edge.methods.nnet.losses",
    "nnet_edge.model.nnet": "nnet_edge.methods.nnet.network",
    "nnet_edge.model.parts": "nnet_edge.methods.nnet.parts",
    "nnet_edge.model.teacher_weights": "nnet_edge.methods.teacher_weights",
    "nnet_edge.model.torch_runner": "nnet_edge.methods.torch_runner",
    "nnet_edge.protocol": "nnet_edge.methods.nnet.settings",
    "nnet_edge.stream_settings": "nnet_edge.settings.stream",
    "nnet_edge.train": "nnet_edge.training.loop",
    "nnet_edge.training_data": "nnet_edge.data.images",
    "nnet_edge.web_settings": "nnet_edge.settings.web",
    f"{RUNTIME}.camera": f"{RUNTIME}.sources.camera",
    f"{RUNTIME}.delivery": f"{RUNTIME}.sinks.queued",
    f"{RUNTIME}.graph_runner": f"{RUNTIME}.runners.graph",
    f"{RUNTIME}.http_source": f"{RUNTIME}.sources.http",
    f"{RUNTIME}.image_source": f"{RUNTIME}.sources.images",
    f"{RUNTIME}.kernels": f"{RUNTIME}.runners.trt.kernels",
    f"{RUNTIME}.line": f"{RUNTIME}.stream.line",
    f"{RUNTIME}.models": f"{RUNTIME}.stream.model",
    f"{RUNTIME}.onnx_runner": f"{RUNTIME}.runners.onnx_runner",
    f"{RUNTIME}.opening": f"{RUNTIME}.stream.model",
    f"{RUNTIME}.openvino_runner": f"{RUNTIME}.runners.openvino_runner",
    f"{RUNTIME}.overlay": f"{RUNTIME}.sinks.overlay",
    f"{RUNTIME}.runner": f"{RUNTIME}.runners.base",
    f"{RUNTIME}.source": f"{RUNTIME}.sources.base",
    f"{RUNTIME}.spool": f"{RUNTIME}.sinks.spool",
    f"{RUNTIME}.synthetic_source": f"{RUNTIME}.sources.synthetic",
    f"{RUNTIME}.trt_runner": f"{RUNTIME}.runners.trt.trt_runner",
    f"{RUNTIME}.video_source": f"{RUNTIME}.sources.video",
    f"{BENCHMARKS}.encoder_pair": f"{BENCHMARKS}.experiments.encoder_pair",
    f"{BENCHMARKS}.faults": f"{BENCHMARKS}.line.faults",
    f"{BENCHMARKS}.frame_choices": f"{BENCHMARKS}.experiments.frame_choices",
    f"{BENCHMARKS}.gpu_question": f"{BENCHMARKS}.gpu.question",
    f"{BENCHMARKS}.inference_choices": f"{BENCHMARKS}.experiments.inference_choices",
    f"{BENCHMARKS}.page": f"{BENCHMARKS}.line.page",
    f"{BENCHMARKS}.random_bundle": f"{BENCHMARKS}.harness.random_bundle",
    f"{BENCHMARKS}.sinks": f"{BENCHMARKS}.line.sinks",
    f"{BENCHMARKS}.soak": f"{BENCHMARKS}.line.soak",
    f"{BENCHMARKS}.start": f"{BENCHMARKS}.speed.start",
    f"{BENCHMARKS}.training_steps": f"{BENCHMARKS}.experiments.training_steps",
}


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
