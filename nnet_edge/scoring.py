"""Scoring: the threshold chosen on held-out good images, the regions above it, and the histogram of good scores.

The threshold is a conformal quantile: of n held-out scores in ascending order it is number k = ceil((n + 1)(1 - rate)).
If parts to come are like the held-out ones, a good part is rejected (its score lies above the threshold) with
probability (n + 1 - k) / (n + 1) on average; over all draws of n images that probability is distributed as
Beta(n + 1 - k, k).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np

from nnet_edge.errors import BundleError, ConfigError, DataError, TrainingError
from nnet_edge.frame import Region

MARGIN = 2e-4  # the part that set the threshold stays good on every runner: their scores differ by rounding, up to half of it
ROUNDING = 1e-9  # (n + 1) * (1 - 1/(n + 1)) is n only up to rounding; ceil must not see that


@dataclass(frozen=True)
class Threshold:
    """The image score above which a part is anomalous, and what it is expected to cost in good parts."""

    value: float
    held_out: int  # good images that it was chosen on
    rank: int  # it is their `rank`-th smallest score
    expected_false_rejects: float  # share of good parts that will be rejected
    interval_90: tuple[float, float]  # 5 % and 95 % point of that share
    asked: float | None  # the share that was asked for; None: the smallest that the held-out images support

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        return asdict(self) | {"interval_90": list(self.interval_90)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Threshold:
        """The threshold that `as_dict` wrote; raises BundleError for missing or invalid fields."""
        try:
            low, high = fields["interval_90"]
            asked = fields["asked"]
            threshold = cls(
                value=float(fields["value"]), held_out=int(fields["held_out"]), rank=int(fields["rank"]),
                expected_false_rejects=float(fields["expected_false_rejects"]), interval_90=(float(low), float(high)),
                asked=None if asked is None else float(asked),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the threshold {dict(fields)} cannot be read ({error!r}): train again") from error
        if not (math.isfinite(threshold.value) and threshold.value > 0):
            raise BundleError(f"the threshold is {threshold.value}: it must be a positive number; train again")
        return threshold

    def sentence(self) -> str:
        """What the threshold is expected to cost, in counts, and what that rests on."""
        low, high = self.interval_90
        text = (
            f"expected: {in_counts(self.expected_false_rejects)} good parts rejected "
            f"(90 % interval: {in_counts(low)} to {in_counts(high)}), chosen on {self.held_out} held-out images"
        )
        if self.asked is None:
            text += "; the smallest share that so many images support"
        return text


def choose_threshold(scores: Sequence[float] | np.ndarray, false_rejects: float | None = None) -> Threshold:
    """The threshold for which at most the share `false_rejects` of good parts is expected to be rejected.

    `scores` are the image scores of good images that were not learned from. Without `false_rejects` the share is the
    smallest that they support, 1 / (n + 1). Raises ConfigError for a share that is invalid or that n images do not
    support, DataError without scores, TrainingError for scores that no model that works gives.
    """
    ascending = np.sort(np.asarray(scores, np.float64).ravel())
    n = len(ascending)
    if n == 0:
        raise DataError("no held-out image to choose a threshold on: hold out at least one good image")
    if not np.isfinite(ascending).all():
        bad = int(n - np.isfinite(ascending).sum())
        raise TrainingError(f"{bad} of {n} held-out images have a NaN or infinite score: train again, more carefully")
    rank = n if false_rejects is None else rank_of(false_rejects, n)
    value = float(ascending[rank - 1])
    if value <= 0:
        raise TrainingError(
            f"the threshold would be {value:g}: a model that sees nothing in good images sees no defect"
        )
    return Threshold(
        value=value, held_out=n, rank=rank, expected_false_rejects=(n + 1 - rank) / (n + 1),
        interval_90=false_reject_interval(n, rank), asked=false_rejects,
    )  # fmt: skip


def with_margin(threshold: Threshold) -> Threshold:
    """The threshold a little above the score that set it."""
    return replace(threshold, value=threshold.value * (1 + MARGIN))


def rank_of(false_rejects: float, n: int) -> int:
    """The rank k among n ascending scores that rejects at most the share `false_rejects`; raises ConfigError."""
    if not 0 < false_rejects < 1:
        raise ConfigError(f"the share of false rejects {false_rejects:g} is invalid: give one between 0 and 1")
    if false_rejects * (n + 1) < 1 - ROUNDING:
        needed = math.ceil(1 / false_rejects - 1 - ROUNDING)
        raise ConfigError(
            f"false rejects of {in_counts(false_rejects)} need {needed} held-out good images and there are {n}: "
            f"add good images or ask for {in_counts(1 / (n + 1))}"
        )
    return max(1, math.ceil((n + 1) * (1 - false_rejects) - ROUNDING))


def false_reject_interval(n: int, rank: int) -> tuple[float, float]:
    """The 5 % and 95 % points of the share of good parts above the `rank`-th of n held-out scores (needs scipy)."""
    from scipy.special import betaincinv

    low, high = betaincinv(n + 1 - rank, rank, [0.05, 0.95])
    return float(low), float(high)


def in_counts(share: float) -> str:
    """A share as people count: "1 of 37", or "15 of 100" when it is larger than one in ten."""
    return f"1 of {round(1 / share)}" if 0 < share <= 0.1 else f"{round(100 * share)} of 100"


def find_regions(
    anomaly_map: np.ndarray, threshold: float, height: int, width: int, min_area: float = 0.0
) -> tuple[Region, ...]:
    """The connected parts (8 neighbours) of the anomaly map (H, W) above the threshold, largest peak first.

    Boxes and areas are in pixels of a frame of `height` x `width`; a box holds every frame pixel that its region
    touches. Regions with less than `min_area` frame pixels are left out.
    """
    rows, columns = anomaly_map.shape
    above = (anomaly_map > threshold).view(np.uint8)
    start, first, width_above, height_above = cv2.boundingRect(above)
    if not width_above:
        return ()
    box = slice(first, first + height_above), slice(start, start + width_above)  # labels cost by the pixel
    above, values = above[box], anomaly_map[box]
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    peaks = np.full(count, -np.inf, anomaly_map.dtype)  # of another type the next line takes seven times as long
    is_above = above.view(np.bool_)
    np.maximum.at(peaks, labels[is_above].astype(np.intp), values[is_above])
    regions = []
    for (left, top, box_width, box_height, pixels), peak in zip(statistics[1:].tolist(), peaks[1:], strict=True):
        left, top = left + start, top + first
        x, right = left * width // columns, -(-(left + box_width) * width // columns)
        y, bottom = top * height // rows, -(-(top + box_height) * height // rows)
        area = pixels * height * width / (rows * columns)
        if area >= min_area:
            regions.append(Region(x=x, y=y, width=right - x, height=bottom - y, area=area, peak=float(peak)))
    return tuple(sorted(regions, key=lambda region: (-region.peak, region.y, region.x)))


SCORES_IN_A_BIN = 5  # of the reference, at least: fewer make a bin's share a matter of luck
MOST_BINS = 10
FEWEST_SCORES = 2 * SCORES_IN_A_BIN
LOW_DEVIATIONS = 3.0


@dataclass(frozen=True)
class GoodScores:
    """A histogram of relative scores, which a bundle's manifest keeps and drift is measured against.

    Relative is image score / threshold, so that a bundle's precisions share one histogram and 1.0 is the threshold. Bin i lies
    above edges[i - 1] and not above edges[i]; the outer bins are open.
    """

    edges: tuple[float, ...]  # ascending, between the bins
    counts: tuple[int, ...]  # one more than edges
    mean: float
    deviation: float  # standard deviation, 0 for scores that are all the same
    lowest: float | None = None  # of them; None in a bundle of before

    @property
    def count(self) -> int:
        """Scores that it was made of."""
        return sum(self.counts)

    @property
    def too_low(self) -> float | None:
        """The relative score below which nothing good was ever seen, with a margin; None where the lowest is not known.

        Scores are positive and spread by a factor, so the margin is one: below the lowest of n good parts lie, by chance, 1 of
        n + 1 parts; three more deviations of the logarithm below it (by about deviation / mean each) lies one part in many
        thousands. What does is another picture than training's, or a computation that lost something.
        """
        if self.lowest is None or not self.mean > 0:
            return None
        return self.lowest * math.exp(-LOW_DEVIATIONS * self.deviation / self.mean)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self) | {"edges": list(self.edges), "counts": list(self.counts)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> GoodScores:
        """The histogram that `as_dict` wrote. Raises BundleError for missing or invalid fields."""
        try:
            edges = tuple(float(edge) for edge in fields["edges"])
            counts = tuple(int(count) for count in fields["counts"])
            lowest = fields.get("lowest")
            lowest = None if lowest is None else float(lowest)
            found = cls(edges, counts, float(fields["mean"]), float(fields["deviation"]), lowest)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the histogram of good scores cannot be read ({error!r}): export the bundle again"
            ) from error
        numbers = (*edges, found.mean, found.deviation, found.lowest or 0.0)
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
    return GoodScores(tuple(edges.tolist()), counts, float(scores.mean()), float(scores.std()), float(scores.min()))


def counts_between(scores: np.ndarray, edges: Sequence[float] | np.ndarray) -> tuple[int, ...]:
    """How many of `scores` (N,) fall into each bin between `edges`; one more than edges."""
    places = np.searchsorted(np.asarray(edges, np.float64), scores, side="left")
    return tuple(np.bincount(places, minlength=len(edges) + 1).tolist())
