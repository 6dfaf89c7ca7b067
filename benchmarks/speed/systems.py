"""What can compute a bundle's verdicts on this machine, opened; and what cannot, with the reason.

A system gives a runner, which uploads images and gives maps and scores, and its bare model, which stops at the layer maps: its
graph is cut out of the bundle's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from nnet_edge.benchmarks.gpu.repeating import RepeatingRunner
from nnet_edge.benchmarks.harness.rounds import Say
from nnet_edge.benchmarks.speed.plan import BareModel, Missing, Opened, Plan, SpeedSettings
from nnet_edge.bundle import Artefact, Bundle
from nnet_edge.errors import BundleError, MissingExtraError, NnetEdgeError
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.machine import has_module, usable_cores
from nnet_edge.runtime.runners.base import installed_kind, load_runner
from nnet_edge.runtime.runners.graph import INPUT, Contract, GraphRunner, layer_maps_of
from nnet_edge.runtime.runners.trt.library import TITLES
from nnet_edge.runtime.runners.trt.record import faults_here, file_faults, record_of
from nnet_edge.runtime.stream.model import choose_artefact
from nnet_edge.settings.runner import CPU_RUNNER_KINDS, RunnerSettings


def plans_of(bundle: Bundle, settings: SpeedSettings) -> tuple[list[Plan], list[Missing]]:
    """Every system and precision that was asked for: those that are to be opened, and engines that are not there."""
    plans, missing, gpu = [], [], find_gpu()
    no_gpu = f"; {gpu.reason}" if isinstance(gpu, NoGpu) else ""
    for system in settings.systems:
        held = {item.precision for item in engines_of(bundle, system)} if system in TITLES else set()
        for precision in settings.precisions:
            if system not in TITLES or precision in held:
                plans.append(Plan(system, precision))
            else:
                why = f"{bundle.path.name} holds no {precision} engine of {TITLES[system]}{no_gpu}"
                missing.append(Missing(system, precision, None, why))
    return plans, missing


def engines_of(bundle: Bundle, flavour: str) -> list[Artefact]:
    """The bundle's engines of TensorRT or of TensorRT-RTX."""
    return [item for item in bundle.artefacts if item.kind == "engine" and record_of(item).tool == flavour]


def open_system(
    bundle: Bundle, plan: Plan, settings: SpeedSettings, folder: Path, stack: ExitStack
) -> Iterator[Opened]:
    """The system for each batch of the settings, released with `stack`; `folder` takes graphs that are cut on the way.

    Raises NnetEdgeError with the reason when it cannot be had.
    """
    if plan.system in CPU_RUNNER_KINDS:
        return open_graph(bundle, plan, settings, folder, stack)
    if plan.system in TITLES:
        return open_engine(bundle, plan, settings, stack)
    if not has_module("torch"):
        raise MissingExtraError("torch is not installed: pip install 'nnet-edge[train]'")
    from nnet_edge.benchmarks.speed.system_torch import open_torch

    return open_torch(bundle, plan, settings, stack)


def open_graph(bundle: Bundle, plan: Plan, settings: SpeedSettings, folder: Path, stack: ExitStack) -> Iterator[Opened]:
    """A graph on OpenVINO or ONNX Runtime: once with the hint latency for batch 1, once with throughput for the others."""
    arithmetic = "bf16" if plan.precision == "bf16" else "fp32"
    threads, largest = settings.threads or usable_cores(), max(settings.batches)
    for hint, batches in (("latency", {1}), ("throughput", {*settings.batches} - {1})):
        wanted = [batch for batch in settings.batches if batch in batches]
        if not wanted:
            continue
        chosen = RunnerSettings(plan.system, arithmetic, threads, hint, max_batch=largest)
        artefact = choose_artefact(bundle, chosen, plan.precision)
        threshold = artefact.threshold_for(plan.system).value
        runner = stack.enter_context(load_runner(artefact.path, chosen))
        bare = None
        if "model" in settings.scopes:
            bare = stack.enter_context(load_bare(cut_tail(artefact.path, folder), chosen)).infer_layer_maps
        for batch in wanted:
            yield Opened(plan, batch, runner, bare, threshold, artefact.path, hint)


