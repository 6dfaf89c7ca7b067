"""What people who look on cost the inspection: a saturated line, in turn without anybody and with viewers of its page.

Each viewer is a connection of its own, in another process, that takes the pictures of every camera with overlay and asks
for the line's state twice a second, as the page does. Rounds with and without take turns, so that what else the machine
does falls on both; the figure is the median of the rounds' ratios.

    python -m nnet_edge.benchmarks.page BUNDLE --precision int8 --cameras 4 --viewers 2
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click
import psutil

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.line.line import DEMAND, bare_rate, pictures
from nnet_edge.errors import StreamError
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import load_model
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.runtime.web.server import WebServer
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import LineStream
from nnet_edge.settings.web import WebSettings

SETTLE_S = 1.0  # after viewers come or go
END_LIMIT_S = 5.0


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    cameras: int
    viewers: int
    alone_hz: tuple[float, ...]  # judged frames a second of each round without viewers
    watched_hz: tuple[float, ...]  # of the round after it
    alone_per_cpu_s: tuple[float, ...]  # judged frames a second of processor time that the line's process used
    watched_per_cpu_s: tuple[float, ...]
    pictures_hz: float  # sent to all viewers together, a second
    page_core_share: float  # of one core, that drawing and encoding used while somebody looked

    @property
    def ratio(self) -> float:
        """Frames a second with viewers, as a share of those without: the median round."""
        return median(watched / alone for alone, watched in zip(self.alone_hz, self.watched_hz, strict=True))

    @property
    def ratio_per_cpu_s(self) -> float:
        """The same of frames a second of processor time, which other programs' work does not change."""
        pairs = zip(self.alone_per_cpu_s, self.watched_per_cpu_s, strict=True)
        return median(watched / alone for alone, watched in pairs)


def measure(line: Line, server: WebServer, viewers: int, rounds: int, seconds: float) -> Figures:
    """Frames a second of a line that runs, with and without viewers in turn."""
    alone: list[tuple[float, float]] = []
    watched: list[tuple[float, float]] = []
    sent, busy_s, watched_s = 0, 0.0, 0.0
    for _ in range(rounds):
        alone.append(rate(line, seconds))
        with looking_on(server, viewers):
            sent_before, busy_before_s, start_s = server.broadcast.sent, server.maker.busy_s, time.monotonic()
            watched.append(rate(line, seconds))
            watched_s += time.monotonic() - start_s
            sent += server.broadcast.sent - sent_before
            busy_s += server.maker.busy_s - busy_before_s
    (alone_hz, alone_per_cpu_s), (watched_hz, watched_per_cpu_s) = zip(*alone, strict=True), zip(*watched, strict=True)
    return Figures(
        len(line.streams()), viewers, alone_hz, watched_hz, alone_per_cpu_s, watched_per_cpu_s,
        sent / watched_s, busy_s / watched_s,
    )  # fmt: skip


def rate(line: Line, seconds: float) -> tuple[float, float]:
    """Judged frames a second, and a second of this process's processor time, from now on, for so long."""
    time.sleep(SETTLE_S)
    judged, start_s, cpu_s = line.lanes.total().judged, time.monotonic(), time.process_time()
    time.sleep(seconds)
    judged = line.lanes.total().judged - judged
    return judged / (time.monotonic() - start_s), judged / (time.process_time() - cpu_s)


@contextlib.contextmanager
def looking_on(server: WebServer, viewers: int) -> Iterator[None]:
    """So many viewers, each a process, for as long as the block takes."""
    command = [sys.executable, "-m", "nnet_edge.benchmarks.page", "--look", server.address]
    processes = [subprocess.Popen(command) for _ in range(viewers)]
    try:
        limit_s = time.monotonic() + 30
        while server.broadcast.viewers < viewers:
            if time.monotonic() > limit_s or any(process.poll() is not None for process in processes):
                raise StreamError("the viewers of the page did not come: is the web extra installed?")
            time.sleep(0.05)
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(END_LIMIT_S)


def look(address: str) -> None:
    """Look on as the page does, until the process is ended."""
    from websockets.sync.client import connect

    def ask(after: int) -> tuple[list[str], int]:
        with urllib.request.urlopen(f"{address}api/state?after={after}", timeout=10) as answer:
            state = json.load(answer)
        numbers = [row[0] for rows in state["scores"].values() for row in rows]
        return [stream["name"] for stream in state["streams"]], max(numbers, default=after)

    names, newest = ask(0)
    with connect(address.replace("http", "ws", 1) + "live", max_size=None) as page:
        page.send(json.dumps({"views": [{"stream": name, "overlay": True} for name in names]}))
        due_s = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                page.recv(0.1)
            if time.monotonic() >= due_s:
                due_s += 0.5
                _, newest = ask(newest)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--runner", "kind", default="auto", show_default=True)
@click.option("--cameras", type=int, default=4, show_default=True)
@click.option("--viewers", type=int, default=2, show_default=True)
@click.option("--rounds", type=int, default=8, show_default=True)
@click.option("--seconds", type=float, default=5.0, show_default=True, help="For each half of a round.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here too.")
@click.option("--look", "address", hidden=True)
def command(
    bundle: Path | None, precision: str, kind: str, cameras: int, viewers: int, rounds: int, seconds: float,
    json_path: Path | None, address: str | None,
) -> None:  # fmt: skip
    """Measure what viewers of the page cost a line on BUNDLE."""
    if address is not None:
        look(address)
        return
    if bundle is None:
        raise click.UsageError("BUNDLE is missing: give the folder that train or export wrote")
    model = load_model(bundle, RunnerSettings(kind=kind, hint="throughput"), precision)
    with model.runner:
        rate_hz = DEMAND * bare_rate(model.runner, seconds)
        line = Line(model)
        for number in range(cameras):
            source = SyntheticSource(itertools.cycle(pictures(number)), rate_hz / cameras)
            line.add_source(LineStream(f"camera-{number}", CameraSettings("synthetic")), source)
        stop = threading.Event()
        with WebServer(line, WebSettings(port=0)) as server:
            thread = threading.Thread(target=run_line, args=(line, stop), name="line")
            thread.start()
            try:
                figures = measure(line, server, viewers, rounds, seconds)
            finally:
                stop.set()
                thread.join()
        if not line.lanes.total().is_balanced:
            raise StreamError(f"{line.lanes.total()}: captured is not judged + dropped + queued")
    name, cores = f"{model.runner.name} {model.runner.precision}", psutil.cpu_count()
    click.echo(f"{command_text('nnet_edge.benchmarks.page')}: {name}, {cores} cores")
    click.echo(
        f"{figures.cameras} cameras: {median(figures.alone_hz):.1f} frames/s alone, {median(figures.watched_hz):.1f} with "
        f"{figures.viewers} viewers, median ratio of {rounds} rounds {figures.ratio:.3f}, "
        f"for each second of processor time {figures.ratio_per_cpu_s:.3f}; {figures.pictures_hz:.1f} pictures/s "
        f"sent, {figures.page_core_share:.1%} of a core for drawing them"
    )
    if json_path is not None:
        content = asdict(figures) | {"ratio": figures.ratio, "ratio_per_cpu_s": figures.ratio_per_cpu_s}
        json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_command(command))
