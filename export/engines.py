"""Engines of a bundle: built, judged against the FP32 graph on a CPU runner, timed against each other.

An engine for this machine is judged at once and gets its own threshold; one for another machine is judged there.
Verdicts are compared on the held-out frames that the bundle keeps, and on labelled images where they are at hand. Speeds are
taken in turns at the batch that the engines were built for, without downloads of maps: what a stream asks of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.bits import kept_bits
from nnet_edge.bundle import (
    PRECISIONS,
    Artefact,
    Bundle,
    add_artefact,
    changed,
    read_bundle,
    record_gates,
    without_artefact,
)
from nnet_edge.errors import (
    BundleError,
    CalibrationError,
    ConfigError,
    DataError,
    EngineBuildError,
    MissingExtraError,
    NnetEdgeError,
    StreamError,
)
from nnet_edge.export.engine import BuiltEngine, build_engine
from nnet_edge.export.engine_settings import EngineSettings, Target
from nnet_edge.frame import Frame
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.known_answers import asked_frames, read_asked
from nnet_edge.runtime.runners.answers import answer_fault, ask, require_answers
from nnet_edge.runtime.runners.base import FrameRunner, installed_kind, load_runner
from nnet_edge.runtime.runners.cuda_parts import require_cuda_parts
from nnet_edge.runtime.runners.tiled import tiled
from nnet_edge.runtime.runners.trt.flavours import OTHER_WAYS, flavours_on, refusal
from nnet_edge.runtime.runners.trt.kernels import open_gpu
from nnet_edge.runtime.runners.trt.library import load_tensorrt
from nnet_edge.runtime.runners.trt.question import RefusedError, require_loads
from nnet_edge.runtime.runners.trt.record import faults_here, faults_of, record_of
from nnet_edge.settings.runner import RunnerSettings

if TYPE_CHECKING:
    import numpy as np

    from nnet_edge.calibration.gate import Gate
    from nnet_edge.calibration.predictions import TestImages
    from nnet_edge.data.images import Dataset

Say = Callable[[str], None]
WARM_UP, TURNS = 8, 24  # batches; the first two in each of three slots bind a context and capture a CUDA graph
FAILURES = (EngineBuildError, StreamError, BundleError, CalibrationError)  # of one engine: the others go on


@dataclass(frozen=True)
class Judging:
    """What engines are judged by, and who is told."""

    accept: bool  # use an engine that the gate refuses
    test: TestImages | None  # labelled images; None: the held-out frames alone
    say: Say


@dataclass(frozen=True)
class EngineJob:
    """Settings, judging, progress bar and stop signal of one run of the command."""

    settings: EngineSettings
    judging: Judging
    bar: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]  # title -> bar of steps done, steps in all
    stop: Callable[[], bool]


def build_engines(path: Path, precision: str, job: EngineJob) -> None:
    """Build the engine of that precision into the bundle at `path`; "best": all, of which the fastest accepted one stays.

    Raises EngineBuildError when TensorRT cannot build it or the gate refuses it, BundleError when the bundle lacks the graph,
    ConfigError for "best" where no GPU can measure, MissingExtraError before the build where judging lacks a library.
    The bundle stays valid after each of them.
    """
    bundle, index = read_bundle(path), job.settings.gpu
    if precision == "best":
        build_best(bundle, job)
        return
    gpu = gpu_of(job.settings)
    is_for_here = gpu is not None and require_flavour(job.settings.target, gpu, job.judging.say)
    if is_for_here:
        require_judging(index)
    bundle, artefact = build_one(bundle, precision, job, is_for_here)
    if faults := faults_here(record_of(artefact), index):
        job.judging.say(
            f"not measured: {'; '.join(faults)}. On the machine that it is for, run "
            f"nnet-edge build-engine {bundle.path} --measure"
        )
        return
    _, gate = judge_engine(bundle, artefact, job.judging, index)
    require_accepted(artefact, gate)


def build_best(bundle: Bundle, job: EngineJob) -> None:
    """Build every precision that the bundle has a graph of, judge each here, and keep the fastest that the gate accepts.

    Reports and leaves out those that cannot be built, loaded or accepted. Raises EngineBuildError, with every reason, when
    none is left; what loads stays then.
    """
    say, index = job.judging.say, job.settings.gpu
    if isinstance(gpu := find_gpu(index), NoGpu):
        raise ConfigError(f"--precision best measures on the GPU, and {gpu.reason}: choose fp32, fp16 or int8")
    if not require_flavour(job.settings.target, gpu, say):
        raise EngineBuildError(
            "--precision best measures what it builds: choose fp32, fp16 or int8 to build for elsewhere"
        )
    require_judging(index)
    graphs = [item.precision for item in bundle.artefacts if item.kind == "graph"]
    built: list[Artefact] = []
    accepted: dict[str, Artefact] = {}
    failed: dict[str, str] = {}
    for precision in (name for name in PRECISIONS if name in graphs):
        try:
            bundle, artefact = build_one(bundle, precision, job, is_for_here=True)
            built.append(artefact)
            if faults := faults_here(record_of(artefact), index):
                why = "; ".join(faults)
                raise ConfigError(f"--precision best measures what it builds, and {why}: say --target local")
            bundle, gate = judge_engine(bundle, artefact, job.judging, index)
            require_accepted(artefact, gate)
            accepted[precision] = artefact
        except FAILURES as error:
            failed[precision] = str(error)
            say(f"{precision} is left out: {error}")
    if not accepted:
        reasons = "; ".join(f"{precision}: {reason}" for precision, reason in failed.items())
        raise EngineBuildError(f"no precision can be used on this machine ({reasons}): use a CPU runner of the graph")
    chosen, best = choose_fastest(bundle, accepted, job)
    name = accepted[chosen].name
    for artefact in built:
        if artefact.name != name:
            bundle = without_artefact(bundle, artefact.name)
    records = bundle.manifest["artefacts"]
    bundle = changed(bundle, artefacts=records | {name: records[name] | {"best": best}})
    times = ", ".join(f"{precision} {ms:.2f} ms" for precision, ms in best["ms"].items())
    say(f"best on this machine: {chosen} ({times} for {best['batch']} images); it alone stays in {bundle.path}")


def choose_fastest(bundle: Bundle, engines: Mapping[str, Artefact], job: EngineJob) -> tuple[str, dict[str, Any]]:
    """The precision of the fastest engine, and the times for the manifest: `batch` images, `ms` by precision."""
    batch = job.settings.profile.best
    paths = {precision: artefact.path for precision, artefact in engines.items()}
    frames = bundle.geometry.cut(bundle.frames("held_out"))
    times = time_engines(paths, batch, frames, job.judging.say, job.settings.gpu)
    return min(times, key=lambda precision: times[precision]), {"batch": batch, "ms": times}


def measure_engines(path: Path, judging: Judging, index: int = 0) -> None:
    """Judge every engine of the bundle at `path` that fits this machine, and its FP16 graph on CUDA; nothing is built.

    Raises BundleError when it holds none that fits; EngineBuildError, after all were judged, for those that do not load or
    that the gate refuses.
    """
    bundle = read_bundle(path)
    engines = [item for item in bundle.artefacts if item.kind == "engine"]
    faults = {item.name: faults_of(item, index) for item in engines}
    if halves := [item for item in bundle.artefacts if (item.kind, item.precision) == ("graph", "fp16")]:
        faults |= dict.fromkeys((item.name for item in halves), cuda_faults(index))
    for name, reasons in faults.items():
        if reasons:
            judging.say(f"{name} is not measured: {'; '.join(reasons)}")
    fitting = [item for item in (*engines, *halves) if not faults[item.name]]
    if not fitting:
        raise BundleError(f"{path} holds no engine for this machine: build one with nnet-edge build-engine {path}")
    require_judging(index)
    failed: list[str] = []
    for artefact in fitting:
        try:
            bundle, gate = judge_engine(bundle, artefact, judging, index)
            require_accepted(artefact, gate)
        except FAILURES as error:
            failed.append(str(error))
    if failed:
        raise EngineBuildError("; ".join(failed))


def cuda_faults(index: int) -> list[str]:
    """Why ONNX Runtime cannot compute a graph on the GPU of that index; empty where it can."""
    try:
        require_cuda_parts(index)
    except NnetEdgeError as error:
        return [str(error)]
    return []


def build_one(bundle: Bundle, precision: str, job: EngineJob, is_for_here: bool) -> tuple[Bundle, Artefact]:
    """The bundle with the engine of that precision in it, not measured yet.

    Raises EngineBuildError, and leaves the bundle as it is, for one of this GPU that TensorRT does not load.
    """
    graph = bundle.engine_source(precision)
    with job.bar(f"{precision} engine") as report:
        built = build_engine(graph.path, job.settings, report, job.stop)
    if is_for_here:
        require_loadable(built, graph.path)
    name = f"nnet.{precision}.{job.settings.target.slug}.engine"
    entry = {
        "kind": "engine", "precision": precision, "source": bundle.manifest["files"][graph.name],
        "made": built.record.as_dict(), "gates": {},
    }  # fmt: skip
    bundle = add_artefact(bundle, name, built.content, entry)
    (artefact,) = (item for item in bundle.artefacts if item.name == name)
    job.judging.say(
        f"wrote {artefact.path}: {len(built.content) / 1e6:.1f} MB in {built.record.seconds:.1f} s for compute "
        f"capability {', '.join(built.record.compute_capabilities)}"
    )
    return bundle, artefact


def load_labelled(path: Path, dataset: Dataset | None, skip_bad: bool) -> TestImages | None:
    """The test images of `dataset` for the bundle at `path`; None where there is no dataset.

    Raises DataError for a dataset without test images, or with one that cannot be read (unless `skip_bad`).
    """
    if dataset is None:
        return None
    from nnet_edge.calibration.predictions import load_test
    from nnet_edge.data.holding_out import with_held_out_images

    bundle = read_bundle(path)
    labelled = with_held_out_images(dataset, bundle.manifest["data"])
    test = load_test(labelled, skip_bad, kept_bits(bundle.manifest), bundle.geometry)
    if test is None:
        raise DataError(f"{dataset.root} holds no test images to judge engines on: add defects, or leave --data out")
    return test


def require_loadable(built: BuiltEngine, graph: Path) -> None:
    """Raise EngineBuildError unless TensorRT loads what it built here."""
    library = load_tensorrt(built.record.tool)
    try:
        require_loads(library, built.content)
    except RefusedError as error:
        raise EngineBuildError(
            f"{library.title} built an engine of {graph} and {error}; it was not kept: {OTHER_WAYS}"
        ) from error


def gpu_of(settings: EngineSettings) -> GpuFacts | None:
    """The GPU of this machine that the engine is built for; None for one that runs elsewhere alone."""
    gpu = find_gpu(settings.gpu)
    is_here = isinstance(gpu, GpuFacts) and (
        settings.target.needs_gpu or gpu.compute_capability in settings.target.compute_capabilities
    )
    return gpu if is_here and isinstance(gpu, GpuFacts) else None


def require_flavour(target: Target, gpu: GpuFacts, say: Say) -> bool:
    """Whether the target's TensorRT runs on this GPU; what each installed flavour answers is said before anything is built.

    Raises EngineBuildError, with what to install instead, where it does not and the engine is for this GPU alone.
    """
    answers = flavours_on(gpu)
    for answer in answers:
        say(f"{answer.sentence()}, {gpu.name}")
    if not any(answer.flavour == target.flavour and answer.runs is False for answer in answers):
        return True
    if target.needs_gpu:
        raise EngineBuildError(f"nothing was built for {gpu.name}: {refusal(answers) or OTHER_WAYS}")
    return False


def require_judging(index: int = 0) -> None:
    """Check that this machine has all that judging takes, before minutes of building.

    Raises MissingExtraError that names the extra, StreamError for a GPU that cannot be used.
    """
    installed_kind()
    if find_spec("scipy") is None:
        raise MissingExtraError("scipy is not installed; an engine's threshold needs it: pip install 'nnet-edge[gpu]'")
    open_gpu(index=index).close()


def judge_engine(bundle: Bundle, artefact: Artefact, judging: Judging, index: int = 0) -> tuple[Bundle, Gate]:
    """The bundle with the gate's verdict on an engine that fits this machine, and the verdict.

    Raises what `load_runner` raises, CalibrationError for an engine without verdicts that is to be accepted anyway.
    """
    from nnet_edge.calibration.gate import judge

    held_out, seen = bundle.frames("held_out"), bundle.geometry
    chosen = RunnerSettings("auto" if artefact.kind == "engine" else "cuda", gpu=index)
    with (
        tiled(load_runner(bundle.graph), seen) as reference,
        tiled(load_runner(artefact.path, chosen), seen) as candidate,
    ):
        require_answers(bundle, bundle.artefacts[0], reference)
        gate = judge(reference, candidate, held_out, judging.test, rule=bundle.rule)
        if gate.accepted and (fault := answer_fault(bundle, artefact, candidate)):
            gate = replace(gate, accepted=False, reasons=(f"it does not answer as its graph does: {fault}",))
        gate = gate.overridden_by(judging.accept)
        name, against = candidate.name, f"fp32 on {reference.name}"
        answers = (
            {name: ask(candidate, read_asked(bundle)).as_dict()} if gate.threshold and asked_frames(bundle) else {}
        )
    judging.say(sentence(artefact, gate, against))
    return record_gates(bundle, artefact.name, {name: gate.as_dict() | {"against": against}}, answers), gate


def sentence(artefact: Artefact, gate: Gate, against: str) -> str:
    """The verdict in one line; `against` names what it was compared with."""
    verdict = "accepted" if gate.accepted else "refused, used anyway" if gate.overridden else "refused"
    error = f", map error {gate.map_error['max']:.1e} of the threshold at most" if gate.map_error else ""
    speed = "" if gate.latency_ms is None else f", {gate.latency_ms[1]:.2f} ms an image"
    flips = f"{gate.flips} of {gate.images} verdicts flip"
    return f"{artefact.name} on {gate.runner} against {against}: {verdict}; {flips}{error}{speed}"


def require_accepted(artefact: Artefact, gate: Gate) -> None:
    """Raise EngineBuildError, with the gate's reasons, unless the engine may be used."""
    if not (gate.accepted or gate.overridden):
        refused = f"{artefact.path} was built, and the gate refuses it on {gate.runner}"
        raise EngineBuildError(f"{refused}: {'; '.join(gate.reasons)}; use another --precision, or say --accept")


