"""The histogram of good scores that a bundle keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from nnet_edge.bundle import Bundle
from nnet_edge.errors import DataError
from nnet_edge.scoring import FEWEST_SCORES, GoodScores, counts_between, describe_scores


def test_bins_hold_about_as_many() -> None:
    histogram = describe_scores(np.arange(1, 101) / 100)
    assert histogram.counts == (10,) * 10
    assert histogram.mean == pytest.approx(0.505)


def test_too_few_scores_make_none() -> None:
    with pytest.raises(DataError, match="10 are needed"):
        describe_scores([0.5] * (FEWEST_SCORES - 1))


def test_an_edge_belongs_to_the_bin_below() -> None:
    assert counts_between(np.array([0.1, 0.5, 0.6]), (0.5,)) == (2, 1)


def test_what_is_too_low_lies_three_deviations_of_the_logarithm_below_the_lowest() -> None:
    alike, spread = describe_scores([0.6] * 20), describe_scores(np.linspace(0.3, 0.9, 20))
    assert alike.too_low == pytest.approx(0.6)
    assert spread.lowest == pytest.approx(0.3)
    assert 0 < spread.too_low < 0.15  # type: ignore[operator]
    of_before = {key: value for key, value in spread.as_dict().items() if key != "lowest"}
    assert GoodScores.from_dict(of_before).too_low is None
    scores = np.exp(np.random.default_rng(0).normal(-0.5, 0.2, 40_000))
    missed = [float((scores < describe_scores(scores[n : n + 24]).too_low).mean()) for n in range(0, 2400, 24)]
    assert np.mean(missed) < 1e-4  # of good parts like these, with 24 held out


@given(some.lists(some.floats(0, 2), min_size=FEWEST_SCORES, max_size=200))
def test_every_score_has_its_bin_whatever_they_are(scores: list[float]) -> None:
    histogram = describe_scores(scores)
    assert histogram.count == len(scores)
    assert GoodScores.from_dict(histogram.as_dict()) == histogram
    assert histogram.counts[-1] > 0


@pytest.mark.slow
def test_export_writes_it(bundle: Bundle) -> None:
    held_out = bundle.manifest["threshold"]["held_out"]
    found: dict[str, Any] = bundle.manifest["good_scores"]
    histogram = GoodScores.from_dict(found)
    assert histogram.count == held_out
    assert 0 < histogram.mean < 1
