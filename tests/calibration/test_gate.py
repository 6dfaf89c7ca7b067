"""The gate: accepts what keeps its verdicts, names what it refuses, and keeps every number."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import pytest
from scipy.stats import spearmanr

from nnet_edge.calibration.gate import Gate, GateLimits, compare, judge, rank_correlation, time_both
from nnet_edge.calibration.predictions import TestImages, predict
from nnet_edge.errors import CalibrationError, TrainingError
from nnet_edge.frame import Outputs
from nnet_edge.scoring import MARGIN, Threshold, ThresholdRule

HELD_OUT = np.arange(100, 120)  # grey levels: the score of a frame is its level over 100
GOOD = np.array([101, 110, 115, 118])
BAD = np.array([120, 150, 180, 240])


@dataclass
class LevelRunner:
    """Scores a frame by its grey level, `shifts` (level -> change of the score) added; the map has the score in a corner."""

    name: str = "level"
    precision: str = "fp32"
    scale: float = 1.0
    shifts: dict[int, float] = field(default_factory=dict)
    corner: tuple[int, int] = (0, 0)
    max_batch: int = 3
    input_shape: tuple[int, int, int] = (256, 256, 3)

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        levels = images[:, 0, 0, 0].astype(int)
        scores = np.array([self.scale * (level / 100 + self.shifts.get(int(level), 0)) for level in levels], np.float32)
        maps = np.full((len(images), 256, 256), 0.1, np.float32)
        maps[:, self.corner[0], self.corner[1]] = scores
        return Outputs(maps, scores)

    def start(self, images: np.ndarray, layer_maps: bool = False):  # type: ignore[no-untyped-def]
        return lambda: self.infer(images, layer_maps)

    def __enter__(self) -> LevelRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def flat(levels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (len(levels), 256, 256, 3))


@pytest.fixture
def test_images() -> TestImages:
    masks = np.zeros((8, 256, 256), bool)
    masks[4:, :2, :2] = True
    return TestImages(flat(np.concatenate([GOOD, BAD])), np.arange(8) >= 4, masks, np.ones(8, bool))


def gate_of(candidate: LevelRunner, test: TestImages | None, limits: GateLimits | None = None) -> Gate:
    return judge(LevelRunner(), candidate, flat(HELD_OUT), test, limits)


def test_the_same_runner_is_accepted_with_nothing_changed(test_images: TestImages) -> None:
    gate = gate_of(LevelRunner(), test_images)
    assert gate.accepted
    assert (gate.flips, gate.flips_outside_band, gate.images) == (0, 0, 28)
    assert gate.metrics["image_auroc"] == (1.0, 1.0)
    assert gate.metric_points == {"image_auroc": 0, "pixel_auroc": 0, "pixel_ap": 0, "pro": 0}
    assert gate.map_error == {"mean": 0, "p99.9": 0, "max": 0}
    assert gate.rank_correlation == pytest.approx(1)
    assert gate.speed_up is not None


def test_scores_that_all_grow_alike_change_no_verdict_as_the_threshold_is_chosen_again(test_images: TestImages) -> None:
    gate = gate_of(LevelRunner(scale=1.3), test_images)
    assert gate.accepted
    assert gate.flips == 0
    assert gate.threshold is not None
    assert gate.threshold.value == pytest.approx(1.3 * 1.19 * (1 + MARGIN), rel=1e-6)
    assert gate.map_error["max"] > 0.3


def test_a_flip_far_from_the_threshold_is_refused_and_one_close_to_it_is_not(test_images: TestImages) -> None:
    far = gate_of(LevelRunner(shifts={150: -0.35}), test_images)
    assert not far.accepted
    assert far.flips == far.flips_outside_band == 1
    assert "1 of 28 verdicts flip farther than 1.0% from the threshold" in far.reasons[-1]
    close = gate_of(LevelRunner(shifts={120: -0.0105}), test_images)
    assert close.accepted
    assert (close.flips, close.flips_outside_band) == (1, 0)
    wide = gate_of(LevelRunner(shifts={150: -0.35}), test_images, GateLimits(metric_points=100, band=0.3))
    assert wide.accepted


def test_a_metric_that_falls_is_refused_and_one_that_rises_is_not(test_images: TestImages) -> None:
    elsewhere = gate_of(LevelRunner(corner=(9, 9)), test_images)
    assert not elsewhere.accepted
    assert [reason.split()[0] for reason in elsewhere.reasons] == ["pixel_auroc", "pixel_ap", "pro"]
    assert "falls by" in elsewhere.reasons[0]
    assert elsewhere.metric_points["pixel_ap"] < -1
    assert elsewhere.metric_points["image_auroc"] == 0
    better = judge(LevelRunner(corner=(9, 9)), LevelRunner(), flat(HELD_OUT), test_images)
    assert better.accepted
    assert better.metric_points["pixel_ap"] > 1
    assert better.as_dict()["metric_points"] == better.metric_points


def test_without_defects_the_order_of_good_scores_counts() -> None:
    assert gate_of(LevelRunner(), None).accepted
    shuffled = LevelRunner(shifts={int(level): 0.19 - 2 * (level - 100) / 100 for level in HELD_OUT})
    gate = gate_of(shuffled, None)
    assert not gate.accepted
    assert gate.metric_points == {}
    assert "ranks of good scores correlate by -1.000" in gate.reasons[0]


def test_a_candidate_whose_good_scores_are_all_alike_is_refused_without_defects() -> None:
    collapsed = LevelRunner(shifts={int(level): 1.0 - level / 100 for level in HELD_OUT})
    gate = gate_of(collapsed, None)
    assert gate.rank_correlation == 0
    assert "correlate by 0.000" in gate.reasons[-1]


@pytest.mark.parametrize("level", [104, 101, 240], ids=["held out", "good", "anomalous"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_a_reason_and_can_not_be_accepted(
    test_images: TestImages, level: int, value: float
) -> None:
    gate = gate_of(LevelRunner(shifts={level: value}), test_images)
    assert not gate.accepted
    assert "images get a score or a map that is NaN or infinite" in gate.reasons[0]
    assert gate.threshold is None
    assert json.loads(json.dumps(gate.as_dict(), allow_nan=False))["threshold"] is None
    with pytest.raises(CalibrationError, match=r"gives no verdicts on level .* so --accept cannot take it"):
        gate.overridden_by(accept=True)
    assert gate.overridden_by(accept=False) == gate


def test_a_map_that_is_no_number_counts_with_good_images_alone() -> None:
    test = TestImages(flat(GOOD), np.zeros(4, bool), np.zeros((4, 256, 256), bool), np.ones(4, bool))
    gate = gate_of(LevelRunner(shifts={118: np.nan}), test)
    assert gate.reasons == (
        "2 of 24 images get a score or a map that is NaN or infinite (fp32 on level; the first is held-out frame number 19)",
    )


def test_a_candidate_that_sees_nothing_is_refused_and_an_fp32_that_sees_nothing_ends_it() -> None:
    gate = gate_of(LevelRunner(scale=0.0), None)
    assert "the threshold would be 0" in gate.reasons[0]
    with pytest.raises(TrainingError, match="FP32 on level is nothing to measure against: the threshold would be 0"):
        judge(LevelRunner(scale=0.0), LevelRunner(), flat(HELD_OUT))


def test_accept_overrides_a_refusal(test_images: TestImages) -> None:
    refused = gate_of(LevelRunner(shifts={150: -0.35}), test_images)
    assert refused.overridden_by(accept=True).overridden
    assert not refused.overridden_by(accept=False).overridden


def test_some_rows_are_judged_alone_with_the_threshold_of_all(test_images: TestImages) -> None:
    """Of eight labelled images the last four, one of which flips; the held-out frames do not count then."""
    fp32, other = (predict(LevelRunner(shifts=shifts), flat(HELD_OUT), test_images) for shifts in ({}, {150: -0.35}))
    for rows, flips in ((np.arange(4, 8), 1), (np.array([0, 1, 4]), 0)):
        gate = compare(
            *(some.for_rows(test_images, rows, held_out=False) for some in (fp32, other)), test_images.rows(rows)
        )
        assert (gate.images, gate.flips) == (len(rows), flips)
        assert gate.threshold == other.threshold
    rows = np.array([0, 1, 4])
    half = compare(*(some.for_rows(test_images, rows, held_out=True) for some in (fp32, other)), test_images.rows(rows))
    assert half.images == 20 + 3
    assert set(half.metrics) == {"image_auroc", "pixel_auroc", "pixel_ap", "pro"}


def test_everything_is_kept_as_plain_values(test_images: TestImages) -> None:
    gate = gate_of(LevelRunner(shifts={150: -0.35}), test_images)
    plain = json.loads(json.dumps(gate.as_dict(), allow_nan=False))
    assert plain["accepted"] is False
    assert plain["metrics"]["image_auroc"] == [1.0, pytest.approx(gate.metrics["image_auroc"][1])]
    assert Threshold.from_dict(plain["threshold"]) == gate.threshold
    assert plain["latency_ms"] == list(gate.latency_ms or ())
    assert plain["runner"] == "level"


def test_the_asked_share_of_false_rejects_is_kept() -> None:
    predictions = predict(LevelRunner(), flat(HELD_OUT), rule=ThresholdRule(0.1))
    assert predictions.threshold is not None
    assert predictions.threshold.asked == 0.1
    assert predictions.threshold.rank == 19
    assert compare(predictions, predictions).latency_ms is None


def test_ranks_and_times() -> None:
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 30])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0]), np.array([2.0])) == 1
    tied = rank_correlation(np.array([1.0, 2, 2, 3, 5]), np.array([2.0, 1, 4, 4, 4]))
    assert tied == pytest.approx(spearmanr([1, 2, 2, 3, 5], [2, 1, 4, 4, 4]).statistic)
    assert rank_correlation(np.arange(20.0), np.ones(20)) == 0
    before, after = time_both(LevelRunner(), LevelRunner(), flat(HELD_OUT))
    assert before > 0
    assert after > 0
