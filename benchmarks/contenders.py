"""What takes turns in a speed measurement: torch, the bare runners, and the stream above them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nnet_edge.benchmarks.speed_report import Round
from nnet_edge.bundle import Bundle
from nnet_edge.config import CPU_RUNNER_KINDS, RunnerSettings, StreamSettings, require_between, require_choice
from nnet_edge.errors import ConfigError
from nnet_edge.evaluate_verb import load_network
from nnet_edge.frame import Outputs, Prediction
from nnet_edge.imaging import SIDE
from nnet_edge.runtime.graph_runner import cores
from nnet_edge.runtime.runner import Runner, load_runner
from nnet_edge.runtime.sinks import CallbackSink, JsonLinesSink
from nnet_edge.runtime.sources import ImageFileSource
from nnet_edge.runtime.stream import run

if TYPE_CHECKING:
    pass

WARM_UP_CALLS = 3
NS_PER_S, NS_PER_MS = 1e9, 1e6


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured and how often. Raises ConfigError for what cannot be meant."""

    frames: int = 64  # of every turn; the pictures of the folder, again from the first when they are fewer
    repeats: int = 5  # rounds
    batches: tuple[int, ...] = (1, 8)
    threads: int | None = None  # of every contender alike; None: one a usable core
    kinds: tuple[str, ...] = ("openvino", "onnxruntime")
    with_torch: bool = True
    with_bf16: bool = False  # torch with BF16 autocast and OpenVINO in BF16 too; their verdicts are not compared here

    def __post_init__(self) -> None:
        require_between("repeats", self.repeats, 1, 1000)
        require_between("frames", self.frames, 1, 1_000_000)
        for kind in self.kinds:
            require_choice("runner", kind, CPU_RUNNER_KINDS)
        if not self.batches or not (self.kinds or self.with_torch):
            raise ConfigError("there is nothing to measure: give a batch, and a runner or torch")
        for batch in self.batches:
            require_between("batch", batch, 1, 256)
            if self.frames % batch:
                raise ConfigError(f"{self.frames} frames are no multiple of the batch {batch}: give --frames that are")


DEFAULTS = SpeedSettings()


class Contender(Protocol):
    """Something that takes a turn in every round."""

    kind: str
    system: str
    precision: str
    batch: int

    def warm_up(self) -> None:
        """Everything that only the first time costs."""
        ...

    def measure(self) -> Round:
        """One turn."""
        ...


@dataclass
class Bare:
    """Pictures that lie ready, batch after batch through `infer`."""

    kind: str
    system: str
    precision: str
    batch: int
    infer: Callable[[np.ndarray], object]
    images: np.ndarray  # uint8 RGB (frames, 256, 256, 3)

    def warm_up(self) -> None:
        """The first calls, which allocate and choose kernels."""
        for _ in range(WARM_UP_CALLS):
            self.infer(self.images[: self.batch])

    def measure(self) -> Round:
        """The time of every call."""
        self.infer(self.images[: self.batch])
        took_ns = []
        for start in range(0, len(self.images), self.batch):
            images = self.images[start : start + self.batch]
            began_ns = time.perf_counter_ns()
            self.infer(images)
            took_ns.append(time.perf_counter_ns() - began_ns)
        latencies_ms = tuple(value / NS_PER_MS for value in took_ns)
        return Round(len(self.images), sum(took_ns) / NS_PER_S, latencies_ms, len(took_ns))


class Sized:
    """A loaded runner that says it takes `max_batch` images, and counts its calls; so one graph in memory is enough."""

    def __init__(self, runner: Runner, max_batch: int) -> None:
        self.name, self.precision, self.input_shape = runner.name, runner.precision, runner.input_shape
        self.max_batch = max_batch
        self.calls = 0
        self._runner = runner

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """The runner's own."""
        return self.start(images, layer_maps)()

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        """The runner's own."""
        self.calls += 1
        return self._runner.start(images, layer_maps)

    def __enter__(self) -> Sized:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)


class Stream:
    """`nnet-edge stream FOLDER --json FILE`: decode, resize, inference, verdict, JSON lines."""

    kind = "stream"

    def __init__(self, runner: Runner, batch: int, paths: Sequence[Path], threshold: float, out: Path) -> None:
        self.system, self.precision, self.batch = runner.name, runner.precision, batch
        self._runner, self._paths, self._threshold, self._out = runner, paths, threshold, out

    def warm_up(self) -> None:
        """A short stream, and every batch that a stream may meet: it takes what waits."""
        for batch in range(1, self.batch + 1):
            self._runner.infer(np.zeros((batch, SIDE, SIDE, 3), np.uint8))
        self._stream(self._paths[: 2 * self.batch])

    def measure(self) -> Round:
        """From the start of the stream to its end."""
        return self._stream(self._paths)

    def _stream(self, paths: Sequence[Path]) -> Round:
        latencies_ms: list[float] = []

        def keep(prediction: Prediction) -> None:
            latencies_ms.append(prediction.latencies_ms["total"])

        runner = Sized(self._runner, self.batch)
        source = ImageFileSource(paths, "folder", "speed")
        began_ns = time.perf_counter_ns()
        report = run(source, runner, [JsonLinesSink(self._out), CallbackSink(keep)], StreamSettings(self._threshold))
        seconds = (time.perf_counter_ns() - began_ns) / NS_PER_S
        return Round(report.frames, seconds, tuple(latencies_ms), runner.calls, report.rejected)


def torch_contenders(
    bundle: Bundle, images: np.ndarray, settings: SpeedSettings, stack: ExitStack
) -> Iterator[Contender]:
    """PyTorch, eager: with the tail as `evaluate --torch` computes it, the network alone, and in BF16 where asked for."""
    if not settings.with_torch:
        return
    import torch

    from nnet_edge.model.torch_runner import TorchRunner

    stack.enter_context(torch_threads(settings.threads or cores()))
    network = load_network(bundle)
    runner = TorchRunner(network, max_batch=max(settings.batches))

    @torch.inference_mode()
    def layer_maps(batch: np.ndarray) -> object:
        return network(torch.from_numpy(batch))

    def in_bf16(batch: np.ndarray) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return runner.infer(batch)

    for batch in settings.batches:
        yield Bare("torch eager", "torch", "fp32", batch, runner.infer, images)
        yield Bare("torch network alone", "torch", "fp32", batch, layer_maps, images)
        if settings.with_bf16:
            yield Bare("torch eager", "torch", "bf16 autocast", batch, in_bf16, images)


def runner_contenders(
    bundle: Bundle, images: np.ndarray, paths: Sequence[Path], settings: SpeedSettings, out: Path, stack: ExitStack
) -> Iterator[Contender]:
    """Each runner bare and below a stream, at each batch."""
    precisions = [(kind, "fp32") for kind in settings.kinds]
    if settings.with_bf16 and "openvino" in settings.kinds:
        precisions.append(("openvino", "bf16"))
    threads = settings.threads or cores()
    for kind, precision in precisions:
        chosen = RunnerSettings(kind, precision, threads, max_batch=max(settings.batches))
        runner = stack.enter_context(load_runner(bundle.graph, chosen))
        for batch in settings.batches:
            yield Bare("bare", runner.name, runner.precision, batch, runner.infer, images)
            yield Stream(runner, batch, paths, bundle.threshold.value, out)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch on `number` threads; as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
