"""How cost grows: with the batch, the cameras, the side of the image, the camera's picture and the memory's slots.

    nnet-edge bench growth BUNDLE --out runs/growth

The graph takes 256x256 and nothing else: the resize, the tail and the threshold belong to that side. What another side would
cost is measured on the bundle's own network traced at that side, without tail; nothing is said of its verdicts. Likewise the
memory's slots: the bundle's network with a memory of another size and random content. All points of a curve take turns.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.benchmarks.harness.bare_graph import load_bare, trace_bare
from nnet_edge.benchmarks.harness.energy import NoMeter
from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning, describe_machine, load_words
from nnet_edge.benchmarks.harness.rounds import Calls, take_turns
from nnet_edge.benchmarks.line.line import Row, measure_all
from nnet_edge.benchmarks.speed.growth_report import Curve, GrowthReport, Point
from nnet_edge.benchmarks.speed.report import Round, spread
from nnet_edge.bundle import Bundle, now, read_bundle
from nnet_edge.errors import ConfigError
from nnet_edge.frame import Frame
from nnet_edge.imaging import SIDE
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.runners.graph import cores
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.runtime.stream.model import Model, choose_artefact
from nnet_edge.settings.runner import CPU_RUNNER_KINDS, RunnerSettings, require_between, require_choice

if TYPE_CHECKING:
    from nnet_edge.methods.nnet.network import NNet

CURVES = ("batch", "cameras", "side", "picture", "slots")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CAMERAS = (1, 2, 4, 8)
SIDES = (256, 320, 384, 448, 512)
PICTURES = (256, 384, 512, 768, 1024)  # height and width of the camera's picture
SLOTS = (50, 100, 200, 500, 1000, 2000)
LINE_BATCH = 8
Say = Callable[[str], None]


@dataclass(frozen=True)
class GrowthSettings:
    """What is measured and how long. Raises ConfigError for what cannot be meant."""

    curves: tuple[str, ...] = CURVES
    system: str = "openvino"
    precision: str = "fp32"  # of the curves batch and cameras; side and slots are traced anew, in FP32
    repeats: int = 5
    turn_s: float = 0.5
    line_s: float = 3.0  # of a turn of each number of cameras
    threads: int | None = None

    def __post_init__(self) -> None:
        for curve in self.curves:
            require_choice("curve", curve, CURVES)
        require_choice("system", self.system, CPU_RUNNER_KINDS)
        require_choice("precision", self.precision, ("fp32", "bf16", "fp16", "int8"))
        require_between("repeats", self.repeats, 1, 1000)
        for what, seconds in (("of a turn", self.turn_s), ("of a line", self.line_s)):
            if not 0 < seconds <= 600:
                raise ConfigError(f"seconds {what} are {seconds}: above 0, at most 600")

    def runner(self, hint: str, max_batch: int, precision: str | None = None) -> RunnerSettings:
        """The runner of a curve."""
        arithmetic = "bf16" if (precision or self.precision) == "bf16" else "fp32"
        return RunnerSettings(self.system, arithmetic, self.threads or cores(), hint, max_batch=max_batch)


def measure_growth(
    path: Path, settings: GrowthSettings, command: str = "measure_growth", say: Say = lambda line: None
) -> GrowthReport:
    """Every curve of `settings` for the bundle at `path`. Raises BundleError, ConfigError, MissingExtraError."""
    bundle = read_bundle(path)
    busy = busy_percent()
    measures: Mapping[str, Callable[[Bundle, GrowthSettings, Path], Curve]] = {
        "batch": grow_batch, "cameras": grow_cameras, "side": grow_side, "picture": grow_picture, "slots": grow_slots
    }  # fmt: skip
    curves = []
    with tempfile.TemporaryDirectory(prefix="nnet-edge-growth-") as folder:
        for name in settings.curves:
            say(f"{name}: {', '.join(map(str, POINTS[name]))}")
            curves.append(measures[name](bundle, settings, Path(folder)))
            say(curves[-1].sentence)
    machine = describe_machine(settings.threads) | {"busy before": load_words(busy)}
    about = f"{bundle.name}, {bundle.manifest['backbone']}"
    return GrowthReport(command, now(), machine, about, (*bundle.warnings, *busy_warning(busy)), tuple(curves))


POINTS = {"batch": BATCHES, "cameras": CAMERAS, "side": SIDES, "picture": PICTURES, "slots": SLOTS}


def grow_batch(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of a call over its images: upload, network, map and score, one call after another."""
    with ExitStack() as stack:
        runners = {}
        for hint, largest in (
            ("latency", 1),
            ("throughput", max(BATCHES)),
        ):  # one alone, as who has one would ask for it
            chosen = settings.runner(hint, largest)
            artefact = choose_artefact(bundle, chosen, settings.precision)
            runners[hint] = stack.enter_context(load_runner(artefact.path, chosen))
        calls = {batch: (runners["latency" if batch == 1 else "throughput"].infer, batch, SIDE) for batch in BATCHES}
        points = interleaved(calls, settings)
    what = f"{settings.system} {settings.precision}, map and score; hint latency for 1, throughput for more"
    return Curve("batch", what, "images in a call", points)


