"""How cost grows: with the batch, the cameras, the side of the image, the camera's picture and the memory's slots.

    nnet-edge bench growth BUNDLE --out runs/growth

The graph takes 256x256 and nothing else: the resize, the tail and the threshold belong to that side. What another side would
cost is measured on the bundle's own network traced at that side, without tail; nothing is said of its verdicts. Likewise the
memory's slots: the bundle's network with a memory of another size and random content. All points of a curve are measured in
every round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.benchmarks.harness.bare_graph import load_bare, trace_bare
from nnet_edge.benchmarks.harness.energy import NoMeter
from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning, describe_machine, load_words
from nnet_edge.benchmarks.harness.rounds import Calls, Say, quiet, run_rounds, spread
from nnet_edge.benchmarks.line.line import CameraBench, Row
from nnet_edge.benchmarks.speed.growth_report import Curve, GrowthReport, Point
from nnet_edge.bundle import Bundle, now, read_bundle
from nnet_edge.errors import ConfigError
from nnet_edge.frame import Frame
from nnet_edge.imaging import SIDE
from nnet_edge.runtime.runners.base import Runner, load_runner
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


@dataclass(frozen=True)
class GrowthSettings:
    """What is measured and how long. Raises ConfigError for an invalid setting."""

    curves: tuple[str, ...] = CURVES
    system: str = "openvino"
    precision: str = "fp32"  # of the curves batch and cameras; side and slots are traced anew, in FP32
    repeats: int = 5
    turn_s: float = 0.5  # of a point in a round
    line_s: float = 3.0  # of a number of cameras in a round
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

    def runner(self, hint: str, max_batch: int, precision: str) -> RunnerSettings:
        """The runner of a curve."""
        arithmetic = "bf16" if precision == "bf16" else "fp32"
        return RunnerSettings(self.system, arithmetic, self.threads or cores(), hint, max_batch=max_batch)

    def open(self, bundle: Bundle, hint: str, max_batch: int) -> Runner:
        """The bundle's graph of the precision, loaded."""
        chosen = self.runner(hint, max_batch, self.precision)
        return load_runner(choose_artefact(bundle, chosen, self.precision).path, chosen)


def measure_growth(
    path: Path, settings: GrowthSettings, command: str = "measure_growth", say: Say = quiet
) -> GrowthReport:
    """Every curve of `settings` for the bundle at `path`. Raises BundleError, ConfigError, MissingExtraError."""
    bundle = read_bundle(path)
    busy = busy_percent()
    measures: Mapping[str, tuple[Callable[[Bundle, GrowthSettings, Path], Curve], Sequence[int]]] = {
        "batch": (grow_batch, BATCHES), "cameras": (grow_cameras, CAMERAS), "side": (grow_side, SIDES),
        "picture": (grow_picture, PICTURES), "slots": (grow_slots, SLOTS),
    }  # fmt: skip
    curves = []
    with tempfile.TemporaryDirectory(prefix="nnet-edge-growth-") as folder:
        for name in settings.curves:
            grow, places = measures[name]
            say(f"{name}: {', '.join(map(str, places))}")
            curves.append(grow(bundle, settings, Path(folder)))
            say(curves[-1].sentence)
    machine = describe_machine(settings.threads) | {"busy before": load_words(busy)}
    about = f"{bundle.name}, {bundle.manifest['backbone']}"
    return GrowthReport(command, now(), machine, about, (*bundle.warnings, *busy_warning(busy)), tuple(curves))


