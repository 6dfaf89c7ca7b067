"""What a line of 1, 2, 4 and 8 cameras takes: frames a second and latency from capture to verdict, beside the bare runner.

The cameras are synthetic, 640x480, and together ask for more than the runner can do; each shows pictures that were
drawn before, and all are good: the threshold lies above every score. The bare runner computes images that lie ready,
resized, in full batches, two under way; the bare loop does the same and resizes each picture before. Python's lock is
measured from two sides: what share of the processor Python's threads use beside the runner's, and how late a thread
that sleeps for a millisecond wakes up.

    python -m nnet_edge.benchmarks.line BUNDLE --precision int8 --seconds 10
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import psutil

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame
from nnet_edge.imaging import SIDE
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.runtime.stream.meters import Percentiles
from nnet_edge.runtime.stream.model import Model, load_model
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import LineStream, VerdictSettings

HEIGHT, WIDTH = 480, 640
PICTURES = 16  # that a camera shows in turn
ABOVE_ALL = 1e9  # threshold
DEMAND = 1.5  # frames that all cameras together give, for each that the bare runner computes


@dataclass(frozen=True)
class Row:
    """What was measured with so many cameras."""

    cameras: int
    frames_per_s: float
    bare_hz: float  # images a second of the bare runner, mean of just before and just after
    loop_hz: float  # the same with each picture resized before
    p50_ms: float | None  # capture to verdict, of the slowest camera
    p95_ms: float | None
    p99_ms: float | None
    captured: int
    judged: int
    dropped: int
    fewest: int  # frames that the camera with the fewest verdicts got
    most: int
    images_a_batch: float
    python_share: float  # of the processor time of the whole process
    wake_p99_ms: float  # how late a thread woke up


def pictures(seed: int) -> list[np.ndarray]:
    """Noisy pictures, uint8 BGR (480, 640, 3)."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(PICTURES)]


def bare_rate(runner: Runner, seconds: float) -> float:
    """Images a second that the runner computes in full batches, two under way, resized before."""
    images = np.random.default_rng(0).integers(0, 256, (runner.max_batch, SIDE, SIDE, 3), np.uint8)
    return rate_of(runner, lambda: images, seconds)


def loop_rate(runner: Runner, seconds: float) -> float:
    """Pictures of a camera's size a second that a loop resizes and the runner computes, as `bare_rate` otherwise."""
    frames = [Frame(image, index, 0.0) for index, image in enumerate(pictures(0)[: runner.max_batch])]
    return rate_of(runner, lambda: preprocess(frames), seconds)


def rate_of(runner: Runner, next_batch: Callable[[], np.ndarray], seconds: float) -> float:
    """Images a second of batches, each made while the runner computes the one before."""
    runner.infer(next_batch())
    count, start_s = 0, time.monotonic()
    under_way = runner.start(next_batch())
    while time.monotonic() - start_s < seconds:
        batch = next_batch()
        following = runner.start(batch)
        under_way()
        count += len(batch)
        under_way = following
    under_way()
    return (count + len(batch)) / (time.monotonic() - start_s)


