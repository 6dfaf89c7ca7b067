"""What a line of 1, 2, 4 and 8 cameras takes: frames a second and latency from capture to verdict, beside the bare runner.

The cameras are synthetic, 640x480, and together ask for more than the runner can do; each shows pictures that were
drawn before, and all are good: the threshold lies above every score. The bare runner computes images that lie ready,
resized, in full batches, two under way; the bare loop does the same and resizes each picture before. Python's lock is
measured from two sides: what share of the processor Python's threads use beside the runner's, and how late a thread
that sleeps for a millisecond wakes up. "by processor" is the share of the bare runner in verdicts a second of processor time,
which other programs' work hardly changes; where the runner never waits for the line it is the share by the clock.

    python -m nnet_edge.benchmarks.line BUNDLE --precision int8 --seconds 10
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import psutil

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.report import table_text, write_json
from nnet_edge.benchmarks.harness.streams import (
    ABOVE_ALL,
    add_camera,
    noisy_camera,
    noisy_pictures,
    per_second,
    require_balanced,
    running,
)
from nnet_edge.frame import Frame
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.runtime.stream.model import Model, load_model
from nnet_edge.settings.line import PRECISIONS
from nnet_edge.settings.runner import RunnerSettings

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
    processor_share: float  # of the bare runner, in verdicts a second of processor time
    wake_p99_ms: float  # how late a thread woke up


def bare_rate(runner: Runner, seconds: float) -> float:
    """Images a second that the runner computes in full batches, two under way, resized before."""
    images = np.random.default_rng(0).integers(0, 256, (runner.max_batch, *runner.input_shape), np.uint8)
    return rate_of(runner, lambda: images, seconds)


def loop_rate(runner: Runner, seconds: float) -> float:
    """Pictures of a camera's size a second that a loop resizes and the runner computes, as `bare_rate` otherwise."""
    frames = [Frame(image, index, 0.0) for index, image in enumerate(noisy_pictures(0)[: runner.max_batch])]
    geometry = Geometry(*runner.input_shape[:2])
    return rate_of(runner, lambda: preprocess(frames, geometry), seconds)


def rate_of(runner: Runner, next_batch: Callable[[], np.ndarray], seconds: float) -> float:
    """Images a second of batches, each made while the runner computes the one before."""
    runner.infer(next_batch())
    return per_second(runner.start, next_batch, seconds)


@contextmanager
def measuring_lateness() -> Iterator[list[float]]:
    """Milliseconds by which a thread that sleeps for one wakes up late, again and again while the block runs."""
    stop, late_ms = threading.Event(), list[float]()

    def sleep() -> None:
        while not stop.is_set():
            start_s = time.monotonic()
            time.sleep(0.001)
            late_ms.append(1e3 * (time.monotonic() - start_s) - 1)
            time.sleep(0.02)

    thread = threading.Thread(target=sleep, name="lateness", daemon=True)
    thread.start()
    try:
        yield late_ms
    finally:
        stop.set()
        thread.join()


def processor_s() -> np.ndarray:
    """Processor seconds of this process so far: of all its threads, and of those that Python runs."""
    python = {thread.native_id for thread in threading.enumerate()}
    used = {one.id: one.user_time + one.system_time for one in psutil.Process().threads()}
    return np.array([sum(used.values()), sum(seconds for number, seconds in used.items() if number in python)])


