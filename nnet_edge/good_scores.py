"""How the scores of good parts lie: the histogram that a bundle's manifest keeps, and that drift is measured against.

Scores here are relative: image score / threshold, so that a bundle's precisions share one histogram and 1.0 is the line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nnet_edge.errors import BundleError, DataError

SCORES_IN_A_BIN = 5  # of the reference, at least: fewer make a bin's share a matter of luck
MOST_BINS = 10
FEWEST_SCORES = 2 * SCORES_IN_A_BIN


@dataclass(frozen=True)
class GoodScores:
    """A histogram of relative scores: bin i lies above edges[i - 1] and not above edges[i]; the outer bins are open."""

    edges: tuple[float, ...]  # ascending, between the bins
    counts: tuple[int, ...]  # one more than edges
    mean: float
    deviation: float  # standard deviation, 0 for scores that are all the same

    @property
    def count(self) -> int:
        """Scores that it was made of."""
        return sum(self.counts)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self) | {"edges": list(self.edges), "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> GoodScores:
        """The histogram that `as_dict` wrote. Raises BundleError for fields that are missing or cannot be meant."""
        try:
            edges = tuple(float(edge) for edge in fields["edges"])
            counts = tuple(int(count) for count in fields["counts"])
            found = cls(edges, counts, float(fields["mean"]), float(fields["deviation"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the histogram of good scores cannot be read ({error!r}): export the bundle again"
            ) from error
        numbers = (*edges, found.mean, found.deviation)
        is_sound = len(counts) == len(edges) + 1 and found.count > 0 and min(counts) >= 0 and found.deviation >= 0
        if not is_sound or not all(map(math.isfinite, numbers)) or list(edges) != sorted(set(edges)):
            raise BundleError("the histogram of good scores is not one: export the bundle again")
        return found


def describe_scores(relative_scores: Sequence[float] | np.ndarray) -> GoodScores:
    """The histogram of these scores, with edges at their quantiles, so that each bin holds about as many.

    Raises DataError for fewer than FEWEST_SCORES.
    """
    scores = np.asarray(relative_scores, np.float64).ravel()
    if len(scores) < FEWEST_SCORES:
        raise DataError(f"{len(scores)} good scores make no histogram: {FEWEST_SCORES} are needed")
    bins = min(MOST_BINS, len(scores) // SCORES_IN_A_BIN)
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
    edges = edges[edges < scores.max()]  # equal scores on top would leave the last bin empty
    counts = counts_between(scores, edges)
    return GoodScores(tuple(edges.tolist()), counts, float(scores.mean()), float(scores.std()))


def counts_between(scores: np.ndarray, edges: Sequence[float] | np.ndarray) -> tuple[int, ...]:
    """How many of `scores` (N,) fall into each bin between `edges`; one more than edges."""
    places = np.searchsorted(np.asarray(edges, np.float64), scores, side="left")
    return tuple(np.bincount(places, minlength=len(edges) + 1).tolist())
