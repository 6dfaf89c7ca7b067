"""How good: N-Net trained for each category and seed, its bundle measured in FP32 and INT8 on the runner that deploys it.

    OUT/CATEGORY/seed_1/training/    checkpoint; a training that was stopped goes on from there
    OUT/CATEGORY/seed_1/bundle/      what `train` and `calibrate` would leave
    OUT/CATEGORY/seed_1/fp32.json    a row (schemas/accuracy_row.json); never computed twice
    OUT/accuracy.json, accuracy.md   the tables, written anew after every row; never without one

The test images decide nothing: weights, threshold, calibration and what stays FP32 are chosen on good training images.
Several processes may share an OUT: each category and seed is done by the one that claims it (claims.py), and what others
were at is asked for again at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from nnet_edge import __version__
from nnet_edge.benchmarks.accuracy.grid import Trainings, claiming, holder, paper_set_of, require_same
from nnet_edge.benchmarks.accuracy.tables import ROW_SCHEMA, AccuracyRow, AccuracyTables, row_from
from nnet_edge.bundle import MANIFEST, graph_name, made_on, now, read_bundle
from nnet_edge.data.images import HELD_OUT_SHARE, Dataset, fingerprint, with_held_out_images
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.evaluation.artefact import open_artifact
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.export.bundling import export_bundle
from nnet_edge.export.calibrating import CalibrateSettings, calibrate_bundle
from nnet_edge.files import write_atomically
from nnet_edge.imaging import MaskRule
from nnet_edge.methods.nnet.settings import TUNED, TrainSettings
from nnet_edge.runtime.runners.base import installed_kind
from nnet_edge.settings.runner import RunnerSettings, require_choice
from nnet_edge.training.checkpoint import Checkpoint
from nnet_edge.training.loop import Progress, TrainOptions

PRECISIONS = ("fp32", "int8")
METHOD = "N-Net"


@dataclass(frozen=True)
class AccuracySettings:
    """What is trained and measured. Raises ConfigError for what cannot be meant."""

    training: TrainSettings = TUNED  # each seed replaces its own
    options: TrainOptions = field(default_factory=TrainOptions)
    seeds: tuple[int, ...] = (1, 2, 3)
    precisions: tuple[str, ...] = PRECISIONS
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    held_out_share: float = HELD_OUT_SHARE
    skip_bad: bool = False
    mask_rule: MaskRule = "half"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds {', '.join(map(str, self.seeds)) or 'none'}: give at least one, each once")
        if not self.precisions:
            raise ConfigError("no precision to measure: give fp32, int8 or both")
        for name in self.precisions:
            require_choice("precision", name, PRECISIONS)


class CategoryRows:
    """The rows of one category: trained, exported, calibrated, measured; or read back."""

    def __init__(
        self, dataset: Dataset, out: Path, settings: AccuracySettings, command: str, trainings: Trainings
    ) -> None:
        self.dataset, self.out, self.settings, self.command = dataset, out, settings, command
        self.trainings, self.say = trainings, trainings.say
        kind = installed_kind() if settings.runner.kind == "auto" else settings.runner.kind
        self.runner = replace(settings.runner, kind=kind)
        self.test_key = {
            "test": fingerprint([sample.path for sample in dataset.test]),
            "mask_rule": settings.mask_rule,
            "runner": kind,
        }

    def paths(self, seed: int) -> dict[str, Path]:
        """Precision -> the file of its row."""
        return {name: self.out / f"seed_{seed}" / f"{name}.json" for name in self.settings.precisions}

    def is_done(self, seed: int) -> bool:
        """Whether every row of this seed is there."""
        return all(path.exists() for path in self.paths(seed).values())

    def rows(self, seed: int) -> list[AccuracyRow] | None:
        """The category's rows of this seed; None when its training was stopped or another process is at it."""
        folder, training = self.out / f"seed_{seed}", replace(self.settings.training, seed=seed)
        paths, what = self.paths(seed), f"{self.dataset.category}, seed {seed}"
        if not self.is_done(seed):
            with claiming(folder) as is_mine:
                if not is_mine:
                    self.say(f"{what}: {holder(folder)} is at it")
                    return None
                checkpoint = self.trainings.finish(training, folder / "training", what)
                if checkpoint is None:
                    return None
                for precision, path in paths.items():
                    if self.trainings.stop():
                        return None
                    if not path.exists():
                        self.say(f"{what}: measuring {precision} on {self.runner.kind}")
                        found = self.measure(folder, checkpoint, precision)
                        write_atomically(path, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
        return [self.read(path, training) for path in paths.values()]

    def measure(self, folder: Path, checkpoint: Checkpoint, precision: str) -> dict[str, Any]:
        """The row of a precision, plain values."""
        bundle = folder / "bundle"
        if not (bundle / MANIFEST).exists():
            export_bundle(folder / "training", bundle, None, self.runner, True, self.say)
        if precision == "int8" and all(item.name != graph_name(precision) for item in read_bundle(bundle).artefacts):
            blind = replace(self.dataset, test=())  # the gate judges on good images: the test images choose nothing
            settings = CalibrateSettings(precisions=(precision,), accept=True)
            calibrate_bundle(bundle, blind, self.runner, settings, self.settings.skip_bad, silent_bar, self.say)
        artifact = open_artifact(bundle, self.runner, False, precision)
        dataset = with_held_out_images(self.dataset, checkpoint.facts["data"])
        with artifact.runner as runner:
            found = evaluate(
                runner,
                dataset,
                artifact.threshold,
                self.runner.max_batch,
                self.settings.skip_bad,
                self.settings.mask_rule,
            ).as_dict()
        facts = checkpoint.facts
        return {
            "schema": ROW_SCHEMA,
            "method": METHOD,
            "backbone": checkpoint.settings.model.backbone,
            "precision": precision,
            "dataset": paper_set_of(self.dataset.category) or self.dataset.root.resolve().name,
            "category": self.dataset.category,
            "seed": checkpoint.settings.seed,
            "metrics": found["metrics"],
            "images": found["images"] | {name: facts["data"][name] for name in ("learned", "held_out")},
            "threshold": found["threshold"],
            "false_rejects": found["false_rejects"],
            "missed_defects": found["missed_defects"],
            "runner": found["runner"],
            "gate": self.gate(bundle, precision),
            "training_s": facts["seconds"],
            "trained_in": facts["precision"],
            "teacher": facts["teacher"],
            "command": self.command,
            "made": {"nnet_edge": __version__, "when": now(), **made_on()},
            "key": dict(facts["data"]["key"]) | {"test": self.test_key},
        }

    def gate(self, bundle: Path, precision: str) -> dict[str, Any] | None:
        """What the gate said of a calibrated graph; None for FP32."""
        if precision == "fp32":
            return None
        record = read_bundle(bundle).manifest["artefacts"][graph_name(precision)]
        gate = record["gates"][self.runner.kind]
        kept = record["made"]["kept_in_fp32"]
        return {"accepted": gate["accepted"], "reasons": gate["reasons"], "kept_in_fp32": kept}

    def read(self, path: Path, training: TrainSettings) -> AccuracyRow:
        """What `measure` gave. Raises ConfigError when it is of other settings or data, DataError when damaged."""
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            row, found = row_from(known, str(path)), known["key"]
            found["test"].setdefault("runner", known["runner"])  # older keys lack it
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error}): delete it, and the row is measured again") from error
        require_same(path, found, self.trainings.key(training) | {"test": self.test_key})
        return row


