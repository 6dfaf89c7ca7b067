"""Percentiles are right within the stated 0.75 %, counts are exact, nothing counted is None."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.stream.meters import LatencyHistogram, LineMeters, StreamMeters
from nnet_edge.runtime.stream.report import StreamReport, latency_text
from nnet_edge.runtime.stream.stream_queue import FrameCounts

RELATIVE = 0.0075  # half a bucket of 1.5 %


@pytest.mark.parametrize("percent", [50, 95, 99, 100])
def test_percentiles_agree_with_the_sorted_latencies(percent: float) -> None:
    latencies_ms = np.random.default_rng(0).lognormal(3, 1, 1234)
    histogram = LatencyHistogram()
    for latency_ms in latencies_ms:
        histogram.add(latency_ms)
    expected = np.percentile(latencies_ms, percent, method="inverted_cdf")
    assert histogram.count == 1234
    assert histogram.percentile_ms(percent) == pytest.approx(expected, rel=RELATIVE)


def test_without_a_latency_there_is_no_percentile() -> None:
    numbers = LatencyHistogram().percentiles()
    assert (numbers.count, numbers.p50_ms, numbers.p99_ms) == (0, None, None)
    assert latency_text(numbers) == "p50 / p95 / p99: no frame yet"


def test_latencies_beyond_both_ends_are_still_counted() -> None:
    histogram = LatencyHistogram()
    for latency_ms in (0.0, -1.0, 1e12):
        histogram.add(latency_ms)
    assert histogram.count == 3
    assert histogram.percentile_ms(1) == pytest.approx(1e-3, rel=0.02)
    longest_ms = histogram.percentile_ms(100)
    assert longest_ms is not None
    assert longest_ms > 1e6


def test_a_report_counts_frames_rejects_and_seconds(make_frame: Callable[..., Frame]) -> None:
    meters = StreamMeters(LineMeters())
    for index, score in enumerate((0.5, 2.0, 3.0)):
        frame = replace(make_frame(index), captured_s=100.0 + index)
        latencies_ms = {"inference": 40.0, "total": 50.0}
        prediction = Prediction(frame, score, 1.0, np.zeros((256, 256), np.float32), (), latencies_ms)
        meters.add(prediction, now_s=100.5 + index)
    counts = FrameCounts(7, 3, {"full": 4})
    report = StreamReport(meters.verdicts, meters.rejected, 1, meters.seconds, counts, meters.latencies(), "stopped")
    assert (report.frames, report.rejected, report.dropped, report.skipped) == (3, 2, 4, 1)
    assert report.seconds == pytest.approx(2.5)
    assert report.frames_per_s == pytest.approx(3 / 2.5)
    assert report.latencies["inference"].count == 3
    assert report.latencies["inference"].p50_ms == pytest.approx(40, rel=RELATIVE)
    assert report.lines()[0] == (
        "stopped: 3 frames in 2.5 s, 1.2 frames/s; 2 rejected, 4 dropped (4 full), 1 unreadable files skipped"
    )
    assert json.loads(json.dumps(report.as_dict()))["rejected"] == 2


def test_an_empty_report_has_no_rate() -> None:
    report = StreamReport(0, 0, 0, 0.0, FrameCounts(), ended="source ended")
    assert report.frames_per_s is None
    assert report.lines()[0] == "source ended: 0 frames in 0.0 s, no rate; 0 rejected, 0 dropped"