def open_engine(bundle: Bundle, plan: Plan, settings: SpeedSettings, stack: ExitStack) -> Iterator[Opened]:
    """An engine of TensorRT or TensorRT-RTX that fits this machine; of several, the newest."""
    engines = [item for item in engines_of(bundle, plan.system) if item.precision == plan.precision]
    faults = {item.name: [*file_faults(item, record_of(item)), *faults_here(record_of(item))] for item in engines}
    fitting = [item for item in engines if not faults[item.name]]
    if not fitting:
        raise BundleError("; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in faults.items()))
    artefact = max(fitting, key=lambda item: str(item.record["made"]["when"]))
    runner = stack.enter_context(RepeatingRunner.load(artefact.path, RunnerSettings(max_batch=max(settings.batches))))
    if runner.max_batch < max(settings.batches):
        raise BundleError(f"{artefact.name} takes batches up to {runner.max_batch}, not {max(settings.batches)}")
    threshold = artefact.threshold_for(runner.name).value
    for batch in settings.batches:
        bare = engine_alone(runner, batch) if "model" in settings.scopes else None
        yield Opened(plan, batch, runner, bare, threshold, artefact.path, "")


def engine_alone(runner: RepeatingRunner, batch: int) -> BareModel:
    """The engine without upload, kernels and download: one inference of images that lie on the GPU, waited for."""
    runner.infer(np.zeros((batch, *runner.input_shape), np.uint8))
    compute = runner.network_alone()
    return lambda images: compute(1)


def open_all(
    bundle: Bundle, settings: SpeedSettings, folder: Path, stack: ExitStack, say: Say
) -> tuple[list[Opened], list[Missing]]:
    """Every system, precision and batch that this machine can run, and what it cannot, with the reason."""
    plans, missing = plans_of(bundle, settings)
    opened = []
    for plan in plans:
        say(f"loading {plan.name}")
        try:
            with ExitStack() as own:  # of a system that fails half-way nothing stays open
                found = list(open_system(bundle, plan, settings, folder, own))
                stack.enter_context(own.pop_all())
            opened += found
        except NnetEdgeError as error:
            missing.append(Missing(plan.system, plan.precision, None, " ".join(str(error).split())))
    return opened, missing


def cut_tail(graph: Path, out: Path) -> Path:
    """The graph at `graph` up to its layer maps, as a file of the same name in the folder `out`; cut once only.

    Raises MissingExtraError without onnx, BundleError for a graph that cannot be cut.
    """
    target = out / graph.name
    if target.exists():
        return target
    try:
        import onnx
        import onnx.utils
    except ImportError as error:
        raise MissingExtraError("the bare model is cut out with onnx: pip install 'nnet-edge[calibrate]'") from error
    model = onnx.load(graph)
    names = layer_maps_of(output.name for output in model.graph.output)
    try:
        bare = onnx.utils.Extractor(model).extract_model([INPUT], list(names))
    except ValueError as error:
        raise BundleError(
            f"{graph} has no tail that could be cut off ({error}): write it again with `export`"
        ) from error
    onnx.save(bare, target)
    return target


def load_bare(graph: Path, settings: RunnerSettings) -> GraphRunner:
    """A runner of a graph without tail: only `infer_layer_maps` works. Raises what `load_runner` raises."""
    contract = Contract(tail=())
    if (installed_kind() if settings.kind == "auto" else settings.kind) == "openvino":
        from nnet_edge.runtime.runners.openvino_runner import OpenvinoRunner

        return OpenvinoRunner(graph, settings, contract)
    from nnet_edge.runtime.runners.onnx_runner import OnnxRunner

    return OnnxRunner(graph, settings, contract)
