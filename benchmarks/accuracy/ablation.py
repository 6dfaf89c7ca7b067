"""The paper's Tables 4 to 7 on data sets of one's own: a training a row and seed, an evaluation in PyTorch, one table.

    OUT/CATEGORY/row_4.5/seed_111/training/   checkpoint and log; a training that was stopped goes on from there
    OUT/CATEGORY/row_4.5/seed_111/both.json   its evaluation with the maps both, reverse or forward; never computed twice
    OUT/table_4.json                          the table over all categories (schemas/ablation.json), written anew after every
                                              row and never without one

Rows that are the same network have one training: 5.1 is 4.1, 5.4 is 4.3, 6.1 is 4.2, 6.4 is 4.4, and all of Table 7 is
4.5 with other maps. With one OUT the four tables need nine trainings a seed and category.

The paper's figures are means over the 15 categories of MVTec AD from single trainings; ours are means over the categories
that were given, then over the seeds, with the range over the seeds. The gains over row 1, taken seed by seed, are what can be
compared across data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from nnet_edge import __version__
from nnet_edge.benchmarks.accuracy.tables import PAPER as PAPER_TABLES
from nnet_edge.benchmarks.accuracy.trainings import (
    RANDOM_TEACHER,
    GridSettings,
    Trainings,
    Watch,
    category_names,
    rebuild,
)
from nnet_edge.benchmarks.harness.grid import claimed, read_row, require_same, run_grid
from nnet_edge.benchmarks.harness.report import head_lines, markdown_table, told, write_json
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.bundle import made_on, now
from nnet_edge.data.images import Dataset
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.methods.compute import choose_device
from nnet_edge.methods.network import TorchRunner
from nnet_edge.methods.nnet.settings import ABLATIONS, PAPER, TrainSettings, ablated
from nnet_edge.metrics import METRICS, Metrics
from nnet_edge.runtime.runners.base import infer_all
from nnet_edge.scoring import choose_threshold, with_margin
from nnet_edge.settings.runner import require_choice
from nnet_edge.training.checkpoint import Checkpoint
from nnet_edge.training.loop import Progress

SCHEMA = "nnet-edge ablation 1"
FIGURES = {  # ours -> the paper's name; the paper's PRO is set beside RD4AD's estimator (specification section 11)
    "pixel_ap": "P-AP",
    "pixel_auroc": "P-AUROC",
    "pro_rd4ad": "P-PRO",
    "image_auroc": "I-AUROC",
    "pro": "P-PRO, exact",
}
PRINTED: dict[str, list[float | None]] = PAPER_TABLES["ablations"]  # row -> P-AP, P-AUROC, P-PRO, I-AUROC, %
TABLES = tuple(sorted({int(row.split(".")[0]) for row in PRINTED}))
HEADS = (
    "figure, %",
    "row",
    "what",
    "ours, mean (min..max)",
    "paper",
    "difference",
    "our gain over row 1",
    "paper's gain",
)
FOR_PAPER = (
    "mean of the 15 categories of MVTec AD, wide_resnet50_2, 200 epochs; P-PRO is set beside RD4AD's estimator, which reads "
    "higher than the exact one"
)
BySeed = dict[int, Metrics]


@dataclass(frozen=True)
class AblationSettings(GridSettings):
    """What the rows have in common. Raises ConfigError for an invalid setting."""

    training: TrainSettings = PAPER  # each row changes it, each seed replaces its own
    seeds: tuple[int, ...] = (111,)
    batch: int = 8  # of the evaluation


DEFAULTS = AblationSettings()


@dataclass(frozen=True)
class AblationCell:
    """One row of a table on one category with one seed, measured or read back."""

    trainings: Trainings
    out: Path  # of the category
    settings: AblationSettings
    name: str  # of the row, as "4.1"
    seed: int

    @property
    def path(self) -> Path:
        """The file of the row."""
        folder = self.out / f"row_{training_row(self.settings.training, self.name)}" / f"seed_{self.seed}"
        return folder / f"{trained_as(self.settings.training, self.name, self.seed)[1]}.json"

    def is_done(self) -> bool:
        """Whether the row's file is there."""
        return self.path.exists()

    def row(self) -> tuple[dict[str, Any], Metrics]:
        """Facts of the training, and the figures."""
        dataset, path = self.trainings.dataset, self.path
        training, maps = trained_as(self.settings.training, self.name, self.seed)
        test = {"test": self.trainings.test, "mask_rule": self.settings.mask_rule}
        key = self.trainings.key(training) | {"test": test}
        what = f"{dataset.category}, row {self.name}, seed {self.seed}"
        if not path.exists():
            with claimed(path.parent, what):
                checkpoint = self.trainings.finish(training, path.parent / "training", what)
                self.trainings.watch.say(f"{what}: evaluating")
                write_json(path, {"key": key, "maps": maps, **self.evaluate(checkpoint, maps)})
        its_key, facts, metrics = read_row(
            path, lambda known: (known["key"], known["facts"], Metrics(**known["evaluation"]["metrics"]))
        )
        require_same(path, its_key, key)
        return facts, metrics

    def evaluate(self, checkpoint: Checkpoint, maps: str) -> dict[str, Any]:
        """What a row's file holds: facts of the training, and the evaluation of its weights with these maps."""
        batch, skip_bad, rule = self.settings.batch, self.settings.skip_bad, self.settings.mask_rule
        runner = TorchRunner(rebuild(checkpoint, maps=maps), choose_device(self.settings.options.device), batch)
        held_out = self.trainings.load(checkpoint.settings.seed).held_out
        threshold = with_margin(choose_threshold(infer_all(runner, held_out).image_score))
        evaluation = evaluate(runner, self.trainings.dataset, threshold.value, batch, skip_bad, rule)
        facts = {name: checkpoint.facts[name] for name in ("teacher", "data", "precision", "seconds")}
        return {"facts": facts, "evaluation": evaluation.as_dict()}


