"""Models: bundles that are loaded and warm, and the pool of those that a line judges by."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.bundle import Artefact, Bundle, id_of, is_preview, is_untaught, read_bundle
from nnet_edge.errors import ConfigError, MissingExtraError, NnetEdgeError
from nnet_edge.frame import JudgedBy
from nnet_edge.geometry import Geometry
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.lazy import importing
from nnet_edge.runtime.runners.answers import require_answers
from nnet_edge.runtime.runners.base import Runner, device_of, installed_kind, load_runner
from nnet_edge.runtime.runners.cuda_parts import require_cuda_parts
from nnet_edge.runtime.runners.kept_graph import default_folder
from nnet_edge.runtime.runners.tiled import tiled
from nnet_edge.runtime.runners.trt.device import OutOfMemoryError
from nnet_edge.settings.runner import CPU_RUNNER_KINDS, CUDA_RUNNER, GPU_RUNNER_KINDS, RunnerSettings

if TYPE_CHECKING:
    from nnet_edge.settings.line import LineSettings

# Who hears, in this thread, how far a model is on its way to judging
hears: ContextVar[Callable[[str], object]] = ContextVar("hears", default=lambda stage: None)
GRAPH_OF = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8"}  # precision asked for -> that of the graph


def open_graph(bundle: Bundle, settings: RunnerSettings, precision: str | None = None) -> tuple[Runner, float]:
    """The runner of the bundle's artefact of that precision, and the threshold that was chosen with both.

    It is the graph, for TensorRT the engine that fits this machine. Without a precision it is the FP32 graph, or the engine
    that `build-engine` found best here. Raises BundleError when there is none, or when its gate refused it or never saw
    this runner, or when it does not give its known answers; what `load_runner` raises.
    """
    settings = choose_runner(bundle, settings, precision)[0]
    artefact, _, threshold = choose_runnable(bundle, settings, precision)
    hears.get()(f"loading {artefact.path.name}")
    runner = tiled(load_runner(artefact.path, settings), bundle.geometry)
    hears.get()("asking its known answers")
    require_answers(bundle, artefact, runner)
    return runner, threshold


def choose_artefact(bundle: Bundle, settings: RunnerSettings, precision: str | None) -> Artefact:
    """The engine that fits this machine for TensorRT, else the graph, of that precision; see `open_graph` for None."""
    if settings.kind != "tensorrt":
        runner = CUDA_RUNNER if settings.kind == "cuda" else settings.kind
        return bundle.graph_for(runner, GRAPH_OF[precision or "fp32"])
    if precision == "bf16":
        raise ConfigError(
            "engines are of fp32, fp16 or int8, and bf16 is for the processor: choose another --precision"
        )
    from nnet_edge.runtime.runners.trt.record import engine_here

    return engine_here(bundle, precision, settings.gpu)


def choose_runnable(bundle: Bundle, settings: RunnerSettings, precision: str | None) -> tuple[Artefact, str, float]:
    """The artefact, the runner's name and the threshold that `open_graph` would take; nothing is loaded.

    Raises BundleError as it does, MissingExtraError when the runner's library is not installed.
    """
    settings = choose_runner(bundle, settings, precision)[0]
    kind = settings.kind
    if kind in CPU_RUNNER_KINDS and find_spec(kind) is None:
        raise MissingExtraError(f"{kind} is not installed: pip install 'nnet-edge[cpu]'")
    artefact = choose_artefact(bundle, settings, precision)
    name = (
        str(artefact.record["made"]["tool"]) if artefact.kind == "engine" else CUDA_RUNNER if kind == "cuda" else kind
    )
    return artefact, name, artefact.threshold_for(name).value


def choose_runner(bundle: Bundle, settings: RunnerSettings, precision: str | None) -> tuple[RunnerSettings, str]:
    """The settings with "auto" decided, and why it is not the GPU where there is one, else "".

    On a GPU it is TensorRT, then TensorRT-RTX, for an engine of the bundle that fits; then ONNX Runtime on CUDA; then the
    processor. What is asked for by name stays.
    """
    gpu = find_gpu(settings.gpu) if settings.kind == "auto" else None
    reasons = []
    if isinstance(gpu, GpuFacts) and precision != "bf16" and settings.precision != "bf16":
        for kind in GPU_RUNNER_KINDS:
            chosen = replace(settings, kind=kind)
            try:
                if kind == "cuda":
                    require_cuda_parts(settings.gpu, precision)
                choose_runnable(bundle, chosen, precision)
            except NnetEdgeError as error:
                reasons.append(f"{kind}: {error}")
                continue
            return chosen, ""
    if settings.kind != "auto":
        return settings, ""
    return replace(settings, kind=installed_kind()), "; ".join(reasons)


def likely_runner(settings: RunnerSettings) -> tuple[str, ...]:
    """The module that runs graphs on the processor, where it is to be expected that it will; it takes long to import."""
    is_likely = settings.kind == "openvino" or (settings.kind == "auto" and isinstance(find_gpu(settings.gpu), NoGpu))
    return ("nnet_edge.runtime.runners.openvino_runner",) if is_likely else ()


M_ARENA_MAX = -8  # of glibc's malloc.h
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

    @cached_property
    def geometry(self) -> Geometry:
        """Of its input; without a bundle the runner says the size. Raises BundleError."""
        if "input" in self.manifest:
            return Geometry.in_manifest(self.manifest)
        height, width, _ = self.runner.input_shape
        return Geometry(height, width)

    @property
    def device(self) -> str:
        """What its runner computes on: "the processor", or a GPU's name."""
        return device_of(self.runner)

    @property
    def judged_by(self) -> JudgedBy:
        """What its predictions say that they come from."""
        bundle_id = id_of(self.manifest) if "files" in self.manifest else None
        return JudgedBy(self.name, bundle_id, self.runner.precision, self.runner.name, is_preview(self.manifest))

    def facts(self) -> dict[str, object]:
        """What events and pages say of it."""
        return {
            "bundle": self.name, "path": None if self.path is None else str(self.path), "runner": self.runner.name,
            "device": self.device,
            "precision": self.runner.precision, "threshold": self.threshold, "bundle_id": self.judged_by.bundle_id,
        }  # fmt: skip