class Lateness:
    """How late a thread wakes up that sleeps for a millisecond, again and again."""

    def __init__(self) -> None:
        self._late_ms: list[float] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure for as long as the block takes."""
        stop = threading.Event()

        def sleep() -> None:
            while not stop.is_set():
                start_s = time.monotonic()
                time.sleep(0.001)
                self._late_ms.append(1e3 * (time.monotonic() - start_s) - 1)
                time.sleep(0.02)

        thread = threading.Thread(target=sleep, name="lateness", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def p99_ms(self) -> float:
        """The lateness that 99 of 100 wake-ups did not exceed."""
        return float(np.percentile(self._late_ms, 99))


def cpu_s(of_python: bool) -> float:
    """Processor seconds of this process so far, of all its threads or of those that Python runs."""
    python = {thread.native_id for thread in threading.enumerate()}
    return sum(one.user_time + one.system_time for one in psutil.Process().threads()
               if not of_python or one.id in python)  # fmt: skip


def measure(model: Model, cameras: int, rate_hz: float, seconds: float) -> Row:
    """Run so many cameras, which together give `rate_hz` frames a second. Raises StreamError when a frame is missing."""
    line = Line(model)
    for number in range(cameras):
        source = SyntheticSource(itertools.cycle(pictures(number)), rate_hz / cameras)
        verdict = VerdictSettings(threshold=ABOVE_ALL)
        line.add_source(LineStream(f"camera-{number}", CameraSettings("synthetic"), verdict=verdict), source)
    stop, lateness, reports = threading.Event(), Lateness(), []
    thread = threading.Thread(target=lambda: reports.append(run_line(line, stop)), name="line")
    with lateness.measured():
        thread.start()
        all_s, python_s = cpu_s(False), cpu_s(True)
        time.sleep(seconds)
        all_s, python_s = cpu_s(False) - all_s, cpu_s(True) - python_s
        stop.set()
        thread.join()
    (report,) = reports
    if not report.total.is_balanced or report.total.queued:
        raise StreamError(f"{report.total}: captured is not judged + dropped")
    return row_of(line, report, python_s / all_s, lateness.p99_ms())


def row_of(line: Line, report: LineReport, python_share: float, wake_p99_ms: float) -> Row:
    """The row of a line that has ended."""
    latencies: list[Percentiles] = [stream.latencies["total"] for stream in report.streams.values()]
    judged = [stream.judged for stream in report.streams.values()]
    batches = line.batches()
    return Row(
        cameras=len(judged),
        frames_per_s=report.total.judged / report.seconds,
        bare_hz=float("nan"),  # both known when they were measured again
        loop_hz=float("nan"),
        p50_ms=max(one.p50_ms or 0 for one in latencies),
        p95_ms=max(one.p95_ms or 0 for one in latencies),
        p99_ms=max(one.p99_ms or 0 for one in latencies),
        captured=report.total.captured,
        judged=report.total.judged,
        dropped=sum(report.total.dropped.values()),
        fewest=min(judged),
        most=max(judged),
        images_a_batch=batches.total / batches.count,
        python_share=python_share,
        wake_p99_ms=wake_p99_ms,
    )


HEAD = "| cameras | frames/s | bare runner | share | bare loop | share | p50 ms | p95 ms | p99 ms | captured | judged | dropped | fewest to most | images a batch | Python's share | wakes late, p99 ms |"  # noqa: E501


def measure_all(model: Model, cameras: list[int], rate_hz: float | None, seconds: float) -> list[Row]:
    """A row for each number of cameras, runner and loop measured before and after each: other programs slow all of it."""
    rows = []
    before_hz = bare_rate(model.runner, seconds / 2), loop_rate(model.runner, seconds / 2)
    for number in cameras:
        row = measure(model, number, rate_hz or DEMAND * before_hz[0], seconds)
        after_hz = bare_rate(model.runner, seconds / 2), loop_rate(model.runner, seconds / 2)
        bare_hz, loop_hz = ((before + after) / 2 for before, after in zip(before_hz, after_hz, strict=True))
        rows.append(replace(row, bare_hz=bare_hz, loop_hz=loop_hz))
        before_hz = after_hz
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    lines += [
        f"| {row.cameras} | {row.frames_per_s:.1f} | {row.bare_hz:.1f} | {row.frames_per_s / row.bare_hz:.0%} "
        f"| {row.loop_hz:.1f} | {row.frames_per_s / row.loop_hz:.0%} "
        f"| {row.p50_ms:.1f} | {row.p95_ms:.1f} | {row.p99_ms:.1f} | {row.captured} | {row.judged} | {row.dropped} "
        f"| {row.fewest} to {row.most} | {row.images_a_batch:.1f} | {row.python_share:.0%} | {row.wake_p99_ms:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", default="fp32", show_default=True)
@click.option("--runner", "kind", default="auto", show_default=True)
@click.option("--hint", type=click.Choice(["latency", "throughput"]), default="throughput", show_default=True)
@click.option("--runner-batch", type=int, default=8, show_default=True)
@click.option("--cameras", default="1,2,4,8", show_default=True)
@click.option(
    "--rate", type=float, help="Frames a second of all cameras together (default: 1.5 times the bare runner's)."
)
@click.option("--seconds", type=float, default=10.0, show_default=True, help="For each row.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows here too.")
def command(
    bundle: Path, precision: str, kind: str, hint: str, runner_batch: int, cameras: str, rate: float | None,
    seconds: float, json_path: Path | None,
) -> None:  # fmt: skip
    """Measure a line of cameras on BUNDLE."""
    settings = RunnerSettings(kind=kind, hint=hint, max_batch=runner_batch)
    model = load_model(bundle, settings, precision)
    with model.runner:
        rows = measure_all(model, [int(number) for number in cameras.split(",")], rate, seconds)
    runner, cores = model.runner, psutil.cpu_count()
    click.echo(f"{command_text('nnet_edge.benchmarks.line')}: {runner.name} {runner.precision}, {cores} cores")
    click.echo(table(rows))
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_command(command))
