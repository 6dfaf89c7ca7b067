"""The race: peers learn, everybody takes turns, and one table says how fast and how good each is.

OUT/METHOD/...      what rows.py leaves
OUT/peers.json      all of it, as schemas/peers.json says
OUT/peers.md        the table
OUT/figure4.png     the paper's Figure 4: frames a second, PRO, size
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.benchmarks.categories import read_datasets
from nnet_edge.benchmarks.machine_words import busy_percent, busy_warning, describe_machine, load_words
from nnet_edge.benchmarks.peers.environment import default_cache, ensure_environment, our_python
from nnet_edge.benchmarks.peers.methods import RANDOM, Method, find_methods
from nnet_edge.benchmarks.peers.rdpp import measure_claim, verdict
from nnet_edge.benchmarks.peers.rows import LearnSettings, export_random, learn_all, row_folder
from nnet_edge.benchmarks.peers.table import Contender, PeersReport
from nnet_edge.benchmarks.peers.turns import Entry, take_turns
from nnet_edge.benchmarks.work_count import count_work
from nnet_edge.bundle import read_bundle
from nnet_edge.config import require_between
from nnet_edge.data import Dataset, load_images
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import write_atomically

FRAMES = 32  # different pictures that a contender meets, again and again
OURS = (("torch", "fp32"), ("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "int8"))
RUNS = {"torch": "anomalib torch", "openvino": "anomalib openvino", "openvino-int8": "anomalib openvino"}


@dataclass(frozen=True)
class RaceSettings:
    """What is raced and how. Raises ConfigError for what cannot be meant."""

    learning: LearnSettings
    methods: tuple[str, ...] = ()  # none: all
    categories: tuple[str, ...] = ()  # none: all
    rounds: int = 5  # 0: no speed
    turn_s: float = 2.0
    learns: bool = True

    def __post_init__(self) -> None:
        find_methods(self.methods)
        require_between("rounds", self.rounds, 0, 1000)
        if not 0 < self.turn_s < float("inf"):
            raise ConfigError(f"turns of {self.turn_s} s cannot be meant: give a positive number")


def run_race(
    data: Sequence[Path], out: Path, ours: Path | None, cache: Path | None, settings: RaceSettings,
    say: Callable[[str], None] = lambda line: None,
) -> PeersReport:  # fmt: skip
    """The report, written into `out` too. Raises ConfigError, DataError, MissingExtraError as its parts do."""
    datasets = read_datasets(data, "auto", settings.categories)
    python = ensure_environment(cache or default_cache(), say)
    methods, command = find_methods(settings.methods), "nnet-edge " + shlex.join(sys.argv[1:])
    failed = []
    if settings.learns:
        failed = learn_all(python, methods, datasets, out, settings.learning, command, say)
    contenders = [
        *our_contenders(ours, datasets, settings.learning.seed),
        *peer_contenders(python, methods, datasets, out, settings, say),
    ]
    busy = busy_percent() if settings.rounds else None
    if settings.rounds:
        contenders, lost = race(contenders, datasets[0], settings, say)
        failed += lost
    claim = measure_claim(settings.learning.threads, settings.rounds, say)
    header = {"command": command, **describe_machine(settings.learning.threads),
              "categories": ", ".join(dataset.category for dataset in datasets),
              "busy before": "not measured" if busy is None else load_words(busy)}  # fmt: skip
    warnings = (*(busy_warning(busy) if busy is not None else ()), *failed)
    report = PeersReport(header, warnings, tuple(contenders), tuple(claim), verdict(claim))
    write_report(report, out)
    return report


def write_report(report: PeersReport, out: Path) -> None:
    """peers.json, peers.md and, when somebody has both speed and PRO, figure4.png."""
    from nnet_edge.benchmarks.peers.figure import draw_figure

    content = json.dumps(report.as_dict(), indent=2, allow_nan=False)
    write_atomically(out / "peers.json", content.encode() + b"\n")
    write_atomically(out / "peers.md", report.markdown().encode() + b"\n")
    if any(one.timed is not None and one.pro is not None for one in report.contenders):
        write_atomically(out / "figure4.png", draw_figure(report))


def race(
    contenders: Sequence[Contender], dataset: Dataset, settings: RaceSettings, say: Callable[[str], None]
) -> tuple[list[Contender], list[str]]:
    """The contenders with their turns, on test images of `dataset`; the sentences of those that could not be timed."""
    paths = [sample.path for sample in dataset.test][:FRAMES]
    entries = [one.entry for one in contenders if one.entry is not None]
    with tempfile.TemporaryDirectory(prefix="nnet-edge-race-") as folder:
        frames = Path(folder) / "frames.npy"
        np.save(frames, load_images(paths).images)
        timed, failed = take_turns(
            entries, frames, settings.learning.threads, settings.rounds, settings.turn_s, Path(folder), say
        )
    return [replace(one, timed=timed.get(one.name)) for one in contenders], list(failed.values())


def our_contenders(ours: Path | None, datasets: Sequence[Dataset], seed: int) -> list[Contender]:
    """N-Net's artefacts out of what `bench accuracy` left at `ours`. Raises ConfigError when there is no bundle."""
    if ours is None:
        return []
    folders = {dataset.category: ours / dataset.category / f"seed_{seed}" for dataset in datasets}
    with_bundle = [folder for folder in folders.values() if (folder / "bundle" / "manifest.json").exists()]
    if not with_bundle:
        raise ConfigError(f"--ours {ours} holds no bundle at CATEGORY/seed_{seed}/bundle: run bench accuracy first")
    bundle = read_bundle(with_bundle[0] / "bundle")
    work = count_work(bundle)
    found = []
    for system, precision in OURS:
        rows = {name: read_metrics(folder / f"{precision}.json") for name, folder in folders.items()}
        name = f"N-Net, {system} {precision}"
        if precision != "fp32" and not has_graph(bundle, precision):
            continue
        artefact = bundle.weights if system == "torch" else bundle.artefact(precision).path
        entry = Entry(name, our_python(), system, bundle.path, precision)
        found.append(
            Contender(name, "N-Net", system, precision, str(bundle.manifest["backbone"]), work.parameters,
                      work.parameters, work.macs, artefact.stat().st_size,
                      {name: metrics for name, metrics in rows.items() if metrics}, entry)
        )  # fmt: skip
    return found


