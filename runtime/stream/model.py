"""A bundle made ready to judge: its runner loaded and warm, its threshold at hand.

A bundle, a precision and a runner in; the loaded runner and the threshold to judge with out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from nnet_edge.bundle import Artefact, Bundle, read_bundle
from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.runtime.runners.base import Runner, installed_kind, load_runner
from nnet_edge.settings.runner import RunnerSettings

GRAPH_OF = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8"}  # precision asked for -> that of the graph


def open_graph(bundle: Bundle, settings: RunnerSettings, precision: str | None = None) -> tuple[Runner, float]:
    """The runner of the bundle's artefact of that precision, and the threshold that was chosen with both.

    It is the graph, for TensorRT the engine that fits this machine. Without a precision it is the FP32 graph, or the engine
    that `build-engine` found best here. Raises BundleError when there is none, or when its gate refused it or never saw
    this runner; what `load_runner` raises.
    """
    artefact, _, threshold = choose_runnable(bundle, settings, precision)
    return load_runner(artefact.path, settings), threshold


def choose_artefact(bundle: Bundle, settings: RunnerSettings, precision: str | None) -> Artefact:
    """The engine that fits this machine for TensorRT, else the graph, of that precision; see `open_graph` for None."""
    if settings.kind != "tensorrt":
        return bundle.artefact(GRAPH_OF[precision or "fp32"])
    if precision == "bf16":
        raise ConfigError(
            "engines are of fp32, fp16 or int8, and bf16 is for the processor: choose another --precision"
        )
    from nnet_edge.runtime.runners.trt.record import engine_here

    return engine_here(bundle, precision)


def choose_runnable(bundle: Bundle, settings: RunnerSettings, precision: str | None) -> tuple[Artefact, str, float]:
    """The artefact, the runner's name and the threshold that `open_graph` would take; nothing is loaded.

    Raises BundleError as it does, MissingExtraError when the runner's library is not installed.
    """
    kind = installed_kind() if settings.kind == "auto" else settings.kind
    if kind != "tensorrt" and find_spec(kind) is None:
        raise MissingExtraError(f"{kind} is not installed: pip install 'nnet-edge[cpu]'")
    artefact = choose_artefact(bundle, settings, precision)
    name = str(artefact.record["made"]["tool"]) if artefact.kind == "engine" else kind
    return artefact, name, artefact.threshold_for(name).value


WARM_BATCHES = 2  # of the largest size: the first of them allocates


@dataclass(frozen=True)
class Model:
    """A loaded bundle; whoever holds it enters and leaves its runner."""

    name: str  # what people call the bundle
    path: Path | None  # None: a runner without a bundle
    runner: Runner
    threshold: float
    batch_s: float | None = None  # what a full batch took when it was warm
    manifest: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what every report must say of it

    def facts(self) -> dict[str, object]:
        """What events and pages say of it."""
        return {
            "bundle": self.name,
            "path": None if self.path is None else str(self.path),
            "runner": self.runner.name,
            "precision": self.runner.precision,
            "threshold": self.threshold,
        }


def load_model(path: Path, settings: RunnerSettings, precision: str | None = None) -> Model:
    """The bundle at `path`, loaded and warm. Raises what `read_bundle` and `open_graph` raise."""
    bundle = read_bundle(path)
    runner, threshold = open_graph(bundle, settings, precision)
    try:
        batch_s = warm(runner)
    except BaseException:
        with runner:  # the last exit releases it
            pass
        raise
    return Model(bundle.name, path, runner, threshold, batch_s, bundle.manifest, tuple(bundle.warnings))


def warm(runner: Runner) -> float:
    """Seconds that a full batch takes once the runner is warm; a single image goes through as well."""
    runner.infer(np.zeros((1, *runner.input_shape), np.uint8))
    images = np.zeros((runner.max_batch, *runner.input_shape), np.uint8)
    took_s = 0.0
    for _ in range(WARM_BATCHES):
        start_s = time.monotonic()
        runner.infer(images)
        took_s = time.monotonic() - start_s
    return took_s


class Shelf:
    """The models that a line has entered; the line's lock guards it."""

    def __init__(self, load: Callable[[Path], Model] | None) -> None:
        self._load = load
        self._entered: list[Model] = []

    def load(self, path: Path) -> Model:
        """A model of the bundle at `path`, loaded anew. Raises ConfigError when the line cannot load bundles."""
        if self._load is None:
            raise ConfigError(
                f"{path} cannot be loaded: this line was made without `load`, which makes a model of a bundle"
            )
        return self._load(path)

    def find(self, path: Path) -> Model | None:
        """The entered model of that bundle."""
        return next((model for model in self._entered if model.path == path), None)

    def enter(self, model: Model) -> None:
        """Enter its runner, once."""
        if not any(model is known for known in self._entered):
            model.runner.__enter__()
            self._entered.append(model)

    def leave_all_but(self, used: Iterable[Model] = ()) -> None:
        """Leave the runners of the models that are not among `used`."""
        kept = list(used)
        for model in [model for model in self._entered if not any(model is other for other in kept)]:
            self._entered.remove(model)
            model.runner.__exit__(None, None, None)
