"""Histograms that grow as values come, and the ranges that follow from them."""

from __future__ import annotations

import numpy as np
import pytest

from nnet_edge.calibration.ranges import BINS, PURE_METHODS, Histogram, measure_histograms, ranges_by
from nnet_edge.errors import CalibrationError, ConfigError


def histogram(*batches: np.ndarray) -> Histogram:
    filled = Histogram()
    for values in batches:
        filled.add(values.reshape(1, 1, -1, 1).astype(np.float32))
    return filled


def normal(count: int = 100_000, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).normal(0, scale, count)


def test_the_order_of_the_batches_does_not_matter() -> None:
    small, large = normal(5_000, 0.01), normal(5_000, 30)
    one, other = histogram(small, large), histogram(large, small)
    assert one.width == other.width
    assert one.largest == other.largest
    assert one.counts.sum() == other.counts.sum() == 10_000
    assert np.abs(np.cumsum(one.counts) - np.cumsum(other.counts)).max() == 0, "two halves of a bin are its whole"


def test_max_clips_nothing_and_percentile_clips_one_in_ten_thousand() -> None:
    values = normal()
    filled = histogram(values)
    assert filled.range_by("max") == pytest.approx(np.abs(values).max())
    clipped = (np.abs(values) > filled.range_by("percentile")).mean()
    assert 0 < clipped <= 1.01e-4


def test_a_value_that_sticks_out_moves_max_and_not_the_others() -> None:
    filled = histogram(normal(), np.array([60.0]))
    assert filled.range_by("max") == 60
    assert filled.range_by("percentile") < 5
    assert filled.range_by("entropy") < 20


def test_auto_has_the_smallest_squared_error_of_the_three() -> None:
    for values in (normal(), np.concatenate([normal(), [60.0]]), np.random.default_rng(1).uniform(0, 6, 100_000)):
        filled = histogram(values)

        def true_error(method: str, values: np.ndarray = values, filled: Histogram = filled) -> float:
            scale = filled.range_by(method) / 127
            return float(((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2).sum())

        assert true_error("auto") <= 1.05 * min(true_error(method) for method in PURE_METHODS)


def test_zeros_give_a_range_of_zero_and_an_infinity_ends_it() -> None:
    assert histogram(np.zeros(10)).range_by("auto") == 0
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(CalibrationError, match="NaN or infinite"):
            histogram(np.array([1.0, bad]))
        frames = np.array([1.0, bad], np.float32).reshape(2, 1, 1, 1, 1)
        with pytest.raises(
            CalibrationError, match="calibration frame 2 of 2, tensor x: an activation is NaN or infinite"
        ):
            measure_histograms(lambda frame: {"x": frame[0]}, frames, 2, lambda done, total: None)
    with pytest.raises(ConfigError, match="'magic' is unknown"):
        histogram(np.ones(3)).range_by("magic")


def test_channel_means_are_the_means_over_all_frames() -> None:
    values = np.random.default_rng(2).normal(1, 1, (6, 5, 4, 3)).astype(np.float32)
    filled = Histogram()
    for frame in values:
        filled.add(frame[None])
    assert filled.channel_means == pytest.approx(values.mean(axis=(0, 2, 3)), rel=1e-5)


def test_every_frame_is_counted_and_reported() -> None:
    frames = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    seen: list[tuple[int, int]] = []
    found = measure_histograms(lambda frame: {"x": frame}, frames, 4, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert ranges_by(found, "max", ["x"]) == {"x": 3.0}
    assert len(found["x"].counts) == BINS
