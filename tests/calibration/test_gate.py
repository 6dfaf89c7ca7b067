"""The gate: accepts what keeps its verdicts, names what it refuses, and keeps every number."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import pytest

from nnet_edge.calibration.gate import Gate, GateLimits, TestImages, ask, compare, judge, rank_correlation, time_both
from nnet_edge.frame import Outputs
from nnet_edge.scoring import MARGIN, Threshold

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
    assert gate.metric_points == 0
    assert gate.map_error == {"mean": 0, "p99.9": 0, "max": 0}
    assert gate.rank_correlation == pytest.approx(1)
    assert gate.speed_up is not None


def test_scores_that_all_grow_alike_change_no_verdict_as_the_threshold_is_chosen_again(test_images: TestImages) -> None:
    gate = gate_of(LevelRunner(scale=1.3), test_images)
    assert gate.accepted
    assert gate.flips == 0
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
    assert elsewhere.metric_points is not None
    assert elsewhere.metric_points < -1
    better = judge(LevelRunner(corner=(9, 9)), LevelRunner(), flat(HELD_OUT), test_images)
    assert better.accepted
    assert better.metric_points is not None
    assert better.metric_points > 1


def test_without_defects_the_order_of_good_scores_counts() -> None:
    assert gate_of(LevelRunner(), None).accepted
    shuffled = LevelRunner(shifts={int(level): 0.19 - 2 * (level - 100) / 100 for level in HELD_OUT})
    gate = gate_of(shuffled, None)
    assert not gate.accepted
    assert gate.metric_points is None
    assert "ranks of good scores correlate by -1.000" in gate.reasons[0]


def test_everything_is_kept_as_plain_values(test_images: TestImages) -> None:
    gate = gate_of(LevelRunner(shifts={150: -0.35}), test_images)
    plain = json.loads(json.dumps(gate.as_dict(), allow_nan=False))
    assert plain["accepted"] is False
    assert plain["metrics"]["image_auroc"] == [1.0, pytest.approx(gate.metrics["image_auroc"][1])]
    assert Threshold.from_dict(plain["threshold"]) == gate.threshold
    assert plain["latency_ms"] == list(gate.latency_ms or ())
    assert plain["runner"] == "level"


def test_the_asked_share_of_false_rejects_is_kept() -> None:
    answers = ask(LevelRunner(), flat(HELD_OUT), false_rejects=0.1)
    assert answers.threshold.asked == 0.1
    assert answers.threshold.rank == 19
    assert compare(answers, answers).latency_ms is None


def test_ranks_and_times() -> None:
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 30])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0]), np.array([2.0])) == 1
    before, after = time_both(LevelRunner(), LevelRunner(), flat(HELD_OUT))
    assert before > 0
    assert after > 0
