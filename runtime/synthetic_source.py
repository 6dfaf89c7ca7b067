"""Pictures made in memory, as a camera would give them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from nnet_edge.errors import SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.picture_line import moving_line
from nnet_edge.runtime.source import Source

SYNTHETIC_HZ = 25.0


class SyntheticSource(Source):
    """Pictures made in memory as a camera would give them.

    `images` are uint8 BGR (H, W, 3). With `rate_hz` they come at that rate and the source is live; without it they come
    as fast as they are taken, and none is lost.
    """

    def __init__(self, images: Iterable[np.ndarray], rate_hz: float | None = None, stream: str = "synthetic") -> None:
        super().__init__(stream)
        if rate_hz is not None and not (np.isfinite(rate_hz) and rate_hz > 0):
            raise SourceError(f"a synthetic camera of {rate_hz} frames/s cannot be: give a rate above 0")
        self._images = images
        self.rate_hz = rate_hz
        self.is_live = rate_hz is not None

    def __iter__(self) -> Iterator[Frame]:
        start_s = time.monotonic()
        for index, image in enumerate(self._images):
            if self.rate_hz is not None:
                self._interrupted.wait(max(0.0, start_s + index / self.rate_hz - time.monotonic()))
            if self._interrupted.is_set():
                return
            yield Frame(image, index, time.monotonic(), self.stream)

    def describe(self) -> str:
        return "synthetic camera" if self.rate_hz is None else f"synthetic camera, {self.rate_hz:g} frames/s"


def synthetic_source(text: str, seed: int, rate_hz: float | None = None) -> SyntheticSource:
    """The source of "synthetic" or "synthetic:N". Raises SourceError for an N that is no number above 0."""
    if text == "synthetic":
        return SyntheticSource(moving_line(seed), rate_hz or SYNTHETIC_HZ)
    number = text.removeprefix("synthetic:")
    if not number.isdecimal() or int(number) == 0:
        raise SourceError(f"{text!r} names no number of pictures: write synthetic or, for 100 of them, synthetic:100")
    return SyntheticSource(islice(moving_line(seed), int(number)), rate_hz)
