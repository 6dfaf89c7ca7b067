"""How fast a bundle judges pictures on this machine: every system that can run it, in three scopes, in one run.

    nnet-edge bench speed BUNDLE FOLDER --out runs/speed

All candidates are measured in every round, the order moving on by one each round; each is warmed up before the first round,
and makes one uncounted call at the start, when the thread pools of the one before go to sleep. What was asked for and cannot
run here is in the report with the reason.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

from nnet_edge.benchmarks.harness.machine import (
    busy_percent,
    busy_warning,
    describe_machine,
    load_words,
    measuring_energy,
)
from nnet_edge.benchmarks.harness.roofline import count_work, measure_roofline, merged
from nnet_edge.benchmarks.harness.rounds import Say, quiet, run_rounds
from nnet_edge.benchmarks.speed.memory import measure_memory
from nnet_edge.benchmarks.speed.plan import Candidate, Missing, Opened, Plan, SpeedSettings, candidates_of
from nnet_edge.benchmarks.speed.report import Memory, Result, SpeedReport, SystemFacts
from nnet_edge.benchmarks.speed.systems import open_all
from nnet_edge.bundle import Bundle, now, read_bundle
from nnet_edge.data.folders import find_images
from nnet_edge.data.images import load_images
from nnet_edge.errors import DataError, NnetEdgeError
from nnet_edge.image_files import read_size
from nnet_edge.machine import has_module, usable_cores

PICTURES = 64  # of the folder that are taken, the first ones


def measure_speed(
    bundle_path: Path, folder: Path, settings: SpeedSettings, command: str = "measure_speed",
    say: Say = quiet,
) -> SpeedReport:  # fmt: skip
    """How fast the bundle judges the images in `folder` and below; `command` is what the report names as its origin.

    Raises BundleError, DataError for a folder without readable images; a system that cannot run is part of the report.
    """
    bundle = read_bundle(bundle_path)
    known = find_images(folder)[:PICTURES] if folder.is_dir() else []
    if not known:
        raise DataError(f"no images in {folder}: give a folder that holds some")
    paths = list(islice(cycle(known), max(len(known), *settings.batches)))
    images = bundle.geometry.cut(load_images(paths, geometry=bundle.geometry).images)
    busy = busy_percent()
    ceilings = measure_roofline(settings.threads or usable_cores())
    with ExitStack() as stack:
        meter = stack.enter_context(measuring_energy())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-speed-")))
        opened, missing = open_all(bundle, settings, scratch, stack, say)
        out = scratch / "verdicts.jsonl"
        named = list(candidates_of(opened, settings.scopes, images, known, settings.turn_s, meter, out))
        candidates, first_call_s, failed = warmed_up(named, say)
        say(f"{len(candidates)} candidates, {settings.repeats} rounds")

        def lose(place: int, error: NnetEdgeError, number: int) -> None:
            failed.append(missing_of(candidates[place], f"failed in a round: {error}"))
            say(f"warning: {failed[-1].reason}")

        measures = {place: one.measure for place, one in enumerate(candidates)}
        rounds = run_rounds(measures, settings.repeats, say, lose)
    results = tuple(
        Result.of(candidates[place].opened, candidates[place].scope, each) for place, each in rounds.items()
    )
    systems = tuple(facts_of(bundle_path, opened, first_call_s, settings, failed, say))
    machine = describe_machine(settings.threads)
    return SpeedReport(
        command=command,
        when=now(),
        machine=machine | {"busy before": load_words(busy), "energy": meter.source},
        bundle=describe_bundle(bundle, known, settings),
        warnings=(*bundle.warnings, *busy_warning(busy)),
        work=count_work(bundle) if has_module("torch") else None,
        roofline=merged(ceilings, measure_roofline(settings.threads or usable_cores())),
        systems=systems,
        results=results,
        missing=(*missing, *failed),
    )


def warmed_up(
    candidates: Sequence[Candidate], say: Say
) -> tuple[list[Candidate], dict[tuple[Plan, int], float], list[Missing]]:
    """The candidates that came through their warm-up, the seconds of the first warm-up of each system and batch, and those
    that did not come through, with the reason.
    """
    ready, first_call_s, failed = [], {}, []
    for one in candidates:
        plan, batch = one.opened.plan, one.opened.batch
        began_s = time.monotonic()
        try:
            one.warm_up()
        except NnetEdgeError as error:
            failed.append(missing_of(one, str(error)))
            continue
        ready.append(one)
        if (plan, batch) not in first_call_s:
            first_call_s[plan, batch] = time.monotonic() - began_s
            say(f"{plan.name}, batch {batch}: warm after {first_call_s[plan, batch]:.1f} s")
    return ready, first_call_s, failed


def missing_of(candidate: Candidate, reason: str) -> Missing:
    """Why a candidate has no figures."""
    plan = candidate.opened.plan
    return Missing(plan.system, plan.precision, candidate.scope, f"batch {candidate.opened.batch}: {reason}")


def facts_of(
    bundle: Path, opened: Sequence[Opened], first_call_s: dict[tuple[Plan, int], float], settings: SpeedSettings,
    failed: list[Missing], say: Say,
) -> Iterator[SystemFacts]:  # fmt: skip
    """What is known of each system beside its speed; its memory in a process of its own, once everything here is closed.

    A process that fails or is not ready in time is put into `failed`: the rounds are measured by then.
    """
    for plan in dict.fromkeys(one.plan for one in opened):
        artefact = next(one.artefact for one in opened if one.plan == plan)
        calls = {batch: seconds for (known, batch), seconds in first_call_s.items() if known == plan}
        memory: Memory | None = None
        if settings.with_memory and calls:
            say(f"memory of {plan.name}")
            try:
                memory = measure_memory(bundle, plan, settings)
            except NnetEdgeError as error:
                failed.append(Missing(plan.system, plan.precision, "memory", str(error)))
                say(f"warning: {error}")
        yield SystemFacts(plan.system, plan.precision, artefact.name, artefact.stat().st_size, calls, memory)


def describe_bundle(bundle: Bundle, paths: Sequence[Path], settings: SpeedSettings) -> dict[str, str]:
    """What was judged."""
    sizes = sorted({read_size(path) for path in paths})
    listed = " to ".join(f"{height}x{width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    kinds = ", ".join(sorted({path.suffix.lower().removeprefix(".") for path in paths}))
    tiles = "" if bundle.geometry.tiles is None else f", of which a picture is {bundle.geometry.tiles.count}"
    return {
        "bundle": f"{bundle.name}, {bundle.manifest['backbone']}, input {bundle.geometry.network.text}{tiles}",
        "pictures": f"{len(paths)} ({listed} pixels, {kinds})",
        "turns": f"{settings.repeats} of {settings.turn_s:g} s for every candidate",
    }
