"""Rows of other methods, read from the files that `nnet-edge bench peers` leaves.

The figures of the paper's Tables 1 and 3 (specification section 13), in %, N-Net last; Tables 4 to 7: ablation_table.py.

The accuracy tables: every method by category, and the paper's Tables 1 and 3 with ours beside them.

Figures are means over the seeds with their sample standard deviation; a mean over categories is taken within each seed first.
The paper's P-PRO is set beside RD4AD's estimator, which its numbers most likely come from (specification section 11).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from nnet_edge.benchmarks.accuracy.grid import MVTEC_OBJECTS, MVTEC_TEXTURES, PAPER_SETS
from nnet_edge.benchmarks.accuracy.lever_table import spread_text
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.metrics import METRICS, Metrics

TABLE_1_METHODS = ("FastFlow", "FAVAE", "SPADE", "PaDiM", "PatchCore", "STPM", "RD", "MemKD", "N-Net")
TABLE_1: dict[str, dict[str, tuple[float, ...]]] = {  # data set -> our figure's name -> one a method
    "MVTec AD": {
        "pixel_ap": (39.8, 30.7, 47.1, 55.0, 61.2, 51.8, 60.8, 59.6, 64.4),
        "pixel_auroc": (94.5, 88.9, 95.5, 96.6, 98.1, 95.4, 98.0, 98.2, 98.3),
        "pro_rd4ad": (85.6, 74.9, 89.5, 91.3, 93.4, 87.9, 94.5, 94.5, 94.9),
        "image_auroc": (90.5, 79.3, 85.4, 90.8, 99.2, 92.4, 98.6, 99.6, 99.1),
    },
    "VisA": {
        "pixel_ap": (15.6, 21.3, 21.5, 30.9, 40.1, 16.9, 44.3, 44.1, 45.8),
        "pixel_auroc": (88.2, 88.0, 85.6, 89.5, 98.8, 83.4, 98.6, 98.4, 99.1),
        "pro_rd4ad": (59.6, 67.9, 65.9, 85.9, 91.2, 62.0, 94.5, 94.9, 94.7),
        "image_auroc": (82.2, 80.3, 82.1, 89.1, 95.1, 83.3, 96.1, 97.6, 96.5),
    },
}
TABLE_3_METHODS = ("US", "RIAD", "PaDiM", "PatchCore", "STPM", "RD", "RD++", "SimpleNet", "N-Net")
TABLE_3: dict[str, tuple[float, ...]] = {  # category of MVTec AD -> pixel AP, one a method
    "carpet": (52.2, 61.4, 60.7, 66.7, 65.3, 66.8, 64.3, 40.5, 69.4),
    "grid": (10.1, 36.4, 35.7, 41.0, 45.4, 49.8, 50.1, 32.4, 50.0),
    "leather": (40.9, 49.1, 53.5, 51.0, 42.9, 52.0, 51.3, 42.2, 49.8),
    "tile": (65.3, 52.6, 52.4, 59.3, 61.7, 53.8, 54.4, 60.9, 71.3),
    "wood": (53.3, 38.2, 46.7, 52.3, 47.0, 50.8, 52.6, 44.4, 59.1),
    "bottle": (74.2, 76.4, 77.3, 80.1, 80.6, 79.1, 79.7, 71.0, 83.0),
    "cable": (48.2, 24.4, 45.4, 70.0, 58.0, 59.6, 61.7, 66.9, 70.6),
    "capsule": (25.9, 38.2, 46.7, 48.1, 35.9, 45.1, 47.1, 41.3, 42.5),
    "hazelnut": (57.8, 33.8, 61.1, 61.5, 60.3, 67.9, 65.7, 45.1, 68.2),
    "metal_nut": (83.5, 64.3, 77.4, 88.8, 79.3, 82.3, 83.5, 89.4, 83.3),
    "pill": (62.0, 51.6, 61.2, 78.7, 63.3, 79.4, 79.8, 80.0, 81.7),
    "screw": (7.8, 43.9, 21.7, 41.4, 26.9, 54.5, 55.6, 35.3, 51.1),
    "toothbrush": (37.7, 50.6, 54.7, 51.6, 48.8, 54.1, 56.2, 38.5, 70.9),
    "transistor": (27.1, 39.2, 72.0, 63.2, 44.4, 55.6, 59.1, 67.5, 58.8),
    "zipper": (36.1, 63.4, 58.2, 64.0, 54.9, 60.9, 61.1, 62.2, 56.5),
}
TABLE_3_AVERAGES: dict[str, tuple[float, ...]] = {  # as printed
    "textures": (44.4, 47.5, 49.8, 54.1, 52.5, 54.6, 54.5, 44.1, 59.9),
    "objects": (46.0, 48.6, 57.6, 64.7, 55.2, 63.9, 65.0, 59.7, 66.7),
    "all": (45.5, 48.2, 55.0, 61.2, 54.3, 60.8, 61.5, 54.5, 64.4),
}


def best_other(methods: tuple[str, ...], figures: tuple[float, ...]) -> str:
    """The best method of the paper's table besides N-Net, as "RD 66.8"."""
    value, name = max(zip(figures[:-1], methods[:-1], strict=True), key=lambda pair: pair[0])
    return f"{name} {value:.1f}"


SCHEMA = "nnet-edge accuracy 1"
ROW_SCHEMA = "nnet-edge accuracy row 1"
FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pro": "PRO",
           "pro_rd4ad": "PRO (RD4AD)"}  # fmt: skip
PAPER_FIGURES = {"pixel_ap": "P-AP", "pixel_auroc": "P-AUROC", "pro_rd4ad": "P-PRO", "image_auroc": "I-AUROC"}
FIGURE_NAMES = tuple(METRICS)


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
            "rows": [
                asdict(row) | {"metrics": row.metrics.as_dict()} for rows in self.contenders.values() for row in rows
            ],
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


def read_peer_rows(folder: Path) -> list[AccuracyRow]:
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
                rows.append(row_from(known, str(path)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read as a row of a peer ({error}): delete it or run the peer again"
            ) from error
    if not rows:
        raise ConfigError(f"--peers {folder} holds no row: run bench peers with it as --out")
    return rows
