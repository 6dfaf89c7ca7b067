"""A frame's walk is short: few functions and files carry it from the source to the sink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.runtime.sinks import CallbackSink, QueuedSink
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.running import run
from nnet_edge.settings.stream import VerdictSettings
from tests.runtime.stream.walk_count import WalkCount, count_walk

ROOT = Path(__file__).parents[3]


def walked(make_runner: Callable[..., Any], is_queued: bool) -> WalkCount:
    """Who carries three frames, all of them rejects, to a callback."""

    def work() -> object:
        sink = CallbackSink(lambda prediction: None)
        source = SyntheticSource([np.full((32, 32, 3), 255, np.uint8)] * 3, None, "walked")
        return run(source, make_runner(), [QueuedSink(sink) if is_queued else sink], VerdictSettings(threshold=0.5))

    return count_walk(work, ROOT)


@pytest.mark.parametrize(("is_queued", "functions", "files"), [(False, 14, 8), (True, 18, 10)])
def test_few_functions_and_files_carry_a_frame(
    make_runner: Callable[..., Any], is_queued: bool, functions: int, files: int
) -> None:
    walk = walked(make_runner, is_queued)
    assert len(walk.functions) <= functions, str(walk)
    assert len(walk.files) <= files, str(walk)


def test_the_count_sees_the_whole_walk(make_runner: Callable[..., Any]) -> None:
    names = [one.name for one in walked(make_runner, is_queued=True).functions]
    stations = ("__iter__", "put", "take", "Batch", "judge", "write")
    assert all(any(name.endswith(station) or station in name for name in names) for station in stations), names
