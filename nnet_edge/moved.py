"""Old module names, kept for one release: importing one warns and gives the module that took its place.

`python -m OLD.NAME` works as well. Names that are packages today (`nnet_edge.runtime.sources`) forward what their old module
held by `forward`.
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
    "nnet_edge.augmentation_choice": "nnet_edge.training.augmentation_search",
    "nnet_edge.bilinear": "nnet_edge.imaging",
    "nnet_edge.calibration.answers": "nnet_edge.calibration.predictions",
    "nnet_edge.calibration.halves": "nnet_edge.export.layer_search",
    "nnet_edge.calibration.island": "nnet_edge.calibration.fp32_region",
    "nnet_edge.calibration.placement": "nnet_edge.calibration.qdq",
    "nnet_edge.checkpoint": "nnet_edge.training.checkpoint",
    "nnet_edge.compute": "nnet_edge.methods.compute",
    "nnet_edge.config": "nnet_edge.settings.runner",
    "nnet_edge.damage": "nnet_edge.data.synthetic",
    "nnet_edge.demo": "nnet_edge.cli.demo.run",
    "nnet_edge.demo_parts": "nnet_edge.data.example_parts",
    "nnet_edge.doctor": "nnet_edge.cli.doctor",
    "nnet_edge.engine_judging": "nnet_edge.export.engine_gate",
    "nnet_edge.evaluate": "nnet_edge.evaluation.evaluate",
    "nnet_edge.evaluate_verb": "nnet_edge.evaluation.artefact",
    "nnet_edge.evaluation_pictures": "nnet_edge.evaluation.pictures",
    "nnet_edge.export.timing_cache": "nnet_edge.export.engine",
    "nnet_edge.good_scores": "nnet_edge.scoring",
    "nnet_edge.labelled_images": "nnet_edge.calibration.predictions",
    "nnet_edge.layouts": "nnet_edge.data.layouts",
    "nnet_edge.line_config": "nnet_edge.settings.line",
    "nnet_edge.model": "nnet_edge.methods",
    "nnet_edge.model.backbone": "nnet_edge.methods.backbone",
    "nnet_edge.model.losses": "nnet_edge.methods.nnet.losses",
    "nnet_edge.model.nnet": "nnet_edge.methods.nnet.network",
    "nnet_edge.model.parts": "nnet_edge.methods.nnet.parts",
    "nnet_edge.model.teacher_weights": "nnet_edge.methods.teacher_weights",
    "nnet_edge.model.torch_runner": "nnet_edge.methods.torch_runner",
    "nnet_edge.optimiser": "nnet_edge.training.optimiser",
    "nnet_edge.power": "nnet_edge.benchmarks.harness.machine",
    "nnet_edge.protocol": "nnet_edge.methods.nnet.settings",
    "nnet_edge.runtime.gpu_facts": "nnet_edge.gpu",
    "nnet_edge.runtime.graph_facts": "nnet_edge.export.graph_facts",
    "nnet_edge.scale_choice": "nnet_edge.methods.fusion_search",
    "nnet_edge.settings_file": "nnet_edge.settings.reader",
    "nnet_edge.stopping": "nnet_edge.training.early_stopping",
    "nnet_edge.stream_settings": "nnet_edge.settings.stream",
    "nnet_edge.train": "nnet_edge.training.loop",
    "nnet_edge.training_data": "nnet_edge.data.images",
    "nnet_edge.training_log": "nnet_edge.training.log",
    "nnet_edge.web_settings": "nnet_edge.settings.web",
    f"{RUNTIME}.addresses": f"{RUNTIME}.sources.addresses",
    f"{RUNTIME}.batches": f"{RUNTIME}.runners.base",
    f"{RUNTIME}.camera": f"{RUNTIME}.sources.camera",
    f"{RUNTIME}.delivery": f"{RUNTIME}.sinks.queued",
    f"{RUNTIME}.delivery_queue": f"{RUNTIME}.sinks.queue",
    f"{RUNTIME}.delivery_settings": f"{RUNTIME}.sinks.queue",
    f"{RUNTIME}.device": f"{RUNTIME}.runners.trt.device",
    f"{RUNTIME}.device_ring": f"{RUNTIME}.runners.trt.ring",
    f"{RUNTIME}.drift": f"{RUNTIME}.stream.drift",
    f"{RUNTIME}.engine_record": f"{RUNTIME}.runners.trt.record",
    f"{RUNTIME}.graph_runner": f"{RUNTIME}.runners.graph",
    f"{RUNTIME}.http_source": f"{RUNTIME}.sources.http",
    f"{RUNTIME}.image_source": f"{RUNTIME}.sources.images",
    f"{RUNTIME}.jpeg": f"{RUNTIME}.sources.jpeg",
    f"{RUNTIME}.kernels": f"{RUNTIME}.runners.trt.kernels",
    f"{RUNTIME}.lane": f"{RUNTIME}.stream.buffer",
    f"{RUNTIME}.lanes": f"{RUNTIME}.stream.buffer",
    f"{RUNTIME}.line": f"{RUNTIME}.stream.line",
    f"{RUNTIME}.line_report": f"{RUNTIME}.stream.report",
    f"{RUNTIME}.line_stream": f"{RUNTIME}.stream.stream",
    f"{RUNTIME}.masks": f"{RUNTIME}.stream.judge",
    f"{RUNTIME}.meters": f"{RUNTIME}.stream.meters",
    f"{RUNTIME}.models": f"{RUNTIME}.stream.model",
    f"{RUNTIME}.onnx_runner": f"{RUNTIME}.runners.onnx_runner",
    f"{RUNTIME}.opening": f"{RUNTIME}.stream.model",
    f"{RUNTIME}.openvino_runner": f"{RUNTIME}.runners.openvino_runner",
    f"{RUNTIME}.overlay": f"{RUNTIME}.sinks.overlay",
    f"{RUNTIME}.picture_line": f"{RUNTIME}.sources.synthetic",
    f"{RUNTIME}.pipe_source": f"{RUNTIME}.sources.pipe",
    f"{RUNTIME}.processing": f"{RUNTIME}.stream.loop",
    f"{RUNTIME}.runner": f"{RUNTIME}.runners.base",
    f"{RUNTIME}.sink_health": f"{RUNTIME}.sinks.retry",
    f"{RUNTIME}.sink_tries": f"{RUNTIME}.sinks.retry",
    f"{RUNTIME}.sinks.budget": f"{RUNTIME}.sinks.rejects",
    f"{RUNTIME}.sinks.mqtt_settings": f"{RUNTIME}.sinks.mqtt",
    f"{RUNTIME}.sinks.pictures": f"{RUNTIME}.sinks.rejects",
    f"{RUNTIME}.sinks.turning": f"{RUNTIME}.sinks.rotation",
    f"{RUNTIME}.sinks.video_file": f"{RUNTIME}.sinks.video",
    f"{RUNTIME}.source": f"{RUNTIME}.sources.base",
    f"{RUNTIME}.spool": f"{RUNTIME}.sinks.spool",
    f"{RUNTIME}.spool_records": f"{RUNTIME}.sinks.spool_migration",
    f"{RUNTIME}.station": f"{RUNTIME}.stream.judge",
    f"{RUNTIME}.synthetic_source": f"{RUNTIME}.sources.synthetic",
    f"{RUNTIME}.tensorrt_library": f"{RUNTIME}.runners.trt.library",
    f"{RUNTIME}.terminal": f"{RUNTIME}.stream.terminal",
    f"{RUNTIME}.trt_engine": f"{RUNTIME}.runners.trt.engine",
    f"{RUNTIME}.trt_runner": f"{RUNTIME}.runners.trt.trt_runner",
    f"{RUNTIME}.video_source": f"{RUNTIME}.sources.video",
    f"{RUNTIME}.walk": f"{RUNTIME}.stream.loop",
    f"{RUNTIME}.watchdog": f"{RUNTIME}.stream.watchdog",
    f"{BENCHMARKS}.accuracy.grid": f"{BENCHMARKS}.accuracy.trainings",
    f"{BENCHMARKS}.bare_graph": f"{BENCHMARKS}.harness.bare_graph",
    f"{BENCHMARKS}.claims": f"{BENCHMARKS}.harness.grid",
    f"{BENCHMARKS}.encoder_pair": f"{BENCHMARKS}.experiments.encoder_pair",
    f"{BENCHMARKS}.faults": f"{BENCHMARKS}.line.faults",
    f"{BENCHMARKS}.frame_choices": f"{BENCHMARKS}.experiments.frame_choices",
    f"{BENCHMARKS}.gpu_question": f"{BENCHMARKS}.gpu.question",
    f"{BENCHMARKS}.harness.memory": f"{BENCHMARKS}.speed.memory",
    f"{BENCHMARKS}.inference_choices": f"{BENCHMARKS}.experiments.inference_choices",
    f"{BENCHMARKS}.memory_probe": f"{BENCHMARKS}.speed.memory",
    f"{BENCHMARKS}.page": f"{BENCHMARKS}.line.page",
    f"{BENCHMARKS}.random_bundle": f"{BENCHMARKS}.harness.random_bundle",
    f"{BENCHMARKS}.sinks": f"{BENCHMARKS}.line.sinks",
    f"{BENCHMARKS}.soak": f"{BENCHMARKS}.line.soak",
    f"{BENCHMARKS}.start": f"{BENCHMARKS}.speed.start",
    f"{BENCHMARKS}.start_probe": f"{BENCHMARKS}.speed.start_probe",
    f"{BENCHMARKS}.training_steps": f"{BENCHMARKS}.experiments.training_steps",
}


class MovedLoader(InspectLoader):
    """Gives the new module under its old name."""

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
        spec = importlib.util.find_spec(self.name)
        assert spec is not None
        assert isinstance(spec.loader, InspectLoader)
        return spec.loader.get_code(self.name)

    def get_source(self, fullname: str) -> str | None:
        spec = importlib.util.find_spec(self.name)
        assert spec is not None
        assert isinstance(spec.loader, InspectLoader)
        return spec.loader.get_source(self.name)

    def is_package(self, fullname: str) -> bool:
        return importlib.import_module(self.name).__spec__.submodule_search_locations is not None  # type: ignore[union-attr]


class MovedFinder(MetaPathFinder):
    """Knows the old names. Asked first: a file of a package that has moved would else be loaded again, under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = new_name(fullname)
        found = None if new is None else importlib.util.find_spec(new)
        if new is None or found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, MovedLoader(new), origin=found.origin, is_package=is_package)


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
