"""The accuracy tables: every method by category, and the paper's Tables 1 and 3 with ours beside them.

Figures are means over the seeds with their sample standard deviation; a mean over categories is taken within each seed first.
The paper's P-PRO is set beside RD4AD's estimator, which its numbers most likely come from (specification section 11). Rows of
other methods are read from the files that `nnet-edge bench peers` leaves; Tables 4 to 7: ablation.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nnet_edge.benchmarks.harness.report import plain, render
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.metrics import METRICS, Metrics

PAPER = json.loads((Path(__file__).parent / "paper.json").read_text(encoding="utf-8"))
TABLE_1_METHODS: list[str] = PAPER["table_1_methods"]
TABLE_1: dict[str, dict[str, list[float]]] = PAPER["table_1"]  # data set -> our figure's name -> one a method
TABLE_3_METHODS: list[str] = PAPER["table_3_methods"]
TABLE_3: dict[str, list[float]] = PAPER["table_3"]  # category of MVTec AD -> pixel AP, one a method
TABLE_3_AVERAGES: dict[str, list[float]] = PAPER["table_3_averages"]
MVTEC_TEXTURES, MVTEC_OBJECTS = PAPER["mvtec_textures"], PAPER["mvtec_objects"]
PAPER_SETS = {"MVTec AD": (*MVTEC_TEXTURES, *MVTEC_OBJECTS), "VisA": tuple(PAPER["visa"])}
SCHEMA = "nnet-edge accuracy 1"
ROW_SCHEMA = "nnet-edge accuracy row 1"
FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pro": "PRO",
           "pro_rd4ad": "PRO (RD4AD)"}  # fmt: skip
PAPER_FIGURES = {"pixel_ap": "P-AP", "pixel_auroc": "P-AUROC", "pro_rd4ad": "P-PRO", "image_auroc": "I-AUROC"}
BySeed = Mapping[int, Metrics]


def paper_set_of(category: str) -> str | None:
    """The paper's data set that has a category of this name, None for data of one's own."""
    return next((name for name, known in PAPER_SETS.items() if category in known), None)


def best_other(methods: Sequence[str], figures: Sequence[float]) -> str:
    """The best method of the paper's table besides N-Net, as "RD 66.8"."""
    value, name = max(zip(figures[:-1], methods[:-1], strict=True), key=lambda pair: pair[0])
    return f"{name} {value:.1f}"


@dataclass(frozen=True)
class AccuracyRow:
    """One method on one category with one seed."""

    method: str
    backbone: str
    precision: str
    category: str
    seed: int
    metrics: Metrics
    warning: str = ""  # what must be said beside its figures

    @property
    def candidate(self) -> str:
        """Method, backbone and precision: what the table has a line for."""
        return f"{self.method}, {self.backbone}, {self.precision}"


def row_from(known: Mapping[str, Any]) -> AccuracyRow:
    """The row of plain values that a benchmark wrote. Raises KeyError when a name is missing."""
    metrics = Metrics(**{name: known["metrics"].get(name) for name in METRICS})
    warning = ""
    if known.get("teacher", {}).get("is_random"):
        warning = f"{known['category']}: THE TEACHER HAS RANDOM WEIGHTS: the figures mean nothing"
    elif (gate := known.get("gate")) and not gate["accepted"]:
        reasons = "; ".join(gate["reasons"])
        warning = f"{known['category']}, seed {known['seed']}: the gate refused {known['precision']}: {reasons}"
    return AccuracyRow(
        known["method"], known["backbone"], known["precision"], known["category"], int(known["seed"]), metrics, warning
    )


