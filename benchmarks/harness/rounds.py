"""What takes turns in a speed measurement: a system in a precision, in one of three scopes, at one batch.

model    images lie ready, decoded and resized; the network gives its layer maps, without tail
map      images lie ready; upload, network, fusion and blur give anomaly map and score
camera   a picture file becomes a verdict in a JSON line, as `stream` does it: decode, resize, inference, verdict

A source that a camera at rest resembles: the next picture is taken once the one before was judged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from nnet_edge.benchmarks.harness.energy import EnergyMeter
from nnet_edge.benchmarks.speed.plan import Opened
from nnet_edge.benchmarks.speed.report import Round
from nnet_edge.errors import NnetEdgeError, SourceError
from nnet_edge.frame import Frame, Outputs, Prediction
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.sinks import CallbackSink, JsonLinesSettings, JsonLinesSink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.images import ImageFileSource, read_bgr
from nnet_edge.runtime.stream.running import run
from nnet_edge.settings.runner import StreamSettings

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


WARM_UP_CALLS, WARM_UP_S = 3, 0.5  # at least so many calls, and more until so much time is over
FEWEST_CALLS = 2  # of a turn
NS_PER_S, NS_PER_MS = 1e9, 1e6


class Taker(Protocol):
    """Something that takes a turn in every round."""

    def warm_up(self) -> None:
        """Everything that only the first time costs."""
        ...

    def measure(self) -> Round:
        """One turn."""
        ...


class Contender(Taker, Protocol):
    """A system in a scope, at a batch."""

    opened: Opened
    scope: str


class Calls:
    """Pictures that lie ready, batch after batch through `call`."""

    def __init__(
        self, call: Callable[[np.ndarray], object], batch: int, images: np.ndarray, turn_s: float, meter: EnergyMeter
    ) -> None:
        starts = range(0, max(len(images) // batch, 1) * batch, batch)
        self._batches = [np.take(images, range(start, start + batch), axis=0, mode="wrap") for start in starts]
        self._call, self._turn_s, self._meter = call, turn_s, meter

    def warm_up(self) -> None:
        """The first calls, which allocate, choose kernels or compile; then until caches and clocks have settled."""
        ends_s = None
        calls = 0
        while ends_s is None or calls < WARM_UP_CALLS or time.monotonic() < ends_s:
            self._call(self._batches[0])
            calls += 1
            ends_s = ends_s or time.monotonic() + min(WARM_UP_S, self._turn_s)

    def measure(self) -> Round:
        """The time of every call, one after another; the first, while another's threads go to sleep, is not counted."""
        self._call(self._batches[0])
        took_ns: list[int] = []
        joules = self._meter.joules()
        ends_ns = time.perf_counter_ns() + self._turn_s * NS_PER_S
        for images in cycle(self._batches):
            began_ns = time.perf_counter_ns()
            self._call(images)
            now_ns = time.perf_counter_ns()
            took_ns.append(now_ns - began_ns)
            if now_ns >= ends_ns and len(took_ns) >= FEWEST_CALLS:
                break
        latencies_ms = tuple(value / NS_PER_MS for value in took_ns)
        frames = len(took_ns) * len(self._batches[0])
        return Round(frames, sum(took_ns) / NS_PER_S, latencies_ms, len(took_ns), self._meter.since(joules))


class SystemCalls(Calls):
    """A system's bare model or its map on pictures that lie ready."""

    def __init__(
        self, opened: Opened, scope: str, call: Callable[[np.ndarray], object], images: np.ndarray, turn_s: float,
        meter: EnergyMeter,
    ) -> None:  # fmt: skip
        super().__init__(call, opened.batch, images, turn_s, meter)
        self.opened, self.scope = opened, scope


class Sized:
    """A loaded runner that says it takes `max_batch` images, and counts its calls; so one graph in memory is enough."""

    def __init__(self, runner: Runner, max_batch: int) -> None:
        self.name, self.precision, self.input_shape = runner.name, runner.precision, runner.input_shape
        self.max_batch = max_batch
        self.calls = 0
        self._runner = runner
        if hasattr(runner, "start_frames"):  # a GPU takes frames as they are; see FrameRunner
            self.start_frames = self._counted(runner.start_frames)

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """The runner's own."""
        return self.start(images, layer_maps)()

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        """The runner's own."""
        self.calls += 1
        return self._runner.start(images, layer_maps)

    def _counted(self, start: Callable[..., object]) -> Callable[..., object]:
        def start_frames(frames: Sequence[object]) -> object:
            self.calls += 1
            return start(frames)

        return start_frames

    def __enter__(self) -> Sized:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


