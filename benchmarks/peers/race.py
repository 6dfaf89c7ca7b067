"""The race: other methods learn, all candidates are measured in rounds, and one table says how fast and how good each is.

OUT/METHOD/...      what rows.py leaves
OUT/peers.json      all of it, as schemas/peers.json says; written before the rounds, after them and at the end
OUT/peers.md        the table
OUT/figure4.png     the paper's Figure 4: frames a second, PRO, size
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.benchmarks.accuracy.tables import row_from
from nnet_edge.benchmarks.accuracy.trainings import read_datasets
from nnet_edge.benchmarks.harness.grid import require_same
from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning, describe_machine, load_words
from nnet_edge.benchmarks.harness.report import write_report
from nnet_edge.benchmarks.harness.roofline import count_work
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.benchmarks.peers.environment import default_cache, ensure_environment, our_python
from nnet_edge.benchmarks.peers.methods import RANDOM, Method, find_methods
from nnet_edge.benchmarks.peers.pipes import Entry, time_rounds
from nnet_edge.benchmarks.peers.rows import (
    LearnSettings,
    export_random,
    learn_all,
    read_row_if_any,
    require_images,
    row_folder,
)
from nnet_edge.benchmarks.peers.table import Absent, Candidate, RaceReport, draw_figure
from nnet_edge.bundle import read_bundle
from nnet_edge.data.images import Dataset, fingerprint, load_images
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import write_atomically
from nnet_edge.methods.base import find_method
from nnet_edge.settings.runner import require_between

FRAMES = 32  # different pictures that a candidate meets, again and again


@dataclass(frozen=True)
class RaceSettings:
    """What is raced and how. Raises ConfigError for an invalid setting."""

    learning: LearnSettings
    methods: tuple[str, ...] = ()  # none: all
    categories: tuple[str, ...] = ()  # none: all
    rounds: int = 5  # 0: no speed
    turn_s: float = 2.0  # of a candidate in a round
    learns: bool = True

    def __post_init__(self) -> None:
        find_methods(self.methods)
        require_between("rounds", self.rounds, 0, 1000)
        if not 0 < self.turn_s < float("inf"):
            raise ConfigError(f"turns of {self.turn_s} s are invalid: give a positive number")


def run_race(
    data: Sequence[Path], out: Path, ours: Path | None, cache: Path | None, settings: RaceSettings,
    say: Say = quiet,
) -> RaceReport:  # fmt: skip
    """The report, written into `out` too. Raises ConfigError, DataError, MissingExtraError as its parts do."""
    datasets = read_datasets(data, "auto", settings.categories)
    our_part, our_warnings = our_candidates(ours, datasets, settings.learning.seed)
    for warning in our_warnings:
        say(f"warning: {warning}")
    python = ensure_environment(cache or default_cache(), say)
    methods, command = find_methods(settings.methods), "nnet-edge " + shlex.join(sys.argv[1:])
    failed: dict[tuple[str, str], str] = {}
    if settings.learns:
        failed = learn_all(python, methods, datasets, out, settings.learning, command, say)
    their_part, speechless = baseline_candidates(
        python, methods, datasets, out, settings.learning, settings.learns, say
    )
    busy = busy_percent() if settings.rounds else None
    header = {"command": command, **describe_machine(settings.learning.threads),
              "categories": ", ".join(dataset.category for dataset in datasets),
              "busy before": "not measured" if busy is None else load_words(busy)}  # fmt: skip
    warnings = (*(busy_warning(busy) if busy is not None else ()), *our_warnings, *failed.values(), *speechless)
    absent = absent_rows(methods, datasets, out, settings.learning.seed, failed)
    report = RaceReport(header, warnings, (*our_part, *their_part), tuple(absent))
    if settings.rounds:
        leave(report, out)  # what was learned is told, whatever becomes of the rounds
        timed, lost = race(report.candidates, datasets[0], settings, say)
        report = replace(report, candidates=tuple(timed), warnings=(*warnings, *lost))
    leave(report, out)
    return report


def leave(report: RaceReport, out: Path) -> None:
    """peers.json, peers.md and, when somebody has both speed and PRO, figure4.png."""
    write_report(out, "peers", report)
    if any(one.timed and one.mean_of("pro", report.categories) is not None for one in report.candidates):
        write_atomically(out / "figure4.png", draw_figure(report))
    else:
        (out / "figure4.png").unlink(missing_ok=True)  # one of an earlier report


def race(
    candidates: Sequence[Candidate], dataset: Dataset, settings: RaceSettings, say: Say
) -> tuple[list[Candidate], list[str]]:
    """The candidates with their rounds, on test images of `dataset`; the sentences of those that could not be timed."""
    paths = [sample.path for sample in dataset.test][:FRAMES]
    entries = [one.entry for one in candidates if one.entry is not None]
    with tempfile.TemporaryDirectory(prefix="nnet-edge-race-") as folder:
        frames, threads = Path(folder) / "frames.npy", settings.learning.threads
        np.save(frames, load_images(paths).images)
        timed, failed = time_rounds(entries, frames, threads, settings.rounds, settings.turn_s, Path(folder), say)
    return [replace(one, timed=timed.get(one.name)) for one in candidates], list(failed.values())


WITHOUT_OURS = "N-NET IS NOT IN THIS RACE: give --ours FOLDER, what `nnet-edge bench accuracy` filled as its --out"
OURS = (("torch", "fp32"), ("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "int8"))
RUNS = {"torch": "anomalib torch", "openvino": "anomalib openvino", "openvino-int8": "anomalib openvino"}
Rows = dict[str, dict[str, Any]]  # category -> row


def our_candidates(
    ours: Path | None, datasets: Sequence[Dataset], seed: int
) -> tuple[list[Candidate], tuple[str, ...]]:
    """Our artefacts out of what `bench accuracy` left at `ours`, and what must be said of them.

    Raises ConfigError when there is no bundle, or its rows are of other test images.
    """
    if ours is None:
        return [], (WITHOUT_OURS,)
    folders = {dataset.category: ours / dataset.category / f"seed_{seed}" for dataset in datasets}
    with_bundle = [folder for folder in folders.values() if (folder / "bundle" / "manifest.json").exists()]
    if not with_bundle:
        raise ConfigError(f"--ours {ours} holds no bundle at CATEGORY/seed_{seed}/bundle: run bench accuracy first")
    bundle = read_bundle(with_bundle[0] / "bundle")
    title = find_method(bundle.method, str(bundle.path)).title
    work, held = count_work(bundle), {item.precision for item in bundle.artefacts if item.kind == "graph"}
    found: list[Candidate] = []
    warnings = [f"{title}: {text}" for text in bundle.warnings]
    for system, precision in OURS:
        rows = {one.category: row for one in datasets
                if (row := read_our_row(folders[one.category] / f"{precision}.json", one))}  # fmt: skip
        warnings += [f"{title}: {text}" for row in rows.values() if (text := row_from(row).warning)]
        warnings += [f"{title}, {precision}: no row of {one.category}: run bench accuracy on it" for one in datasets
                     if one.category not in rows]  # fmt: skip
        name = f"{title}, {system} {precision}"
        if precision not in held:
            warnings.append(f"{name}: {bundle.name} holds no such graph, so it does not run")
            continue
        artefact = bundle.weights if system == "torch" else bundle.graph_for(system, precision).path
        entry = Entry(name, our_python(), system, bundle.path, precision)
        found.append(
            Candidate(name, title, system, precision, str(bundle.manifest["backbone"]), work.parameters,
                      work.parameters, work.macs, artefact.stat().st_size, metrics_of(rows), entry, is_ours=True,
                      metrics_from=runners_of(rows))
        )  # fmt: skip
    return found, tuple(dict.fromkeys(warnings))


def read_our_row(path: Path, dataset: Dataset) -> dict[str, Any] | None:
    """A row of `bench accuracy`, None where there is none. Raises ConfigError when it is of other test images."""
    row = read_row_if_any(path)
    if row is not None:
        tested = {"test": fingerprint([sample.path for sample in dataset.test])}
        require_same(path, {"test": row.get("key", {}).get("test", {}).get("test")}, tested)
    return row


def metrics_of(rows: Rows) -> dict[str, Any]:
    """Category -> metrics."""
    return {name: row["metrics"] for name, row in rows.items()}


def runners_of(rows: Rows) -> str:
    """The systems whose maps the rows' metrics are of."""
    return ", ".join(dict.fromkeys(row["runner"] for row in rows.values()))


