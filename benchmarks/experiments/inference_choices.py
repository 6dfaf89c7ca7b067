"""What OpenVINO's settings, precisions, batches and a graph cut in three bring on this processor, as ratios of one run.

Everything that is compared is loaded at once and takes turns in every round, the first call of a turn uncounted. A ratio is
the median over the rounds of one side's time over the other's in the same round: by the clock, and in processor time of all
threads, which other programs disturb least. The second table says what the nodes cost.

    python -m nnet_edge.benchmarks.inference_choices BUNDLE --threads 1
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from nnet_edge.benchmarks.experiments.node_costs import NodeCost, measure_nodes
from nnet_edge.benchmarks.experiments.renewed_graph import renew
from nnet_edge.benchmarks.experiments.split_graph import cut_in_three
from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning
from nnet_edge.benchmarks.speed.report import table_of
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.calibration.probe import map_error
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.runners.graph import INPUT, TAIL
from nnet_edge.runtime.runners.openvino_runner import compile_for
from nnet_edge.settings.runner import RunnerSettings

BATCHES = (4, 8, 16)
COUNTED = 4  # images of a turn at least
NODE_ROUNDS, NODE_ROWS = 20, 12
FRAMES = 24  # of the held-out ones, for map error and verdicts
Compute = Callable[[np.ndarray], object]


class Way:
    """A graph compiled in one way. Calling it computes uint8 RGB (N, 256, 256, 3), all requests under way at once."""

    def __init__(
        self, graph: Path, settings: RunnerSettings, batch: int | None = 1, more: Mapping[str, Any] | None = None
    ) -> None:
        self._compiled = compile_for(graph, settings, batch, more)
        self._step = batch or 1
        self._requests = [self._compiled.create_infer_request()]

    def __call__(self, images: np.ndarray) -> None:
        starts = range(0, len(images), self._step)
        while len(self._requests) < len(starts):
            self._requests.append(self._compiled.create_infer_request())
        busy = self._requests[: len(starts)]
        for request, start in zip(busy, starts, strict=True):
            request.start_async({INPUT: images[start : start + self._step]}, share_inputs=True)
        for request in busy:
            request.wait()

    def outputs(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps, float32 (N, 256, 256), and scores, float32 (N,), one image at a time."""
        maps, scores = [], []
        for image in images:
            self(image[np.newaxis])
            anomaly_map, score = (self._requests[0].get_tensor(name).data for name in TAIL)
            maps.append(anomaly_map[0, 0].copy())
            scores.append(float(score[0]))
        return np.stack(maps), np.array(scores, np.float32)


class Chain:
    """A graph cut in three, computed one after another; calling it computes uint8 RGB (1, 256, 256, 3)."""

    def __init__(self, graph: Path, settings: RunnerSettings, folder: Path) -> None:
        self._parts = [(part, compile_for(part.path, settings, 1).create_infer_request())
                       for part in cut_in_three(graph, folder)]  # fmt: skip

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        known = {INPUT: images}
        for part, request in self._parts:
            request.infer({name: known[name] for name in part.inputs}, share_inputs=True, share_outputs=True)
            known |= {name: request.get_tensor(name).data for name in part.outputs}
        return known


@dataclass(frozen=True)
class Question:
    """Ways to compute the same images, of which the first is what the others are compared with."""

    what: str
    images: int  # of a call
    sides: Mapping[str, Compute]


@dataclass(frozen=True)
class Row:
    """An answer."""

    what: str
    choice: str
    beside: str
    clock: float  # ratio
    processor: float  # ratio
    quality: str = ""


def ask(question: Question, images: np.ndarray, rounds: int) -> list[Row]:
    """A row for every side but the first."""
    taken = np.take(images, range(question.images), axis=0, mode="wrap")
    sides = list(question.sides.items())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in sides}
    for number in range(rounds):
        for place in range(len(sides)):
            name, compute = sides[(number + place) % len(sides)]
            found[name].append(turn(compute, taken))
    (base, _), *others = sides
    rows = []
    for name, _ in others:
        ratios = [(one[0] / two[0], one[1] / two[1]) for one, two in zip(found[name], found[base], strict=True)]
        clock, processor = (statistics.median(values) for values in zip(*ratios, strict=True))
        rows.append(Row(question.what, name, base, clock, processor))
    return rows


