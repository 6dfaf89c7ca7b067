"""`nnet-edge build-engine`: build TensorRT engines into a bundle and measure those that run here.

An engine for this machine is judged at once (export/engine_gate.py) and gets its own threshold. An engine for another
machine is judged there, by `build-engine --measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import FOLDER, Command, find_dataset, labelled_data_options, shown_option
from nnet_edge.cli.view import say, steps_bar, stop_on_signal
from nnet_edge.errors import BundleError, CalibrationError, ConfigError, EngineBuildError, StreamError
from nnet_edge.gpu import NoGpu, find_gpu

if TYPE_CHECKING:
    from nnet_edge.bundle import Artefact, Bundle
    from nnet_edge.export.engine_gate import Judging
    from nnet_edge.export.engine_settings import EngineSettings

FAILURES = (EngineBuildError, StreamError, BundleError, CalibrationError)  # of one engine: the others go on


@dataclass(frozen=True)
class EngineJob:
    """Settings, judging, progress bar and stop signal of one run of the command."""

    settings: EngineSettings
    judging: Judging
    bar: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]  # title -> bar of steps done, steps in all
    stop: Callable[[], bool]


def engine_settings(options: Mapping[str, Any]) -> EngineSettings:
    """The settings that the command line's options stand for. Raises ConfigError for invalid ones."""
    from nnet_edge.export.engine_settings import EngineSettings, Profile, parse_target

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
    ConfigError for "best" where no GPU can measure, MissingExtraError before the build where judging lacks a library.
    The bundle stays valid after each of them.
    """
    from nnet_edge.bundle import read_bundle
    from nnet_edge.export.engine_gate import judge_engine, require_accepted, require_judging, runs_here
    from nnet_edge.runtime.runners.trt.record import faults_here, record_of

    bundle = read_bundle(path)
    if precision == "best":
        build_best(bundle, job)
        return
    if runs_here(job.settings.target):
        require_judging()
    bundle, artefact = build_one(bundle, precision, job)
    if faults := faults_here(record_of(artefact)):
        job.judging.say(
            f"not measured: {'; '.join(faults)}. On the machine that it is for, run "
            f"nnet-edge build-engine {bundle.path} --measure"
        )
        return
    _, gate = judge_engine(bundle, artefact, job.judging)
    require_accepted(artefact, gate)


def build_best(bundle: Bundle, job: EngineJob) -> None:
    """Build every precision that the bundle has a graph of, judge each here, and keep the fastest that the gate accepts.

    Reports and leaves out those that cannot be built, loaded or accepted. Raises EngineBuildError, with every reason, when
    none is left; what was built stays then.
    """
    from nnet_edge.bundle import PRECISIONS, changed, without_artefact
    from nnet_edge.export.engine_gate import judge_engine, require_accepted, require_judging
    from nnet_edge.runtime.runners.trt.record import faults_here, record_of

    say = job.judging.say
    if isinstance(gpu := find_gpu(), NoGpu):
        raise ConfigError(f"--precision best measures on the GPU, and {gpu.reason}: choose fp32, fp16 or int8")
    require_judging()
    graphs = [item.precision for item in bundle.artefacts if item.kind == "graph"]
    built: list[Artefact] = []
    accepted: dict[str, Artefact] = {}
    failed: dict[str, str] = {}
    for precision in (name for name in PRECISIONS if name in graphs):
        try:
            bundle, artefact = build_one(bundle, precision, job)
            built.append(artefact)
            if faults := faults_here(record_of(artefact)):
                why = "; ".join(faults)
                raise ConfigError(f"--precision best measures what it builds, and {why}: say --target local")
            bundle, gate = judge_engine(bundle, artefact, job.judging)
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
    from nnet_edge.export.engine_gate import time_engines

    batch = job.settings.profile.best
    paths = {precision: artefact.path for precision, artefact in engines.items()}
    times = time_engines(paths, batch, bundle.frames("held_out"), job.judging.say)
    return min(times, key=lambda precision: times[precision]), {"batch": batch, "ms": times}


def measure_engines(path: Path, judging: Judging) -> None:
    """Judge every engine of the bundle at `path` that fits this machine; nothing is built.

    Raises BundleError when it holds none that fits; EngineBuildError, after all were judged, for those that do not load or
    that the gate refuses.
    """
    from nnet_edge.bundle import read_bundle
    from nnet_edge.export.engine_gate import judge_engine, require_accepted, require_judging
    from nnet_edge.runtime.runners.trt.record import faults_of

    bundle = read_bundle(path)
    engines = [item for item in bundle.artefacts if item.kind == "engine"]
    faults = {item.name: faults_of(item) for item in engines}
    for name, reasons in faults.items():
        if reasons:
            judging.say(f"{name} is not measured: {'; '.join(reasons)}")
    fitting = [item for item in engines if not faults[item.name]]
    if not fitting:
        raise BundleError(f"{path} holds no engine for this machine: build one with nnet-edge build-engine {path}")
    require_judging()
    failed: list[str] = []
    for artefact in fitting:
        try:
            bundle, gate = judge_engine(bundle, artefact, judging)
            require_accepted(artefact, gate)
        except FAILURES as error:
            failed.append(str(error))
    if failed:
        raise EngineBuildError("; ".join(failed))


def build_one(bundle: Bundle, precision: str, job: EngineJob) -> tuple[Bundle, Artefact]:
    """The bundle with the engine of that precision in it, not measured yet."""
    from nnet_edge.bundle import add_artefact
    from nnet_edge.export.engine import build_engine

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
    job.judging.say(
        f"wrote {artefact.path}: {len(built.content) / 1e6:.1f} MB in {built.record.seconds:.1f} s for compute "
        f"capability {', '.join(built.record.compute_capabilities)}"
    )
    return bundle, artefact


@click.command("build-engine", cls=Command)
@click.argument("bundle", type=FOLDER)
@shown_option("--precision", type=click.Choice(["fp32", "fp16", "int8", "best"]), default="best",
              help="best: the fastest that passes the gate here.")  # fmt: skip
@shown_option("--target", default="local", help="local, jetson, or cards: rtx:sm86,sm89,sm120.")
@shown_option("--batch", default="1,8,32", help="Smallest,best,largest; or one number.")
@click.option("--workspace", type=int, help="MiB that the builder may use (default: all).")
@shown_option("--optimization", type=int, default=3, help="0 builds quickest, 5 tries most.")
@shown_option("--hardware-compatibility", type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
              default="none", help="GPUs beside this one (TensorRT only).")  # fmt: skip
@click.option("--version-compatible", is_flag=True, help="Later versions of the same major load it (TensorRT only).")
@click.option("--accept", is_flag=True, help="Use an engine that the gate refuses.")
@click.option("--measure", "only_measure", is_flag=True,
              help="Build nothing: measure the engines that fit this machine.")  # fmt: skip
@labelled_data_options
def command(bundle: Path, precision: str, only_measure: bool, **options: Any) -> None:
    """Build a TensorRT engine of BUNDLE's graph into BUNDLE, and judge it here if this machine runs it."""
    from nnet_edge.export.engine_gate import Judging, load_labelled

    dataset = None if options["data"] is None else find_dataset(options["data"], options)
    judging = Judging(options["accept"], load_labelled(bundle, dataset, options["skip_bad_images"]), say)
    with stop_on_signal() as stop:
        if only_measure:
            measure_engines(bundle, judging)
        else:
            build_engines(bundle, precision, EngineJob(engine_settings(options), judging, steps_bar, stop))
