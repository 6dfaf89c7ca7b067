"""A function of yours, called with each prediction."""

from __future__ import annotations

from collections.abc import Callable

from nnet_edge.errors import SinkError
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks.base import Sink


class CallbackSink(Sink):
    """Calls a function with each prediction, once; what it raises becomes a SinkError."""

    name = "callback"

    def __init__(self, callback: Callable[[Prediction], object]) -> None:
        self._callback = callback

    def write(self, prediction: Prediction) -> None:
        try:
            self._callback(prediction)
        except Exception as error:
            name = getattr(self._callback, "__name__", repr(self._callback))
            raise SinkError(f"the callback {name} failed at frame {prediction.frame.index}: {error!r}") from error
