"""A line that runs for a while and is watched: memory, threads, file handles and latency must not grow.

Four synthetic cameras at 25 frames a second each, one of which is cut every few seconds, with JSON lines behind a
delivery. The first sixth is a warm-up; the rest is cut into ten equal spans.

    python -m nnet_edge.benchmarks.soak BUNDLE --minutes 30
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import click
import numpy as np
import psutil

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.benchmarks.harness.rounds import percentiles
from nnet_edge.benchmarks.harness.streams import add_camera, computed, noisy_camera, running
from nnet_edge.errors import SourceError, StreamError
from nnet_edge.frame import Frame
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.runners.openvino_runner import GROUPS_AFTER
from nnet_edge.runtime.sinks import JsonLinesSettings, JsonLinesSink, QueuedSink
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import load_model
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.settings.runner import RunnerSettings

CAMERAS = 4
RATE_HZ = 25.0
CUT_AFTER = 200  # frames of the first camera
SPANS = 10
WARM_SHARE = 1 / 6
RSS_GROWTH = 0.02  # from the first span to the last
P99_GROWTH = 1.5  # median of the last three spans against that of the first three: one busy moment is no growth


@dataclass(frozen=True)
class Span:
    """What was seen in a part of the time."""

    minute: float
    judged: int
    p50_ms: float
    p99_ms: float
    rss_mb: float
    threads: int
    handles: int


class Cut(SyntheticSource):
    """A camera whose cable is pulled after a while."""

    def __iter__(self) -> Iterator[Frame]:
        yield from itertools.islice(super().__iter__(), CUT_AFTER)
        raise SourceError("the cable was pulled")


def span_of(totals_ms: deque[float], began_s: float) -> Span:
    """What was seen since the last call; takes the latencies. Raises StreamError when nothing was judged."""
    taken_ms = [totals_ms.popleft() for _ in range(len(totals_ms))]  # the line may append meanwhile
    if not taken_ms:
        raise StreamError("nothing was judged in a whole span: does the line hang?")
    p50_ms, _, p99_ms = percentiles(taken_ms)
    process = psutil.Process()
    rss_mb = process.memory_info().rss / 2**20
    minute = (time.monotonic() - began_s) / 60
    return Span(minute, len(taken_ms), p50_ms, p99_ms, rss_mb, process.num_threads(), process.num_fds())


def work_through(runner: Runner) -> None:
    """Keep the runner busy until it opens what a busy line gets (openvino_runner.GROUPS_AFTER): later it would be no leak."""
    batch = np.zeros((runner.max_batch, *runner.input_shape), np.uint8)
    for _ in computed(runner.start, repeat(batch, GROUPS_AFTER + 1)):
        pass


def make_line(bundle: Path, log: Path) -> Line:
    """Four cameras and a log."""
    sink = JsonLinesSink(JsonLinesSettings(path=log, fsync_every_s=None, events=False))
    model = load_model(bundle, RunnerSettings())
    work_through(model.runner)
    line = Line(model, [QueuedSink(sink)])
    for number in range(CAMERAS):
        kind = Cut if number == 0 else SyntheticSource
        add_camera(line, number, noisy_camera(number, RATE_HZ, kind), first_retry_s=0.2)
    return line


def soak(bundle: Path, seconds: float) -> tuple[list[Span], LineReport, int]:
    """The spans, the report at the end, and the lines that the log holds."""
    with tempfile.TemporaryDirectory(prefix="nnet-edge-soak-") as folder:
        log = Path(folder) / "verdicts.jsonl"
        line, totals_ms, began_s = make_line(bundle, log), deque[float](), time.monotonic()
        line.subscribe(lambda verdict: totals_ms.append(verdict.latencies_ms["total"]))
        spans = []
        with running(line) as reports:
            time.sleep(WARM_SHARE * seconds)
            span_of(totals_ms, began_s)
            for _ in range(SPANS):
                time.sleep((1 - WARM_SHARE) * seconds / SPANS)
                spans.append(span_of(totals_ms, began_s))
        with log.open("rb") as lines:
            return spans, reports[0], sum(1 for _ in lines)


def faults(spans: list[Span], report: LineReport, lines: int) -> list[str]:
    """What grew or was lost, in words; empty when all is well."""
    found = []
    growth = max(span.rss_mb for span in spans[-2:]) / max(span.rss_mb for span in spans[:2]) - 1
    if growth > RSS_GROWTH:
        found.append(f"memory grew by {growth:.1%}")
    for what in ("threads", "handles"):
        counts = [getattr(span, what) for span in spans]
        if min(counts[-3:]) > max(counts[:5]):  # a camera that is being opened has one more for a moment
            found.append(f"{what} grew from {max(counts[:5])} to {min(counts[-3:])}")
    early_ms, late_ms = (float(np.median([span.p99_ms for span in some])) for some in (spans[:3], spans[-3:]))
    if late_ms > P99_GROWTH * early_ms:
        found.append(f"p99 rose from {early_ms:.1f} to {late_ms:.1f} ms")
    if not report.total.is_balanced or report.total.queued or lines < report.total.judged:
        found.append(f"frames are missing: {report.total}, {lines} lines in the log")
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, default=30.0, show_default=True)
def command(bundle: Path, minutes: float) -> None:
    """Run four cameras on BUNDLE for a while; exit code 1 when something grew or was lost."""
    spans, report, lines = soak(bundle, 60 * minutes)
    click.echo(command_text("nnet_edge.benchmarks.soak"))
    heads = ["minute", "judged", "p50 ms", "p99 ms", "RSS MiB", "threads", "handles"]
    click.echo(table_text(heads, [
        [f"{span.minute:.1f}", span.judged, f"{span.p50_ms:.1f}", f"{span.p99_ms:.1f}", f"{span.rss_mb:.1f}",
         span.threads, span.handles] for span in spans
    ]))  # fmt: skip
    total = report.total
    click.echo(f"captured {total.captured}, judged {total.judged}, dropped {dict(total.dropped)}, log {lines} lines")
    if found := faults(spans, report, lines):
        raise StreamError("; ".join(found))


if __name__ == "__main__":
    sys.exit(run_command(command))
