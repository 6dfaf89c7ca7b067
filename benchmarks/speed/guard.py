"""Fails when something became slower: ratios of one run against a baseline with its noise, in at most two minutes.

    nnet-edge bench guard            # judge this checkout; exit code 1 when a ratio is worse
    nnet-edge bench guard --write    # measure the baseline of this processor again, on a quiet machine

A ratio is the median over rounds in which both sides are measured; one above its limit, baseline * (1 + noise), is measured
again, up to ATTEMPTS times, and its best counts: what is busy now and then makes a ratio worse and never better. The noise
is at most LARGEST_NOISE, so that 1.5 times slower cannot hide in it. A ratio to a matrix product belongs to a processor and
its number of cores: on one without a baseline the limits of the first are widened by ELSEWHERE, and the report says so. What
the stream adds to its runner is the same everywhere, and so is its limit.

Everything computes on one thread. What is compared with the product is timed in processor seconds, which other programs do not
lengthen: a runner that hands over to its thread waits long on a busy machine, up to three times as seen. The stream is timed
by the clock, beside the runner by the clock, so that a lock or a sink that makes it wait counts. Its pictures are a camera's,
640x480 in JPEG, so that decoding and resizing are in it.
"""

from __future__ import annotations

import itertools
import json
import math
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from nnet_edge.benchmarks.harness.machine import busy_percent, known_versions, torch_threads
from nnet_edge.benchmarks.harness.random_bundle import real_pictures
from nnet_edge.benchmarks.harness.report import table_text, write_json
from nnet_edge.benchmarks.harness.rounds import Say, between, quiet, ratios, run_rounds, took
from nnet_edge.benchmarks.harness.streams import (
    ABOVE_ALL,
    HEIGHT,
    WIDTH,
    add_camera,
    file_source,
    judge_all,
    log_of,
    noisy_camera,
    running,
)
from nnet_edge.bundle import now
from nnet_edge.errors import ConfigError, NnetEdgeError
from nnet_edge.machine import find_processor, usable_cores
from nnet_edge.runtime.runners.base import Runner, load_runner
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.settings.runner import RunnerSettings

if TYPE_CHECKING:
    from nnet_edge.methods.base import MethodSettings

SCHEMA = "nnet-edge guard 1"
BASELINES = Path(__file__).parents[1] / "guard.json"
ATTEMPTS = 3
BUDGET_S = 80.0  # after which no further attempt begins
ENOUGH_S = 100.0  # after which a ratio is the median of the rounds that it has
CAP_S = 120.0  # after which the guard fails: something hangs
BASELINE_ATTEMPTS = 7  # that a baseline is the median of
SMALLEST_NOISE, LARGEST_NOISE = 0.20, 0.35
SPREADS = 1.5  # the noise in widths of what was seen above the median
ELSEWHERE = 2.0
CHILD_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Limit:
    """What a ratio was when the baseline was measured, and how much more is noise."""

    baseline: float
    noise: float  # share of the baseline
    measured: tuple[float, ...] = ()  # the attempts that both come from

    def __post_init__(self) -> None:
        if not (self.baseline > 0 and 0 < self.noise <= LARGEST_NOISE):
            raise ConfigError(
                f"a guard of baseline {self.baseline} and noise {self.noise}: the baseline must be above 0, the noise at most "
                f"{LARGEST_NOISE}, or 1.5 times slower would pass"
            )

    @property
    def largest(self) -> float:
        """The largest ratio that is not worse."""
        return self.baseline * (1 + self.noise)


@dataclass(frozen=True)
class Verdict:
    """A ratio that was measured, its attempts in order, and its limit."""

    name: str
    attempts: tuple[float, ...]
    limit: Limit
    widened: float  # 1, or ELSEWHERE

    @property
    def best(self) -> float:
        """The smallest attempt."""
        return min(self.attempts)

    @property
    def is_worse(self) -> bool:
        """Whether every attempt lies above the limit."""
        return self.best > self.limit.largest * self.widened


def guard(file: Path = BASELINES, say: Say = quiet) -> list[Verdict]:
    """The verdict on every guarded ratio. Raises ConfigError for a file of baselines that cannot be read."""
    limits, widened = limits_here(read_baselines(file), processor_here(), usable_cores())
    if widened > 1:
        say(
            f"no baseline for this processor ({processor_here()}, {usable_cores()} cores): ratios to the matrix product "
            f"get the limits of another, {widened:g} times as wide"
        )
    ends_s = time.monotonic() + ENOUGH_S
    with capped(CAP_S), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-guard-")))
        return judge(open_ratios(folder, stack), limits, widened, say, ends_s)


