"""The threshold as a conformal quantile, against simulation and closed forms; regions against drawn squares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.errors import BundleError, ConfigError, DataError, TrainingError
from nnet_edge.export.bundling import outlier_warnings
from nnet_edge.scoring import (
    MARGIN,
    Threshold,
    ThresholdRule,
    choose_threshold,
    find_regions,
    in_counts,
    set_by_outliers,
)


def test_without_a_share_the_largest_score_is_the_threshold() -> None:
    threshold = choose_threshold([0.3, 0.1, 0.9, 0.2])
    assert (threshold.value, threshold.rank, threshold.held_out) == (0.9, 4, 4)
    assert threshold.expected_false_rejects == pytest.approx(1 / 5)
    assert threshold.asked is None


@pytest.mark.parametrize("n", [1, 9, 19, 36, 99, 199, 499, 999])
def test_the_smallest_supported_share_is_accepted_in_spite_of_rounding(n: int) -> None:
    threshold = choose_threshold(np.arange(1, n + 1), 1 / (n + 1))
    assert threshold.rank == n
    assert threshold.expected_false_rejects == pytest.approx(1 / (n + 1))


@pytest.mark.parametrize(
    ("n", "share", "rank"), [(99, 0.05, 95), (100, 0.05, 96), (9, 0.5, 5), (9, 0.99, 1), (3, 0.3, 3)]
)
def test_rank_is_the_conformal_one(n: int, share: float, rank: int) -> None:
    threshold = choose_threshold(np.arange(n, 0, -1), share)
    assert threshold.rank == rank
    assert threshold.value == rank  # scores 1 .. n
    assert threshold.expected_false_rejects <= share + 1e-12


def test_interval_has_the_closed_form_of_the_largest_score() -> None:
    n = 36  # Beta(1, n): P(share <= x) = 1 - (1 - x)^n
    low, high = choose_threshold(np.arange(1, n + 1)).interval_90
    assert low == pytest.approx(1 - 0.95 ** (1 / n))
    assert high == pytest.approx(1 - 0.05 ** (1 / n))


def test_expected_share_and_interval_agree_with_simulation() -> None:
    random = np.random.default_rng(0)
    n, share, draws = 40, 0.1, 20_000
    threshold = choose_threshold(np.arange(1, n + 1), share)
    # Uniform scores: the true share above the k-th smallest of n is 1 - that score.
    shares = 1 - np.sort(random.random((draws, n)), axis=1)[:, threshold.rank - 1]
    standard_error = shares.std() / np.sqrt(draws)
    assert shares.mean() == pytest.approx(threshold.expected_false_rejects, abs=4 * standard_error)
    low, high = threshold.interval_90
    assert np.mean((shares >= low) & (shares <= high)) == pytest.approx(0.9, abs=0.01)


def test_sentence_counts() -> None:
    assert choose_threshold(np.arange(1, 37), 1 / 37).sentence() == (
        "expected: 1 of 37 good parts rejected (90 % interval: 1 of 702 to 1 of 13), chosen on 36 held-out images"
    )
    assert choose_threshold([1.0, 2.0]).sentence() == (
        "expected: 33 of 100 good parts rejected (90 % interval: 1 of 39 to 78 of 100), chosen on 2 held-out images; "
        "the smallest share that so many images support"
    )


@pytest.mark.parametrize(
    ("share", "text"), [(1 / 200, "1 of 200"), (0.1, "1 of 10"), (0.5, "50 of 100"), (0, "0 of 100")]
)
def test_in_counts(share: float, text: str) -> None:
    assert in_counts(share) == text


def test_a_share_that_so_few_images_cannot_support_says_how_many_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"1 of 200 need 199 held-out good images and there are 36: .* 1 of 37"):
        choose_threshold(np.arange(1, 37), 1 / 200)
    assert choose_threshold(np.arange(1, 200), 1 / 200).rank == 199  # and so many are enough


@pytest.mark.parametrize("n", [12, 36, 60])
def test_every_rate_from_the_tightest_to_a_half_rejects_at_most_so_many_and_no_runner_flips_one(n: int) -> None:
    random = np.random.default_rng(n)
    for rate in np.linspace(1 / (n + 1), 0.5, 25):
        scores = 1 + np.sort(random.integers(0, 40, n)) * MARGIN  # many all but tie
        threshold = ThresholdRule(float(rate)).choose(scores)
        assert threshold.expected_false_rejects <= rate + 1e-9
        assert (scores > threshold.value).sum() == n - threshold.rank <= rate * (n + 1)
        for error in (-1e-4, 1e-4):  # what runners differ by at most, see bundling.SCORE_RTOL
            assert ((scores * (1 + error) > threshold.value) == (scores > threshold.value)).all()


def test_groups_weigh_alike_however_many_images_they_have() -> None:
    scores = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    groups = ["a", "a", "a", "a", "a", "b", "c", "c"]
    tightest = choose_threshold(scores, None, groups)
    assert (tightest.value, tightest.groups, tightest.expected_false_rejects) == (8.0, 3, pytest.approx(1 / 4))
    assert choose_threshold(scores, 0.5, groups).value == 6.0  # (3 + 1) / 2 groups lie there or below
    assert choose_threshold(scores, 0.4, groups).value == 7.0  # 2.4: 1 and 1, and half of the last
    assert choose_threshold(scores, 0.4, groups).expected_false_rejects == pytest.approx(1.5 / 4)
    alone = choose_threshold(scores, 0.4, [str(number) for number in range(8)])
    assert alone.value == choose_threshold(scores, 0.4).value
    assert alone.interval_90 == choose_threshold(scores, 0.4).interval_90


def test_the_worst_group_is_the_one_that_the_others_threshold_suits_least() -> None:
    groups = ["day 1"] * 4 + ["day 2"] * 4 + ["day 3"] * 4
    threshold = choose_threshold([1, 2, 3, 4, 1, 2, 3, 8, 1, 5, 6, 7], None, groups)
    assert threshold.worst_group == ("day 2", 0.25)  # day 3 would have lost none: the others reach 8
    assert "of 3 groups; the smallest share that so many groups support; had day 2 been" in threshold.sentence()
    assert "it would have lost 25 of 100 good parts" in threshold.sentence()
    assert choose_threshold([1.0, 2.0], None, ["a", "a"]).worst_group is None
    assert Threshold.from_dict(json.loads(json.dumps(threshold.as_dict()))) == threshold


def test_a_rate_that_so_few_groups_do_not_support_says_how_many_it_needs() -> None:
    with pytest.raises(
        ConfigError, match=r"1 of 10 need 9 held-out groups of good images and there are 2: add images of new"
    ):
        ThresholdRule(0.1, ("a",) * 40 + ("b",) * 40).check(80)
    ThresholdRule(0.1).check(80)


@pytest.mark.parametrize("groups", [None, tuple("aabbccddeeffgghhiijjkk")])
def test_good_images_far_beyond_the_others_that_set_the_threshold_are_named(groups: tuple[str, ...] | None) -> None:
    scores = np.concatenate([np.linspace(0.6, 0.7, 21), [1.1]])
    rule = ThresholdRule(groups=groups)
    assert set_by_outliers(scores, rule.choose(scores)).tolist() == [21]
    (said,) = outlier_warnings(scores, rule, rule.choose(scores), [Path(f"{row}.png") for row in range(22)])
    assert (
        "1 of 22 good images lie far beyond the others and set the threshold (21.png); without them it would lie 36% "
        in said
    )
    share = float(said.rpartition("--false-rejects ")[2].rstrip(")"))
    again = ThresholdRule(share, groups)
    assert again.choose(scores).value == pytest.approx(0.7, rel=1e-3)
    assert outlier_warnings(scores, again, again.choose(scores), []) == ()
    assert set_by_outliers(scores[:21], choose_threshold(scores[:21])).size == 0


@pytest.mark.parametrize(("count", "rate"), [(3, 1 / 4), (12, 1 / 11), (40, 1 / 11), (210, 1 / 33)])
def test_folds_promise_by_default_what_a_hold_out_would(count: int, rate: float) -> None:
    scores = np.linspace(1, 2, count)
    threshold = ThresholdRule(folds=4, factors=(1.0,) * count).choose(scores)
    assert threshold.asked is None
    assert threshold.expected_false_rejects <= rate + 1e-9
    assert threshold.expected_false_rejects > rate / 2
    assert "the share that holding out 15% would support: for another say --false-rejects" in threshold.sentence()
    tightest = ThresholdRule(1 / (count + 1), folds=4, factors=(1.0,) * count).choose(scores)
    assert (tightest.rank, tightest.asked) == (count, 1 / (count + 1))


def test_a_margin_is_in_deviations_of_the_good_scores_that_are_not_rejected() -> None:
    scores = np.array([1.0, 2.0, 3.0, 90.0])
    plain, raised = (ThresholdRule(0.4, margin=margin).choose(scores) for margin in (0.0, 1.5))
    assert raised.value == pytest.approx(plain.value + 1.5 * np.std([1.0, 2.0, 3.0]))
    assert "raised by 1.5 deviations of good scores, for drift" in raised.sentence()
    assert Threshold.from_dict(raised.as_dict()).margin == 1.5
    for margin in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="give 0 or more deviations"):
            ThresholdRule(margin=margin)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_share_that_cannot_be_meant_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="is invalid"):
        choose_threshold([1.0, 2.0], share)


def test_scores_that_no_working_model_gives_are_refused() -> None:
    with pytest.raises(DataError, match="no held-out image"):
        choose_threshold([])
    with pytest.raises(TrainingError, match="1 of 3 held-out images"):
        choose_threshold([1.0, float("nan"), 2.0])
    with pytest.raises(TrainingError, match="1 of 2 held-out images"):
        choose_threshold([1.0, float("inf")])
    with pytest.raises(TrainingError, match="would be 0"):
        choose_threshold([0.0, 0.0])


def test_dictionary_survives_json() -> None:
    for share in (None, 0.25):
        threshold = choose_threshold([0.1, 0.2, 0.3, 0.35], share)
        assert Threshold.from_dict(json.loads(json.dumps(threshold.as_dict()))) == threshold


@pytest.mark.parametrize(
    "change", [{"value": None}, {"value": 0.0}, {"value": float("nan")}, {"interval_90": [0.1]}, {"rank": "third"}]
)
def test_a_dictionary_that_is_no_threshold_is_refused(change: dict[str, object]) -> None:
    fields = choose_threshold([1.0, 2.0]).as_dict()
    with pytest.raises(BundleError):
        Threshold.from_dict(fields | change)
    del fields["rank"]
    with pytest.raises(BundleError, match="rank"):
        Threshold.from_dict(fields)


def squares() -> np.ndarray:
    anomaly_map = np.zeros((256, 256), np.float32)
    anomaly_map[10:20, 30:50] = 2.0
    anomaly_map[100, 100] = anomaly_map[101, 101] = 3.0  # touch at a corner: one region
    anomaly_map[200:210, 200:210] = 1.0  # on the threshold, not above
    return anomaly_map


def test_regions_have_boxes_and_areas_of_the_frame_largest_peak_first() -> None:
    first, second = find_regions(squares(), 1.0, height=512, width=768)
    assert (first.x, first.y, first.width, first.height, first.area, first.peak) == (300, 200, 6, 4, 2 * 6.0, 3.0)
    assert (second.x, second.y, second.width, second.height, second.area) == (90, 20, 60, 20, 200 * 6.0)


def test_boxes_cover_the_region_in_a_frame_that_is_no_multiple() -> None:
    anomaly_map = np.zeros((256, 256), np.float32)
    anomaly_map[255, 255] = anomaly_map[0, 0] = 2.0
    found = find_regions(anomaly_map, 1.0, height=100, width=300)
    assert [(r.x, r.y, r.width, r.height) for r in found] == [(0, 0, 2, 1), (298, 99, 2, 1)]


def test_small_regions_are_left_out() -> None:
    assert [region.peak for region in find_regions(squares(), 1.0, 256, 256, min_area=3)] == [2.0]
    assert find_regions(squares(), 5.0, 256, 256) == ()


def test_regions_need_no_heavy_library() -> None:
    code = (
        "import sys, numpy; from nnet_edge.scoring import find_regions, Threshold\n"
        "find_regions(numpy.eye(256, dtype='float32'), 0.5, 10, 10)\n"
        "Threshold(1.0, 9, 9, 0.1, (0.01, 0.3), None).sentence()\n"
        "heavy = {'torch', 'scipy', 'skimage', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
