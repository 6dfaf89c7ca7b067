"""Leave-one-out: hyper-parameters chosen on all categories but one, judged on that one, beside what looking would choose.

A choice made while looking at the category that judges it is always at least as good as the settings it is compared with, so
its gain says nothing. Here a variant is chosen by its mean difference to the base over the other categories (the mean over
pixel AP, PRO and image AUROC, of those that a category has, over the seeds), the base itself where none gains; what counts is
its difference on the category that was left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from nnet_edge.benchmarks.accuracy.hyperparameters import BASE
from nnet_edge.benchmarks.accuracy.tables import spread_text
from nnet_edge.benchmarks.accuracy.variants import FEWEST_SEEDS, FIGURES, Row, VariantTable
from nnet_edge.benchmarks.harness.report import render
from nnet_edge.errors import ConfigError

SCHEMA = "nnet-edge leave-one-out 1"
FEWEST_CATEGORIES = 3
Gains = Mapping[
    str, Mapping[int, float]
]  # category -> seed -> mean over the figures of the difference to the base, in points


@dataclass(frozen=True)
class Fold:
    """A choice that did not see one category."""

    category: str  # left out
    chosen: str  # a variant, or "base"
    seen: float  # its mean gain over the other categories, points
    unseen: tuple[float, ...]  # its gain on the category left out, a seed each
    looked: str  # what that category itself would choose
    looked_gain: float


@dataclass(frozen=True)
class LeverChoice:
    """A hyper-parameter, over all folds."""

    hyperparameter: str
    folds: tuple[Fold, ...]
    on_all: str  # what all categories together choose

    @property
    def by_seed(self) -> tuple[float, ...]:
        """The mean over the left-out categories of the unseen gain, a seed each."""
        return tuple(mean(values) for values in zip(*(fold.unseen for fold in self.folds), strict=True))

    @property
    def verdict(self) -> str:
        """Whether the default may change: every fold chooses what all together choose, and every seed gains unseen."""
        if self.on_all == BASE.name:
            return "the base stays"
        if len(self.by_seed) < FEWEST_SEEDS:
            return f"fewer than {FEWEST_SEEDS} seeds"
        is_steady = all(fold.chosen == self.on_all for fold in self.folds)
        return f"{self.on_all} may replace it" if is_steady and min(self.by_seed) > 0 else "the base stays"


@dataclass(frozen=True)
class LeaveOneOut:
    """All hyper-parameters of a table whose rows are finished."""

    header: Mapping[str, str]
    warnings: tuple[str, ...]
    choices: tuple[LeverChoice, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        choices = [asdict(one) | {"by_seed": list(one.by_seed), "verdict": one.verdict} for one in self.choices]
        return {"schema": SCHEMA, "header": dict(self.header), "warnings": list(self.warnings), "choices": choices}

    def markdown(self) -> str:
        """The table below its header."""
        return render("accuracy/leave_one_out.md.j2", report=self, spread=spread_text)


def require_enough(categories: Sequence[str]) -> None:
    """Raise ConfigError for too few categories."""
    if len(categories) < FEWEST_CATEGORIES:
        raise ConfigError(
            f"leave-one-out over {', '.join(categories)}: give at least {FEWEST_CATEGORIES} categories, two to choose on and "
            "one to judge"
        )


def leave_one_out(table: VariantTable) -> LeaveOneOut:
    """The choices over the rows of `table` that all categories and seeds have. Raises ConfigError for too few categories."""
    require_enough(table.categories)
    names = dict.fromkeys(row.hyperparameter for row in table.rows)
    choices = [
        choice
        for name in names
        if (choice := choice_of(name, [r for r in table.rows if r.hyperparameter == name], table))
    ]
    return LeaveOneOut(table.header, table.warnings, tuple(choices))


def choice_of(name: str, rows: Sequence[Row], table: VariantTable) -> LeverChoice | None:
    """The folds of one hyper-parameter; None while no variant of it is measured everywhere."""
    zero = {category: dict.fromkeys(table.seeds, 0.0) for category in table.categories}
    gains: dict[str, Gains] = {BASE.name: zero}
    for row in rows:
        found = gains_of(row, table)
        if all(set(found[category]) == set(table.seeds) for category in table.categories):
            gains[row.variant] = found
    if len(gains) == 1:
        return None
    folds = []
    for category in table.categories:
        others = [one for one in table.categories if one != category]
        chosen, seen = best_of(gains, others)
        looked, looked_gain = best_of(gains, [category])
        folds.append(Fold(category, chosen, seen, tuple(gains[chosen][category].values()), looked, looked_gain))
    return LeverChoice(name, tuple(folds), best_of(gains, table.categories)[0])


def gains_of(row: Row, table: VariantTable) -> Gains:
    """What a variant gains over the base; nothing for a seed that is not measured."""
    gains: dict[str, dict[int, float]] = {}
    for category in table.categories:
        ours, base = row.measured.get(category, {}), table.base.get(category, {})
        gains[category] = {
            seed: mean(100 * (value - known) for figure in FIGURES
                       if (value := ours[seed][figure]) is not None and (known := base[seed][figure]) is not None)
            for seed in table.seeds if seed in ours and seed in base
        }  # fmt: skip
    return gains


def best_of(gains: Mapping[str, Gains], categories: Sequence[str]) -> tuple[str, float]:
    """The variant with the largest mean gain over `categories`, and the gain; the base where none gains."""
    means = {name: mean(mean(of[category].values()) for category in categories) for name, of in gains.items()}
    best = max(means, key=lambda name: means[name])
    return (best, means[best]) if means[best] > 0 else (BASE.name, 0.0)
