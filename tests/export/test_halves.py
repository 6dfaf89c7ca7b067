"""Two halves of the labelled images: every kind in both, held-out images never unseen, none where defects are few."""

from __future__ import annotations

import numpy as np

from nnet_edge.calibration.predictions import TestImages
from nnet_edge.export.layer_search import LEAST_DEFECTS, choose_halves

NOTHING = np.zeros((0, 256, 256, 3), np.uint8)


def labelled(good: int, **defects: int) -> TestImages:
    kinds = ["good"] * good + [kind for kind, count in defects.items() for _ in range(count)]
    levels = np.arange(len(kinds), dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(levels, (len(kinds), 256, 256, 3))
    labels = np.array(kinds) != "good"
    return TestImages(images, labels, np.zeros(images.shape[:3], bool), ~labels, tuple(kinds))


def test_every_kind_is_in_both_halves_and_no_image_in_two() -> None:
    test = labelled(7, scratch=9, dent=3, stain=2)
    halves = choose_halves(test, NOTHING, seed=0)
    assert halves is not None
    assert sorted([*halves.seen, *halves.unseen]) == list(range(21))
    assert abs(len(halves.seen) - len(halves.unseen)) <= 1
    kinds = np.array(test.kinds)
    for kind in ("good", "scratch", "dent", "stain"):
        counts = [int((kinds[rows] == kind).sum()) for rows in (halves.seen, halves.unseen)]
        assert abs(counts[0] - counts[1]) <= 1


def test_the_seed_says_which() -> None:
    one, again, other = (choose_halves(labelled(10, dent=10), NOTHING, seed) for seed in (1, 1, 2))
    assert one is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(one.unseen, again.unseen)
    assert not np.array_equal(one.unseen, other.unseen)


def test_held_out_frames_that_stand_in_for_good_images_are_never_unseen() -> None:
    test = labelled(6, dent=12)
    halves = choose_halves(test, test.images[:6], seed=0)
    assert halves is not None
    assert set(range(6)) <= set(halves.seen.tolist())
    assert test.labels[halves.unseen].all()


def test_few_defects_are_not_split() -> None:
    assert choose_halves(labelled(20, dent=2 * LEAST_DEFECTS - 1), NOTHING, seed=0) is None
    assert choose_halves(labelled(0, dent=LEAST_DEFECTS, hole=LEAST_DEFECTS), NOTHING, seed=0) is not None