def grow_batch(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of a call over its images: upload, network, map and score, one call after another."""
    with ExitStack() as stack:  # one image alone as who has one would ask for it
        alone = stack.enter_context(settings.open(bundle, "latency", 1))
        together = stack.enter_context(settings.open(bundle, "throughput", max(BATCHES)))
        calls = {batch: ((alone if batch == 1 else together).infer, batch, SIDE) for batch in BATCHES}
        points = measure_points(calls, settings)
    what = f"{settings.system} {settings.precision}, map and score; hint latency for 1, throughput for more"
    return Curve("batch", what, "images in a call", points)


def grow_cameras(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of a frame of a line, the inverse of what all cameras get together; they ask for more than there is."""
    with settings.open(bundle, "throughput", LINE_BATCH) as runner:
        bench = CameraBench(Model(bundle.name, None, runner, bundle.threshold.value), None, settings.line_s)
        found = run_rounds({number: partial(bench.measure, number) for number in CAMERAS}, settings.repeats)
    points = tuple(line_point(rows) for rows in found.values())
    return Curve("cameras", f"{settings.system} {settings.precision}, a line of 640x480", "cameras", points)


def line_point(rows: Sequence[Row]) -> Point:
    """The rounds of a line with so many cameras: medians, and the range of its milliseconds a frame."""
    share = median(row.frames_per_s / row.bare_hz for row in rows)
    known_ms = [row.p99_ms for row in rows if row.p99_ms is not None]
    spread_ms = spread([1e3 / row.frames_per_s for row in rows])
    p99_ms = median(known_ms) if known_ms else None
    return Point(rows[0].cameras, spread_ms, sum(row.judged for row in rows), share, p99_ms)


def grow_side(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of an image through the bare network traced at another side."""
    from nnet_edge.evaluation.artefact import load_network

    network = load_network(bundle)
    points = measure_traced(((side, network, side) for side in SIDES), settings, folder)
    return Curve("side", f"{settings.system} fp32, the bare network", "image side, pixels", points)


def grow_picture(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of a camera's picture on its way to the graph: colour order and resize to 256x256, one thread."""

    def prepared(images: np.ndarray) -> np.ndarray:
        return preprocess([Frame(images[0], 0, 0.0)])

    points = measure_points({side: (prepared, 1, side) for side in PICTURES}, settings)
    return Curve("picture", "colour order and resize to 256x256", "side of the camera's picture, pixels", points)


def grow_slots(bundle: Bundle, settings: GrowthSettings, folder: Path) -> Curve:
    """Milliseconds of an image through the bare network with a memory of another size, its content random."""
    from nnet_edge.evaluation.artefact import load_network

    network = load_network(bundle)
    if network.memory is None:
        raise ConfigError(f"{bundle.path} was trained without a memory: leave the curve slots out")
    points = measure_traced(((slots, with_slots(network, slots), SIDE) for slots in SLOTS), settings, folder)
    return Curve("slots", f"{settings.system} fp32, the bare network", "slots of the memory", points)


def with_slots(network: NNet, slots: int) -> NNet:
    """`network` itself, its memory replaced by a random one of so many slots."""
    from nnet_edge.methods.nnet.network import build_memory

    network.memory = build_memory(replace(network.settings, memory_slots=slots), network.backbone)
    return network


def measure_traced(
    networks: Iterable[tuple[int, NNet, int]], settings: GrowthSettings, folder: Path
) -> tuple[Point, ...]:
    """A point for each (place, network, side), its graph traced without tail before the next network is asked for."""
    chosen = settings.runner("latency", 1, "fp32")
    with ExitStack() as stack:
        calls: dict[int, Call] = {}
        for place, network, side in networks:
            graph = trace_bare(network, side, folder / f"traced-{side}-{place}.onnx")
            calls[place] = stack.enter_context(load_bare(graph, chosen, side)).infer_layer_maps, 1, side
        return measure_points(calls, settings)


Call = tuple[Callable[[np.ndarray], object], int, int]  # what is called, images of a call, their side


def measure_points(calls: Mapping[int, Call], settings: GrowthSettings) -> tuple[Point, ...]:
    """A point for each call: milliseconds an image, median and range over the rounds."""
    candidates = {}
    for place, (what, batch, side) in calls.items():
        images = np.random.default_rng(side).integers(0, 256, (batch, side, side, 3), np.uint8)
        candidates[place] = Calls(what, batch, images, settings.turn_s, NoMeter("not asked for"))
        candidates[place].warm_up()
    found = run_rounds({place: one.measure for place, one in candidates.items()}, settings.repeats)
    return tuple(
        Point(place, spread([1e3 / one.frames_per_s for one in each]), sum(one.frames for one in each))
        for place, each in found.items()
    )