def time_engines(
    engines: Mapping[str, Path], batch: int, images: np.ndarray, say: Say, index: int = 0
) -> dict[str, float]:
    """Median milliseconds of a batch on each engine, in turns; one after another where they do not fit into the GPU together.

    `images` are uint8 RGB (N, H, W, 3). Raises what `load_runner` raises, StreamError for an engine that fails.
    """
    try:
        return time_in_turns(engines, batch, images, index)
    except StreamError as error:
        if len(engines) == 1:
            raise
        say(f"timing the engines one after another, for together they do not run: {error}")
        return {name: time_in_turns({name: path}, batch, images, index)[name] for name, path in engines.items()}


def time_in_turns(engines: Mapping[str, Path], batch: int, images: np.ndarray, index: int) -> dict[str, float]:
    """Median milliseconds of a batch on each engine, from frames to scores; a GPU that slows down slows all alike."""
    frames = [Frame(images[number % len(images)], number, 0.0) for number in range(batch)]
    spent: dict[str, list[int]] = {name: [] for name in engines}
    with ExitStack() as stack:
        settings = RunnerSettings(max_batch=batch, gpu=index)
        runners = {name: stack.enter_context(load_runner(path, settings)) for name, path in engines.items()}
        for _ in range(WARM_UP + TURNS):
            for name, runner in runners.items():
                assert isinstance(runner, FrameRunner)  # every runner of an engine is
                began = time.perf_counter_ns()
                runner.start_frames(frames)()
                spent[name].append(time.perf_counter_ns() - began)
    return {name: statistics.median(times[WARM_UP:]) / 1e6 for name, times in spent.items()}
