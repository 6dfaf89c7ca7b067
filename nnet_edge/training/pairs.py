"""Pairs made ahead: while a training step computes, threads synthesise the anomalies of the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from nnet_edge.data.synthetic import PairSynthesis
from nnet_edge.machine import usable_cores

THREADS = min(2, usable_cores())  # a pair takes 1 to 3 ms, a training step on it 20 times as long
BATCHES_AHEAD = 3


class Pairs(NamedTuple):
    """The damaged copies of a batch of good images."""

    rows: np.ndarray  # of the good images
    step: int  # of the training
    anomalous: np.ndarray  # uint8 RGB (N, H, W, 3)
    masks: np.ndarray  # bool (N, H, W)


def pairs_ahead(
    synthesis: PairSynthesis,
    batches: Iterable[tuple[int, np.ndarray]],
    ahead: int = BATCHES_AHEAD,
    threads: int = THREADS,
) -> Generator[Pairs, None, None]:
    """The pairs of each of `batches` (step, rows), in their order, whatever the number of threads.

    At most `ahead` batches are taken before they are asked for. Close the iterator (`contextlib.closing`) to end early: it
    waits for what is being made and starts nothing more. Raises, in the batch's place, what its synthesis raised.
    """
    waiting: deque[Future[Pairs]] = deque()
    source = iter(batches)

    def make(step: int, rows: np.ndarray) -> Pairs:
        return Pairs(rows, step, *synthesis.pairs(rows, step))

    pool = ThreadPoolExecutor(threads, thread_name_prefix="pairs")
    try:
        waiting.extend(pool.submit(make, *batch) for batch in islice(source, ahead))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, *batch) for batch in islice(source, 1))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)
