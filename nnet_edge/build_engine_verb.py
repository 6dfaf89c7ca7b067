"""What `nnet-edge build-engine` does: build engines from a bundle's graphs, keep them in it, measure those that run here.

An engine that was built for this machine is judged at once against the FP32 graph on a CPU runner, on the held-out frames
that the bundle keeps, and gets a threshold of its own. One that was built for another machine is judged there, by
`build-engine --measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.artefacts import PRECISIONS, Artefact
from nnet_edge.bundle import Bundle, add_artefact, read_bundle, record_gates, without_artefact
from nnet_edge.config import RunnerSettings
from nnet_edge.errors import BundleError, ConfigError, EngineBuildError
from nnet_edge.export.engine import build_engine
from nnet_edge.export.engine_settings import EngineSettings, Profile, parse_target
from nnet_edge.runtime.engine_record import faults_here, record_of
from nnet_edge.runtime.gpu_facts import NoGpu, find_gpu
from nnet_edge.runtime.runner import load_runner

if TYPE_CHECKING:
    from nnet_edge.calibration.gate import Gate

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
Stop = Callable[[], bool]
MEGABYTE = 1e6


@dataclass(frozen=True)
class EngineJob:
    """What is asked for, and who is told about it."""

    settings: EngineSettings
    accept: bool  # use an engine that the gate refuses
    say: Say
    bar: Bar  # title -> a progress bar's context, which gives a function of steps done and steps in all
    stop: Stop


def engine_settings(options: Mapping[str, Any]) -> EngineSettings:
    """The settings that the command line's options stand for. Raises ConfigError for what cannot be meant."""
    return EngineSettings(
        parse_target(options["target"]),
        Profile.parse(options["batch"]),
        options["workspace"],
        options["optimization"],
        options["hardware_compatibility"],
        options["version_compatible"],
    )


def build_engines(path: Path, precision: str, job: EngineJob) -> None:
    """Build the engine of that precision into the bundle at `path`; "best": all, of which the fastest accepted one stays.

    Raises EngineBuildError when TensorRT cannot build it or the gate refuses it, BundleError when the bundle lacks the graph,
    ConfigError for "best" where no GPU can measure. The bundle is whole after each of them.
    """
    bundle = read_bundle(path)
    if precision == "best":
        build_best(bundle, job)
        return
    bundle, artefact = build_one(bundle, precision, job)
    if faults := faults_here(record_of(artefact)):
        job.say(
            f"not measured: {'; '.join(faults)}. On the machine that it is for, run "
            f"nnet-edge build-engine {bundle.path} --measure"
        )
        return
    _, gate = measure(bundle, artefact, job.accept, job.say)
    require_accepted(artefact, gate)


def build_best(bundle: Bundle, job: EngineJob) -> None:
    """Build every precision that the bundle has a graph of, measure each here, and keep the fastest that the gate accepts."""
    if isinstance(gpu := find_gpu(), NoGpu):
        raise ConfigError(f"--precision best measures on the GPU, and {gpu.reason}: choose fp32, fp16 or int8")
    graphs = [item.precision for item in bundle.artefacts if item.kind == "graph"]
    found: dict[str, tuple[Artefact, Gate]] = {}
    for precision in (name for name in PRECISIONS if name in graphs):
        bundle, artefact = build_one(bundle, precision, job)
        if faults := faults_here(record_of(artefact)):
            raise ConfigError(f"--precision best measures what it builds, and {'; '.join(faults)}: say --target local")
        bundle, gate = measure(bundle, artefact, job.accept, job.say)
        found[precision] = (artefact, gate)
    chosen = fastest({precision: gate for precision, (_, gate) in found.items()})
    for precision, (artefact, _) in found.items():
        if precision != chosen:
            bundle = without_artefact(bundle, artefact.name)
    job.say(f"best on this machine: {chosen} of {', '.join(found)}; it stays in {bundle.path}, the others do not")