def grow_cameras(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of a frame of a line, the inverse of what all cameras get together; they ask for more than there is."""
    chosen = settings.runner("throughput", LINE_BATCH)
    artefact = choose_artefact(bundle, chosen, settings.precision)
    with load_runner(artefact.path, chosen) as runner:
        model = Model(bundle.name, None, runner, bundle.threshold.value)
        rounds = []
        for number in range(settings.repeats):  # each begins with another number of cameras
            first = number % len(CAMERAS)
            rounds.append(measure_all(model, [*CAMERAS[first:], *CAMERAS[:first]], None, settings.line_s))
    points = tuple(line_point([row for rows in rounds for row in rows if row.cameras == number]) for number in CAMERAS)
    return Curve("cameras", f"{settings.system} {settings.precision}, a line of 640x480", "cameras", points)


def line_point(rows: Sequence[Row]) -> Point:
    """The turns of a line with so many cameras: medians, and the range of its milliseconds a frame."""
    share = statistics.median(row.frames_per_s / row.bare_hz for row in rows)
    known_ms = [row.p99_ms for row in rows if row.p99_ms is not None]
    judged = sum(row.judged for row in rows)
    spread_ms = spread([1e3 / row.frames_per_s for row in rows])
    return Point(rows[0].cameras, spread_ms, judged, share, statistics.median(known_ms) if known_ms else None)


def grow_side(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of an image through the bare network traced at another side."""
    from nnet_edge.evaluation.artefact import load_network

    network = load_network(bundle)
    chosen = settings.runner("latency", 1, "fp32")
    with ExitStack() as stack:
        calls = {}
        for side in SIDES:
            graph = trace_bare(network, side, folder / f"side-{side}.onnx")
            runner = stack.enter_context(load_bare(graph, chosen, side))
            calls[side] = (runner.infer_layer_maps, 1, side)
        points = interleaved(calls, settings)
    return Curve("side", f"{settings.system} fp32, the bare network", "image side, pixels", points)


def grow_picture(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of a camera's picture on its way to the graph: colour order and resize to 256x256, one thread."""

    def prepared(images: np.ndarray) -> np.ndarray:
        return preprocess([Frame(images[0], 0, 0.0)])

    points = interleaved({side: (prepared, 1, side) for side in PICTURES}, settings)
    return Curve("picture", "colour order and resize to 256x256", "side of the camera's picture, pixels", points)


def grow_slots(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of an image through the bare network with a memory of another size, its content random."""
    from nnet_edge.evaluation.artefact import load_network

    network = load_network(bundle)
    if network.memory is None:
        raise ConfigError(f"{bundle.path} was trained without a memory: leave the curve slots out")
    chosen = settings.runner("latency", 1, "fp32")
    with ExitStack() as stack:
        calls = {}
        for slots in SLOTS:
            graph = trace_bare(with_slots(network, slots), SIDE, folder / f"slots-{slots}.onnx")
            runner = stack.enter_context(load_bare(graph, chosen))
            calls[slots] = (runner.infer_layer_maps, 1, SIDE)
        points = interleaved(calls, settings)
    return Curve("slots", f"{settings.system} fp32, the bare network", "slots of the memory", points)


def with_slots(network: NNet, slots: int) -> NNet:
    """`network` itself, its memory replaced by a random one of so many slots."""
    from nnet_edge.methods.nnet.network import build_memory

    network.memory = build_memory(replace(network.settings, memory_slots=slots), network.backbone)
    return network


Call = tuple[Callable[[np.ndarray], object], int, int]  # what is called, images of a call, their side


def interleaved(calls: Mapping[int, Call], settings: GrowthSettings) -> tuple[Point, ...]:
    """A point for each call: milliseconds an image, median and range over the rounds."""
    variants = [variant(call, settings.turn_s) for call in calls.values()]
    for one in variants:
        one.warm_up()
    return tuple(points_of(calls, take_turns(variants, settings.repeats)))


def variant(call: Call, turn_s: float) -> Calls:
    """One point of a curve, as something that takes turns."""
    what, batch, side = call
    images = np.random.default_rng(side).integers(0, 256, (batch, side, side, 3), np.uint8)
    return Calls(what, batch, images, turn_s, NoMeter("not asked for"))


def points_of(calls: Mapping[int, Call], rounds: Sequence[list[Round]]) -> Iterator[Point]:
    """What the rounds say, in the order of the calls."""
    for place, turns in zip(calls, rounds, strict=True):
        yield Point(place, spread([1e3 / turn.frames_per_s for turn in turns]), sum(turn.frames for turn in turns))
