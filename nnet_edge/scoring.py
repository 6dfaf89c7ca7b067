"""Scoring: the threshold chosen on held-out good images, the regions above it, and the histogram of good scores.

The threshold is a conformal quantile: of n held-out scores in ascending order it is number k = ceil((n + 1)(1 - rate)).
If parts to come are like the held-out ones, a good part is rejected (its score lies above the threshold) with
probability (n + 1 - k) / (n + 1) on average; over all draws of n images that probability is distributed as
Beta(n + 1 - k, k).

Where images belong to groups (parts, days, cameras), a new part comes from a new group, and G groups count, not n images: each
group weighs 1, its images share it, and the threshold is the smallest score with a weight of (G + 1)(1 - rate) at or below it
(Lee, Barber and Willett, "Distribution-free inference with hierarchical data"; Dunn, Wasserman and Ramdas, JASA 118, 2023). A
good part of a new group is then rejected with a probability of at most that rate on average. With groups of one image this is
the rule above. The interval encloses the two extremes: images of a group that are all alike (Beta of groups), and images that
know nothing of their group (Beta of images). For the tightest rate it is proven for any likeness between them: of G groups the
largest score lies below the point that a share u of good parts exceeds with probability E[F^m]^G, between (1 - u)^(Gm) and
(1 - u)^G by Jensen's inequality; for others it is simulated (tests/test_promise.py).
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
HELD_OUT_SHARE = 0.15  # of the good images, for the threshold
HELD_OUT_AT_LEAST = 10
FAR_OUT = 5.0  # deviations of the logarithm, above the middle one, from which on a score is no good part's
SMALLEST_DEVIATION = 0.05  # of the logarithms, about as a share of the score
ROUNDING = 1e-9  # (n + 1) * (1 - 1/(n + 1)) is n only up to rounding; ceil must not see that


@dataclass(frozen=True)
class Threshold:
    """The image score above which a part is anomalous, and what it is expected to cost in good parts."""

    value: float
    held_out: int  # good images that it was chosen on
    rank: int  # it is their `rank`-th smallest score
    expected_false_rejects: float  # share of good parts that will be rejected; of new groups, at most
    interval_90: tuple[float, float]  # 5 % and 95 % point of that share; by folds it begins at 0
    asked: (
        float | None
    )  # the share that was asked for; None: the smallest that the held-out images, or a hold-out, support
    groups: int | None = None  # that the held-out images belong to; None: each shows a part of its own
    worst_group: tuple[str, float] | None = None  # share rejected of the group that the others' threshold suits least
    folds: int = 1  # above 1: each image was judged by a model that had not learned it, and the bundle's learned all
    margin: float = 0.0  # deviations of good scores that it was raised by, for drift

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        worst = None if self.worst_group is None else list(self.worst_group)
        return asdict(self) | {"interval_90": list(self.interval_90), "worst_group": worst}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Threshold:
        """The threshold that `as_dict` wrote; raises BundleError for missing or invalid fields."""
        try:
            low, high = fields["interval_90"]
            asked, groups, worst = fields["asked"], fields.get("groups"), fields.get("worst_group")
            threshold = cls(
                value=float(fields["value"]), held_out=int(fields["held_out"]), rank=int(fields["rank"]),
                expected_false_rejects=float(fields["expected_false_rejects"]), interval_90=(float(low), float(high)),
                asked=None if asked is None else float(asked), groups=None if groups is None else int(groups),
                worst_group=None if worst is None else (str(worst[0]), float(worst[1])),
                folds=int(fields.get("folds", 1)), margin=float(fields.get("margin", 0.0)),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BundleError(f"the threshold {dict(fields)} cannot be read ({error!r}): train again") from error
        if not (math.isfinite(threshold.value) and threshold.value > 0):
            raise BundleError(f"the threshold is {threshold.value}: it must be a positive number; train again")
        return threshold

    def promise(self) -> str:
        """The share of good parts that it is expected to reject, with its interval, in counts."""
        low, high = map(in_counts, self.interval_90)
        most, whose = ("", "") if self.groups is None else ("at most ", " of new groups")
        share = in_counts(self.expected_false_rejects)
        return f"{most}{share} good parts{whose} rejected (90 % interval: {low} to {high})"

    def sentence(self) -> str:
        """What the threshold is expected to cost, in counts, and what that rests on."""
        text = f"expected: {self.promise()}, chosen on {self.held_out} held-out images"
        if self.groups is not None:
            text += f" of {self.groups} groups"
        if self.folds > 1:
            text += f", each judged by the one of {self.folds} models that had not learned it"
        if self.asked is None and self.folds > 1:
            text += f"; the share that holding out {HELD_OUT_SHARE:.0%} would support: for another say --false-rejects"
        elif self.asked is None:
            text += f"; the smallest share that so many {'images' if self.groups is None else 'groups'} support"
        if self.worst_group is not None:
            name, share = self.worst_group
            text += f"; had {name} been the new group, it would have lost {in_counts(share)} good parts"
        if self.margin:
            text += f"; raised by {self.margin:g} deviations of good scores, for drift"
        return text


@dataclass(frozen=True)
class ThresholdRule:
    """How a bundle's thresholds are chosen from the scores of its held-out frames, on every runner alike."""

    false_rejects: float | None = None  # None: the tightest rate; with folds the one that a hold-out would support
    groups: tuple[str, ...] | None = None  # that each frame belongs to; None: each is a group of its own
    factors: tuple[float, ...] | None = (
        None  # of each frame: how much stranger it is to a model that has not learned it
    )
    folds: int = 1
    margin: float = 0.0  # deviations of good scores

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid margin."""
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"--margin {self.margin:g}: give 0 or more deviations of good scores")

    def unseen(self, scores: np.ndarray) -> np.ndarray:
        """The scores (N,) of the frames as they would be, had they not been learned from; float64. Raises BundleError."""
        values = np.asarray(scores, np.float64)
        if {len(known) for known in (self.groups, self.factors) if known is not None} - {len(values)}:
            raise BundleError("the groups or factors are not of the held-out frames: export the bundle again")
        return values if self.factors is None else values * np.array(self.factors)

    def choose(self, scores: np.ndarray) -> Threshold:
        """The threshold by the frames' scores (N,), with the margins; raises what `choose_threshold` raises."""
        unseen = self.unseen(scores)
        rate = self.false_rejects
        if rate is None and self.folds > 1:
            rate = usual_rate(counted(len(unseen), self.groups)[0])
        chosen = with_margin(choose_threshold(unseen, rate, self.groups))
        if self.folds > 1:  # the bundle's model has learned more than those of the folds: it may reject fewer
            low_to_high = 0.0, chosen.interval_90[1]
            chosen = replace(chosen, folds=self.folds, interval_90=low_to_high, asked=self.false_rejects)
        drift = self.margin * float(unseen[unseen <= chosen.value].std())
        return replace(chosen, value=chosen.value + drift, margin=self.margin)

    def check(self, frames: int) -> None:
        """Raise ConfigError for a rate that so many frames, or their groups, do not support."""
        if self.false_rejects is not None:
            rank_of(self.false_rejects, *counted(frames, self.groups))

    @classmethod
    def of(cls, data: Mapping[str, Any], false_rejects: float | None = None, margin: float = 0.0) -> ThresholdRule:
        """The rule for the held-out frames that a training's or a manifest's `data` describes.

        Raises TrainingError where folds have not given their scores yet, BundleError for what is no such description.
        """
        groups, factors, folds = data.get("held_out_groups"), data.get("factors"), data.get("folds", 1)
        try:
            groups = None if groups is None else tuple(map(str, groups))
            factors = None if factors is None else tuple(map(float, factors))
            is_sound = isinstance(folds, int) and all(0 < factor < math.inf for factor in factors or ())
        except (TypeError, ValueError):
            is_sound = False
        if not is_sound:
            raise BundleError("the groups or factors of the held-out frames cannot be read: train again")
        if folds > 1 and factors is None:
            raise TrainingError(
                "all held-out images were learned and their scores by folds are missing: go on with train --resume"
            )
        return cls(false_rejects, groups, factors, folds, margin)


