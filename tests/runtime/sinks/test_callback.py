"""A function is called once for each prediction; what it raises is a fault of the sink."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nnet_edge.errors import SinkError
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import CallbackSink

MakePrediction = Callable[..., Prediction]


def test_a_callback_that_fails_is_a_sink_that_fails(make_prediction: MakePrediction) -> None:
    seen: list[Prediction] = []
    with CallbackSink(seen.append) as sink:
        sink.write(make_prediction(5))
    assert [prediction.frame.index for prediction in seen] == [5]

    def alarm(prediction: Prediction) -> None:
        raise ConnectionError("no PLC")

    with CallbackSink(alarm) as sink, pytest.raises(SinkError, match=r"callback alarm failed at frame 5: .*no PLC"):
        sink.write(make_prediction(5))
