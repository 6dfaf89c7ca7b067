"""Synthetic frames: a drawn inspection line, whose pictures and defects follow from a seed and an index."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import TYPE_CHECKING

from nnet_edge.errors import SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.base import Source
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, SourceKind
from nnet_edge.settings.runner import require_between

if TYPE_CHECKING:  # what draws is imported when it does
    import numpy as np

HEIGHT, WIDTH = 384, 512  # pixels
SYNTHETIC_HZ = 25.0
DEFECT_EVERY = 7  # the last picture of every seven shows a part with a defect
PART_RADIUS = 120  # pixels


def draw_part(index: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Picture `index` of the line: a machined disc on a belt, uint8 BGR (384, 512, 3), and its defect, bool (384, 512).

    The mask is empty for a good part. The same `index` and `seed` give the same picture.
    """
    import cv2
    import numpy as np

    random = np.random.default_rng((seed, index))
    centre = np.array((WIDTH / 2, HEIGHT / 2)) + random.uniform(-20, 20, 2)
    # what does not change along a column is drawn once for all rows, and the disc in its own square
    belt = 60 + 6 * np.sin((np.arange(WIDTH) + 37 * index) / 5)  # the belt moves on between two pictures
    grey = np.broadcast_to(belt, (HEIGHT, WIDTH)).copy()
    left, top = np.floor(centre - PART_RADIUS).astype(int)
    square = np.s_[top : top + 2 * PART_RADIUS + 2, left : left + 2 * PART_RADIUS + 2]
    rows, columns = np.ogrid[square]
    distance = np.hypot(columns - centre[0], rows - centre[1])
    disc = 165 + 12 * np.cos(distance / 4)  # turning leaves rings
    disc[distance < PART_RADIUS / 4] = 40  # the bore
    np.copyto(grey[square], disc, where=distance < PART_RADIUS)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if index % DEFECT_EVERY == DEFECT_EVERY - 1:
        draw_defect(mask, centre, random)
        grey[mask > 0] = 225
    grey += random.normal(0, 2, grey.shape)
    picture = np.clip(grey, 0, 255, out=grey).astype(np.uint8)
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), mask > 0


def draw_defect(mask: np.ndarray, centre: np.ndarray, random: np.random.Generator) -> None:
    """A scratch or a spot on the ring of the part, drawn into `mask` (uint8) as 1."""
    import cv2
    import numpy as np

    angle = random.uniform(0, 2 * np.pi)
    middle = centre + 0.65 * PART_RADIUS * np.array((np.cos(angle), np.sin(angle)))
    if random.random() < 0.5:
        half = 30 * np.array((np.cos(angle + 2), np.sin(angle + 2)))
        start, end = np.round(middle - half).astype(int), np.round(middle + half).astype(int)
        cv2.line(mask, start.tolist(), end.tolist(), 1, thickness=3)
    else:
        cv2.circle(mask, np.round(middle).astype(int).tolist(), int(random.integers(6, 12)), 1, thickness=-1)


def moving_line(seed: int = 0) -> Iterator[np.ndarray]:
    """The line's pictures without end, uint8 BGR (384, 512, 3)."""
    return (draw_part(index, seed)[0] for index in count())


class SyntheticSource(Source):
    """Pictures made in memory, as a camera would give them.

    `images` are uint8 BGR (H, W, 3). With `rate_hz` they come at that rate and the source is live; without it they come
    as fast as they are read, and none is lost.
    """

    def __init__(self, images: Iterable[np.ndarray], rate_hz: float | None = None, stream: str = "synthetic") -> None:
        super().__init__(stream)
        if rate_hz is not None and not (math.isfinite(rate_hz) and rate_hz > 0):
            raise SourceError(f"a synthetic camera of {rate_hz} frames/s is impossible: give a rate above 0")
        self._images, self.rate_hz, self.is_live = images, rate_hz, rate_hz is not None

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


@dataclass(frozen=True)
class SyntheticOptions:
    """What only synthetic cameras have."""

    seed: int = field(default=0, metadata={"page": True})  # of the parts that are drawn

    def __post_init__(self) -> None:
        require_between("seed", self.seed, 0, 1 << 62)


def open_synthetic(settings: CommonSettings, options: SyntheticOptions) -> SyntheticSource:
    """The pictures of "synthetic", or N of "synthetic:N". Raises SourceError for an N that is not a number above 0."""
    text = settings.address
    if text == "synthetic":
        return SyntheticSource(moving_line(options.seed), settings.rate_hz or SYNTHETIC_HZ)
    number = text.removeprefix("synthetic:")
    if not number.isdecimal() or int(number) == 0:
        raise SourceError(f"{text!r} has no number of pictures: write synthetic or, for 100 of them, synthetic:100")
    return SyntheticSource(islice(moving_line(options.seed), int(number)), settings.rate_hz)


def is_synthetic(text: str) -> bool:
    """Whether the address is "synthetic" or "synthetic:N"."""
    return text.partition(":")[0] == "synthetic"


SOURCES.register(SourceKind("synthetic", "synthetic", is_synthetic, open_synthetic, SyntheticOptions, page="synthetic"))
