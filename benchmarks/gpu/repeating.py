"""The TensorRT runner with what measurements ask of it: its last batch computed again, with the kernels and without."""

from __future__ import annotations

from collections.abc import Callable

from nnet_edge.errors import StreamError
from nnet_edge.runtime.runners.trt.trt_runner import TrtRunner


class RepeatingRunner(TrtRunner):
    """Remembers the slot and the batch size that were computed last."""

    _last: tuple[int, int] | None = None

    def compute_again(self, times: int) -> None:
        """Compute the last batch `times` more in a row, without its upload, and wait."""
        last = self._require_last()
        with self._device.current():
            for _ in range(times):
                self._queue(*last)
            self._compute.synchronize()

    def network_alone(self) -> Callable[[int], None]:
        """A function that computes the engine without the kernels so many times in a row, and waits.

        It computes the last batch, as a CUDA graph where the runner uses one.
        """
        number, batch = self._require_last()
        with self._device.current():
            infer = self._engine.bind(batch, self._slots[number].addresses, self._compute)
            if self._engine.can_capture:
                infer()  # once as it is, as `_queue` does: what TensorRT sets up the first time cannot be captured
                self._compute.synchronize()
                infer = self._device.capture(infer, self._compute) or infer

        def compute(times: int) -> None:
            self._require_open()
            with self._device.current():
                for _ in range(times):
                    infer()
                self._compute.synchronize()

        return compute

    def _require_last(self) -> tuple[int, int]:
        """Slot and batch that were computed last. Raises StreamError when there are none."""
        self._require_open()
        if self._last is None:
            raise StreamError(f"the {self.name} runner of {self.graph} has computed nothing yet: start a batch first")
        return self._last

    def _queue(self, number: int, batch: int) -> None:
        self._last = number, batch
        super()._queue(number, batch)