def baseline_candidates(
    python: Path, methods: Sequence[Method], datasets: Sequence[Dataset], out: Path, learning: LearnSettings,
    learns: bool, say: Say,
) -> tuple[list[Candidate], list[str]]:  # fmt: skip
    """Every method that learned, with random weights every one that could not, and why one of these is not here.

    Raises ConfigError when a row in `out` is of other images: `--no-learning` reads rows of any settings.
    """
    found: list[Candidate] = []
    failed: list[str] = []
    for method in methods:
        if method.takes_same_backbone:
            folders = {d.category: row_folder(out, method, d.category, learning.seed) for d in datasets}
            for dataset in () if learns else datasets:
                require_images(folders[dataset.category] / "fp32.json", dataset)
            done = [folder for folder in folders.values() if (folder / "fp32.json").exists()]
            if done:
                found += candidates_of(python, method, done[0] / "learned", folders)
        if not method.takes_same_backbone or method.name == "reverse_distillation":
            try:
                learned = export_random(python, method, out, learning.threads)
            except DataError as error:
                failed.append(str(error))
                say(f"warning: {error}")
                continue
            found += candidates_of(python, method, learned, {})
    return found, failed


def absent_rows(
    methods: Sequence[Method], datasets: Sequence[Dataset], out: Path, seed: int, failed: dict[tuple[str, str], str]
) -> list[Absent]:
    """Each method and category without an FP32 row, with the reason; `failed` are those that learned in vain."""
    found = []
    for method in methods:
        if not method.takes_same_backbone:
            found.append(Absent(method.title, "all", f"cannot learn here: {method.lacks}"))
            continue
        for category in (dataset.category for dataset in datasets):
            if not (row_folder(out, method, category, seed) / "fp32.json").exists():
                why = failed.get((method.name, category), "not learned yet: run without --no-learning")
                found.append(Absent(method.title, category, why))
    return found


