"""Our figures beside those of the paper's Tables 4 to 7 (specification section 13), each row with its gain over row 1.

The paper's figures are means over the 15 categories of MVTec AD from single trainings; ours are means over the categories
that were given, then over the seeds, with the range over the seeds. The gains, taken seed by seed, are what can be compared
across data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnet_edge.methods.nnet.settings import ABLATIONS
from nnet_edge.metrics import METRICS, Metrics

FIGURES = {  # ours -> the paper's name; the paper's PRO is set beside RD4AD's estimator (specification section 11)
    "pixel_ap": "P-AP",
    "pixel_auroc": "P-AUROC",
    "pro_rd4ad": "P-PRO",
    "image_auroc": "I-AUROC",
    "pro": "P-PRO, exact",
}
PAPER: dict[str, tuple[float | None, float | None, float | None, float | None]] = {  # P-AP, P-AUROC, P-PRO, I-AUROC, %
    "4.1": (60.78, 97.96, 94.45, 98.62),
    "4.2": (61.18, 97.95, 94.47, 98.75),
    "4.3": (61.41, 98.11, 94.59, 98.70),
    "4.4": (62.77, 98.23, 94.67, 98.78),
    "4.5": (63.03, 98.32, 94.90, 98.74),
    "5.1": (60.78, 97.96, 94.45, 98.62),
    "5.2": (61.31, 98.03, 94.54, 98.68),
    "5.3": (61.26, 98.07, 94.62, 98.65),
    "5.4": (61.41, 98.11, 94.59, 98.70),
    "6.1": (61.18, 97.95, 94.47, 98.75),
    "6.2": (62.43, 98.24, 94.58, 98.84),
    "6.3": (61.35, 98.10, 94.58, 98.85),
    "6.4": (62.77, 98.23, 94.67, 98.81),
    "7.1": (61.4, 98.1, None, 99.0),
    "7.2": (57.2, 96.9, None, 96.6),
    "7.3": (63.0, 98.3, None, 98.8),
}
TABLES = tuple(sorted({int(row.split(".")[0]) for row in PAPER}))


@dataclass(frozen=True)
class Cell:
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
        return None if self.paper is None or not self.ours else mean(self.ours) - self.paper

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"row": self.row, "figure": self.figure, "ours": list(self.ours), "paper": self.paper,
                "difference": self.difference, "gains": list(self.gains), "paper_gain": self.paper_gain}  # fmt: skip

    def markdown(self) -> str:
        """The cell as a line of a Markdown table."""
        paper = "-" if self.paper is None else f"{self.paper:.2f}"
        values = (span(self.ours), paper, signed(self.difference), span(self.gains, "+"), signed(self.paper_gain))
        return f"| {FIGURES[self.figure]} | {self.row} | {ABLATIONS[self.row][0]} | {' | '.join(values)} |"


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
    def cells(self) -> tuple[Cell, ...]:
        """Every figure of every row, the rows of one figure together."""
        return tuple(self._cell(row, figure) for figure in FIGURES for row in rows_of(self.table))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "table": self.table,
            "header": dict(self.header),
            "warnings": list(self.warnings),
            "seeds": list(self.seeds),
            "finished": self.finished,
            "cells": [cell.as_dict() for cell in self.cells],
        }

    def markdown(self) -> str:
        """The table below its header, in %."""
        lines = [f"**{warning}**" for warning in self.warnings] + ([""] if self.warnings else [])
        lines += [f"Table {self.table}{'' if self.finished else ', not finished'}", ""]
        lines += [f"- {name}: {value}" for name, value in self.header.items()]
        lines += ["", "| figure, % | row | what | ours, mean (min..max) | paper | difference | our gain over row 1 | "
                  "paper's gain |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        lines += [cell.markdown() for cell in self.cells]
        return "\n".join(lines)

    def _cell(self, row: str, figure: str) -> Cell:
        first = rows_of(self.table)[0]
        ours, base = (self._percents(name, figure) for name in (row, first))
        gains = () if row == first else tuple(ours[seed] - base[seed] for seed in ours if seed in base)
        paper, paper_base = paper_figure(row, figure), paper_figure(first, figure)
        paper_gain = None if row == first or paper is None or paper_base is None else paper - paper_base
        return Cell(row, figure, tuple(ours.values()), gains, paper, paper_gain)

    def _percents(self, row: str, figure: str) -> dict[int, float]:
        """Seed -> our figure in %, of the seeds that have one, in the order of the seeds."""
        measured = self.measured.get(row, {})
        found = {seed: measured[seed].as_dict()[figure] for seed in self.seeds if seed in measured}
        return {seed: 100 * value for seed, value in found.items() if value is not None}


def averaged(tables: Sequence[AblationTable]) -> AblationTable:
    """The mean over the categories, one table each, of the rows and seeds that all of them have.

    A figure that one category cannot have (no masks, say) is averaged over the others. One table is given back as it is.
    """
    first = tables[0]
    if len(tables) == 1:
        return first
    measured: dict[str, dict[int, Metrics]] = {}
    for row in rows_of(first.table):
        for seed in first.seeds:
            found = [table.measured[row][seed] for table in tables if seed in table.measured.get(row, {})]
            if len(found) == len(tables):
                measured.setdefault(row, {})[seed] = mean_metrics(found)
    header = dict(first.header) | {"ours": f"mean of {len(tables)} categories: "
              + "; ".join(table.header["ours"] for table in tables)}  # fmt: skip
    warnings = tuple(dict.fromkeys(warning for table in tables for warning in table.warnings))
    return AblationTable(first.table, header, warnings, first.seeds, measured)


def mean_metrics(found: Sequence[Metrics]) -> Metrics:
    """Each figure's mean over those that have it, None where none has."""
    values: dict[str, float | None] = {}
    for name in METRICS:
        known = [value for metrics in found if (value := metrics[name]) is not None]
        values[name] = mean(known) if known else None
    return Metrics(**values)


def rows_of(table: int) -> tuple[str, ...]:
    """The rows of a table, as "4.1", in their order."""
    return tuple(row for row in ABLATIONS if row.startswith(f"{table}."))


def paper_figure(row: str, figure: str) -> float | None:
    """What the paper prints, in %; None where it prints nothing."""
    position = list(FIGURES).index(figure)
    return PAPER[row][position] if position < len(PAPER[row]) else None


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def span(values: Sequence[float], sign: str = "") -> str:
    """Mean (min..max), "-" for no value, without the range for one."""
    if not values:
        return "-"
    middle, *ends = (f"{value:{sign}.2f}" for value in (mean(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({ends[0]}..{ends[1]})"


def signed(value: float | None) -> str:
    """A difference with its sign, "-" for none."""
    return "-" if value is None else f"{value:+.2f}"
