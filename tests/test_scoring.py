"""The threshold as a conformal quantile, against simulation and closed forms; regions against drawn squares."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from nnet_edge.errors import BundleError, ConfigError, DataError, TrainingError
from nnet_edge.scoring import Threshold, choose_threshold, find_regions, in_counts


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
