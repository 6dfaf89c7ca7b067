"""The figures of a line are measured, add up, and the soak sees what grows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from nnet_edge.benchmarks.line.line import CameraBench, bare_rate, loop_rate, table
from nnet_edge.benchmarks.line.soak import Span, faults
from nnet_edge.frame import Outputs
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.runtime.stream.stream_queue import FrameCounts

IMAGE_S = 0.005


class SlowRunner:
    """Obeys Runner; an image takes five milliseconds."""

    name, precision, max_batch, input_shape = "slow", "fp32", 4, (256, 256, 3)

    def __enter__(self) -> SlowRunner:
        return self

    def __exit__(self, *about: object) -> None:
        return None

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        time.sleep(IMAGE_S * len(images))
        return Outputs(np.zeros((len(images), 256, 256), np.float32), np.ones(len(images), np.float32))

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        return lambda: self.infer(images)


def test_the_rows_add_up_and_the_bare_runner_is_what_it_is() -> None:
    runner = SlowRunner()
    assert 0 < bare_rate(runner, 0.3) <= 1 / IMAGE_S
    assert 0 < loop_rate(runner, 0.3) <= 1 / IMAGE_S
    bench = CameraBench(Model("slow", None, runner, 1.0), None, 0.6)
    rows = [bench.measure(cameras) for cameras in (1, 3)]
    assert [row.cameras for row in rows] == [1, 3]
    for row in rows:
        assert row.captured == row.judged + row.dropped
        assert row.dropped > 0  # more is asked for than can be done
        assert 0 < row.frames_per_s <= 1 / IMAGE_S
        assert 0 < row.loop_hz <= 1 / IMAGE_S
        assert row.p50_ms is not None
        assert row.p50_ms > 1e3 * IMAGE_S
        assert row.most <= 2 * row.fewest + 2  # nobody starves; equal shares are for a machine that does nothing else
    assert len(table(rows).splitlines()) == 4


def test_a_soak_tells_what_grew_or_was_lost() -> None:
    steady = [Span(minute, 100, 20.0, 40.0, 300.0, 20, 30) for minute in range(10)]
    report = LineReport({}, FrameCounts(1000, 990, {"full": 10}, 0), 60.0)
    assert faults(steady, report, 990) == []
    assert faults([*steady[:-1], replace(steady[-1], rss_mb=310.0)], report, 990) == ["memory grew by 3.3%"]
    threads, handles = replace(steady[-1], threads=21), replace(steady[-1], handles=35)
    assert "threads grew from 20 to 21" in faults([*steady[:-3], threads, threads, threads], report, 990)
    assert "handles grew from 30 to 35" in faults([*steady[:-3], handles, handles, handles], report, 990)
    assert faults([*steady[:-1], handles], report, 990) == [], "a camera that is just being opened is no growth"
    slow = replace(steady[-1], p99_ms=90.0)
    assert faults([*steady[:-3], slow, slow, slow], report, 990) == ["p99 rose from 40.0 to 90.0 ms"]
    assert faults([*steady[:-1], slow], report, 990) == [], "one busy moment is no growth"
    lost = replace(report, total=FrameCounts(1000, 980, {"full": 10}, 0))
    assert "frames are missing" in faults(steady, lost, 980)[0]
    assert "frames are missing" in faults(steady, report, 900)[0]