def turn(compute: Compute, images: np.ndarray) -> tuple[float, float]:
    """Seconds of an image by the clock and of the processor."""
    compute(images)
    calls = -(-COUNTED // len(images))
    clock_s, processor_s = time.perf_counter(), time.process_time()
    for _ in range(calls):
        compute(images)
    count = calls * len(images)
    return (time.perf_counter() - clock_s) / count, (time.process_time() - processor_s) / count


def questions(graph: Path, word: str, threads: int, folder: Path, more: Mapping[str, Compute]) -> Iterator[Question]:
    """What is asked of a graph; `word` names it, `more` joins the sides that compute one image."""
    latency = RunnerSettings("openvino", threads=threads)
    throughput = RunnerSettings("openvino", threads=threads, hint="throughput")
    base = Way(graph, latency)
    sides: dict[str, Compute] = {"hint latency, 1 stream": base, "hint throughput": Way(graph, throughput)}
    if threads > 1:
        sides["2 streams"] = Way(graph, throughput, more={"NUM_STREAMS": 2})
    alone: dict[str, Compute] = {"a graph for any batch": Way(graph, latency, None),
                                 "three graphs": Chain(graph, latency, folder), **more}  # fmt: skip
    yield Question(f"{word}, one image", 1, {**sides, **alone})
    for batch in BATCHES:
        together: dict[str, Compute] = {f"one request of {batch}": Way(graph, latency, batch)}
        beside: dict[str, Compute] = sides if batch == 8 else {"hint latency, 1 stream": base}
        yield Question(f"{word}, {batch} images, a request each", batch, beside | together)


def answer(bundle: Bundle, threads: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Every row for the FP32 graph of `bundle`, and for the INT8 graph where it holds one that OpenVINO may run."""
    frames = bundle.frames("held_out")[:FRAMES]
    plain = RunnerSettings("openvino", threads=threads)
    half = RunnerSettings("openvino", "bf16", threads)
    fp32 = Way(bundle.graph, plain)
    expected, scores = fp32.outputs(frames)
    graphs = {"FP32": (bundle.graph, bundle.threshold.value)}
    if any((item.kind, item.precision) == ("graph", "int8") for item in bundle.artefacts):
        artefact = bundle.artefact("int8")
        graphs["INT8"] = artefact.path, artefact.threshold_for("openvino").value
    else:
        say(f"{bundle.path} holds no INT8 graph: its rows are left out")
    rows: list[Row] = []

    def judged(way: Way, threshold: float) -> str:
        maps, found = way.outputs(frames)
        error = map_error({"anomaly_map": maps}, {"anomaly_map": expected}, bundle.threshold.value)
        flips = int(((found > threshold) != (scores > bundle.threshold.value)).sum())
        return f"{error:.2%}, {flips} of {len(frames)}"

    with tempfile.TemporaryDirectory(prefix="nnet-edge-choices-") as name:
        for word, (graph, threshold) in graphs.items():
            more: dict[str, Way] = {}
            try:
                more["BF16 for what is not INT8" if word == "INT8" else "BF16"] = Way(graph, half)
            except ConfigError as error:
                say(f"left out: {error}")
            if word == "FP32" and "INT8" in graphs:
                more["INT8"] = Way(graphs["INT8"][0], plain)
            renewed = renew(bundle, word.lower(), Path(name), threads)
            if renewed is not None:
                more["exported and calibrated again"] = Way(renewed, plain)
            quality = {choice: judged(way, graphs["INT8"][1] if choice == "INT8" else threshold)
                       for choice, way in more.items()}  # fmt: skip
            for question in questions(graph, word, threads, Path(name), more):
                say(f"asking: {question.what}")
                rows += [Row(row.what, row.choice, row.beside, row.clock, row.processor, quality.get(row.choice, ""))
                         for row in ask(question, frames, rounds)]  # fmt: skip
    return rows


def markdown(rows: Sequence[Row], costs: Mapping[str, Sequence[NodeCost]]) -> str:
    """Both tables."""
    cells = [[row.what, row.choice, row.beside, f"{row.clock:.2f}", f"{row.processor:.2f}", row.quality or "-"]
             for row in rows]  # fmt: skip
    lines = table_of(
        ["graph, images", "choice", "beside", "time", "processor time", "map error in thresholds, verdicts flipped"],
        cells,
    )
    nodes = [[word, cost.kind, cost.kernel, str(cost.nodes), f"{cost.milliseconds:.2f}", f"{cost.share:.1%}"]
             for word, each in costs.items() for cost in islice(each, NODE_ROWS)]  # fmt: skip
    return "\n".join([*lines, "", *table_of(["graph", "nodes", "kernel", "number", "ms", "share"], nodes)])


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--rounds", type=int, default=9, show_default=True, help="In each, every side has a turn.")
def command(bundle: Path, threads: int, rounds: int) -> None:
    """Compare ways to compute BUNDLE's graphs on OpenVINO."""
    if threads < 1 or rounds < 1:
        raise ConfigError(f"{threads} threads and {rounds} rounds measure nothing: give at least 1 of each")
    opened = read_bundle(bundle)
    for warning in (*opened.warnings, *busy_warning(busy_percent())):
        click.echo(warning, err=True)
    rows = answer(opened, threads, rounds, lambda line: click.echo(line, err=True))
    settings = RunnerSettings("openvino", threads=threads)
    frames = opened.frames("held_out")[:FRAMES]
    graphs = [item for item in opened.artefacts if item.kind == "graph" and item.precision in ("fp32", "int8")]
    costs = {item.precision.upper(): measure_nodes(item.path, settings, frames, NODE_ROUNDS) for item in graphs}
    click.echo(f"{command_text('nnet_edge.benchmarks.inference_choices')}\n\n{markdown(rows, costs)}")


if __name__ == "__main__":
    sys.exit(run_command(command))
