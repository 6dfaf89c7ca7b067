"""The accuracy tables: every method by category, and the paper's Tables 1 and 3 with ours beside them.

Figures are means over the seeds with their sample standard deviation; a mean over categories is taken within each seed first.
The paper's P-PRO is set beside RD4AD's estimator, which its numbers most likely come from (specification section 11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import mean
from typing import Any

from nnet_edge.benchmarks.categories import MVTEC_OBJECTS, MVTEC_TEXTURES, PAPER_SETS
from nnet_edge.benchmarks.lever_table import spread_text
from nnet_edge.benchmarks.paper_tables import (
    TABLE_1,
    TABLE_1_METHODS,
    TABLE_3,
    TABLE_3_AVERAGES,
    TABLE_3_METHODS,
    best_other,
)
from nnet_edge.metrics import Metrics

SCHEMA = "nnet-edge accuracy 1"
ROW_SCHEMA = "nnet-edge accuracy row 1"
FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pro": "PRO",
           "pro_rd4ad": "PRO (RD4AD)"}  # fmt: skip
PAPER_FIGURES = {"pixel_ap": "P-AP", "pixel_auroc": "P-AUROC", "pro_rd4ad": "P-PRO", "image_auroc": "I-AUROC"}
FIGURE_NAMES = tuple(field.name for field in fields(Metrics))


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
    def contender(self) -> str:
        """Method, backbone and precision: what the table has a line for."""
        return f"{self.method}, {self.backbone}, {self.precision}"


def row_from(known: Mapping[str, Any], where: str) -> AccuracyRow:
    """The row of plain values that a benchmark wrote. Raises KeyError when a name is missing."""
    metrics = Metrics(**{name: known["metrics"].get(name) for name in FIGURE_NAMES})
    warning = ""
    if known.get("teacher", {}).get("is_random"):
        warning = f"{known['category']}: THE TEACHER HAS RANDOM WEIGHTS: the figures mean nothing"
    elif (gate := known.get("gate")) and not gate["accepted"]:
        reasons = "; ".join(gate["reasons"])
        warning = f"{known['category']}, seed {known['seed']}: the gate refused {known['precision']}: {reasons}"
    return AccuracyRow(known["method"], known["backbone"], known["precision"], known["category"], int(known["seed"]),
                       metrics, warning)  # fmt: skip


@dataclass(frozen=True)
class AccuracyTables:
    """What was measured, and the tables made of it."""

    command: str
    categories: tuple[str, ...]
    seeds: tuple[int, ...]
    ours: tuple[AccuracyRow, ...]
    peers: tuple[AccuracyRow, ...] = ()

    @property
    def contenders(self) -> dict[str, list[AccuracyRow]]:
        """Contender -> its rows, ours first."""
        found: dict[str, list[AccuracyRow]] = {}
        for row in (*self.ours, *self.peers):
            if row.category in self.categories:
                found.setdefault(row.contender, []).append(row)
        return found

    @property
    def finished(self) -> bool:
        """Whether each of our contenders has every category and seed."""
        wanted = len(self.categories) * len(self.seeds)
        ours = {row.contender for row in self.ours}
        return bool(ours) and all(len(self.contenders[name]) == wanted for name in ours)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "categories": list(self.categories),
            "seeds": list(self.seeds),
            "finished": self.finished,
            "rows": [asdict(row) for rows in self.contenders.values() for row in rows],
            "table_1": [cell for name in TABLE_1 for cell in self.table_1(name)],
            "table_3": self.table_3(),
        }

    def table_1(self, name: str) -> list[dict[str, Any]]:
        """Our means over the categories of a data set of the paper beside its Table 1; empty without any."""
        wanted = [category for category in self.categories if category in PAPER_SETS[name]]
        cells = []
        for contender, rows in self.contenders.items():
            by_category = [[row for row in rows if row.category == category] for category in wanted]
            if not wanted or not all(by_category):
                continue
            for figure, printed in TABLE_1[name].items():
                ours = means_by_seed(by_category, figure)
                cells.append({
                    "set": name, "contender": contender, "figure": figure, "categories": len(wanted),
                    "of": len(PAPER_SETS[name]), "ours": ours, "paper": printed[-1],
                    "difference": mean(ours) - printed[-1] if ours else None,
                    "best_other": best_other(TABLE_1_METHODS, printed),
                })  # fmt: skip
        return cells

    def table_3(self) -> list[dict[str, Any]]:
        """Our pixel AP of each category of MVTec AD beside the paper's Table 3, averages where they are complete."""
        groups = {"textures": MVTEC_TEXTURES, "objects": MVTEC_OBJECTS, "all": PAPER_SETS["MVTec AD"]}
        cells = []
        for contender, rows in self.contenders.items():
            of = {name: [row for row in rows if row.category == name] for name in TABLE_3}
            lines = [(name, [of[name]], TABLE_3[name]) for name in TABLE_3 if of[name]]
            lines += [(f"average, {group}", [of[name] for name in names], TABLE_3_AVERAGES[group])
                      for group, names in groups.items() if all(of[name] for name in names)]  # fmt: skip
            for name, by_category, printed in lines:
                ours = means_by_seed(by_category, "pixel_ap")
                cells.append({
                    "category": name, "contender": contender, "ours": ours, "paper": printed[-1],
                    "difference": mean(ours) - printed[-1] if ours else None,
                    "best_other": best_other(TABLE_3_METHODS, printed),
                })  # fmt: skip
        return cells

    def markdown(self) -> str:
        """All tables, in %."""
        lines = [f"**{text}**" for text in dict.fromkeys(row.warning for row in self.ours if row.warning)]
        lines += [f"- command: `{self.command}`", f"- mean ± standard deviation over the seeds "
                  f"{', '.join(map(str, self.seeds))}{'' if self.finished else '; not finished'}", ""]  # fmt: skip
        lines += self.by_category()
        for name in TABLE_1:
            if cells := self.table_1(name):
                lines += [
                    "",
                    f"Table 1 of the paper, {name} ({cells[0]['categories']} of {cells[0]['of']} categories)",
                    "",
                ]
                lines += ["| contender | figure | ours | paper's N-Net | difference | best other of the paper |",
                          "|---|---|---|---|---|---|"]  # fmt: skip
                lines += [
                    f"| {cell['contender']} | {PAPER_FIGURES[cell['figure']]} | {beside_paper(cell)} |"
                    for cell in cells
                ]
        if cells := self.table_3():
            lines += ["", "Table 3 of the paper: pixel AP, MVTec AD", ""]
            lines += ["| contender | category | ours | paper's N-Net | difference | best other of the paper |",
                      "|---|---|---|---|---|---|"]  # fmt: skip
            lines += [f"| {cell['contender']} | {cell['category']} | {beside_paper(cell)} |" for cell in cells]
        return "\n".join(lines)

    def by_category(self) -> list[str]:
        """Lines of the table of every contender on every category, and on average."""
        lines = ["| category | contender | " + " | ".join(FIGURES.values()) + " | seeds |",
                 "|---|---|" + "---|" * (len(FIGURES) + 1)]  # fmt: skip
        for category in self.categories:
            for contender, rows in self.contenders.items():
                if here := [row for row in rows if row.category == category]:
                    lines.append(line_of(category, contender, [here], len(here)))
        for contender, rows in self.contenders.items():
            by_category = [[row for row in rows if row.category == name] for name in self.categories]
            if len(self.categories) > 1 and all(by_category):
                lines.append(line_of(f"mean of {len(self.categories)}", contender, by_category, len(by_category[0])))
        return lines


def line_of(category: str, contender: str, by_category: Sequence[Sequence[AccuracyRow]], seeds: int) -> str:
    """A line of the table by category."""
    cells = [spread_text(means_by_seed(by_category, figure)) for figure in FIGURES]
    return f"| {category} | {contender} | {' | '.join(cells)} | {seeds} |"


def means_by_seed(by_category: Sequence[Sequence[AccuracyRow]], figure: str) -> list[float]:
    """For each seed that all categories have: the mean in % over the categories that have the figure."""
    seeds = sorted(set.intersection(*({row.seed for row in rows} for rows in by_category)))
    found = []
    for seed in seeds:
        values = [getattr(row.metrics, figure) for rows in by_category for row in rows if row.seed == seed]
        known = [value for value in values if value is not None]
        if known:
            found.append(100 * mean(known))
    return found


def beside_paper(cell: Mapping[str, Any]) -> str:
    """Ours, the paper's, the difference and the best other, as cells."""
    difference = "-" if cell["difference"] is None else f"{cell['difference']:+.1f}"
    return f"{spread_text(cell['ours'])} | {cell['paper']:.1f} | {difference} | {cell['best_other']}"
