"""Streams and lines of the runtime as the benchmarks run them: picture files through a runner, synthetic cameras on a line."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnet_edge.errors import StreamError
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.sinks import JsonLinesSettings, JsonLinesSink, Sink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.images import ImageFileSource
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.report import LineReport, StreamReport
from nnet_edge.runtime.stream.running import run, run_line
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.stream import LineStream, VerdictSettings

HEIGHT, WIDTH = 480, 640
PICTURES = 16  # that a camera shows
ABOVE_ALL = 1e9  # threshold: every picture is good, so nothing searches regions


def file_source(paths: Sequence[Path], name: str) -> Source:
    """A stream of these picture files."""
    return ImageFileSource(list(paths), "folder", name)


def log_of(path: Path) -> JsonLinesSink:
    """JSON lines of the verdicts of one run, as --json writes them."""
    return JsonLinesSink(JsonLinesSettings(path=path, append=False, keep_files=0, fsync_every_s=None, events=False))


def judge_all(source: Source, runner: Runner, sinks: Sequence[Sink], threshold: float) -> StreamReport:
    """The stream from its first picture to its last."""
    return run(source, runner, sinks, VerdictSettings(threshold))


Given = TypeVar("Given", bound=Sized)


def computed(start: Callable[[Given], Callable[[], object]], batches: Iterable[Given]) -> Iterator[Given]:
    """Each batch once it is computed. Two are under way: one is made and started while the one before is computed."""
    under_way = deque[tuple[Given, Callable[[], object]]]()
    for batch in batches:
        under_way.append((batch, start(batch)))
        if len(under_way) > 1:
            done, wait = under_way.popleft()
            wait()
            yield done
    for done, wait in under_way:
        wait()
        yield done


def per_second(
    start: Callable[[Given], Callable[[], object]], next_batch: Callable[[], Given], seconds: float
) -> float:
    """Images a second of batches that are computed as by `computed`."""
    start_s = time.monotonic()

    def batches() -> Iterator[Given]:
        while time.monotonic() - start_s < seconds:
            yield next_batch()

    return sum(len(batch) for batch in computed(start, batches())) / (time.monotonic() - start_s)


def noisy_pictures(seed: int) -> list[np.ndarray]:
    """Pictures of one camera, uint8 BGR (480, 640, 3)."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(PICTURES)]


def noisy_camera(
    number: int, rate_hz: float, kind: type[SyntheticSource] = SyntheticSource
) -> Callable[[], SyntheticSource]:
    """Opens a camera of `rate_hz`, as often as it is asked to; it shows pictures again and again that are drawn here."""
    pictures = noisy_pictures(number)
    return lambda: kind(itertools.cycle(pictures), rate_hz)


def add_camera(
    line: Line, number: int, open_camera: Callable[[], Source], threshold: float | None = None, **camera: Any
) -> None:
    """Put a synthetic camera on `line`, with more of its settings; it is opened again when its source ends."""
    settings = CameraSettings.of("synthetic", **camera)
    stream = LineStream(f"camera-{number}", settings, verdict=VerdictSettings(threshold=threshold))
    line.add_source(stream, open_camera(), open_camera)


@contextmanager
def running(line: Line) -> Iterator[list[LineReport]]:
    """The line in a thread of its own for as long as the block takes; its report is in the list then."""
    stop, reports = threading.Event(), list[LineReport]()
    thread = threading.Thread(target=lambda: reports.append(run_line(line, stop)), name="line")
    thread.start()
    try:
        yield reports
    finally:
        stop.set()
        thread.join()


def require_balanced(report: LineReport) -> None:
    """Raise StreamError when a frame is unaccounted for."""
    if not report.total.is_balanced or report.total.queued:
        raise StreamError(f"{report.total}: captured is not judged + dropped")
