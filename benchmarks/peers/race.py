"""The race: other methods learn, all candidates are measured in rounds, and one table says how fast and how good each is.

OUT/METHOD/...      what rows.py leaves
OUT/peers.json      all of it, as schemas/peers.json says; written before the rounds, after them and at the end
OUT/peers.md        the table
OUT/figure4.png     the paper's Figure 4: frames a second, PRO, size
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnet_edge.benchmarks.accuracy.trainings import read_datasets
from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning, describe_machine, load_words
from nnet_edge.benchmarks.harness.report import write_report
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.benchmarks.peers.environment import default_cache, ensure_environment
from nnet_edge.benchmarks.peers.lineup import absent_rows, baseline_candidates, our_candidates
from nnet_edge.benchmarks.peers.methods import find_methods
from nnet_edge.benchmarks.peers.pipes import time_rounds
from nnet_edge.benchmarks.peers.rdpp import count_claim, time_claim, verdict
from nnet_edge.benchmarks.peers.rows import LearnSettings, learn_all
from nnet_edge.benchmarks.peers.table import Candidate, RaceReport
from nnet_edge.data.images import Dataset, load_images
from nnet_edge.errors import ConfigError
from nnet_edge.files import write_atomically
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
    claim = count_claim()
    absent = absent_rows(methods, datasets, out, settings.learning.seed, failed)
    report = RaceReport(header, warnings, (*our_part, *their_part), claim, verdict(claim), tuple(absent))
    if settings.rounds:
        leave(report, out)  # what was learned is told, whatever becomes of the rounds
        timed, lost = race(report.candidates, datasets[0], settings, say)
        report = replace(report, candidates=tuple(timed), warnings=(*warnings, *lost))
        leave(report, out)
        claim = time_claim(claim, settings.learning.threads, settings.rounds, say)
        report = replace(report, claim=claim, verdict=verdict(claim))
    leave(report, out)
    return report


def leave(report: RaceReport, out: Path) -> None:
    """peers.json, peers.md and, when somebody has both speed and PRO, figure4.png."""
    from nnet_edge.benchmarks.peers.figure import draw_figure

    write_report(out, "peers", report.as_dict(), report.markdown())
    if any(one.timed is not None and one.pro is not None for one in report.candidates):
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