class Camera:
    """`nnet-edge stream FOLDER --json FILE`: as fast as it can for the rate; at batch 1 also one picture at a time.

    A latency is that of a picture which nothing else waits before: from the file's bytes to the sink.
    """

    scope = "camera"

    def __init__(
        self, opened: Opened, paths: Sequence[Path], turn_s: float, meter: EnergyMeter, out: Path
    ) -> None:  # fmt: skip
        self.opened = opened
        self._paths, self._turn_s, self._meter, self._out = paths, turn_s, meter, out
        self._frames = 2 * opened.batch  # of a turn, until the warm-up told how many fit

    def warm_up(self) -> None:
        """Every batch that a stream may meet, as it takes what waits; then two short streams tell how long a turn is."""
        for batch in range(1, self.opened.batch + 1):
            self.opened.runner.infer(np.zeros((batch, *self.opened.runner.input_shape), np.uint8))
        for _ in range(2):
            found = self._stream()
        wanted = found.frames_per_s * self._turn_s
        self._frames = max(FEWEST_CALLS, round(wanted / self.opened.batch)) * self.opened.batch

    def measure(self) -> Round:
        """From the start of the stream to its end."""
        found = self._stream()
        return found if self.opened.batch > 1 else found.with_latencies(self._alone())

    def _stream(self) -> Round:
        paths = list(islice(cycle(self._paths), self._frames))
        runner = Sized(self.opened.runner, self.opened.batch)
        joules = self._meter.joules()
        began_ns = time.perf_counter_ns()
        rejected = self._run(ImageFileSource(paths, "folder", "speed"), runner, lambda prediction: None)
        seconds = (time.perf_counter_ns() - began_ns) / NS_PER_S
        return Round(len(paths), seconds, (), runner.calls, self._meter.since(joules), rejected)

    def _alone(self) -> tuple[float, ...]:
        """Milliseconds of each picture when one is under way at a time."""
        source = OneAtATime(list(islice(cycle(self._paths), self._frames)))
        self._run(source, Sized(self.opened.runner, 1), source.note)
        return tuple(source.latencies_ms)

    def _run(self, source: Source, runner: Sized, keep: Callable[[Prediction], None]) -> int:
        """The pictures through the stream; gives how many were rejected."""
        log = JsonLinesSettings(path=self._out, append=False, fsync_every_s=None, events=False)
        sinks = [JsonLinesSink(log), CallbackSink(keep)]
        return run(source, runner, sinks, StreamSettings(self.opened.threshold)).rejected


def contenders_of(
    opened: Sequence[Opened], scopes: Sequence[str], images: np.ndarray, paths: Sequence[Path], turn_s: float,
    meter: EnergyMeter, out: Path,
) -> Iterator[Contender]:  # fmt: skip
    """Every opened system in every scope."""
    for one in opened:
        if "model" in scopes and one.bare is not None:
            yield SystemCalls(one, "model", one.bare, images, turn_s, meter)
        if "map" in scopes:
            yield SystemCalls(one, "map", one.runner.infer, images, turn_s, meter)
        if "camera" in scopes:
            yield Camera(one, paths, turn_s, meter, out)


def take_turns(
    contenders: Sequence[Taker],
    repeats: int,
    say: Callable[[str], None] = lambda line: None,
    lose: Callable[[int, NnetEdgeError], None] | None = None,
) -> list[list[Round]]:
    """`repeats` rounds of each contender, in the contenders' order; each round starts with another one.

    One that fails has no rounds, and `lose` is told its place; without `lose` its error is raised.
    """
    rounds: list[list[Round]] = [[] for _ in contenders]
    lost: set[int] = set()
    for number in range(repeats):
        say(f"round {number + 1} of {repeats}")
        for turn in range(len(contenders)):
            index = (number + turn) % len(contenders)
            if index in lost:
                continue
            try:
                rounds[index].append(contenders[index].measure())
            except NnetEdgeError as error:
                if lose is None:
                    raise
                lost.add(index)
                rounds[index].clear()
                lose(index, error)
    return rounds
