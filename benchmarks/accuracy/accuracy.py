"""How good: N-Net trained for each category and seed, its bundle measured in FP32 and INT8 on the runner that deploys it.

    OUT/CATEGORY/seed_1/training/    checkpoint; a training that was stopped goes on from there
    OUT/CATEGORY/seed_1/bundle/      what `train` and `calibrate` would leave
    OUT/CATEGORY/seed_1/fp32.json    a row (schemas/accuracy_row.json); never computed twice
    OUT/accuracy.json, accuracy.md   the tables, written anew after every row; never without one

The test images decide nothing: weights, threshold, calibration and what stays FP32 are chosen on good training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from nnet_edge import __version__
from nnet_edge.benchmarks.accuracy.tables import ROW_SCHEMA, AccuracyRow, AccuracyTables, paper_set_of, row_from
from nnet_edge.benchmarks.accuracy.trainings import NOBODY, GridSettings, Trainings, Watch, category_names
from nnet_edge.benchmarks.harness.grid import Stopped, kept_row, run_grid
from nnet_edge.benchmarks.harness.report import write_report
from nnet_edge.bundle import MANIFEST, graph_name, made_on, now, read_bundle
from nnet_edge.data.holding_out import with_held_out_images
from nnet_edge.data.images import Dataset
from nnet_edge.errors import ConfigError
from nnet_edge.evaluation.artefact import open_artifact
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.export.bundling import export_bundle
from nnet_edge.export.calibrating import CalibrateSettings, calibrate_bundle
from nnet_edge.methods.base import METHODS
from nnet_edge.runtime.runners.base import installed_kind
from nnet_edge.settings.runner import RunnerSettings, require_choice
from nnet_edge.training.checkpoint import Checkpoint

PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class AccuracySettings(GridSettings):
    """What is trained and measured. Raises ConfigError for an invalid setting."""

    precisions: tuple[str, ...] = PRECISIONS
    runner: RunnerSettings = field(default_factory=RunnerSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.precisions:
            raise ConfigError("no precision to measure: give fp32, int8 or both")
        for name in self.precisions:
            require_choice("precision", name, PRECISIONS)


@dataclass(frozen=True)
class AccuracyCell:
    """The rows of one category and seed: trained, exported, calibrated, measured; or read back."""

    trainings: Trainings
    out: Path  # of the category
    settings: AccuracySettings
    seed: int
    command: str

    @property
    def folder(self) -> Path:
        """Where everything of the cell lies."""
        return self.out / f"seed_{self.seed}"

    @property
    def paths(self) -> dict[str, Path]:
        """Precision -> the file of its row."""
        return {name: self.folder / f"{name}.json" for name in self.settings.precisions}

    @property
    def runner(self) -> RunnerSettings:
        """The runner, never "auto"."""
        given = self.settings.runner
        return replace(given, kind=installed_kind() if given.kind == "auto" else given.kind)

    @property
    def test_key(self) -> dict[str, Any]:
        """What tells a measurement on these test images from another."""
        return {"test": self.trainings.test, "mask_rule": self.settings.mask_rule, "runner": self.runner.kind}

    def is_done(self) -> bool:
        """Whether the row of every precision is there."""
        return all(path.exists() for path in self.paths.values())

    def row(self) -> list[AccuracyRow]:
        """A row for each precision."""
        training = replace(self.settings.training, seed=self.seed)
        key = self.trainings.key(training) | {"test": self.test_key}
        what = f"{self.trainings.dataset.category}, seed {self.seed}"

        def measured(precision: str) -> dict[str, Any]:
            checkpoint = self.trainings.finish(training, self.folder / "training", what)
            if self.trainings.watch.stop():
                raise Stopped
            self.trainings.watch.say(f"{what}: measuring {precision} on {self.runner.kind}")
            return self.measure(checkpoint, precision)

        return [kept_row(path, key, what, partial(measured, name), row_from) for name, path in self.paths.items()]

    def measure(self, checkpoint: Checkpoint, precision: str) -> dict[str, Any]:
        """The row of a precision, plain values, without its key."""
        dataset, settings = self.trainings.dataset, self.settings
        bundle = self.make_bundle(precision)
        artifact = open_artifact(bundle, self.runner, False, precision)
        judged = with_held_out_images(dataset, checkpoint.facts["data"])
        with artifact.runner as runner:
            found = evaluate(runner, judged, artifact.threshold, self.runner.max_batch, settings.skip_bad,
                             settings.mask_rule, bits=artifact.bits, geometry=artifact.geometry).as_dict()  # fmt: skip
        facts = checkpoint.facts
        return {
            "schema": ROW_SCHEMA,
            "method": METHODS.find(checkpoint.settings.method).title,
            "backbone": checkpoint.settings.model.backbone,
            "precision": precision,
            "dataset": paper_set_of(dataset.category) or dataset.root.resolve().name,
            "category": dataset.category,
            "seed": self.seed,
            "metrics": found["metrics"],
            "images": found["images"] | {name: facts["data"][name] for name in ("learned", "held_out")},
            **{name: found[name] for name in ("threshold", "false_rejects", "missed_defects", "runner")},
            "gate": self.gate(bundle, precision),
            "training_s": facts["seconds"],
            "trained_in": facts["precision"],
            "teacher": facts["teacher"],
            "command": self.command,
            "made": {"nnet_edge": __version__, "when": now(), **made_on()},
        }

    def make_bundle(self, precision: str) -> Path:
        """The bundle of the training, with a graph of `precision`."""
        bundle, say = self.folder / "bundle", self.trainings.watch.say
        if not (bundle / MANIFEST).exists():
            export_bundle(self.folder / "training", bundle, None, self.runner, True, say)
        if precision == "int8" and all(item.name != graph_name(precision) for item in read_bundle(bundle).artefacts):
            blind = replace(self.trainings.dataset, test=())  # the gate judges good images: test images choose nothing
            settings = CalibrateSettings(precisions=(precision,), accept=True)
            calibrate_bundle(
                bundle, blind, self.runner, settings, self.settings.skip_bad,
                lambda title: nullcontext(lambda done, total: None), say,  # no bars: many rows would show hundreds
            )  # fmt: skip
        return bundle

    def gate(self, bundle: Path, precision: str) -> dict[str, Any] | None:
        """What the gate said of a calibrated graph; None for FP32."""
        if precision == "fp32":
            return None
        record = read_bundle(bundle).graph_for(self.runner.kind, precision).record
        gate = record["gates"][self.runner.kind]
        return {"accepted": gate["accepted"], "reasons": gate["reasons"],
                "kept_in_fp32": record["made"]["kept_in_fp32"]}  # fmt: skip


def run_accuracy(
    datasets: Sequence[Dataset],
    out: Path,
    settings: AccuracySettings,
    command: str,
    baselines: Sequence[AccuracyRow] = (),
    watch: Watch = NOBODY,
) -> AccuracyTables:
    """The tables over `datasets` and seeds, with the rows `baselines` of other methods beside ours.

    `watch.stop` is asked after every training step; the tables then come back unfinished and another call goes on from there.
    Raises ConfigError for an `out` that holds rows of other settings or data, DataError for a data set without test images,
    TrainingError, ExportError or CalibrationError when a row cannot be made.
    """
    empty = AccuracyTables(command, category_names(datasets), settings.seeds, (), tuple(baselines))
    trainings = [Trainings(one, settings, watch) for one in datasets]
    cells = {
        (seed, each.dataset.category): AccuracyCell(each, out / each.dataset.category, settings, seed, command)
        for seed in settings.seeds
        for each in trainings
    }

    def tables_of(found: dict[tuple[int, str], list[AccuracyRow]]) -> AccuracyTables:
        return replace(empty, ours=tuple(row for place in cells for row in found.get(place, ())))

    def keep(found: dict[tuple[int, str], list[AccuracyRow]]) -> None:
        write_report(out, "accuracy", tables_of(found))

    return tables_of(run_grid(cells, keep, watch.say, counted_as="categories and seeds"))
