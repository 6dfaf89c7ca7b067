"""Histograms of sinks: those of removed streams go, and there are never more than a few thousand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.stream import meters as sink_times
from nnet_edge.runtime.stream.meters import SinkTimes


def test_streams_that_come_and_go_for_weeks_leave_nothing(
    make_prediction: Callable[..., Prediction], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_times, "MOST", 10)
    times = SinkTimes()
    observe = times.observer("log")
    for number in range(50):
        name = f"camera-{number}"
        observe(make_prediction(stream=name), 1.0)
        assert ("log", name) in times.snapshot()
        times.hear(Event("stream.removed", name))
        assert times.snapshot() == {}
    for number in range(50):  # what a sink delivers of a stream that is gone already
        observe(make_prediction(stream=f"camera-{number}"), 1.0)
        observe(make_prediction(stream="kept"), 1.0)
    assert len(times.snapshot()) == 10
    assert times.snapshot()["log", "kept"].count == 50
