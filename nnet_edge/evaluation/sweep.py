"""Sweep of the threshold over a test set: what each costs in good parts rejected and in defects missed, as counts."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nnet_edge.errors import ConfigError
from nnet_edge.evaluation.evaluate import Evaluation
from nnet_edge.scoring import MARGIN
from nnet_edge.text import safe_cell

FALSE_REJECTS_SHOWN = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)  # a row each, as far as half of the good parts


@dataclass(frozen=True)
class Costs:
    """What an error costs, in any unit. Raises ConfigError unless both are positive."""

    miss: float = 1.0
    false_reject: float = 1.0

    def __post_init__(self) -> None:
        for option, value in (("--cost-miss", self.miss), ("--cost-false", self.false_reject)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{option} {value:g}: give a number above 0; only their ratio counts")


@dataclass(frozen=True)
class Step:
    """A threshold and its errors."""

    threshold: float
    relative: float  # to the one that the evaluation was made with
    false_rejects: int
    misses: int
    found: int | None  # defects that a region above it overlaps; None without masks

    def cost(self, costs: Costs) -> float:
        """Of its errors together."""
        return costs.miss * self.misses + costs.false_reject * self.false_rejects


def sweep(found: Evaluation) -> tuple[Step, ...]:
    """A step for each way to part the scores, ascending: half way (as a ratio) between neighbours, and above the highest."""
    values = np.unique(found.scores[found.scores > 0])
    cuts = [math.sqrt(low * high) for low, high in pairwise(values) if high > low * (1 + 2 * MARGIN)]
    return tuple(step_at(found, cut) for cut in (*cuts, *(values[-1:] * (1 + MARGIN)).tolist()))


def step_at(found: Evaluation, threshold: float) -> Step:
    """The errors at that threshold."""
    rejected = found.scores > threshold
    hits = int((rejected & (found.peaks > threshold)).sum()) if found.is_marked.any() else None
    return Step(
        threshold, threshold / found.threshold, int((rejected & ~found.labels).sum()),
        int((~rejected & found.labels).sum()), hits,
    )  # fmt: skip


def cheapest(found: Evaluation, steps: Sequence[Step], costs: Costs) -> Step | None:
    """The step of the lowest cost, of equals the nearest to the present threshold; None unless both kinds are there."""
    if found.labels.all() or not found.labels.any():
        return None
    steps = (step_at(found, found.threshold), *steps)
    return min(steps, key=lambda step: (step.cost(costs), abs(math.log(step.relative))))


def shown(found: Evaluation, steps: Sequence[Step], proposed: Step) -> list[tuple[Step, str]]:
    """The steps for people, ascending, each with a mark: "now", "cheapest", both or nothing.

    For each of a few numbers of false rejects the one with the fewest misses.
    """
    half, now = int((~found.labels).sum()) // 2, step_at(found, found.threshold)
    chosen = {now: "now", proposed: "now, cheapest" if proposed == now else "cheapest"}
    for most in FALSE_REJECTS_SHOWN:
        fitting = [step for step in steps if step.false_rejects <= most]
        if fitting and most <= max(half, 1):
            best = min(fitting, key=lambda step: (step.misses, step.false_rejects, -step.threshold))
            if (best.false_rejects, best.misses) not in [(step.false_rejects, step.misses) for step in chosen]:
                chosen[best] = ""
    return sorted(chosen.items(), key=lambda item: item[0].threshold)


def sweep_lines(found: Evaluation, costs: Costs) -> Iterator[str]:
    """The sweep for a terminal; nothing unless there are good images and defects."""
    steps = sweep(found)
    proposed = cheapest(found, steps, costs)
    if proposed is None:
        return
    good, bad, marked = int((~found.labels).sum()), int(found.labels.sum()), int(found.is_marked.sum())
    yield f"  threshold     false rejects of {good}, missed of {bad}" + (f", found of {marked}" if marked else "")
    for step, mark in shown(found, steps, proposed):
        line = f"    {step.relative:8.3f}  {step.false_rejects:18d}  {step.misses:9d}"
        line += "" if step.found is None else f"  {step.found:9d}"
        yield line + (f"   <- {mark}" if mark else "")
    yield f"  {proposal(found, proposed, costs)}"


def proposal(found: Evaluation, step: Step, costs: Costs) -> str:
    """The cheapest threshold in a sentence."""
    now = step_at(found, found.threshold)
    prices = f"a miss costs {costs.miss:g} and a false reject {costs.false_reject:g}"
    if step == now:
        return f"where {prices}, no threshold is cheaper on these images than the present one: {now.cost(costs):g}"
    return (
        f"where {prices}, stream --threshold {step.threshold:.6g} is the cheapest on these images: {step.cost(costs):g} "
        f"instead of {now.cost(costs):g}; it was chosen by them, so it flatters itself"
    )


def sweep_csv(found: Evaluation, steps: Sequence[Step]) -> str:
    """All steps as CSV."""
    head = ("threshold", "relative_threshold", "false_rejects", "good", "missed", "found", "defects")
    good, bad = int((~found.labels).sum()), int(found.labels.sum())
    rows = [
        (f"{one.threshold:.9g}", f"{one.relative:.6f}", one.false_rejects, good, one.misses, one.found, bad)
        for one in steps
    ]
    return to_csv(head, rows)


def images_csv(found: Evaluation) -> str:
    """A row for each image as CSV; `found` is empty where no mask says it."""
    head = ("name", "defect", "is_anomalous", "score", "relative_score", "rejected", "found")
    rows = zip(found.samples, found.names, found.scores, found.relative_scores, found.rejected, found.found, found.is_marked,
               strict=True)  # fmt: skip
    return to_csv(head, [
        (name, sample.defect if sample.is_anomalous else "", int(sample.is_anomalous), f"{score:.9g}", f"{relative:.6f}",
         int(rejected), int(hit) if marked else None)
        for sample, name, score, relative, rejected, hit, marked in rows
    ])  # fmt: skip


def to_csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as CSV; None is empty, and text that a spreadsheet would compute is quoted by an apostrophe."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(head)
    writer.writerows([[safe_cell(value) for value in row] for row in rows])
    return text.getvalue()