TIGHTEST = ThresholdRule()  # that the frames support, each a part of its own


def choose_threshold(
    scores: Sequence[float] | np.ndarray, false_rejects: float | None = None, groups: Sequence[str] | None = None
) -> Threshold:
    """The threshold for which at most the share `false_rejects` of good parts is expected to be rejected.

    `scores` are the image scores of good images that were not learned from, `groups` what each belongs to (None: to itself).
    Without `false_rejects` the share is the smallest that they support, 1 / (n + 1) or 1 / (groups + 1). A score too close to
    the chosen one to lie above it on every runner takes its place, which rejects fewer. Raises ConfigError for a share that is
    invalid or that they do not support, DataError without scores, TrainingError for scores that no model that works gives.
    """
    given = np.asarray(scores, np.float64).ravel()
    n = len(given)
    if n == 0:
        raise DataError("no held-out image to choose a threshold on: hold out at least one good image")
    if not np.isfinite(given).all():
        bad = int(n - np.isfinite(given).sum())
        raise TrainingError(f"{bad} of {n} held-out images have a NaN or infinite score: train again, more carefully")
    if false_rejects is not None:
        rank_of(false_rejects, *counted(n, groups))
    names = np.arange(n) if groups is None else np.array([str(group) for group in groups])
    ascending, below, count = ranked(given, names)
    place = place_of(below, count, false_rejects)
    while place + 1 < n and ascending[place + 1] <= ascending[place] * (1 + 2 * MARGIN):
        place += 1
    value, weight = float(ascending[place]), float(below[place])
    if value <= 0:
        raise TrainingError(
            f"the threshold would be {value:g}: a model that sees nothing in good images sees no defect"
        )
    interval = false_reject_interval(n, place + 1)
    if groups is not None:
        least, most = math.floor(weight + ROUNDING), math.ceil(weight - ROUNDING)  # groups that lie below it
        low, high = false_reject_interval(count, most)[0], false_reject_interval(count, least)[1] if least else 1.0
        interval = min(interval[0], low), max(interval[1], high)
    return Threshold(
        value=value, held_out=n, rank=place + 1, expected_false_rejects=(count + 1 - weight) / (count + 1),
        interval_90=interval, asked=false_rejects, groups=None if groups is None else count,
        worst_group=None if groups is None else worst_group(given, names, false_rejects),
    )  # fmt: skip


