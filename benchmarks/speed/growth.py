"""How cost grows: with the batch, the cameras, the side of the image, the camera's picture and the memory's slots.

    nnet-edge bench growth BUNDLE --out runs/growth

A graph takes images of its bundle's size and nothing else: tail and threshold belong to it. What another side would cost is
measured on the bundle's own network traced at that side, without tail; nothing is said of its verdicts. Likewise the memory's
slots: the bundle's network with a memory of another size and random content. All points of a curve are measured in
every round. `schemas/growth.json` describes the JSON.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning, describe_machine, load_words, no_meter
from nnet_edge.benchmarks.harness.report import plain_fields, render
from nnet_edge.benchmarks.harness.rounds import Calls, Say, Spread, quiet, run_rounds, spread
from nnet_edge.benchmarks.line.line import CameraBench, Row
from nnet_edge.benchmarks.speed.plan import Opened, Plan, SpeedSettings
from nnet_edge.benchmarks.speed.systems import load_bare, open_graph, trace_bare
from nnet_edge.bundle import Bundle, now, read_bundle
from nnet_edge.errors import ConfigError
from nnet_edge.frame import Frame
from nnet_edge.geometry import Geometry
from nnet_edge.machine import usable_cores
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.runtime.stream.model import Model
from nnet_edge.settings.runner import CPU_RUNNER_KINDS, RunnerSettings, require_choice

if TYPE_CHECKING:
    from nnet_edge.methods.network import Network

SCHEMA = "nnet-edge growth 1"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CAMERAS = (1, 2, 4, 8)
SIDES = (256, 320, 384, 448, 512)
PICTURES = (256, 384, 512, 768, 1024)  # height and width of the camera's picture
SLOTS = (50, 100, 200, 500, 1000, 2000)
LINE_BATCH = 8
UNCERTAIN = "; the spread of its ends overlaps, so whether it grows at all was not seen"


@dataclass(frozen=True)
class GrowthSettings:
    """What is measured and how long. Raises ConfigError for an invalid setting."""

    curves: tuple[str, ...] = ("batch", "cameras", "side", "picture", "slots")
    system: str = "openvino"
    precision: str = "fp32"  # of the curves batch and cameras; side and slots are traced anew, in FP32
    repeats: int = 5
    turn_s: float = 0.5  # of a point in a round
    line_s: float = 3.0  # of a number of cameras in a round
    threads: int | None = None

    def __post_init__(self) -> None:
        for curve in self.curves:
            require_choice("curve", curve, tuple(QUANTITIES))
        require_choice("system", self.system, CPU_RUNNER_KINDS)
        self.at((1,))
        if not 0 < self.line_s <= 600:
            raise ConfigError(f"seconds of a line are {self.line_s}: above 0, at most 600")

    def at(self, batches: tuple[int, ...]) -> SpeedSettings:
        """The same for these batches, as `bench speed` takes it."""
        return SpeedSettings(
            (self.system,), (self.precision,), ("map",), batches, self.repeats, self.turn_s, self.threads
        )

    def open(self, bundle: Bundle, batches: tuple[int, ...], stack: ExitStack) -> Iterator[Opened]:
        """The bundle's graph of the precision, loaded for each of these batches until `stack` ends."""
        return open_graph(bundle, Plan(self.system, self.precision), self.at(batches), Path(), stack)


@dataclass(frozen=True)
class Point:
    """One measured place of a curve."""

    place: int  # batch, cameras, pixels or slots
    ms: Spread  # milliseconds an image
    images: int  # that were measured
    # of cameras only, medians of the rounds: of the bare runner's rate just before and after; capture to verdict of the
    # slowest camera
    share_of_bare: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True)