def run_table(
    table: int,
    datasets: Sequence[Dataset],
    out: Path,
    settings: AblationSettings = DEFAULTS,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    say: Say = quiet,
    command: str = "run_table",
) -> AblationTable:
    """Table 4, 5, 6 or 7 measured on `datasets` and averaged; rows that `out` holds already are not computed again.

    `stop` is asked after every training step; the table then comes back unfinished and another call goes on from there.
    Raises ConfigError for another table and for an `out` that holds rows of other settings or data, DataError for a data
    set without test images, TrainingError when a row cannot be trained.
    """
    require_choice("table", str(table), tuple(map(str, TABLES)))
    names = category_names(datasets)
    trainings = [Trainings(one, settings, Watch(report, stop, say)) for one in datasets]
    cells = {
        (seed, row, each.dataset.category): AblationCell(each, out / each.dataset.category, settings, row, seed)
        for seed in settings.seeds for row in rows_of(table) for each in trainings
    }  # fmt: skip
    head = {"command": command, "categories": list(names),
            "made": {"nnet_edge": __version__, "when": now(), **made_on()}}  # fmt: skip

    def table_of(found: Mapping[tuple[int, str, str], tuple[dict[str, Any], Metrics]]) -> AblationTable:
        tables = []
        for each in datasets:
            here = {place: each_row for place, each_row in found.items() if place[2] == each.category}
            measured: dict[str, BySeed] = {}
            for (seed, row, _), (_, metrics) in here.items():
                measured.setdefault(row, {})[seed] = metrics
            facts = [facts for facts, _ in here.values()]
            header, warnings = describe(each, settings, facts[-1] if facts else None)
            tables.append(AblationTable(table, header, warnings, settings.seeds, measured))
        return averaged(tables)

    def keep(found: Mapping[tuple[int, str, str], tuple[dict[str, Any], Metrics]]) -> None:
        write_json(out / f"table_{table}.json", {"schema": SCHEMA, **head, **table_of(found).as_dict()})

    return table_of(run_grid(cells, keep, say))


def describe(
    dataset: Dataset, settings: AblationSettings, facts: Mapping[str, Any] | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a reader must know to judge the figures of a category, with the facts of a training; and warnings."""
    training = settings.training
    header = {
        "ours": f"{dataset.category} ({dataset.layout}), {training.model.backbone}, {training.epochs} epochs, "
        f"batch {training.batch} at most, seeds {', '.join(map(str, settings.seeds))}",
        "paper": FOR_PAPER,
    }
    if facts is None:
        return header, ()
    data = facts["data"]
    header |= {
        "images": f"{data['learned']} learned from, {data['held_out']} held out, {len(dataset.test)} judged",
        "teacher": facts["teacher"]["origin"],
        "precision": f"trained in {facts['precision']}, evaluated in PyTorch in fp32",
    }
    return header, (RANDOM_TEACHER,) if facts["teacher"]["is_random"] else ()


def trained_as(base: TrainSettings, row: str, seed: int) -> tuple[TrainSettings, str]:
    """The settings that a row is trained with, and the maps that it is evaluated with: "both", "reverse" or "forward"."""
    changed = ablated(base, row)
    return replace(changed, seed=seed, model=replace(changed.model, maps="both")), changed.model.maps


def training_row(base: TrainSettings, row: str) -> str:
    """The first row of Tables 4 to 7 whose training is that of `row`."""
    wanted = trained_as(base, row, base.seed)[0]
    return next(other for other in ABLATIONS if trained_as(base, other, base.seed)[0] == wanted)


@dataclass(frozen=True)
class AblationFigure:
    """One figure of one row, in %: ours over the seeds, and the paper's where it gives one."""

    row: str
    figure: str  # a name of FIGURES
    ours: tuple[float, ...]  # one a seed
    gains: tuple[float, ...]  # over row 1 with the same seed
    paper: float | None
    paper_gain: float | None

    @property
    def difference(self) -> float | None:
        """Our mean less the paper's figure, in points."""
        return None if self.paper is None or not self.ours else fmean(self.ours) - self.paper

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"row": self.row, "figure": self.figure, "ours": list(self.ours), "paper": self.paper,
                "difference": self.difference, "gains": list(self.gains), "paper_gain": self.paper_gain}  # fmt: skip

    def cells(self) -> list[str]:
        """The figure as a line of the table."""
        values = [span(self.ours), told(self.paper, ".2f"), told(self.difference, "+.2f"), span(self.gains, "+"),
                  told(self.paper_gain, "+.2f")]  # fmt: skip
        return [FIGURES[self.figure], self.row, ABLATIONS[self.row][0], *values]


