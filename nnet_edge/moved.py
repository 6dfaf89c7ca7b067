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
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

NAMES = {  # below nnet_edge
    "artefacts": "bundle", "augment": "data.augment", "augmentation_choice": "training.augmentation_search",
    "benchmarks.accuracy.grid": "benchmarks.accuracy.trainings",
    "benchmarks.bare_graph": "benchmarks.harness.bare_graph", "benchmarks.claims": "benchmarks.harness.grid",
    "benchmarks.encoder_pair": "benchmarks.experiments.encoder_pair", "benchmarks.faults": "benchmarks.line.faults",
    "benchmarks.frame_choices": "benchmarks.experiments.frame_choices",
    "benchmarks.gpu_question": "benchmarks.gpu.question", "benchmarks.harness.memory": "benchmarks.speed.memory",
    "benchmarks.inference_choices": "benchmarks.experiments.inference_choices",
    "benchmarks.memory_probe": "benchmarks.speed.memory", "benchmarks.page": "benchmarks.line.page",
    "benchmarks.random_bundle": "benchmarks.harness.random_bundle", "benchmarks.sinks": "benchmarks.line.sinks",
    "benchmarks.soak": "benchmarks.line.soak", "benchmarks.start": "benchmarks.speed.start",
    "benchmarks.start_probe": "benchmarks.speed.start_probe",
    "benchmarks.training_steps": "benchmarks.experiments.training_steps", "bilinear": "imaging",
    "calibration.answers": "calibration.predictions", "calibration.halves": "export.layer_search",
    "calibration.island": "calibration.fp32_region", "calibration.placement": "calibration.qdq",
    "checkpoint": "training.checkpoint", "compute": "methods.compute", "config": "settings.runner",
    "damage": "data.synthetic", "demo": "cli.demo.run", "demo_parts": "data.example_parts", "doctor": "cli.doctor",
    "engine_judging": "export.engine_gate", "evaluate": "evaluation.evaluate", "evaluate_verb": "evaluation.artefact",
    "evaluation_pictures": "evaluation.pictures", "export.timing_cache": "export.engine", "good_scores": "scoring",
    "labelled_images": "calibration.predictions", "layouts": "data.layouts", "line_config": "settings.line",
    "model": "methods", "model.backbone": "methods.backbone", "model.losses": "methods.nnet.losses",
    "model.nnet": "methods.nnet.network", "model.parts": "methods.nnet.parts",
    "model.teacher_weights": "methods.teacher_weights", "model.torch_runner": "methods.torch_runner",
    "optimiser": "training.optimiser", "power": "benchmarks.harness.machine", "protocol": "methods.nnet.settings",
    "runtime.addresses": "runtime.sources.addresses", "runtime.batches": "runtime.runners.base",
    "runtime.camera": "runtime.sources.camera", "runtime.delivery": "runtime.sinks.queued",
    "runtime.delivery_queue": "runtime.sinks.queue", "runtime.delivery_settings": "runtime.sinks.queue",
    "runtime.device": "runtime.runners.trt.device", "runtime.device_ring": "runtime.runners.trt.ring",
    "runtime.drift": "runtime.stream.drift", "runtime.engine_record": "runtime.runners.trt.record",
    "runtime.gpu_facts": "gpu", "runtime.graph_facts": "export.graph_facts",
    "runtime.graph_runner": "runtime.runners.graph", "runtime.http_source": "runtime.sources.http",
    "runtime.image_source": "runtime.sources.images", "runtime.jpeg": "runtime.sources.jpeg",
    "runtime.kernels": "runtime.runners.trt.kernels", "runtime.lane": "runtime.stream.buffer",
    "runtime.lanes": "runtime.stream.buffer", "runtime.line": "runtime.stream.line",
    "runtime.line_report": "runtime.stream.report", "runtime.line_stream": "runtime.stream.stream",
    "runtime.masks": "runtime.stream.judge", "runtime.meters": "runtime.stream.meters",
    "runtime.models": "runtime.stream.model", "runtime.onnx_runner": "runtime.runners.onnx_runner",
    "runtime.opening": "runtime.stream.model", "runtime.openvino_runner": "runtime.runners.openvino_runner",
    "runtime.overlay": "runtime.sinks.overlay", "runtime.picture_line": "runtime.sources.synthetic",
    "runtime.pipe_source": "runtime.sources.pipe", "runtime.processing": "runtime.stream.loop",
    "runtime.runner": "runtime.runners.base", "runtime.sink_health": "runtime.sinks.retry",
    "runtime.sink_tries": "runtime.sinks.retry", "runtime.sinks.budget": "runtime.sinks.rejects",
    "runtime.sinks.mqtt_settings": "runtime.sinks.mqtt", "runtime.sinks.pictures": "runtime.sinks.rejects",
    "runtime.sinks.turning": "runtime.sinks.rotation", "runtime.sinks.video_file": "runtime.sinks.video",
    "runtime.source": "runtime.sources.base", "runtime.spool": "runtime.sinks.spool",
    "runtime.spool_records": "runtime.sinks.spool_migration", "runtime.station": "runtime.stream.judge",
    "runtime.synthetic_source": "runtime.sources.synthetic",
    "runtime.tensorrt_library": "runtime.runners.trt.library", "runtime.terminal": "runtime.stream.terminal",
    "runtime.trt_engine": "runtime.runners.trt.engine", "runtime.trt_runner": "runtime.runners.trt.trt_runner",
    "runtime.video_source": "runtime.sources.video", "runtime.walk": "runtime.stream.loop",
    "runtime.watchdog": "runtime.stream.watchdog", "scale_choice": "methods.fusion_search",
    "settings_file": "settings.reader", "stopping": "training.early_stopping", "stream_settings": "settings.stream",
    "train": "training.loop", "training_data": "data.images", "training_log": "training.log",
    "web_settings": "settings.web",
}  # fmt: skip
MOVED = {f"nnet_edge.{old}": f"nnet_edge.{new}" for old, new in NAMES.items()}


class MovedLoader:
    """Loads the new module under its old name; obeys importlib.abc.InspectLoader, whose import costs 13 ms."""

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
        code: CodeType | None = self._new_loader().get_code(self.name)
        return code

    def get_source(self, fullname: str) -> str | None:
        source: str | None = self._new_loader().get_source(self.name)
        return source

    def _new_loader(self) -> Any:
        spec = importlib.util.find_spec(self.name)
        assert spec is not None
        return spec.loader

    def is_package(self, fullname: str) -> bool:
        return importlib.import_module(self.name).__spec__.submodule_search_locations is not None  # type: ignore[union-attr]


class MovedFinder:
    """Knows the old names. Asked first: a file of a package that has moved would else be loaded again, under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = new_name(fullname)
        found = None if new is None else importlib.util.find_spec(new)
        if new is None or found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, MovedLoader(new), origin=found.origin, is_package=is_package)  # type: ignore[arg-type]


def new_name(old: str) -> str | None:
    """Where the module is today, also one of a package that has moved; None for a name that never was."""
    package, _, name = old.rpartition(".")
    return MOVED.get(old) or (f"{MOVED[package]}.{name}" if package in MOVED else None)


def warn(old: str, new: str) -> None:
    """Say that a name has moved, at the line that uses it: that of the caller's caller."""
    warnings.warn(f"{old} has moved to {new}; the old name goes with the next release", DeprecationWarning, 3)


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
        sys.meta_path.insert(0, MovedFinder())
