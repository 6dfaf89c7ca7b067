"""Pairs made ahead: their order, how far ahead, and how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from nnet_edge.data.synthetic import PairSynthesis
from nnet_edge.settings.synthesis import Synthesis
from nnet_edge.training.pairs import pairs_ahead

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 256, 256, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def synthesis() -> PairSynthesis:
    return PairSynthesis(Synthesis(kind="cutpaste"), 1, IMAGES)


def batches(count: int, taken: list[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
    for step in range(count):
        if taken is not None:
            taken.append(step)
        yield step, np.array([step % 6, (step + 2) % 6])


@pytest.mark.parametrize("threads", [1, 4])
def test_every_batch_in_order_whatever_the_threads(synthesis: PairSynthesis, threads: int) -> None:
    made = list(pairs_ahead(synthesis, batches(9), threads=threads))
    assert [pairs.step for pairs in made] == list(range(9))
    for step, rows in batches(9):
        anomalous, masks = synthesis.pairs(rows, step)
        np.testing.assert_array_equal(made[step].rows, rows)
        np.testing.assert_array_equal(made[step].anomalous, anomalous)
        np.testing.assert_array_equal(made[step].masks, masks)


def test_the_look_ahead_is_bounded_and_ends_with_the_iterator(synthesis: PairSynthesis) -> None:
    taken: list[int] = []
    with closing(pairs_ahead(synthesis, batches(1000, taken), ahead=3)) as pairs:
        assert taken == []
        next(pairs)
        next(pairs)
        assert taken == [0, 1, 2, 3, 4]
        deadline_s = time.monotonic() + 5
    assert taken == [0, 1, 2, 3, 4]
    while any(thread.name.startswith("pairs") for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s, "a thread outlives the iterator"


def test_an_error_comes_where_its_batch_would(synthesis: PairSynthesis) -> None:
    wrong = [(0, np.array([1])), (1, np.array([99])), (2, np.array([1]))]
    pairs = pairs_ahead(synthesis, wrong)
    assert next(pairs).step == 0
    with pytest.raises(IndexError, match="99"):
        next(pairs)
    assert not any(thread.name.startswith("pairs") for thread in threading.enumerate())


def test_no_batch_no_pairs(synthesis: PairSynthesis) -> None:
    assert list(pairs_ahead(synthesis, [])) == []
