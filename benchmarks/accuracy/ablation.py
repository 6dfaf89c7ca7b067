"""The paper's Tables 4 to 7 on data sets of one's own: a training a row and seed, an evaluation in PyTorch, one table.

    OUT/CATEGORY/row_4.5/seed_111/training/           checkpoint and log; a training that was stopped goes on from there
    OUT/CATEGORY/row_4.5/seed_111/reading_both.json   its figures with the maps both, reverse or forward; never computed twice
    OUT/table_4.json                                  the table over all categories (schemas/ablation.json), written anew after
                                                      every row and never without one

Rows that are the same network have one training: 5.1 is 4.1, 5.4 is 4.3, 6.1 is 4.2, 6.4 is 4.4, and all of Table 7 is
4.5 with other maps. With one OUT the four tables need nine trainings a seed and category.

The paper's figures are means over the 15 categories of MVTec AD from single trainings; ours are means over the categories
that were given, then over the seeds, with the range over the seeds. The gains over row 1, taken seed by seed, are what can be
compared across data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from nnet_edge import __version__
from nnet_edge.benchmarks.accuracy.hyperparameters import Reading, Variant
from nnet_edge.benchmarks.accuracy.tables import PAPER as PAPER_TABLES
from nnet_edge.benchmarks.accuracy.tables import BySeed, means_by_seed
from nnet_edge.benchmarks.accuracy.trainings import NOBODY, RANDOM_TEACHER, GridSettings, Watch, category_names
from nnet_edge.benchmarks.accuracy.variants import CategoryBench, reading_path
from nnet_edge.benchmarks.harness.grid import run_grid
from nnet_edge.benchmarks.harness.report import render, write_json
from nnet_edge.bundle import made_on, now
from nnet_edge.data.images import Dataset
from nnet_edge.methods.base import DEFAULT_METHOD, METHODS, MethodSettings
from nnet_edge.metrics import Metrics
from nnet_edge.settings.runner import require_choice

PAPERS = METHODS.find(DEFAULT_METHOD)  # whose paper has the tables
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
FOR_PAPER = (
    "mean of the 15 categories of MVTec AD, wide_resnet50_2, 200 epochs; P-PRO is set beside RD4AD's estimator, which reads "
    "higher than the exact one"
)
Facts = dict[str, Any]
Place = tuple[int, str, str]  # seed, row, category


@dataclass(frozen=True)
class AblationCell:
    """One row of a table on one category with one seed."""

    bench: CategoryBench
    name: str  # of the row, as "4.1"
    seed: int

    @property
    def folder(self) -> Path:
        """Where its training lies, which other rows may share."""
        return self.bench.out / f"row_{training_row(self.bench.settings.training, self.name)}" / f"seed_{self.seed}"

    @property
    def as_trained(self) -> tuple[MethodSettings, Variant]:
        """The settings of its training, and how that is read."""
        return trained_as(self.bench.settings.training, self.name, self.seed)

    def is_done(self) -> bool:
        """Whether the file of its figures is there."""
        return reading_path(self.folder, self.as_trained[1]).exists()

    def row(self) -> tuple[Facts, Metrics]:
        """Facts of the training, and the figures."""
        settings, variant = self.as_trained
        checkpoint = self.bench.trained(self.folder, settings, f"row {self.name}, seed {self.seed}")
        return checkpoint.facts, self.bench.read(self.folder, checkpoint, variant)


def run_table(
    table: int,
    datasets: Sequence[Dataset],
    out: Path,
    settings: GridSettings,
    command: str = "run_table",
    watch: Watch = NOBODY,
) -> AblationTable:
    """Table 4, 5, 6 or 7 measured on `datasets` and averaged; rows that `out` holds already are not computed again.

    `watch.stop` is asked after every training step; the table then comes back unfinished and another call goes on from there.
    Raises ConfigError for another table and for an `out` that holds rows of other settings or data, DataError for a data
    set without test images, TrainingError when a row cannot be trained.
    """
    require_choice("table", str(table), tuple(map(str, TABLES)))
    names = category_names(datasets)
    benches = [CategoryBench(one, out / one.category, settings, watch) for one in datasets]
    cells = {
        (seed, row, bench.dataset.category): AblationCell(bench, row, seed)
        for seed in settings.seeds for row in rows_of(table) for bench in benches
    }  # fmt: skip
    head = {"command": command, "categories": list(names),
            "made": {"nnet_edge": __version__, "when": now(), **made_on()}}  # fmt: skip

    def table_of(found: Mapping[Place, tuple[Facts, Metrics]]) -> AblationTable:
        measured: dict[str, dict[str, dict[int, Metrics]]] = {}
        for (seed, row, category), (_, metrics) in found.items():
            measured.setdefault(row, {}).setdefault(category, {})[seed] = metrics
        facts = {category: known for (_, _, category), (known, _) in found.items()}
        header, warnings = describe(datasets, settings, facts)
        return AblationTable(table, header, warnings, settings.seeds, names, measured)

    def keep(found: Mapping[Place, tuple[Facts, Metrics]]) -> None:
        write_json(out / f"table_{table}.json", {"schema": SCHEMA, **head, **table_of(found).as_dict()})

    return table_of(run_grid(cells, keep, watch.say))


def describe(
    datasets: Sequence[Dataset], settings: GridSettings, facts: Mapping[str, Facts]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a reader must know to judge the figures, with the facts of a training of each category; and warnings."""
    training = settings.training
    ours = ", ".join(f"{one.category} ({one.layout})" for one in datasets)
    how = f"{training.model.backbone}, {training.epochs} epochs, batch {training.batch} at most"
    seeds = ", ".join(map(str, settings.seeds))
    header = {"ours": f"mean over {ours}: {how}, seeds {seeds}", "paper": FOR_PAPER}
    if known := facts.get(datasets[0].category):
        data = known["data"]
        header |= {
            "images": f"{data['learned']} learned from, {data['held_out']} held out, {len(datasets[0].test)} judged",
            "teacher": known["teacher"]["origin"],
            "precision": f"trained in {known['precision']}, evaluated in PyTorch in fp32",
        }
    return header, (RANDOM_TEACHER,) if any(one["teacher"]["is_random"] for one in facts.values()) else ()