def load_model(
    path: Path, settings: RunnerSettings, precision: str | None = None, is_warm: bool = True, is_guest: bool = False
) -> Model:
    """The bundle at `path`, loaded, and warm unless its first frame may wait. Raises what `read_bundle` and `open_graph` do.

    A path that is called "untaught" stands for the bundle of a line that has none yet. A guest in somebody's program leaves
    its allocator as it is.
    """
    if is_untaught(path):
        from nnet_edge.runtime.runners.untaught import THRESHOLD, UntaughtRunner

        told = "the line is not taught yet: it rejects every part"
        return Model(path.name, path, UntaughtRunner(), THRESHOLD, 0.0, warnings=(told,))
    if not is_guest and "MALLOC_ARENA_MAX" not in os.environ:
        call_allocator("mallopt", M_ARENA_MAX, 1)  # each camera's thread would keep a heap of its own largest moment
    hears.get()("reading and checking its files")
    with importing(*likely_runner(settings)):
        bundle = read_bundle(path)
    settings, idle = choose_runner(bundle, settings, precision)
    if settings.kind == "openvino" and settings.cache_dir is None:
        settings = replace(settings, cache_dir=default_folder())
    runner, threshold, batch_s, note = open_fitting(bundle, settings, precision, is_warm)
    call_allocator("malloc_trim", 0)  # what reading and compiling left
    notes = (*bundle.warnings, *([f"the GPU is not used ({idle})"] if idle else []), *note)
    return Model(bundle.name, path, runner, threshold, batch_s, bundle.manifest, notes)


def open_model(settings: LineSettings) -> Model:
    """The model that the line judges by at first. Raises what `load_model` raises."""
    settings = settings.under(settings.recipe)
    # One stream alone has its first verdict sooner when nothing but its own frame goes through the runner before.
    is_warm = len(settings.streams) > 1 or settings.web is not None
    assert settings.bundle is not None  # LineSettings saw to it
    return load_model(settings.bundle, settings.runner, settings.precision, is_warm)