@dataclass(frozen=True)
class AccuracyTables:
    """What was measured, and the tables made of it."""

    command: str
    categories: tuple[str, ...]
    seeds: tuple[int, ...]
    ours: tuple[AccuracyRow, ...]
    baselines: tuple[AccuracyRow, ...] = ()

    @property
    def candidates(self) -> dict[str, list[AccuracyRow]]:
        """Candidate -> its rows, ours first."""
        found: dict[str, list[AccuracyRow]] = {}
        for row in (*self.ours, *self.baselines):
            if row.category in self.categories:
                found.setdefault(row.candidate, []).append(row)
        return found

    @property
    def finished(self) -> bool:
        """Whether each of our candidates has every category and seed."""
        wanted = len(self.categories) * len(self.seeds)
        ours = {row.candidate for row in self.ours}
        return bool(ours) and all(len(self.candidates[name]) == wanted for name in ours)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "categories": list(self.categories),
            "seeds": list(self.seeds),
            "finished": self.finished,
            "rows": [plain(row) for rows in self.candidates.values() for row in rows],
            "table_1": [cell for name in TABLE_1 for cell in self.table_1(name)],
            "table_3": self.table_3(),
        }

    def table_1(self, name: str) -> list[dict[str, Any]]:
        """Our means over the categories of a data set of the paper beside its Table 1; empty without any."""
        wanted = [category for category in self.categories if category in PAPER_SETS[name]]
        cells = []
        for candidate, rows in self.candidates.items():
            by_category = by_seed(rows, wanted)
            if wanted and all(by_category):
                facts = {"set": name, "contender": candidate, "categories": len(wanted), "of": len(PAPER_SETS[name])}
                cells += [{**facts, "figure": figure, **beside(by_category, figure, TABLE_1_METHODS, printed)}
                          for figure, printed in TABLE_1[name].items()]  # fmt: skip
        return cells

    def table_3(self) -> list[dict[str, Any]]:
        """Our pixel AP of each category of MVTec AD beside the paper's Table 3, averages where they are complete."""
        groups = {"textures": MVTEC_TEXTURES, "objects": MVTEC_OBJECTS, "all": PAPER_SETS["MVTec AD"]}
        cells = []
        for candidate, rows in self.candidates.items():
            of = dict(zip(TABLE_3, by_seed(rows, TABLE_3), strict=True))
            lines = [(name, [of[name]], TABLE_3[name]) for name in TABLE_3 if of[name]]
            lines += [(f"average, {group}", [of[name] for name in names], TABLE_3_AVERAGES[group])
                      for group, names in groups.items() if all(of[name] for name in names)]  # fmt: skip
            cells += [{"category": name, "contender": candidate, **beside(by, "pixel_ap", TABLE_3_METHODS, printed)}
                      for name, by, printed in lines]  # fmt: skip
        return cells

    def markdown(self) -> str:
        """All tables, in %."""
        warnings = list(dict.fromkeys(row.warning for row in self.ours if row.warning))
        table_1 = {name: cells for name in TABLE_1 if (cells := self.table_1(name))}
        return render("accuracy/accuracy.md.j2", tables=self, warnings=warnings, table_1=table_1, figures=FIGURES,
                      paper_figures=PAPER_FIGURES, spread=spread_text)  # fmt: skip

    def lines(self) -> list[tuple[str, str, list[str], int]]:
        """Category (or their mean), candidate, a cell for each of FIGURES, and the number of seeds."""
        known = {name: by_seed(rows, self.categories) for name, rows in self.candidates.items()}
        found = [
            (category, name, figure_cells([by[place]]), len(by[place]))
            for place, category in enumerate(self.categories) for name, by in known.items() if by[place]
        ]  # fmt: skip
        if len(self.categories) > 1:
            found += [(f"mean of {len(self.categories)}", name, figure_cells(by), len(by[0]))
                      for name, by in known.items() if all(by)]  # fmt: skip
        return found


def by_seed(rows: Sequence[AccuracyRow], categories: Collection[str]) -> list[BySeed]:
    """For each category the figures by seed."""
    return [{row.seed: row.metrics for row in rows if row.category == name} for name in categories]


def figure_cells(by_category: Sequence[BySeed]) -> list[str]:
    """A cell for each of FIGURES."""
    return [spread_text(list(means_by_seed(by_category, figure).values())) for figure in FIGURES]


def means_by_seed(by_category: Sequence[BySeed], figure: str) -> dict[int, float]:
    """Each seed that all categories have -> the mean in % over the categories that have the figure."""
    found = {}
    for seed in sorted(set.intersection(*map(set, by_category))):
        known = [value for one in by_category if (value := one[seed][figure]) is not None]
        if known:
            found[seed] = 100 * mean(known)
    return found


def beside(
    by_category: Sequence[BySeed], figure: str, methods: Sequence[str], printed: Sequence[float]
) -> dict[str, Any]:
    """Our figure of each seed beside what the paper prints, one a method."""
    ours = list(means_by_seed(by_category, figure).values())
    return {"ours": ours, "paper": printed[-1], "difference": mean(ours) - printed[-1] if ours else None,
            "best_other": best_other(methods, printed)}  # fmt: skip


def spread_text(values: Sequence[float], sign: str = "", digits: int = 1) -> str:
    """Mean and sample standard deviation, "-" for no value, without the deviation for one."""
    if not values:
        return "-"
    text = f"{mean(values):{sign}.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values):.{digits}f}"


def read_baseline_rows(folder: Path) -> list[AccuracyRow]:
    """The rows under `folder`: every JSON file that says it is one (schemas/accuracy_row.json).

    Raises ConfigError when there is no such folder or it holds no row, DataError for a file that cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"--peers {folder} is no folder: give the one that bench peers filled")
    rows = []
    for path in sorted(folder.rglob("*.json")):
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(known, dict) and known.get("schema") == ROW_SCHEMA:
                rows.append(row_from(known))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read as a row ({error}): delete it or run bench peers again") from error
    if not rows:
        raise ConfigError(f"--peers {folder} holds no row: run bench peers with it as --out")
    return rows
