"""Drift of good scores: seen when there is one, and by chance no more often than promised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nnet_edge.errors import BundleError
from nnet_edge.frame import Crop, Prediction
from nnet_edge.runtime.stream.drift import DriftWatch, DriftWatches, mean_shift, psi, psi_by_chance, reference_of
from nnet_edge.scoring import GoodScores, describe_accepted, describe_scores
from nnet_edge.settings.web import DriftSettings

MakePrediction = Callable[..., Prediction]


def scores(count: int, mean: float = 0.5, seed: int = 0) -> np.ndarray:
    """Relative scores of good parts, well below the line at 1."""
    return np.random.default_rng(seed).normal(mean, 0.05, count)


def feed(watch: DriftWatch, make: MakePrediction, values: np.ndarray, **changes: Any) -> list[Any]:
    """What the watch said to predictions of these relative scores."""
    frame = make(is_good=True)
    found = [watch.add(replace(frame, image_score=float(value), threshold=1.0, **changes)) for value in values]
    return [drift for drift in found if drift is not None]


def test_psi_is_what_its_formula_says() -> None:
    reference = GoodScores((0.5,), (10, 10), 0.5, 0.1)
    p, q = np.array([30.5, 10.5]) / 41, np.array([0.5, 0.5])
    values = np.array([0.4] * 30 + [0.6] * 10)
    assert psi(reference, values) == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert mean_shift(reference, values) == pytest.approx((0.45 - 0.5) / 0.1)


def test_chance_alone_exceeds_the_limit_about_once_in_a_thousand() -> None:
    random, exceeded, rounds = np.random.default_rng(1), 0, 3000
    for _ in range(rounds):
        reference = describe_scores(random.normal(0.5, 0.05, 200))
        exceeded += psi(reference, random.normal(0.5, 0.05, 200)) > psi_by_chance(reference, 200)
    assert exceeded <= 15  # 3 are expected; quantile edges of the same sample make the tail a little heavier


def test_a_drift_is_told_once_and_ends(make_prediction: MakePrediction) -> None:
    watch = DriftWatch(DriftSettings(window=200, smallest=100), describe_scores(scores(300)))
    assert feed(watch, make_prediction, scores(400, seed=1)) == []
    assert not watch.now.is_drifted
    (told,) = feed(watch, make_prediction, scores(400, 0.62, seed=2))
    assert told.is_drifted
    assert (told.reference, told.mean_shift > 0.5) == ("bundle", True)
    assert watch.now.psi is not None
    assert watch.now.psi > 1
    assert feed(watch, make_prediction, scores(400, seed=3)) == []
    assert not watch.now.is_drifted


def test_a_bundle_that_rejects_many_good_parts_does_not_drift_for_that(make_prediction: MakePrediction) -> None:
    """`--false-rejects 0.3`: three of ten good scores lie above the threshold, and the monitor never sees them."""
    relative = scores(1000) / float(np.quantile(scores(1000), 0.7))
    newest = scores(600, seed=1) / float(np.quantile(scores(1000), 0.7))
    reference = describe_accepted(relative)
    assert reference is not None
    assert reference.count == 700
    watch = DriftWatch(DriftSettings(window=200, smallest=100), reference)
    assert feed(watch, make_prediction, newest) == []
    with_rejects = DriftWatch(DriftSettings(window=200, smallest=100), describe_scores(relative))
    assert feed(with_rejects, make_prediction, newest)  # as it was
    assert describe_accepted(np.full(30, 1.5)) is None


def test_rejects_are_no_good_scores_and_few_say_nothing(make_prediction: MakePrediction) -> None:
    watch = DriftWatch(DriftSettings(window=200, smallest=100), describe_scores(scores(300)))
    assert feed(watch, make_prediction, np.full(500, 1.7)) == []
    assert watch.now.scores == 0
    feed(watch, make_prediction, scores(60, 0.9))
    assert (watch.now.psi, watch.now.scores) == (None, 60)


@pytest.mark.parametrize("slider", [1.3, 0.7])
def test_a_threshold_that_a_person_moved_is_no_drift(make_prediction: MakePrediction, slider: float) -> None:
    """The scores of the parts are the same; only what is called a reject differs."""
    watch = DriftWatch(DriftSettings(window=200, smallest=100), describe_scores(scores(300, 0.68)))
    frame = make_prediction(is_good=True)
    for value in 3.0 * scores(600, 0.68, seed=1):  # the bundle's threshold is 3
        told = watch.add(replace(frame, image_score=float(value), threshold=3.0 * slider, bundle_threshold=3.0))
        assert told is None
    assert watch.now.scores == 200
    assert not watch.now.is_drifted


def test_without_a_reference_the_first_window_is_one(make_prediction: MakePrediction) -> None:
    watch = DriftWatch(DriftSettings(window=100, smallest=50), None)
    assert watch.now.reference == "collecting"
    assert feed(watch, make_prediction, scores(300, 0.5)) == []
    assert watch.now.reference == "own"
    assert len(feed(watch, make_prediction, scores(100, 0.7))) == 1


def test_crops_are_compared_with_themselves(make_prediction: MakePrediction) -> None:
    watch = DriftWatch(DriftSettings(window=100, smallest=50), describe_scores(scores(300)))
    frame = make_prediction(is_good=True).frame
    crop = replace(frame, crop=Crop("a", 0, 0, 10, 10))
    assert feed(watch, make_prediction, scores(300, 0.3), frame=crop) == []
    assert watch.now.reference == "own"


def test_each_stream_has_its_own_watch_and_events_name_it(make_prediction: MakePrediction) -> None:
    told: list[tuple[str, str]] = []
    watches = DriftWatches(
        DriftSettings(window=100, smallest=50),
        lambda stream: describe_scores(scores(300)),
        lambda kind, stream, **facts: told.append((kind, stream)),
    )
    good = make_prediction(is_good=True)
    for value in scores(100, 0.7):
        watches.add(replace(good, image_score=float(value), threshold=1.0))
    assert told == [("drift.warning", "test")]
    now = watches.now("test")
    assert now is not None
    assert now.is_drifted
    watches.restart("test")
    now = watches.now("test")
    assert now is not None
    assert not now.is_drifted
    watches.forget("test")
    assert watches.now("test") is None


def test_a_histogram_survives_the_manifest_and_a_broken_one_is_refused() -> None:
    histogram = describe_scores(scores(50))
    assert reference_of({"good_scores": histogram.as_dict()}) == histogram
    assert reference_of({}) is None
    for broken in (
        {"counts": [1, 2]},
        {"edges": [2.0, 1.0]},
        {"edges": ["x"]},
        {"mean": math.nan},
        {"counts": [0] * len(histogram.counts)},
    ):
        with pytest.raises(BundleError, match="export the bundle again"):
            reference_of({"good_scores": histogram.as_dict() | broken})
    with pytest.raises(BundleError):
        reference_of({"good_scores": 3})