def run_accuracy(
    datasets: Sequence[Dataset],
    out: Path,
    settings: AccuracySettings,
    command: str,
    peers: Sequence[AccuracyRow] = (),
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> AccuracyTables:
    """The tables over `datasets` and seeds, with the rows `peers` of other methods beside ours.

    `stop` is asked after every training step; the tables then come back unfinished and another call goes on from there.
    Raises ConfigError for an `out` that holds rows of other settings or data, DataError for a data set without test images,
    TrainingError, ExportError or CalibrationError when a row cannot be made.
    """
    names = [dataset.category for dataset in datasets]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"categories {', '.join(names) or 'none'}: give at least one, each once")
    for dataset in datasets:
        if not dataset.test:
            raise DataError(f"no test image under {dataset.root} ({dataset.category}): accuracy is measured on some")
    benches = [
        CategoryRows(one, out / one.category, settings, command,
                     Trainings(one, settings.options, settings.held_out_share, settings.skip_bad, report, stop, say))
        for one in datasets
    ]  # fmt: skip
    found: dict[tuple[int, CategoryRows], list[AccuracyRow]] = {}
    todo = [(seed, bench) for seed in settings.seeds for bench in benches]
    done_first = sorted(
        todo, key=lambda one: not one[1].is_done(one[0])
    )  # another run's are refused before work begins
    tables = AccuracyTables(command, tuple(names), settings.seeds, (), tuple(peers))
    minutes: list[float] = []
    for seed, bench in (*done_first, *done_first):  # again: what other processes finished, or gave up, meanwhile
        if (seed, bench) in found or stop():
            continue
        began, was_done = time.perf_counter(), bench.is_done(seed)
        rows = bench.rows(seed)
        if rows is None:
            continue
        found[seed, bench] = rows
        tables = write_tables(out, replace(tables, ours=tuple(row for one in todo for row in found.get(one, ()))))
        left = sum(not other.is_done(number) for number, other in todo)
        if not was_done and left:
            minutes.append((time.perf_counter() - began) / 60)
            say(f"{left} of {len(todo)} categories and seeds left, about {left * mean(minutes):.0f} min")
    if len(found) < len(todo) and not stop():
        say(
            f"{len(todo) - len(found)} of {len(todo)} are under way elsewhere: the same command reads them when they are done"
        )
    return tables


def write_tables(out: Path, tables: AccuracyTables) -> AccuracyTables:
    """The tables, kept as accuracy.json and accuracy.md too."""
    write_atomically(out / "accuracy.json", json.dumps(tables.as_dict(), indent=2, allow_nan=False).encode() + b"\n")
    write_atomically(out / "accuracy.md", tables.markdown().encode() + b"\n")
    return tables


@contextmanager
def silent_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that shows nothing: a table of many rows would have hundreds."""
    yield lambda done, total: None