@dataclass(frozen=True)
class AblationTable:
    """One of the paper's tables, measured again."""

    table: int
    header: Mapping[str, str]  # what a reader must know to judge the figures
    warnings: tuple[str, ...]
    seeds: tuple[int, ...]
    measured: Mapping[str, Mapping[int, Metrics]]  # row -> seed -> figures, of those that are done

    @property
    def finished(self) -> bool:
        """Whether every row has its figures for every seed."""
        return all(len(self.measured.get(row, ())) == len(self.seeds) for row in rows_of(self.table))

    @property
    def cells(self) -> tuple[AblationFigure, ...]:
        """Every figure of every row, the rows of one figure together."""
        return tuple(self._cell(row, figure) for figure in FIGURES for row in rows_of(self.table))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"table": self.table, "header": dict(self.header), "warnings": list(self.warnings),
                "seeds": list(self.seeds), "finished": self.finished,
                "cells": [cell.as_dict() for cell in self.cells]}  # fmt: skip

    def markdown(self) -> str:
        """The table below its header, in %."""
        title = f"Table {self.table}{'' if self.finished else ', not finished'}"
        table = markdown_table(HEADS, [cell.cells() for cell in self.cells])
        return "\n".join([title, "", *head_lines(self.warnings, self.header), "", *table])

    def _cell(self, row: str, figure: str) -> AblationFigure:
        first = rows_of(self.table)[0]
        ours, base = (self._percents(name, figure) for name in (row, first))
        gains = () if row == first else tuple(ours[seed] - base[seed] for seed in ours if seed in base)
        paper, paper_base = printed_figure(row, figure), printed_figure(first, figure)
        paper_gain = None if row == first or paper is None or paper_base is None else paper - paper_base
        return AblationFigure(row, figure, tuple(ours.values()), gains, paper, paper_gain)

    def _percents(self, row: str, figure: str) -> dict[int, float]:
        """Seed -> our figure in %, of the seeds that have one, in the order of the seeds."""
        measured = self.measured.get(row, {})
        found = {seed: getattr(measured[seed], figure) for seed in self.seeds if seed in measured}
        return {seed: 100 * value for seed, value in found.items() if value is not None}


def averaged(tables: Sequence[AblationTable]) -> AblationTable:
    """The mean over the categories, one table each, of the rows and seeds that all of them have.

    A figure that one category cannot have (no masks, say) is averaged over the others. One table is given back as it is.
    """
    first = tables[0]
    if len(tables) == 1:
        return first
    measured: dict[str, BySeed] = {}
    for row in rows_of(first.table):
        for seed in first.seeds:
            found = [table.measured[row][seed] for table in tables if seed in table.measured.get(row, {})]
            if len(found) == len(tables):
                measured.setdefault(row, {})[seed] = mean_metrics(found)
    ours = f"mean of {len(tables)} categories: {'; '.join(table.header['ours'] for table in tables)}"
    warnings = tuple(dict.fromkeys(warning for table in tables for warning in table.warnings))
    return AblationTable(first.table, dict(first.header) | {"ours": ours}, warnings, first.seeds, measured)


def mean_metrics(found: Sequence[Metrics]) -> Metrics:
    """Each figure's mean over those that have it, None where none has."""
    values: dict[str, float | None] = {}
    for name in METRICS:
        known = [value for metrics in found if (value := metrics[name]) is not None]
        values[name] = fmean(known) if known else None
    return Metrics(**values)


def rows_of(table: int) -> tuple[str, ...]:
    """The rows of a table, as "4.1", in their order."""
    return tuple(row for row in ABLATIONS if row.startswith(f"{table}."))


def printed_figure(row: str, figure: str) -> float | None:
    """What the paper prints, in %; None where it prints nothing."""
    position = list(FIGURES).index(figure)
    return PRINTED[row][position] if position < len(PRINTED[row]) else None


def span(values: Sequence[float], sign: str = "") -> str:
    """Mean (min..max), "-" for no value, without the range for one."""
    if not values:
        return "-"
    middle, *ends = (f"{value:{sign}.2f}" for value in (fmean(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({ends[0]}..{ends[1]})"