def has_graph(bundle: Any, precision: str) -> bool:
    """Whether the bundle holds a graph of that precision: calibrate may not have run, or its gate refused."""
    from nnet_edge.errors import BundleError

    try:
        return bool(bundle.artefact(precision))
    except BundleError:
        return False


def peer_contenders(
    python: Path, methods: Sequence[Method], datasets: Sequence[Dataset], out: Path, settings: RaceSettings,
    say: Callable[[str], None],
) -> list[Contender]:  # fmt: skip
    """Every peer that learned, and with random weights every one that could not."""
    found = []
    for method in methods:
        if method.takes_same_backbone:
            folders = {d.category: row_folder(out, method, d.category, settings.learning.seed) for d in datasets}
            done = [folder for folder in folders.values() if (folder / "fp32.json").exists()]
            if done:
                found += contenders_of(python, method, done[0] / "learned", folders)
        if not method.takes_same_backbone or method.name == "reverse_distillation":
            try:
                learned = export_random(python, method, out, settings.learning.threads)
            except DataError as error:
                say(f"warning: {error}")
                continue
            found += contenders_of(python, method, learned, {})
    return found


def contenders_of(python: Path, method: Method, learned: Path, folders: dict[str, Path]) -> list[Contender]:
    """One contender for each export in `learned`; its rows are in `folders` (category -> folder)."""
    facts = json.loads((learned / "facts.json").read_text())
    is_random = facts["backbone"] == RANDOM
    backbone = f"{method.own_backbone}, random weights" if is_random else facts["backbone"]
    found = []
    for export, made in facts["exports"].items():
        precision = "int8" if export.endswith("int8") else "fp32"
        rows = {name: row for name, folder in folders.items() if (row := read_row(folder / f"{precision}.json"))}
        system = export.partition("-")[0]
        name = f"{method.title}{' (random weights)' if is_random else ''}, anomalib {system} {precision}"
        entry = None if "error" in made else Entry(name, python, RUNS[export], learned / made["path"], precision)
        found.append(
            Contender(name, method.title, f"anomalib {system}", precision, backbone, facts["parameters"],
                      facts["values"], facts["macs"], made.get("bytes"),
                      {name: row["metrics"] for name, row in rows.items()}, entry,
                      training_note(method, rows, is_random, made))
        )  # fmt: skip
    return found


def training_note(method: Method, rows: dict[str, Any], is_random: bool, made: dict[str, Any]) -> str:
    """What a reader must know beside the figures."""
    notes = [f"its {made['error']}"] if "error" in made else []
    if is_random:
        notes.append(f"speed and size only: {method.lacks or 'its own backbone has no weights here'}")
    for name, row in rows.items():
        training = row["peer"]["training"]
        if training["cut_short"]:
            notes.append(f"{name}: cut short after {training['epochs']} of {training['epochs_planned']} epochs "
                         f"({training['seconds'] / 60:.1f} min)")  # fmt: skip
    adapted = next((row["peer"]["adapted"] for row in rows.values()), None)
    return "; ".join([*notes, adapted] if adapted else notes)


def read_row(path: Path) -> dict[str, Any] | None:
    """A row file, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_metrics(path: Path) -> dict[str, float | None] | None:
    """The metrics of a row file, None where there is none."""
    row = read_row(path)
    return None if row is None else row["metrics"]
