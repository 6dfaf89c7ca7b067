"""Gate: whether a precision is good enough, measured for one artefact on one runner against FP32 on the same runner.

Judged are all verdicts, each with a threshold chosen again on the held-out frames, and the judged metrics; without defects,
the order of the good scores. Speed and map error are reported and decide nothing: what is slow or rough may still be right.
An artefact that gives NaN or infinity for some image, or no threshold, is refused whatever else it does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nnet_edge.calibration.predictions import Predictions, TestImages, predict
from nnet_edge.errors import CalibrationError, TrainingError
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.scoring import TIGHTEST, Threshold, ThresholdRule

ROUNDS = 24  # of timing; the median of so many stands still to about a percent on an idle machine
WARM_UP = 3


@dataclass(frozen=True)
class GateLimits:
    """What a precision may cost."""

    metric_points: float = 0.5  # that any judged metric may fall, in hundredths; what rises harms nobody
    band: float = 0.01  # a verdict may flip only where FP32's score is so close to its threshold, as a share of it
    rank_correlation: float = 0.9  # of the good scores (Spearman); asked for only where no defect is at hand


@dataclass(frozen=True)
class Gate:
    """The verdict on a precision, with every number that it rests on."""

    accepted: bool
    reasons: tuple[str, ...]  # why not
    runner: str
    threshold: Threshold | None  # chosen with the candidate; None where that cannot be
    images: int  # that verdicts were compared on
    flips: int
    flips_outside_band: int
    metrics: Mapping[str, tuple[float, float]]  # FP32, candidate; empty without defects
    rank_correlation: float  # of the good scores
    map_error: Mapping[str, float]  # mean, p99.9, max of |difference|, in FP32's thresholds; empty without a threshold
    latency_ms: tuple[float, float] | None  # FP32, candidate; one image, medians; None where it was not timed
    overridden: bool = False  # kept although refused, by --accept

    @property
    def speed_up(self) -> float | None:
        """How many times faster than FP32, None where it was not timed."""
        return None if self.latency_ms is None else self.latency_ms[0] / self.latency_ms[1]

    @property
    def metric_points(self) -> dict[str, float]:
        """The change of each metric in hundredths, with its sign; empty without defects."""
        return {name: 100 * (new - old) for name, (old, new) in self.metrics.items()}

    def overridden_by(self, accept: bool) -> Gate:
        """The gate, overridden where it refuses and `accept` says so.

        Raises CalibrationError without a threshold, and so without verdicts.
        """
        if self.accepted or not accept:
            return self
        if self.threshold is None:
            made = f"what was made gives no verdicts on {self.runner} ({'; '.join(self.reasons)})"
            raise CalibrationError(f"{made}, so --accept cannot take it: use another precision or another --method")
        return replace(self, overridden=True)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        threshold = None if self.threshold is None else self.threshold.as_dict()
        plain = asdict(self) | {"threshold": threshold, "reasons": list(self.reasons)}
        plain["metrics"] = {name: list(pair) for name, pair in self.metrics.items()}
        plain["latency_ms"] = None if self.latency_ms is None else list(self.latency_ms)
        return plain | {"metric_points": self.metric_points, "speed_up": self.speed_up}


def judge(reference: Runner, candidate: Runner, held_out: np.ndarray, test: TestImages | None = None,
          limits: GateLimits | None = None, rule: ThresholdRule = TIGHTEST) -> Gate:  # fmt: skip
    """The verdict on `candidate` against `reference`, FP32 on the same kind of runner, with their speed.

    `held_out` are the bundle's held-out frames, uint8 RGB (N, H, W, 3); `rule` is how it chooses
    thresholds by them. Raises TrainingError for scores of FP32 that no working artefact gives.
    """
    before, after = (predict(runner, held_out, test, rule) for runner in (reference, candidate))
    return compare(before, after, test, limits, time_both(reference, candidate, held_out))


def compare(reference: Predictions, candidate: Predictions, test: TestImages | None = None,
            limits: GateLimits | None = None, latency_ms: tuple[float, float] | None = None) -> Gate:  # fmt: skip
    """The verdict on two sets of predictions for the same images. Raises TrainingError where FP32 itself has a fault."""
    limits = limits or GateLimits()
    if reference.fault:
        raise TrainingError(f"FP32 on {reference.runner} is nothing to measure against: {reference.fault}; train again")
    if candidate.fault:
        images = sum(len(part.image_score) for part in candidate.parts)
        return Gate(False, (candidate.fault,), candidate.runner, None, images, 0, 0, {}, 0.0, {}, latency_ms)
    old, new = reference.scores, candidate.scores
    flipped = (old > 1) != (new > 1)
    outside = int((flipped & (np.abs(old - 1) > limits.band)).sum())
    metrics = {
        name: (value, other)
        for name, value in reference.metrics.items()
        if value is not None and (other := candidate.metrics[name]) is not None
    }
    good = np.ones(len(old), bool)
    if test is not None:
        good[-len(test.labels) :] = ~test.labels
    ranks = rank_correlation(old[good], new[good])
    reasons = [
        f"{name} falls by {100 * (before - after):.2f} points ({limits.metric_points:g} allowed)"
        for name, (before, after) in metrics.items()
        if 100 * (before - after) > limits.metric_points
    ]
    if outside:
        reasons.append(f"{outside} of {len(old)} verdicts flip farther than {limits.band:.1%} from the threshold")
    if not metrics and ranks < limits.rank_correlation:
        reasons.append(f"ranks of good scores correlate by {ranks:.3f} ({limits.rank_correlation:g} asked)")
    return Gate(
        accepted=not reasons, reasons=tuple(reasons), runner=candidate.runner, threshold=candidate.threshold,
        images=len(old), flips=int(flipped.sum()), flips_outside_band=outside, metrics=metrics,
        rank_correlation=ranks, map_error=map_errors(reference, candidate), latency_ms=latency_ms,
    )  # fmt: skip


def map_errors(reference: Predictions, candidate: Predictions) -> dict[str, float]:
    """Mean, 99.9 % point and maximum of the absolute differences of the anomaly maps, in FP32's thresholds."""
    assert reference.threshold is not None
    pairs = zip(reference.parts, candidate.parts, strict=True)
    errors = np.concatenate([np.abs(old.anomaly_map - new.anomaly_map).ravel() for old, new in pairs])
    errors /= reference.threshold.value
    return {"mean": float(errors.mean(dtype=np.float64)), "p99.9": float(np.quantile(errors, 0.999)),
            "max": float(errors.max())}  # fmt: skip


def rank_correlation(old: np.ndarray, new: np.ndarray) -> float:
    """Spearman's correlation of two sets of scores (N,), ties at their mean rank; 0 where one set has no order, 1 where
    ranks say nothing (fewer than two images)."""
    if len(old) < 2:
        return 1.0
    ranks = [mean_ranks(values) for values in (old, new)]
    if min(np.ptp(values) for values in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each of `values` (N,), from 0; equal ones share the mean of their ranks, float64 (N,)."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[group], np.float64)


def time_both(reference: Runner, candidate: Runner, images: np.ndarray) -> tuple[float, float]:
    """Median milliseconds of one image on each, taken in turns so that a busy machine slows both alike."""
    spent: tuple[list[int], list[int]] = ([], [])
    for n in range(WARM_UP + ROUNDS):
        image = images[n % len(images)][None]
        for runner, times in zip((reference, candidate), spent, strict=True):
            began = time.perf_counter_ns()
            runner.infer(image)
            times.append(time.perf_counter_ns() - began)
    old, new = (float(np.median(times[WARM_UP:])) / 1e6 for times in spent)
    return old, new