def open_fitting(
    bundle: Bundle, settings: RunnerSettings, precision: str | None, is_warm: bool
) -> tuple[Runner, float, float | None, tuple[str, ...]]:
    """The runner, its threshold, the seconds of a full batch, None unless it is to be warm, and what must be said.

    A batch that does not fit into the GPU's memory is halved until it does. Raises what `open_graph` does.
    """
    asked, is_warm = settings.max_batch, is_warm or settings.kind in GPU_RUNNER_KINDS
    while True:
        try:
            runner, threshold = open_graph(bundle, settings, precision)
            try:
                hears.get()("warming up")
                batch_s = warm(runner) if is_warm else None  # on a GPU the first full batch takes its memory
            except BaseException:
                with runner:  # the last exit releases it
                    pass
                raise
        except OutOfMemoryError:
            if settings.max_batch == 1:
                raise
            hears.get()(f"a batch of {settings.max_batch} does not fit into the GPU's memory")
            settings = replace(settings, max_batch=settings.max_batch // 2)
            continue
        fits = (
            f"a batch of {asked} does not fit into the GPU's memory, the largest that does is of {settings.max_batch}"
        )
        return runner, threshold, batch_s, () if settings.max_batch == asked else (f"{fits}: --runner-batch",)


def call_allocator(function: str, *numbers: int) -> None:
    """Call this function of glibc's allocator; other C libraries have none, and stay as they are."""
    with suppress(AttributeError):
        getattr(ctypes.CDLL(None), function)(*numbers)


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


@dataclass(eq=False)
class Swap:
    """A loaded model that waits for the gap between two batches, where `switch` lets streams judge by it."""

    new: Model
    switch: Callable[[], Callable[[], object]]  # gives what tells of it, once the lock is free
    is_done: threading.Event = field(default_factory=threading.Event)
    more: tuple[Model, ...] = ()  # that come with it


class ModelPool:
    """The models of a line: loads them, holds their runners, and swaps them between two batches.

    `used` names the models that some stream judges by. The line's lock guards it; `swap` and `is_due` may be called without.
    """

    def __init__(
        self, lock: threading.RLock, load: Callable[[Path], Model] | None, used: Callable[[], Iterable[Model]]
    ) -> None:
        self._lock, self._load, self._used = lock, load, used
        self._entered: list[Model] = []
        self._swaps: list[Swap] = []
        self._has_unused = False  # a model, whose runner is left in the next gap

    def load(self, path: Path) -> Model:
        """A model of the bundle at `path`, loaded anew. Raises ConfigError when the line cannot load bundles."""
        if self._load is None:
            raise ConfigError(
                f"{path} cannot be loaded: this line was made without `load`, which makes a model of a bundle"
            )
        return self._load(path)

    def get(self, path: Path) -> Model:
        """The model of that bundle: the one that is in use, else loaded anew, which takes seconds without the lock."""
        with self._lock:
            known = self._find(path)
        loaded = known or self.load(path)
        with self._lock:
            return self._find(path) or (loaded if known is None else self.load(path))  # it was let go in this moment

    def _find(self, path: Path) -> Model | None:
        return next((model for model in self._entered if model.path == path), None)

    def enter(self, model: Model) -> None:
        """Enter its runner, once."""
        with self._lock:
            if not any(model is known for known in self._entered):
                model.runner.__enter__()
                self._entered.append(model)

    def release(self, model: Model) -> None:
        """Release a model that was loaded, unless it is entered: nobody will."""
        with self._lock:
            is_held = any(model is known for known in self._entered)
        if not is_held:
            with model.runner:  # the last exit releases it
                pass

    def is_swapped(self, swap: Swap, timeout_s: float) -> bool:
        """Whether the swap was done in a gap between two batches within `timeout_s`; else it never will be."""
        if swap.is_done.wait(timeout_s):
            return True
        with self._lock:
            if swap not in self._swaps:
                return True
            self._swaps.remove(swap)
            self._leave_unused()
            return False

    def ask(self, swap: Swap) -> None:
        """Let the swap wait for the next gap between two batches."""
        with self._lock:
            for model in (swap.new, *swap.more):
                self.enter(model)
            self._swaps.append(swap)

    def let_go(self, model: Model) -> None:
        """Leave the runner of a model in the next gap between two batches, unless it is used."""
        with self._lock:
            self._has_unused = all(model is not used for used in self._used())

    @property
    def waiting(self) -> int:
        """Swaps that wait for the next gap."""
        return len(self._swaps)

    @property
    def is_due(self) -> bool:
        """Whether a gap between two batches is waited for."""
        return self._has_unused or bool(self._swaps)

    def switch(self) -> None:
        """Swap in what waits, and leave what is not used any more; no batch is under way."""
        with self._lock:
            swaps, self._swaps, self._has_unused = self._swaps, [], False
            tells = [swap.switch() for swap in swaps]
            self._leave_unused()
        for swap, tell in zip(swaps, tells, strict=True):
            tell()
            swap.is_done.set()

    def _leave_unused(self) -> None:
        """Leave the runners of models that judge nothing and wait for nothing."""
        self._leave_all_but([*self._used(), *(model for swap in self._swaps for model in (swap.new, *swap.more))])

    def leave_all(self) -> None:
        """Leave every runner."""
        with self._lock:
            self._leave_all_but([])

    def _leave_all_but(self, kept: Sequence[Model]) -> None:
        for model in [model for model in self._entered if not any(model is other for other in kept)]:
            self._entered.remove(model)
            model.runner.__exit__(None, None, None)