class CameraBench:
    """Lines of `model`; the bare runner and loop are measured before and after each: other programs slow all of it."""

    def __init__(self, model: Model, rate_hz: float | None, seconds: float) -> None:
        self._model, self._rate_hz, self._seconds = model, rate_hz, seconds
        self._before_hz = self._bare()

    def measure(self, cameras: int) -> Row:
        """The row of so many cameras. Raises StreamError when a frame is missing."""
        rate_hz, before_hz = self._rate_hz or DEMAND * self._before_hz[0], self._before_hz
        line = Line(self._model)
        for number in range(cameras):
            add_camera(line, number, noisy_camera(number, rate_hz / cameras), ABOVE_ALL)
        with measuring_lateness() as late_ms, running(line) as reports:
            used_s, judged_before = processor_s(), line.buffer.total().judged
            time.sleep(self._seconds)
            all_s, python_s = processor_s() - used_s
            per_s = (line.buffer.total().judged - judged_before) / all_s
        self._before_hz = self._bare()
        (report,) = reports
        require_balanced(report)
        bare_hz, loop_hz, bare_per_s = (before_hz + self._before_hz) / 2
        latencies = [stream.latencies["total"] for stream in report.streams.values()]
        judged = [stream.counts.judged for stream in report.streams.values()]
        return Row(
            cameras=len(judged),
            frames_per_s=report.total.judged / report.seconds,
            bare_hz=float(bare_hz),
            loop_hz=float(loop_hz),
            p50_ms=max(one.p50_ms or 0 for one in latencies),
            p95_ms=max(one.p95_ms or 0 for one in latencies),
            p99_ms=max(one.p99_ms or 0 for one in latencies),
            captured=report.total.captured,
            judged=report.total.judged,
            dropped=sum(report.total.dropped.values()),
            fewest=min(judged),
            most=max(judged),
            images_a_batch=line.meters.images / line.meters.batches,
            python_share=float(python_s / all_s),
            processor_share=float(per_s / bare_per_s),
            wake_p99_ms=float(np.percentile(late_ms, 99)),
        )

    def _bare(self) -> np.ndarray:
        """Images a second of the runner and of the loop, and of the runner in a second of processor time."""
        runner, seconds = self._model.runner, self._seconds / 2
        start_s, used_s = time.monotonic(), time.process_time()
        bare_hz = bare_rate(runner, seconds)
        busy = (time.process_time() - used_s) / (time.monotonic() - start_s)
        return np.array([bare_hz, loop_rate(runner, seconds), bare_hz / busy])


HEADS = ("cameras", "frames/s", "bare runner", "share", "bare loop", "share", "p50 ms", "p95 ms", "p99 ms", "captured",
         "judged", "dropped", "fewest to most", "images a batch", "Python's share", "by processor",
         "wakes late, p99 ms")  # fmt: skip


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    return table_text(HEADS, [
        [row.cameras, f"{row.frames_per_s:.1f}", f"{row.bare_hz:.1f}", f"{row.frames_per_s / row.bare_hz:.0%}",
         f"{row.loop_hz:.1f}", f"{row.frames_per_s / row.loop_hz:.0%}", f"{row.p50_ms:.1f}", f"{row.p95_ms:.1f}",
         f"{row.p99_ms:.1f}", row.captured, row.judged, row.dropped, f"{row.fewest} to {row.most}",
         f"{row.images_a_batch:.1f}", f"{row.python_share:.0%}", f"{row.processor_share:.0%}",
         f"{row.wake_p99_ms:.1f}"]
        for row in rows
    ])  # fmt: skip


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--runner", "kind", default="auto", show_default=True)
@click.option("--hint", type=click.Choice(["latency", "throughput"]), default="throughput", show_default=True)
@click.option("--runner-batch", type=int, default=8, show_default=True)
@click.option("--cameras", default="1,2,4,8", show_default=True)
@click.option("--rate", type=float, help="Frames a second of all cameras (default: 1.5 times the bare runner's).")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="For each row.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows here too.")
def command(
    bundle: Path, precision: str, kind: str, hint: str, runner_batch: int, cameras: str, rate: float | None,
    seconds: float, json_path: Path | None,
) -> None:  # fmt: skip
    """Measure a line of cameras on BUNDLE."""
    model = load_model(bundle, RunnerSettings(kind=kind, hint=hint, max_batch=runner_batch), precision)
    with model.runner:
        bench = CameraBench(model, rate, seconds)
        rows = [bench.measure(int(number)) for number in cameras.split(",")]
    runner, cores = model.runner, psutil.cpu_count()
    click.echo(f"{command_text('nnet_edge.benchmarks.line')}: {runner.name} {runner.precision}, {cores} cores")
    click.echo(table(rows))
    if json_path is not None:
        write_json(json_path, [asdict(row) for row in rows])


if __name__ == "__main__":
    sys.exit(run_command(command))