def candidates_of(python: Path, method: Method, learned: Path, folders: dict[str, Path]) -> list[Candidate]:
    """One candidate for each export in `learned`; its rows are in `folders` (category -> folder)."""
    facts = json.loads((learned / "facts.json").read_text())
    is_random = facts["backbone"] == RANDOM
    backbone = f"{method.own_backbone}, random weights" if is_random else facts["backbone"]
    found = []
    for export, made in facts["exports"].items():
        precision = "int8" if export.endswith("int8") else "fp32"
        rows = {name: row for name, folder in folders.items() if (row := read_row_if_any(folder / f"{precision}.json"))}
        system = export.partition("-")[0]
        name = f"{method.title}{' (random weights)' if is_random else ''}, anomalib {system} {precision}"
        entry = None if "error" in made else Entry(name, python, RUNS[export], learned / made["path"], precision)
        found.append(
            Candidate(name, method.title, f"anomalib {system}", precision, backbone, facts["parameters"],
                      facts["values"], facts["macs"], made.get("bytes"), metrics_of(rows), entry,
                      training_note(method, rows, is_random, made), metrics_from=runners_of(rows))
        )  # fmt: skip
    return found


def training_note(method: Method, rows: Rows, is_random: bool, made: dict[str, Any]) -> str:
    """What a reader must know beside the figures."""
    notes = [f"its {made['error']}"] if "error" in made else []
    if is_random:
        notes.append(f"speed and size only: {method.lacks or 'its own backbone has no weights here'}")
    for name, row in rows.items():
        training = row["peer"]["training"]
        if training["epochs_planned"] < method.epochs:
            notes.append(f"{name}: {training['epochs_planned']} epochs as told, not anomalib's {method.epochs}")
        if training["cut_short"]:
            notes.append(f"{name}: cut short after {training['epochs']} of {training['epochs_planned']} epochs "
                         f"({training['seconds'] / 60:.1f} min)")  # fmt: skip
    adapted = next((row["peer"]["adapted"] for row in rows.values()), None)
    return "; ".join([*notes, adapted] if adapted else notes)