def counted(images: int, groups: Sequence[str] | None) -> tuple[int, str]:
    """What a rate is supported by: how many, and of what."""
    return (images, "images") if groups is None else (len(set(groups)), "groups")


def usual_rate(count: int) -> float:
    """The tightest rate that holding out the usual share of so many images or groups supports.

    By folds all of them could support a tighter one, but the strangest of all good parts would set it, and most defects of a
    subtle kind would pass (seen: cookie, 31 images in 4 folds, 1 of 32: 32 of 32 missed, 1 of 16: 1 of 32).
    """
    return 1 / (1 + min(count, max(HELD_OUT_AT_LEAST, math.ceil(HELD_OUT_SHARE * count))))


def ranked(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The scores ascending, the weight of the groups at or below each, (N,), and how many groups there are."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    return scores[order], np.cumsum((1 / sizes)[group[order]]), len(sizes)


def place_of(below: np.ndarray, count: int, false_rejects: float | None) -> int:
    """The place of the conformal quantile among ascending scores, the weight `below` (N,) each of `count` groups."""
    needed = count if false_rejects is None else min(count, (count + 1) * (1 - false_rejects))
    return min(int(np.searchsorted(below, needed - ROUNDING)), len(below) - 1)


def worst_group(scores: np.ndarray, groups: np.ndarray, false_rejects: float | None) -> tuple[str, float] | None:
    """The group that loses most good images by the threshold of the others, and their share; None for a single group."""
    found: list[tuple[str, float]] = []
    for name in np.unique(groups):
        is_in = groups == name
        if not is_in.all():
            ascending, below, count = ranked(scores[~is_in], groups[~is_in])
            line = ascending[place_of(below, count, false_rejects)] * (1 + MARGIN)
            found.append((str(name), float((scores[is_in] > line).mean())))
    return max(found, key=lambda one: one[1]) if found else None


def with_margin(threshold: Threshold) -> Threshold:
    """The threshold a little above the score that set it."""
    return replace(threshold, value=threshold.value * (1 + MARGIN))


def rank_of(false_rejects: float, n: int, what: str = "images") -> int:
    """The rank k among n ascending scores that rejects at most the share `false_rejects`; raises ConfigError.

    `what` is counted: "images", or "groups" of them.
    """
    if not 0 < false_rejects < 1:
        raise ConfigError(f"the share of false rejects {false_rejects:g} is invalid: give one between 0 and 1")
    if false_rejects * (n + 1) < 1 - ROUNDING:
        needed = math.ceil(1 / false_rejects - 1 - ROUNDING)
        kind, more = (
            ("good images", "good images") if what == "images" else ("groups of good images", "images of new groups")
        )
        raise ConfigError(
            f"false rejects of {in_counts(false_rejects)} need {needed} held-out {kind} and there are {n}: "
            f"add {more} or ask for {in_counts(1 / (n + 1))}"
        )
    return max(1, math.ceil((n + 1) * (1 - false_rejects) - ROUNDING))


def false_reject_interval(n: int, rank: int) -> tuple[float, float]:
    """The 5 % and 95 % points of the share of good parts above the `rank`-th of n held-out scores (needs scipy)."""
    from scipy.special import betaincinv

    low, high = betaincinv(n + 1 - rank, rank, [0.05, 0.95])
    return float(low), float(high)


def far_out(scores: np.ndarray) -> float:
    """The score above which one of `scores` (N,), of good parts but for a few, is not like the others."""
    logs = np.log(np.maximum(scores, np.finfo(np.float64).tiny))
    middle = float(np.median(logs))
    deviation = max(1.4826 * float(np.median(np.abs(logs - middle))), SMALLEST_DEVIATION)
    return math.exp(middle + FAR_OUT * deviation)


def share_above(scores: np.ndarray, line: float, groups: Sequence[str] | None) -> float:
    """The share of good parts that the score `line`, one of `scores` (N,), is expected to reject as a threshold."""
    ascending, below, count = ranked(scores, np.arange(len(scores)) if groups is None else np.array(groups))
    return float((count + 1 - below[np.searchsorted(ascending, line, "right") - 1]) / (count + 1))


def set_by_outliers(scores: np.ndarray, threshold: Threshold) -> np.ndarray:
    """Rows of the held-out scores (N,) that lie far beyond the others, where one of them set the threshold; else none."""
    odd = np.flatnonzero(scores > far_out(scores))
    return odd if len(odd) and np.sort(scores)[threshold.rank - 1] >= scores[odd].min() else odd[:0]


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


def describe_accepted(relative_scores: np.ndarray) -> GoodScores | None:
    """The histogram that drift is measured against: of the scores that are not rejected, which are all that the monitor sees.

    None for too few of them.
    """
    accepted = relative_scores[relative_scores <= 1]
    return describe_scores(accepted) if len(accepted) >= FEWEST_SCORES else None


def counts_between(scores: np.ndarray, edges: Sequence[float] | np.ndarray) -> tuple[int, ...]:
    """How many of `scores` (N,) fall into each bin between `edges`; one more than edges."""
    places = np.searchsorted(np.asarray(edges, np.float64), scores, side="left")
    return tuple(np.bincount(places, minlength=len(edges) + 1).tolist())
