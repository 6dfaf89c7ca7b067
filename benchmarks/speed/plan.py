"""What a speed measurement measures: a system in a precision, in one of three scopes, at one batch.

model    images lie ready, decoded and resized; the network gives its layer maps, without tail
map      images lie ready; upload, network, fusion and blur give anomaly map and score
camera   a picture file becomes a verdict in a JSON line, as `stream` does it: decode, resize, inference, verdict
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from nnet_edge.benchmarks.harness.machine import EnergyMeter
from nnet_edge.benchmarks.harness.rounds import NS_PER_MS, NS_PER_S, Round
from nnet_edge.benchmarks.harness.streams import file_source, judge_all, log_of
from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.frame import Frame, Outputs, Prediction
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.sinks import CallbackSink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.images import read_bgr
from nnet_edge.settings.runner import require_between, require_choice

BareModel = Callable[[np.ndarray], object]  # uint8 RGB (N, H, W, 3) -> layer maps, wherever they lie


@dataclass(frozen=True)
class Plan:
    """A system and the precision that it is to compute in."""

    system: str
    precision: str

    @property
    def name(self) -> str:
        """As tables and plots write it."""
        return f"{self.system} {self.precision}"


@dataclass(frozen=True)
class Missing:
    """What was asked for and cannot be measured here, and why."""

    system: str
    precision: str
    scope: str | None  # or "memory"; None: none of them
    reason: str


@dataclass(frozen=True)
class Opened:
    """A system that is ready for batches of one size: everything is loaded."""

    plan: Plan
    batch: int
    runner: Runner
    bare: BareModel | None  # None where the bare model was not asked for
    threshold: float
    artefact: Path  # the file that it computes
    hint: str  # "latency", "throughput", or "" where the system knows no hints


SYSTEMS = ("torch", "torch.compile", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SCOPES = ("model", "map", "camera")
LARGEST_BATCH = 256
LONGEST_TURN_S = 60.0


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured and how often. Raises ConfigError for an invalid setting."""

    systems: tuple[str, ...] = SYSTEMS
    precisions: tuple[str, ...] = PRECISIONS
    scopes: tuple[str, ...] = SCOPES
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 5  # rounds; every candidate is measured in each
    turn_s: float = 0.5  # seconds of a candidate in a round, the call that is under way included; at least two calls
    threads: int | None = None  # of every candidate alike; None: one a usable core
    with_memory: bool = True  # a process of its own for every system and precision, which loads it and infers

    def __post_init__(self) -> None:
        for what, values, known in (("system", self.systems, SYSTEMS), ("precision", self.precisions, PRECISIONS),
                                    ("scope", self.scopes, SCOPES)):  # fmt: skip
            for value in values:
                require_choice(what, value, known)
            if not values:
                raise ConfigError(f"there is nothing to measure: give a {what}, one of {', '.join(known)}")
        if not self.batches:
            raise ConfigError("there is nothing to measure: give a batch")
        for batch in self.batches:
            require_between("batch", batch, 1, LARGEST_BATCH)
        if len(set(self.batches)) < len(self.batches):
            raise ConfigError(f"batches are {self.batches}: give each once")
        require_between("repeats", self.repeats, 1, 1000)
        if not (math.isfinite(self.turn_s) and 0 < self.turn_s <= LONGEST_TURN_S):
            raise ConfigError(f"seconds of a turn are {self.turn_s}: above 0, at most {LONGEST_TURN_S:g}")
        if self.threads is not None:
            require_between("threads", self.threads, 1, 1024)


WARM_UP_CALLS, WARM_UP_S = 3, 0.5  # at least so many calls, and more until so much time is over
FEWEST_CALLS = 2  # of a round

PATIENCE_S = 120.0  # for one verdict
LOOK_EVERY_S = 0.1


