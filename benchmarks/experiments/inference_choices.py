"""What OpenVINO's settings, precisions and batches bring on this processor, as ratios of one run.

Everything that is compared is loaded at once and measured in every round, after a call that is not counted. A ratio is the
median over the rounds of one way's time over the baseline's: by the clock, and in processor time of all threads, which other
programs disturb least. The second table says what the nodes cost, by OpenVINO's own clock.

    python -m nnet_edge.benchmarks.inference_choices BUNDLE --threads 1
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say, say_if_busy
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.benchmarks.harness.rounds import compare
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.calibration.probe import map_error
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.runners.graph import INPUT, TAIL
from nnet_edge.runtime.runners.openvino_runner import compile_for
from nnet_edge.settings.runner import RunnerSettings

BATCHES = (4, 8, 16)
COUNTED = 4  # images of a round at least
NODE_ROUNDS, NODE_ROWS = 20, 12
FRAMES = 24  # of the held-out ones, for map error and verdicts
BASELINE = "hint latency, 1 stream"
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


@dataclass(frozen=True)
class NodeCost:
    """All nodes of a kind that the same kernel computes."""

    kind: str  # as OpenVINO calls it: Convolution, Subgraph (fused element-wise nodes), Reorder, ...
    kernel: str  # "brgconv_avx512_amx_i8"; "ref" in it is a kernel that nobody made fast
    nodes: int
    milliseconds: float  # the smallest of every node, added
    share: float  # of all nodes


def measure_nodes(graph: Path, settings: RunnerSettings, images: np.ndarray, rounds: int) -> list[NodeCost]:
    """The kinds of nodes, most expensive first; of each node the smallest of `rounds`, which other programs disturb least.

    `images` are uint8 RGB (N, 256, 256, 3), computed one at a time in turn.
    """
    request = compile_for(graph, settings, 1, {"PERF_COUNT": True}).create_infer_request()
    smallest: dict[tuple[str, str, str], float] = {}  # (kind, kernel, node) -> milliseconds
    for number in range(rounds):
        request.infer({INPUT: images[number % len(images)][np.newaxis]})
        for node in request.get_profiling_info():
            milliseconds, name = 1e3 * node.real_time.total_seconds(), (node.node_type, node.exec_type, node.node_name)
            if milliseconds > 0:
                smallest[name] = min(smallest.get(name, np.inf), milliseconds)
    groups: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for (kind, kernel, _), milliseconds in smallest.items():
        groups[kind, kernel].append(milliseconds)
    total = sum(smallest.values())
    costs = [NodeCost(*kind, len(each), sum(each), sum(each) / total) for kind, each in groups.items()]
    return sorted(costs, key=lambda cost: -cost.milliseconds)


@dataclass(frozen=True)
class Question:
    """Ways to compute the same images, of which the first is the baseline."""

    what: str
    images: int  # of a call
    ways: Mapping[str, Compute]


@dataclass(frozen=True)
class Row:
    """An answer."""

    what: str
    choice: str
    beside: str
    clock: float  # ratio
    processor: float  # ratio
    quality: str = "-"

    def cells(self) -> list[str]:
        """As the table has it."""
        return [self.what, self.choice, self.beside, f"{self.clock:.2f}", f"{self.processor:.2f}", self.quality]


def ask(question: Question, images: np.ndarray, rounds: int) -> list[Row]:
    """A row for every way but the baseline."""
    taken = np.take(images, range(question.images), axis=0, mode="wrap")
    calls = -(-COUNTED // len(taken))
    found = compare({name: partial(way, taken) for name, way in question.ways.items()}, rounds, calls, uncounted=1)
    baseline, *_ = found
    return [Row(question.what, name, baseline, one.clock_ratio.median, one.processor_ratio.median)
            for name, one in found.items() if name != baseline]  # fmt: skip


def questions(graph: Path, word: str, threads: int, more: Mapping[str, Compute]) -> Iterator[Question]:
    """What is asked of a graph; `word` names it, `more` joins the ways that compute one image."""
    latency = RunnerSettings("openvino", threads=threads)
    throughput = replace(latency, hint="throughput")
    ways: dict[str, Compute] = {BASELINE: Way(graph, latency), "hint throughput": Way(graph, throughput)}
    if threads > 1:
        ways["2 streams"] = Way(graph, throughput, more={"NUM_STREAMS": 2})
    alone: dict[str, Compute] = {"a graph for any batch": Way(graph, latency, None), **more}
    yield Question(f"{word}, one image", 1, {**ways, **alone})
    for batch in BATCHES:
        together: dict[str, Compute] = {f"one request of {batch}": Way(graph, latency, batch)}
        beside: dict[str, Compute] = ways if batch == 8 else {BASELINE: ways[BASELINE]}
        yield Question(f"{word}, {batch} images, a request each", batch, beside | together)


def answer(bundle: Bundle, threads: int, rounds: int) -> list[Row]:
    """Every row for the FP32 graph of `bundle`, and for the INT8 graph where it holds one that OpenVINO may run."""
    frames, plain = bundle.frames("held_out")[:FRAMES], RunnerSettings("openvino", threads=threads)
    expected, scores = Way(bundle.graph, plain).outputs(frames)
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

    for word, (graph, threshold) in graphs.items():
        more: dict[str, Way] = {}
        try:
            bf16 = "BF16 for what is not INT8" if word == "INT8" else "BF16"
            more[bf16] = Way(graph, replace(plain, precision="bf16"))
        except ConfigError as error:
            say(f"left out: {error}")
        if word == "FP32" and "INT8" in graphs:
            more["INT8"] = Way(graphs["INT8"][0], plain)
        quality = {choice: judged(way, graphs["INT8"][1] if choice == "INT8" else threshold)
                   for choice, way in more.items()}  # fmt: skip
        for question in questions(graph, word, threads, more):
            say(f"asking: {question.what}")
            rows += [replace(row, quality=quality.get(row.choice, "-")) for row in ask(question, frames, rounds)]
    return rows


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--rounds", type=int, default=9, show_default=True, help="Every way is measured in each.")
def command(bundle: Path, threads: int, rounds: int) -> None:
    """Compare ways to compute BUNDLE's graphs on OpenVINO."""
    if threads < 1 or rounds < 1:
        raise ConfigError(f"{threads} threads and {rounds} rounds measure nothing: give at least 1 of each")
    opened = read_bundle(bundle)
    for warning in opened.warnings:
        say(warning)
    say_if_busy()
    rows = answer(opened, threads, rounds)
    settings, frames = RunnerSettings("openvino", threads=threads), opened.frames("held_out")[:FRAMES]
    nodes = []
    for item in (item for item in opened.artefacts if item.kind == "graph" and item.precision in ("fp32", "int8")):
        for cost in islice(measure_nodes(item.path, settings, frames, NODE_ROUNDS), NODE_ROWS):
            nodes.append([item.precision.upper(), cost.kind, cost.kernel, cost.nodes, f"{cost.milliseconds:.2f}",
                          f"{cost.share:.1%}"])  # fmt: skip
    click.echo(f"{command_text('nnet_edge.benchmarks.inference_choices')}\n")
    quality = "map error in thresholds, verdicts flipped"
    heads = ["graph, images", "choice", "beside", "time", "processor time", quality]
    click.echo(table_text(heads, [row.cells() for row in rows]))
    click.echo("\n" + table_text(["graph", "nodes", "kernel", "number", "ms", "share"], nodes))


if __name__ == "__main__":
    sys.exit(run_command(command))