def fastest(gates: dict[str, Gate]) -> str:
    """The accepted precision with the lowest latency. Raises EngineBuildError, with every reason, when none was accepted."""
    accepted = {
        precision: gate.latency_ms[1]
        for precision, gate in gates.items()
        if (gate.accepted or gate.overridden) and gate.latency_ms is not None
    }
    if not accepted:
        reasons = "; ".join(f"{precision}: {', '.join(gate.reasons)}" for precision, gate in gates.items())
        raise EngineBuildError(
            f"the gate accepts no precision on this machine ({reasons}): use a CPU runner of the graph"
        )
    return min(accepted, key=lambda precision: accepted[precision])


def measure_engines(path: Path, accept: bool, say: Say) -> None:
    """Measure every engine of the bundle at `path` that fits this machine; nothing is built.

    Raises BundleError when it holds none that fits, EngineBuildError when the gate refuses one.
    """
    bundle = read_bundle(path)
    engines = [item for item in bundle.artefacts if item.kind == "engine"]
    faults = {item.name: faults_here(record_of(item)) for item in engines}
    fitting = [item for item in engines if not faults[item.name]]
    for name, reasons in faults.items():
        if reasons:
            say(f"{name} is not for this machine: {'; '.join(reasons)}")
    if not fitting:
        raise BundleError(f"{path} holds no engine for this machine: build one with nnet-edge build-engine {path}")
    gates = []
    for artefact in fitting:
        bundle, gate = measure(bundle, artefact, accept, say)
        gates.append(gate)
    for artefact, gate in zip(fitting, gates, strict=True):
        require_accepted(artefact, gate)


def build_one(bundle: Bundle, precision: str, job: EngineJob) -> tuple[Bundle, Artefact]:
    """The bundle with the engine of that precision in it, not measured yet."""
    graph = bundle.engine_source(precision)
    with job.bar(f"{precision} engine") as report:
        built = build_engine(graph.path, job.settings, report, job.stop)
    name = f"nnet.{precision}.{job.settings.target.slug}.engine"
    entry = {
        "kind": "engine",
        "precision": precision,
        "source": bundle.manifest["files"][graph.name],
        "made": built.record.as_dict(),
        "gates": {},
    }
    bundle = add_artefact(bundle, name, built.content, entry)
    (artefact,) = (item for item in bundle.artefacts if item.name == name)
    job.say(
        f"wrote {artefact.path}: {len(built.content) / MEGABYTE:.1f} MB in {built.record.seconds:.1f} s for compute "
        f"capability {', '.join(built.record.compute_capabilities)}"
    )
    return bundle, artefact


def measure(bundle: Bundle, artefact: Artefact, accept: bool, say: Say) -> tuple[Bundle, Gate]:
    """The bundle with the gate's verdict on an engine that fits this machine, and the verdict."""
    from nnet_edge.calibration.gate import judge

    with load_runner(bundle.graph) as reference, load_runner(artefact.path, RunnerSettings()) as candidate:
        gate = judge(reference, candidate, bundle.frames("held_out"), false_rejects=bundle.threshold.asked)
        name = candidate.name
    if not gate.accepted and accept:
        gate = replace(gate, overridden=True)
    say(sentence(artefact, gate, reference.name))
    return record_gates(bundle, artefact.name, {name: gate.as_dict()}), gate


def sentence(artefact: Artefact, gate: Gate, reference: str) -> str:
    """The verdict in one line."""
    verdict = "accepted" if gate.accepted else "refused, used all the same" if gate.overridden else "refused"
    speed = "" if gate.latency_ms is None else f", {gate.latency_ms[1]:.2f} ms an image"
    return (
        f"{artefact.name} on {gate.runner} against fp32 on {reference}: {verdict}; {gate.flips} of {gate.images} verdicts "
        f"flip, map error {gate.map_error['max']:.1e} of the threshold at most{speed}"
    )


def require_accepted(artefact: Artefact, gate: Gate) -> None:
    """Nothing, when the engine may be used. Raises EngineBuildError with the gate's reasons."""
    if not (gate.accepted or gate.overridden):
        raise EngineBuildError(
            f"{artefact.path} was built, and the gate refuses it on {gate.runner}: {'; '.join(gate.reasons)}; use another "
            "--precision, or say --accept"
        )
