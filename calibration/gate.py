"""Is a precision good enough? Measured for one artefact on one runner, against FP32 on the same runner.

Judged are all verdicts, each with a threshold chosen again on the held-out frames, and the four metrics; without defects,
the order of the good scores. Speed and map error are reported and decide nothing: what is slow or rough may still be right.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nnet_edge.evaluate import measure_known
from nnet_edge.frame import Outputs
from nnet_edge.runtime.batches import infer_all
from nnet_edge.runtime.runner import Runner
from nnet_edge.scoring import Threshold, choose_threshold, with_margin

METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pro")
ROUNDS = 24  # of timing; the median of so many stands still to about a percent on an idle machine
WARM_UP = 3


@dataclass(frozen=True)
class GateLimits:
    """What a precision may cost."""

    metric_points: float = 0.5  # that any of the four metrics may fall, in hundredths; what rises harms nobody
    band: float = 0.01  # a verdict may flip only where FP32's score is so close to its threshold, as a share of it
    rank_correlation: float = 0.9  # of the good scores (Spearman); asked for only where no defect is at hand


@dataclass(frozen=True)
class TestImages:
    """Labelled images that nothing was chosen on."""

    __test__ = False  # pytest: no class of tests

    images: np.ndarray  # uint8 RGB (N, 256, 256, 3)
    labels: np.ndarray  # bool (N,), True: anomalous
    masks: np.ndarray  # bool (N, 256, 256)
    has_mask: np.ndarray  # bool (N,)


@dataclass(frozen=True)
class Answers:
    """What one runner says of all images."""

    runner: str
    held_out: Outputs
    test: Outputs | None
    threshold: Threshold
    metrics: Mapping[str, float | None]  # empty without defects

    @property
    def scores(self) -> np.ndarray:
        """Scores over the threshold, held-out frames first, float64 (N,)."""
        parts = [self.held_out] if self.test is None else [self.held_out, self.test]
        return np.concatenate([part.image_score.astype(np.float64) for part in parts]) / self.threshold.value


@dataclass(frozen=True)
class Gate:
    """The verdict on a precision, with every number that it rests on."""

    accepted: bool
    reasons: tuple[str, ...]  # why not
    runner: str
    threshold: Threshold  # chosen with the candidate
    images: int  # that verdicts were compared on
    flips: int
    flips_outside_band: int
    metrics: Mapping[str, tuple[float, float]]  # FP32, candidate; empty without defects
    rank_correlation: float  # of the good scores
    map_error: Mapping[str, float]  # mean, p99.9, max of |difference|, in FP32's thresholds
    latency_ms: tuple[float, float] | None  # FP32, candidate; one image, medians; None where it was not timed
    overridden: bool = False  # taken all the same, by --accept

    @property
    def speed_up(self) -> float | None:
        """How many times faster than FP32, None where it was not timed."""
        return None if self.latency_ms is None else self.latency_ms[0] / self.latency_ms[1]

    @property
    def metric_points(self) -> float | None:
        """The largest change of a metric in hundredths, with its sign; None without defects."""
        return max((100 * (new - old) for old, new in self.metrics.values()), key=abs, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        plain = asdict(self) | {"threshold": self.threshold.as_dict(), "reasons": list(self.reasons)}
        plain["metrics"] = {name: list(pair) for name, pair in self.metrics.items()}
        plain["latency_ms"] = None if self.latency_ms is None else list(self.latency_ms)
        return plain | {"speed_up": self.speed_up}


def judge(
    reference: Runner,
    candidate: Runner,
    held_out: np.ndarray,
    test: TestImages | None = None,
    limits: GateLimits | None = None,
    false_rejects: float | None = None,
) -> Gate:
    """The verdict on `candidate` against `reference`, FP32 on the same kind of runner, with their speed.

    `held_out` are the bundle's held-out frames, uint8 RGB (N, 256, 256, 3); `false_rejects` is what the bundle's threshold
    was chosen for. Raises TrainingError for scores that no working artefact gives.
    """
    before, after = (ask(runner, held_out, test, false_rejects) for runner in (reference, candidate))
    return compare(before, after, test, limits, time_both(reference, candidate, held_out))


def ask(
    runner: Runner, held_out: np.ndarray, test: TestImages | None = None, false_rejects: float | None = None
) -> Answers:
    """What `runner` says, with its threshold and, where there are defects, its metrics."""
    kept = infer_all(runner, held_out, layer_maps=False)
    tested = None if test is None else infer_all(runner, test.images, layer_maps=False)
    threshold = with_margin(choose_threshold(kept.image_score, false_rejects))
    metrics: dict[str, float | None] = {}
    if test is not None and tested is not None and test.labels.any():
        found = measure_known(test.labels, tested.image_score, test.masks, tested.anomaly_map, test.has_mask).as_dict()
        metrics = {name: found[name] for name in METRICS}
    return Answers(runner.name, kept, tested, threshold, metrics)


def compare(
    reference: Answers,
    candidate: Answers,
    test: TestImages | None = None,
    limits: GateLimits | None = None,
    latency_ms: tuple[float, float] | None = None,
) -> Gate:
    """The verdict on two sets of answers to the same images."""
    limits = limits or GateLimits()
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
        accepted=not reasons,
        reasons=tuple(reasons),
        runner=candidate.runner,
        threshold=candidate.threshold,
        images=len(old),
        flips=int(flipped.sum()),
        flips_outside_band=outside,
        metrics=metrics,
        rank_correlation=ranks,
        map_error=map_errors(reference, candidate),
        latency_ms=latency_ms,
    )


def map_errors(reference: Answers, candidate: Answers) -> dict[str, float]:
    """Mean, 99.9 % point and maximum of the absolute differences of the anomaly maps, in FP32's thresholds."""
    pairs = [(reference.held_out, candidate.held_out)]
    if reference.test is not None and candidate.test is not None:
        pairs.append((reference.test, candidate.test))
    errors = np.concatenate([np.abs(old.anomaly_map - new.anomaly_map).ravel() for old, new in pairs])
    errors /= reference.threshold.value
    return {"mean": float(errors.mean(dtype=np.float64)), "p99.9": float(np.quantile(errors, 0.999)),
            "max": float(errors.max())}  # fmt: skip


def rank_correlation(old: np.ndarray, new: np.ndarray) -> float:
    """Spearman's correlation of two sets of scores (N,); 1 where ranks say nothing (fewer than two images)."""
    if len(old) < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (old, new)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


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