def trained_as(base: MethodSettings, row: str, seed: int) -> tuple[MethodSettings, Variant]:
    """The settings that a row is trained with, and the reading by its maps: "both", "reverse" or "forward"."""
    changed = METHODS.find(base.method).ablated(base, row)
    maps = changed.model.maps
    return replace(changed, seed=seed, model=replace(changed.model, maps="both")), Variant(
        maps, reading=Reading(branches=maps)
    )


def training_row(base: MethodSettings, row: str) -> str:
    """The first row of Tables 4 to 7 whose training is that of `row`."""
    wanted = trained_as(base, row, base.seed)[0]
    return next(other for other in PAPERS.ablations if trained_as(base, other, base.seed)[0] == wanted)


@dataclass(frozen=True)
class AblationTable:
    """One of the paper's tables, measured again."""

    table: int
    header: Mapping[str, str]  # what a reader must know to judge the figures
    warnings: tuple[str, ...]
    seeds: tuple[int, ...]
    categories: tuple[str, ...]
    measured: Mapping[str, Mapping[str, BySeed]]  # row -> category -> seed -> figures, of those that are done

    @property
    def finished(self) -> bool:
        """Whether every row has its figures for every category and seed."""
        each = (self.measured.get(row, {}).get(name, {}) for row in rows_of(self.table) for name in self.categories)
        return all(len(by_seed) == len(self.seeds) for by_seed in each)

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Every figure of every row in %, the rows of one figure together; gains are over row 1 with the same seed."""
        rows, found = rows_of(self.table), []
        for figure in FIGURES:
            base, paper_base = self._percents(rows[0], figure), printed_figure(rows[0], figure)
            for row in rows:
                ours, paper = self._percents(row, figure), printed_figure(row, figure)
                has_gain = row != rows[0]
                found.append({
                    "row": row, "figure": figure, "ours": list(ours.values()), "paper": paper,
                    "difference": None if paper is None or not ours else fmean(ours.values()) - paper,
                    "gains": [ours[seed] - base[seed] for seed in ours if seed in base and has_gain],
                    "paper_gain": paper - paper_base if has_gain and paper and paper_base else None,
                })  # fmt: skip
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"table": self.table, "header": dict(self.header), "warnings": list(self.warnings),
                "seeds": list(self.seeds), "finished": self.finished,
                "cells": self.cells}  # fmt: skip

    def markdown(self) -> str:
        """The table below its header, in %."""
        return render("accuracy/ablation.md.j2", table=self, figures=FIGURES, names=PAPERS.ablations, span=span)

    def _percents(self, row: str, figure: str) -> dict[int, float]:
        """Seed -> our figure in %, the mean over the categories, of the seeds that all of them have, in their order."""
        by_category = [self.measured.get(row, {}).get(name, {}) for name in self.categories]
        found = means_by_seed(by_category, figure)
        return {seed: found[seed] for seed in self.seeds if seed in found}


def rows_of(table: int) -> tuple[str, ...]:
    """The rows of a table, as "4.1", in their order."""
    return tuple(row for row in PAPERS.ablations if row.startswith(f"{table}."))


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