class Curve:
    """Milliseconds an image over one quantity."""

    name: str  # of QUANTITIES
    what: str  # what computes, for people
    axis: str
    points: tuple[Point, ...]

    @property
    def sentence(self) -> str:
        """What the curve says, in one measured sentence."""
        first, last = self.points[0], self.points[-1]
        ratio = last.ms.median / first.ms.median
        said = QUANTITIES[self.name].sentence.format(
            first=first, last=last, ratio=ratio, inverse=1 / ratio, rate=1e3 / last.ms.median,
            best=min(self.points, key=lambda point: point.ms.median), area=(last.place / first.place) ** 2,
            middle=next((point for point in self.points if point.place == 512), self.points[len(self.points) // 2]),
            power=exponent(self.points), a_hundred_ms=100 * slope(self.points),
        )  # fmt: skip
        overlaps = first.ms.smallest <= last.ms.largest and last.ms.smallest <= first.ms.largest
        is_known = first.ms.smallest < first.ms.largest  # of one round there is no spread
        return f"{said}{UNCERTAIN if is_known and overlaps else ''}."

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return plain_fields(self) | {"sentence": self.sentence}


def exponent(points: Sequence[Point]) -> float:
    """k of the power law ms = c * place ** k that fits the medians best (least squares of the logarithms)."""
    places, values = [point.place for point in points], [point.ms.median for point in points]
    return float(np.polyfit(np.log(places), np.log(values), 1)[0])


def slope(points: Sequence[Point]) -> float:
    """Milliseconds for one more of the axis: least squares of the medians."""
    return float(np.polyfit([point.place for point in points], [point.ms.median for point in points], 1)[0])


@dataclass(frozen=True)
class GrowthReport:
    """All curves, and what they were measured on."""

    command: str
    when: str
    machine: dict[str, str]
    bundle: str
    warnings: tuple[str, ...]
    curves: tuple[Curve, ...]

    @property
    def facts(self) -> dict[str, str]:
        """What the report begins with."""
        return {"command": f"`{self.command}`", "when": self.when, "bundle": self.bundle, **self.machine}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema": SCHEMA, **plain_fields(self)}

    def markdown(self) -> str:
        """The report as Markdown: a sentence and a table for each curve."""
        return render("speed/growth.md.j2", report=self)


def measure_growth(
    path: Path, settings: GrowthSettings, command: str = "measure_growth", say: Say = quiet
) -> GrowthReport:
    """Every curve of `settings` for the bundle at `path`. Raises BundleError, ConfigError, MissingExtraError."""
    bundle = read_bundle(path)
    busy = busy_percent()
    curves = []
    with tempfile.TemporaryDirectory(prefix="nnet-edge-growth-") as folder:
        for name in settings.curves:
            say(f"measuring {name}")
            quantity = QUANTITIES[name]
            what = quantity.what.format(system=settings.system, precision=settings.precision)
            curves.append(Curve(name, what, quantity.axis, quantity.measure(bundle, settings, Path(folder))))
            say(curves[-1].sentence)
    machine = describe_machine(settings.threads) | {"busy before": load_words(busy)}
    about = f"{bundle.name}, {bundle.manifest['backbone']}"
    return GrowthReport(command, now(), machine, about, (*bundle.warnings, *busy_warning(busy)), tuple(curves))


def grow_batch(bundle: Bundle, settings: GrowthSettings, folder: Path) -> tuple[Point, ...]:
    """Milliseconds of a call over its images: upload, network, map and score, one call after another."""
    with ExitStack() as stack:
        opened = settings.open(bundle, BATCHES, stack)
        return measure_points(
            {one.batch: (one.runner.infer, one.batch, bundle.geometry.size) for one in opened}, settings
        )


def grow_cameras(bundle: Bundle, settings: GrowthSettings, folder: Path) -> tuple[Point, ...]:
    """Milliseconds of a frame of a line, the inverse of what all cameras get together; they ask for more than there is."""
    with ExitStack() as stack:
        (opened,) = settings.open(bundle, (LINE_BATCH,), stack)
        bench = CameraBench(Model(bundle.name, None, opened.runner, opened.threshold), None, settings.line_s)
        found = run_rounds({number: partial(bench.measure, number) for number in CAMERAS}, settings.repeats)
    return tuple(map(line_point, found.values()))


def line_point(rows: Sequence[Row]) -> Point:
    """The rounds of a line with so many cameras: medians, and the range of its milliseconds a frame."""
    share = median(row.frames_per_s / row.bare_hz for row in rows)
    known_ms = [row.p99_ms for row in rows if row.p99_ms is not None]
    spread_ms = spread([1e3 / row.frames_per_s for row in rows])
    p99_ms = median(known_ms) if known_ms else None
    return Point(rows[0].cameras, spread_ms, sum(row.judged for row in rows), share, p99_ms)


def grow_side(bundle: Bundle, settings: GrowthSettings, folder: Path) -> tuple[Point, ...]:
    """Milliseconds of an image through the bare network traced at another side."""
    from nnet_edge.evaluation.artefact import load_network

    network = load_network(bundle)
    network.place_factors = None  # of the bundle's own size; a product that costs nothing
    return measure_traced(((side, network.at(Geometry(side, side))) for side in SIDES), settings, folder)


def grow_picture(bundle: Bundle, settings: GrowthSettings, folder: Path) -> tuple[Point, ...]:
    """Milliseconds of a camera's picture on its way to the graph: colour order and resize to the input, one thread."""

    def prepared(images: np.ndarray) -> np.ndarray:
        return preprocess([Frame(images[0], 0, 0.0)], bundle.geometry)

    return measure_points({side: (prepared, 1, (side, side)) for side in PICTURES}, settings)


def grow_slots(bundle: Bundle, settings: GrowthSettings, folder: Path) -> tuple[Point, ...]:
    """Milliseconds of an image through the bare network with a memory of another size, its content random."""
    from nnet_edge.evaluation.artefact import load_network

    network = load_network(bundle)
    if getattr(network, "memory", None) is None:
        raise ConfigError(f"{bundle.path} was trained without a memory: leave the curve slots out")
    return measure_traced(((slots, with_slots(network, slots)) for slots in SLOTS), settings, folder)


def with_slots(network: Network, slots: int) -> Network:
    """`network` itself, its memory replaced by a random one of so many slots."""
    from nnet_edge.methods.base import METHODS

    method, settings = METHODS.find(network.method), replace(network.settings, memory_slots=slots)
    network.memory = method.build(settings, network.teacher).memory
    return network


def measure_traced(
    networks: Iterable[tuple[int, Network]], settings: GrowthSettings, folder: Path
) -> tuple[Point, ...]:
    """A point for each (place, network), its graph traced without tail before the next network is asked for."""
    chosen = RunnerSettings(settings.system, "fp32", settings.threads or usable_cores(), "latency", max_batch=1)
    with ExitStack() as stack:
        calls: dict[int, Call] = {}
        for place, network in networks:
            graph = trace_bare(network, folder / f"traced-{network.geometry.text}-{place}.onnx")
            calls[place] = stack.enter_context(load_bare(graph, chosen)).infer_layer_maps, 1, network.geometry.size
        return measure_points(calls, settings)


Call = tuple[Callable[[np.ndarray], object], int, tuple[int, int]]  # what is called, images of a call, their size


def measure_points(calls: Mapping[int, Call], settings: GrowthSettings) -> tuple[Point, ...]:
    """A point for each call: milliseconds an image, median and range over the rounds."""
    candidates = {}
    for place, (what, batch, size) in calls.items():
        images = np.random.default_rng(size[0]).integers(0, 256, (batch, *size, 3), np.uint8)
        candidates[place] = Calls(what, batch, images, settings.turn_s, no_meter("not asked for"))
        candidates[place].warm_up()
    found = run_rounds({place: one.measure for place, one in candidates.items()}, settings.repeats)
    return tuple(
        Point(place, spread([1e3 / one.frames_per_s for one in each]), sum(one.frames for one in each))
        for place, each in found.items()
    )


class Quantity(NamedTuple):
    """What cost is measured over: `what` computes, and the sentence that is said of the points; both are for str.format."""

    axis: str
    what: str
    measure: Callable[[Bundle, GrowthSettings, Path], tuple[Point, ...]]
    sentence: str


QUANTITIES = {
    "batch": Quantity(
        "images in a call", "{system} {precision}, map and score; hint latency for 1, throughput for more", grow_batch,
        "An image costs {first.ms.median:.2f} ms alone and {last.ms.median:.2f} ms in a batch of {last.place}, {ratio:.2f} "
        "times as much; least in a batch of {best.place} ({best.ms.median:.2f} ms)",
    ),
    "cameras": Quantity(
        "cameras", "{system} {precision}, a line of 640x480", grow_cameras,
        "{last.place} cameras get {rate:.1f} frames a second together, {inverse:.2f} times what one gets, "
        "{last.share_of_bare:.0%} of the bare runner; the slowest camera's p99 from capture to verdict goes from "
        "{first.p99_ms:.0f} to {last.p99_ms:.0f} ms",
    ),
    "side": Quantity(
        "image side, pixels", "{system} fp32, the bare network", grow_side,
        "The bare network costs {first.ms.median:.2f} ms at {first.place}x{first.place} and {last.ms.median:.2f} ms at "
        "{last.place}x{last.place}, {ratio:.2f} times as much for {area:g} times the pixels (power {power:.2f} of the side)",
    ),
    "picture": Quantity(
        "side of the camera's picture, pixels", "colour order and resize to the input", grow_picture,
        "A camera's picture costs {first.ms.median:.2f} ms before the network at {first.place}x{first.place}, "
        "{middle.ms.median:.2f} ms at {middle.place}x{middle.place} and {last.ms.median:.2f} ms at {last.place}x{last.place}",
    ),
    "slots": Quantity(
        "slots of the memory", "{system} fp32, the bare network", grow_slots,
        "The bare network costs {first.ms.median:.2f} ms with {first.place} slots and {last.ms.median:.2f} ms with "
        "{last.place}, {ratio:.2f} times as much, {a_hundred_ms:.3f} ms for a hundred slots",
    ),
}  # fmt: skip
