"""A source that a camera at rest resembles: the next picture is taken once the one before was judged."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnet_edge.errors import SourceError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.image_source import read_bgr
from nnet_edge.runtime.source import Source

PATIENCE_S = 120.0  # for one verdict
LOOK_EVERY_S = 0.1


class OneAtATime(Source):
    """Image files, one under way at a time; `note` is called by the sink with each prediction.

    `latencies_ms`: from before the file is read to the sink, in the order of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__("speed")
        self.latencies_ms: list[float] = []
        self._paths = paths
        self._began_ns = 0
        self._is_free = threading.Semaphore(1)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            if not self._wait():
                return
            self._began_ns = time.perf_counter_ns()
            yield Frame(read_bgr(path), index, time.monotonic(), self.stream, path.name)
        self._wait()  # so that the last verdict is noted before the stream winds up

    def note(self, prediction: Prediction) -> None:
        """The picture under way was judged."""
        self.latencies_ms.append((time.perf_counter_ns() - self._began_ns) / 1e6)
        self._is_free.release()

    def describe(self) -> str:
        return f"{len(self._paths)} images, one at a time"

    def _wait(self) -> bool:
        """Whether the next picture may be taken; False when the stream ends. Raises SourceError when no verdict comes."""
        ends_s = time.monotonic() + PATIENCE_S
        while not self._is_free.acquire(timeout=LOOK_EVERY_S):
            if self._interrupted.is_set():
                return False
            if time.monotonic() > ends_s:
                raise SourceError(f"no verdict on a picture within {PATIENCE_S:g} s: see the messages above")
        return True
