"""What each lever brings: seed by seed the difference to the base, its mean and deviation, category by category.

A difference counts as clear when all seeds, three at least, have it in the same direction and its mean exceeds its own
standard deviation over the seeds. A variant is better when its pixel AP (its image AUROC where there are no masks) is clearly
higher in every category and no figure is clearly lower in any; it is worse when the opposite holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from nnet_edge.metrics import Metrics

SCHEMA = "nnet-edge levers 1"
FIGURES = {"pixel_ap": "pixel AP", "pro": "PRO", "image_auroc": "image AUROC"}
FEWEST_SEEDS = 3
Measured = Mapping[int, Metrics]  # seed -> figures


@dataclass(frozen=True)
class Difference:
    """A figure of a variant less that of the base, in points, one a seed."""

    points: tuple[float, ...]

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, None for fewer than two."""
        return stdev(self.points) if len(self.points) > 1 else None

    @property
    def direction(self) -> int:
        """1 clearly higher, -1 clearly lower, 0 neither."""
        if len(self.points) < FEWEST_SEEDS or self.deviation is None or abs(mean(self.points)) <= self.deviation:
            return 0
        return 1 if min(self.points) > 0 else -1 if max(self.points) < 0 else 0

    def text(self) -> str:
        """Mean and deviation, "-" without any."""
        return spread_text(self.points, "+")


@dataclass(frozen=True)
class Row:
    """A variant, over the categories."""

    lever: str
    variant: str
    command: str
    measured: Mapping[str, Measured]  # category -> seed -> figures
    same_as_base: tuple[str, ...] = ()  # categories in which it changes nothing


@dataclass(frozen=True)
class LeverTable:
    """The base and what every variant changes."""

    header: Mapping[str, str]
    warnings: tuple[str, ...]
    seeds: tuple[int, ...]
    categories: tuple[str, ...]
    base: Mapping[str, Measured]
    rows: tuple[Row, ...]
    missing: int  # rows of one category and seed that are not measured yet

    def difference(self, row: Row, category: str, figure: str) -> Difference:
        """The row less the base, over the seeds that both have."""
        ours, base = (percents(values.get(category, {}), figure) for values in (row.measured, self.base))
        return Difference(tuple(ours[seed] - base[seed] for seed in self.seeds if seed in ours and seed in base))

    def verdict(self, row: Row) -> str:
        """better, worse, mixed or no clear change; or why nothing can be said."""
        differences = [{figure: self.difference(row, name, figure) for figure in FIGURES} for name in self.categories]
        if any(len(by_figure["image_auroc"].points) < FEWEST_SEEDS for by_figure in differences):
            return f"fewer than {FEWEST_SEEDS} seeds"
        directions = [{name: one.direction for name, one in by_figure.items()} for by_figure in differences]
        leading = [found["pixel_ap" if by["pixel_ap"].points else "image_auroc"]
                   for found, by in zip(directions, differences, strict=True)]  # fmt: skip
        every = {value for found in directions for value in found.values()}
        if all(value == 1 for value in leading) and -1 not in every:
            return "better"
        if all(value == -1 for value in leading) and 1 not in every:
            return "worse"
        return "no clear change" if every == {0} else "mixed"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": SCHEMA,
            "header": dict(self.header),
            "warnings": list(self.warnings),
            "seeds": list(self.seeds),
            "categories": list(self.categories),
            "missing": self.missing,
            "base": {name: {str(seed): one.as_dict() for seed, one in by.items()} for name, by in self.base.items()},
            "rows": [
                {
                    "lever": row.lever,
                    "variant": row.variant,
                    "command": row.command,
                    "same_as_base": list(row.same_as_base),
                    "points": {name: {figure: list(self.difference(row, name, figure).points) for figure in FIGURES}
                               for name in self.categories},
                    "verdict": self.verdict(row),
                }
                for row in self.rows
            ],
        }  # fmt: skip

    def markdown(self) -> str:
        """The table below its header: the base in %, every variant's differences in points."""
        lines = [f"**{warning}**" for warning in self.warnings] + ([""] if self.warnings else [])
        lines += [f"- {name}: {value}" for name, value in self.header.items()]
        if self.missing:
            lines.append(f"- not finished: {self.missing} trainings or readings of one category and seed are missing")
        titles = [f"{name}: {title}" for name in self.categories for title in FIGURES.values()]
        lines += ["", f"| lever | variant | {' | '.join(titles)} | verdict |", "|" + "---|" * (len(titles) + 3)]
        base = [spread_text(tuple(percents(self.base.get(name, {}), figure).values()))
                for name in self.categories for figure in FIGURES]  # fmt: skip
        lines.append(f"| - | base, in % | {' | '.join(base)} | |")
        for row in self.rows:
            cells = ["as the base" if name in row.same_as_base else self.difference(row, name, figure).text()
                     for name in self.categories for figure in FIGURES]  # fmt: skip
            lines.append(f"| {row.lever} | {row.variant} | {' | '.join(cells)} | {self.verdict(row)} |")
        levers = list(dict.fromkeys(row.lever for row in self.rows))
        lines += ["", "Commands: the base with `" + self.header.get("command", "") + "`, each lever with `--lever NAME` added: "
                  + ", ".join(levers) + "."]  # fmt: skip
        return "\n".join(lines)


def percents(measured: Measured, figure: str) -> dict[int, float]:
    """Seed -> the figure in %, of the seeds that have it."""
    values = {seed: metrics.as_dict()[figure] for seed, metrics in measured.items()}
    return {seed: 100 * value for seed, value in values.items() if value is not None}


def spread_text(values: Sequence[float], sign: str = "", digits: int = 1) -> str:
    """Mean and sample standard deviation, "-" for no value, without the deviation for one."""
    if not values:
        return "-"
    text = f"{mean(values):{sign}.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values):.{digits}f}"