class SystemCalls:
    """A system's bare model or its map on pictures that lie ready, batch after batch for `seconds` a round."""

    def __init__(
        self, opened: Opened, scope: str, call: Callable[[np.ndarray], object], images: np.ndarray, seconds: float,
        meter: EnergyMeter,
    ) -> None:  # fmt: skip
        starts = range(0, max(len(images) // opened.batch, 1) * opened.batch, opened.batch)
        self._batches = [np.take(images, range(start, start + opened.batch), axis=0, mode="wrap") for start in starts]
        self._call, self._seconds, self._meter = call, seconds, meter
        self.opened, self.scope = opened, scope

    def warm_up(self) -> None:
        """The first calls, which allocate, choose kernels or compile; then until caches and clocks have settled."""
        self._call(self._batches[0])
        ends_s = time.monotonic() + min(WARM_UP_S, self._seconds)
        calls = 1
        while calls < WARM_UP_CALLS or time.monotonic() < ends_s:
            self._call(self._batches[0])
            calls += 1

    def measure(self) -> Round:
        """The time of every call, one after another; the first, while another's threads go to sleep, is not counted."""
        self._call(self._batches[0])
        joules = self._meter.joules()
        took_ns = list(self._times_ns(time.perf_counter_ns() + self._seconds * NS_PER_S))
        latencies_ms = tuple(value / NS_PER_MS for value in took_ns)
        frames = len(took_ns) * len(self._batches[0])
        return Round(frames, sum(took_ns) / NS_PER_S, latencies_ms, len(took_ns), self._meter.since(joules))

    def _times_ns(self, ends_ns: float) -> Iterator[int]:
        for number, images in enumerate(cycle(self._batches), 1):
            began_ns = time.perf_counter_ns()
            self._call(images)
            now_ns = time.perf_counter_ns()
            yield now_ns - began_ns
            if now_ns >= ends_ns and number >= FEWEST_CALLS:
                return


class OneAtATime(Source):
    """Image files, one under way at a time: the next is taken once the one before was judged, as a camera at rest does.

    `note` is called by the sink with each prediction. `latencies_ms`: from before the file is read to the sink, in the order
    of the files.
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
            picture = read_bgr(path)
            yield Frame(picture.pixels, index, time.monotonic(), self.stream, path.name, bits=picture.bits)
        self._wait()  # so that the last verdict is noted before the stream winds up

    def note(self, prediction: Prediction) -> None:
        """The picture under way was judged."""
        self.latencies_ms.append((time.perf_counter_ns() - self._began_ns) / NS_PER_MS)
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


class Sized:
    """A loaded runner that says it takes `max_batch` images, and counts its calls; so one graph in memory is enough."""

    def __init__(self, runner: Runner, max_batch: int) -> None:
        self.name, self.precision, self.input_shape = runner.name, runner.precision, runner.input_shape
        self.max_batch = max_batch
        self.calls = 0
        self._runner = runner
        if hasattr(runner, "start_frames"):  # a GPU takes frames as they are; see FrameRunner
            self.start_frames = self._start_frames

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """The runner's own."""
        return self.start(images, layer_maps)()

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        """The runner's own."""
        self.calls += 1
        return self._runner.start(images, layer_maps)

    def _start_frames(self, frames: Sequence[Frame]) -> object:
        self.calls += 1
        return self._runner.start_frames(frames)  # type: ignore[attr-defined]

    def __enter__(self) -> Sized:
        self._runner.__enter__()
        return self

    def __exit__(self, *about: object) -> None:
        self._runner.__exit__(*about)


class Camera:
    """`nnet-edge stream FOLDER --json FILE`: as fast as it can for the rate; at batch 1 also one picture at a time.

    A latency is that of a picture which nothing else waits before: from the file's bytes to the sink.
    """

    scope = "camera"

    def __init__(self, opened: Opened, paths: Sequence[Path], seconds: float, meter: EnergyMeter, out: Path) -> None:
        self.opened = opened
        self._paths, self._seconds, self._meter, self._out = paths, seconds, meter, out
        self._frames = 2 * opened.batch  # of a round, until the warm-up told how many fit

    def warm_up(self) -> None:
        """Every batch that a stream may meet, as it takes what waits; then two short streams tell how long a round is."""
        for batch in range(1, self.opened.batch + 1):
            self.opened.runner.infer(np.zeros((batch, *self.opened.runner.input_shape), np.uint8))
        for _ in range(2):
            found = self._stream()
        wanted = found.frames_per_s * self._seconds
        self._frames = max(FEWEST_CALLS, round(wanted / self.opened.batch)) * self.opened.batch

    def measure(self) -> Round:
        """From the start of the stream to its end."""
        found = self._stream()
        if self.opened.batch > 1:
            return found
        source = OneAtATime(self._pictures())
        self._judge(source, Sized(self.opened.runner, 1), source.note)
        return replace(found, latencies_ms=tuple(source.latencies_ms))

    def _stream(self) -> Round:
        paths, runner = self._pictures(), Sized(self.opened.runner, self.opened.batch)
        joules = self._meter.joules()
        began_ns = time.perf_counter_ns()
        rejected = self._judge(file_source(paths, "speed"), runner, lambda prediction: None)
        seconds = (time.perf_counter_ns() - began_ns) / NS_PER_S
        return Round(len(paths), seconds, (), runner.calls, self._meter.since(joules), rejected)

    def _pictures(self) -> list[Path]:
        return list(islice(cycle(self._paths), self._frames))

    def _judge(self, source: Source, runner: Sized, keep: Callable[[Prediction], None]) -> int:
        """The pictures through the stream; gives how many were rejected."""
        sinks = [log_of(self._out), CallbackSink(keep)]
        return judge_all(source, runner, sinks, self.opened.threshold).rejected


Candidate = SystemCalls | Camera  # a system in a scope, at a batch


def candidates_of(
    opened: Sequence[Opened], scopes: Sequence[str], images: np.ndarray, paths: Sequence[Path], seconds: float,
    meter: EnergyMeter, out: Path,
) -> Iterator[Candidate]:  # fmt: skip
    """Every opened system in every scope."""
    for one in opened:
        if "model" in scopes and one.bare is not None:
            yield SystemCalls(one, "model", one.bare, images, seconds, meter)
        if "map" in scopes:
            yield SystemCalls(one, "map", one.runner.infer, images, seconds, meter)
        if "camera" in scopes:
            yield Camera(one, paths, seconds, meter, out)
