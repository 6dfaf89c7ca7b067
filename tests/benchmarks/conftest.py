"""The tests here train and infer tiny things: one thread is faster than several that wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits

from nnet_edge.benchmarks.contenders import torch_threads


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch and NumPy on one thread; as before afterwards."""
    with torch_threads(1), threadpool_limits(1):
        yield