@contextmanager
def capped(seconds: float) -> Iterator[None]:
    """Raises NnetEdgeError when the block takes longer; for the main thread."""

    class TimeIsUp(BaseException):  # not an Exception: torch's exporter takes those for its own
        pass

    def give_up(number: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeIsUp:
        raise NnetEdgeError(
            f"the guard is not done after {seconds:g} s: something hangs, or this machine is far too busy to measure on"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(
    guarded: Sequence[Ratio], limits: Mapping[str, Limit], widened: float = 1.0, say: Say = quiet,
    enough_s: float = math.inf,
) -> list[Verdict]:  # fmt: skip
    """Each ratio against its limit, worse ones measured again; from time.monotonic() `enough_s` on a round each is enough.

    Limits of ratios that belong to a processor are `widened`. Raises ConfigError when a ratio has no limit.
    """
    if missing := [ratio.name for ratio in guarded if ratio.name not in limits]:
        raise ConfigError(f"no baseline for {', '.join(missing)}: measure it with nnet-edge bench guard --write")
    ends_s = time.monotonic() + BUDGET_S
    verdicts = [
        Verdict(ratio.name, (measure(ratio, enough_s),), limits[ratio.name], widened if ratio.is_of_processor else 1.0)
        for ratio in guarded
    ]
    for _ in range(ATTEMPTS - 1):
        for place, (ratio, verdict) in enumerate(zip(guarded, verdicts, strict=True)):
            if verdict.is_worse and time.monotonic() < ends_s:
                say(
                    f"{verdict.name} is {verdict.best:.2f}, above {verdict.limit.largest * verdict.widened:.2f}: "
                    "measuring again"
                )
                verdicts[place] = replace(verdict, attempts=(*verdict.attempts, measure(ratio, enough_s)))
    return verdicts


def measure(ratio: Ratio, enough_s: float = math.inf) -> float:
    """The median over the rounds, one at least by `enough_s`; in each, the reference is measured before and after."""
    return ratios(*between(ratio.of, ratio.to, ratio.rounds, enough_s)).median


def limit_of(name: str, values: Sequence[float]) -> Limit:
    """Median and noise of the attempts. Raises ConfigError when they lie so far apart that nothing is guarded."""
    middle = median(values)
    noise = SPREADS * (max(values) / middle - 1)
    if noise > LARGEST_NOISE:
        raise ConfigError(
            f"{name} lies between {min(values):.2f} and {max(values):.2f}, too far apart to guard anything: measure the "
            "baseline on a machine that does nothing else"
        )
    return Limit(middle, max(noise, SMALLEST_NOISE), tuple(values))


def write_baseline(
    file: Path = BASELINES, command: str = "write_baseline", say: Say = quiet, only: Sequence[str] = ()
) -> None:
    """Measure this processor's baseline and put it into `file`, in place of its old one; others stay.

    With `only`, ratios of such names are measured, and the others stay as they were.
    """
    entries = read_baselines(file) if file.exists() else []
    busy = busy_percent()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-guard-")))
        chosen = [one for one in open_ratios(folder, stack) if not only or one.name in only]
        measures = {one.name: partial(measure, one) for one in chosen}
        found = run_rounds(measures, BASELINE_ATTEMPTS, say)
    limits = {name: limit_of(name, values) for name, values in found.items()}
    here, count = processor_here(), usable_cores()
    moment: dict[str, Any] = {"command": command, "when": now(), "busy_percent_before": busy}
    ratios = {name: asdict(limit) for name, limit in limits.items()}
    before = next((one for one in entries if is_of(one, here, count)), None)
    if only and before is not None:
        later = before.get("later", {}) | dict.fromkeys(ratios, moment)
        entry = before | {"ratios": before["ratios"] | ratios, "later": later}
    else:
        entry = {"processor": here, "cores": count, **moment, "versions": known_versions(), "ratios": ratios}
    write_json(file, {"schema": SCHEMA, "baselines": [entry, *(one for one in entries if not is_of(one, here, count))]})


def read_baselines(file: Path) -> list[dict[str, Any]]:
    """The baselines in `file`. Raises ConfigError when it is absent or says something else."""
    again = "measure them with nnet-edge bench guard --write"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ConfigError(f"{file} has the schema {content['schema']!r}, not {SCHEMA!r}: {again}")
        entries: list[dict[str, Any]] = content["baselines"]
        for entry in entries:
            entry["processor"], limits_of(entry)
    except FileNotFoundError as error:
        raise ConfigError(f"there are no baselines at {file}: {again}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} holds no baselines ({error!r}): {again}") from error
    return entries


def limits_of(entry: Mapping[str, Any]) -> dict[str, Limit]:
    """The limits of a baseline."""
    return {name: Limit(value["baseline"], value["noise"], tuple(value["measured"]))
            for name, value in entry["ratios"].items()}  # fmt: skip


def is_of(entry: Mapping[str, Any], processor: str, cores: int) -> bool:
    """Whether a baseline is of that processor with so many usable cores; older ones do not say how many."""
    return bool(entry["processor"] == processor and entry.get("cores", cores) == cores)


def limits_here(entries: Sequence[Mapping[str, Any]], processor: str, cores: int) -> tuple[dict[str, Limit], float]:
    """The limits for this processor, and 1; or those of the first baseline, and ELSEWHERE. Raises ConfigError without any.

    A ratio that this processor's baseline does not have yet gets the limit of the first, ELSEWHERE times as wide.
    """
    if not entries:
        raise ConfigError("no baseline was measured yet: measure one with nnet-edge bench guard --write")
    own = next((entry for entry in entries if is_of(entry, processor, cores)), None)
    first = limits_of(entries[0])
    if own is None:
        return first, ELSEWHERE
    return {name: replace(one, baseline=ELSEWHERE * one.baseline) for name, one in first.items()} | limits_of(own), 1.0


def processor_here() -> str:
    """The processor as baselines name it: model and what it can compute with."""
    found = find_processor()
    return f"{found.model}; {', '.join(found.features)}"


def markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a table."""
    rows = [
        [one.name, f"{one.best:.3f}", f"{one.limit.baseline:.3f}", f"{one.limit.noise * 100:.0f} %",
         f"{one.limit.largest * one.widened:.3f}", len(one.attempts), "WORSE" if one.is_worse else "holds"]
        for one in verdicts
    ]  # fmt: skip
    return table_text(["ratio", "now", "baseline", "noise", "limit", "attempts", "verdict"], rows)


PRODUCT_SIDE, PRODUCTS = 1024, 4
IMAGES = 4  # of a runner's round
BACKBONE = "efficientnet_lite0"
CAMERA_HZ = 200.0  # more than is judged
WARM, VERDICTS = 6, 20  # of a line's round
LINE_LIMIT_S = 20.0  # for them
BATCH = 4  # of a training step
IMPORTS = "import nnet_edge.cli, nnet_edge.runtime.stream.line, nnet_edge.runtime.runners.openvino_runner"
START = (  # the rest of a start: a graph that is kept, and its first image
    f"{IMPORTS}, sys, numpy, pathlib; from nnet_edge.runtime.runners.base import load_runner; "
    "from nnet_edge.settings.runner import RunnerSettings; graph, cache = map(pathlib.Path, sys.argv[1:]); "
    "runner = load_runner(graph, RunnerSettings('openvino', threads=1, cache_dir=cache)); "
    "runner.infer(numpy.zeros((1, *runner.input_shape), numpy.uint8))"
)
Seconds = Callable[[], float]  # does the work once; how long it took


@dataclass(frozen=True)
class Ratio:
    """What is guarded: the seconds of one thing over those of another."""

    name: str
    of: Seconds
    to: Seconds
    rounds: int
    is_of_processor: bool = True  # False: both sides are the same work, so that it is the same on every processor


def by_clock(work: Callable[[], object]) -> Seconds:
    """Seconds of the clock."""
    return lambda: took(work).clock_s


def by_processor(work: Callable[[], object]) -> Seconds:
    """Seconds of the processor in this process, all its threads together."""
    return lambda: took(work).processor_s


def by_child(command: list[str]) -> Seconds:
    """Seconds of the processor in a process that runs `command`."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, timeout=CHILD_TIMEOUT_S)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return seconds


def product() -> Callable[[], None]:
    """The reference: a few FP32 products of 1024x1024 in torch, on its one thread."""
    import torch

    matrix = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, generator=torch.Generator().manual_seed(0))

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(matrix, matrix)

    return multiply


def open_ratios(folder: Path, stack: ExitStack) -> tuple[Ratio, ...]:
    """The guarded ratios, ready to be measured until `stack` is closed; graph and pictures lie in `folder`."""
    import onnx

    from nnet_edge.export.onnx_graph import export_onnx, facts_of
    from nnet_edge.methods.backbone import find_backbone
    from nnet_edge.methods.base import DEFAULT_METHOD, METHODS
    from nnet_edge.methods.network import start_network
    from nnet_edge.methods.teacher_weights import RANDOM, load_teacher

    stack.enter_context(torch_threads(1))
    # the smallest backbone and random weights: as fast as a trained one
    settings = METHODS.find(DEFAULT_METHOD).protocols["paper"]
    settings = replace(settings, seed=0, model=replace(settings.model, backbone=BACKBONE))
    network = start_network(settings, load_teacher(find_backbone(BACKBONE), RANDOM))
    facts = facts_of(network)
    graph = folder / "nnet.onnx"
    onnx.save(export_onnx(network, facts), graph)
    runner = stack.enter_context(load_runner(graph, RunnerSettings("openvino", threads=1)))
    multiply = product()
    imports = by_child([sys.executable, "-c", IMPORTS])
    start = by_child([sys.executable, "-c", START, f"{graph}", f"{folder / 'cache'}"])
    imports()  # once, so that files are in the memory and compiled
    start()
    return (
        *runner_ratios(runner, multiply, folder, real_pictures()),
        line_ratio(runner),
        Ratio("import / matrix product", imports, by_processor(multiply), 5),
        Ratio("start / matrix product", start, by_processor(multiply), 5),
        Ratio(
            "training step / matrix product", training_step(settings, folder / "training"), by_processor(multiply), 3
        ),
        Ratio("export / matrix product", by_processor(lambda: export_onnx(network, facts)), by_processor(multiply), 1),
    )


def runner_ratios(
    runner: Runner, multiply: Callable[[], object], folder: Path, pictures: np.ndarray
) -> tuple[Ratio, Ratio]:
    """The runner against the product, and the stream of picture files against the bare runner on as many images."""
    paths = [folder / f"{number}.jpg" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(str(path), cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))

    def infer(images: int) -> Callable[[], None]:
        def work() -> None:
            for image in pictures[:images]:
                runner.infer(image[np.newaxis])

        return work

    def stream() -> None:
        judge_all(file_source(paths, "guard"), runner, [log_of(folder / "verdicts.jsonl")], ABOVE_ALL)

    bare, few = by_clock(infer(len(pictures))), by_processor(infer(IMAGES))
    few()
    stream()
    return (
        Ratio("runner / matrix product", few, by_processor(multiply), 15),
        Ratio("stream / bare runner", by_clock(stream), bare, 7, is_of_processor=False),
    )


def line_ratio(runner: Runner) -> Ratio:
    """A verdict of a line whose camera gives more than is judged, against an image of the bare runner, both by processor."""
    open_camera, image = noisy_camera(0, CAMERA_HZ), np.zeros((1, *runner.input_shape), np.uint8)

    def verdict() -> float:
        line = Line(Model("guard", None, runner, ABOVE_ALL))
        add_camera(line, 0, open_camera, ABOVE_ALL)
        with running(line):
            first, used_s = judged_by(line, WARM), time.process_time()
            last = judged_by(line, first + VERDICTS)
            return (time.process_time() - used_s) / (last - first)

    return Ratio("line / bare runner", verdict, lambda: took(lambda: runner.infer(image), IMAGES).processor_s, 5, False)


def judged_by(line: Line, count: int) -> int:
    """Wait until so many frames are judged; how many are. Raises NnetEdgeError when that takes too long."""
    end_s = time.monotonic() + LINE_LIMIT_S
    while (judged := line.buffer.total().judged) < count:
        if time.monotonic() > end_s:
            raise NnetEdgeError(f"a line has judged {judged} frames in {LINE_LIMIT_S:g} s: something hangs")
        time.sleep(0.005)
    return judged


def training_step(settings: MethodSettings, folder: Path) -> Seconds:
    """A step on a few real pictures, in FP32 on the processor."""
    from nnet_edge.methods.compute import Compute
    from nnet_edge.methods.teacher_weights import RANDOM
    from nnet_edge.training.loop import Trainer, TrainOptions

    pictures = real_pictures()
    options, compute = TrainOptions("cpu", "fp32", teacher_weights=RANDOM), Compute("cpu", "fp32")
    settings = replace(settings, batch=BATCH, augmentation_copies=0)
    trainer = Trainer(pictures[:BATCH], pictures[BATCH:], settings, options, folder, compute, {}, None, quiet, None)
    trainer.network.train()
    rows, steps = next(trainer.rows_of(0)), itertools.count()
    step = by_processor(lambda: trainer.train_step(rows, 0, next(steps), None))
    step()  # once: it allocates
    return step
