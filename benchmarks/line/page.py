"""What people who look on cost the inspection: a saturated line without anybody and with viewers of its page.

Each viewer is a connection of its own, in another process, that takes the pictures of every camera with overlay and asks
for the line's state twice a second, as the page does. Every round has both, so that what else the machine does falls on
both; the figure is the median of the rounds' ratios.

    python -m nnet_edge.benchmarks.page BUNDLE --precision int8 --cameras 4 --viewers 2
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
import psutil

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.report import write_json
from nnet_edge.benchmarks.harness.rounds import ratios, run_rounds
from nnet_edge.benchmarks.harness.streams import add_camera, noisy_camera, require_balanced, running
from nnet_edge.benchmarks.line.line import DEMAND, bare_rate
from nnet_edge.errors import StreamError
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import load_model
from nnet_edge.runtime.web.server import WebServer
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.web import WebSettings

SETTLE_S = 1.0  # after viewers come or go
COME_LIMIT_S, END_LIMIT_S = 30.0, 5.0


@dataclass(frozen=True)
class Part:
    """One half of a round."""

    hz: float  # judged frames a second
    per_cpu_s: float  # and a second of this process's processor time, which other programs' work does not change
    sent_hz: float  # pictures to viewers
    page_share: float  # of one core, that drawing and encoding used


def measure(line: Line, server: WebServer, viewers: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Frames a second of a line that runs, with and without viewers in every round, and the ratio: the median round."""

    def watched() -> Part:
        with looking_on(server, viewers):
            return rate(line, server, seconds)

    halves: dict[str, Callable[[], Part]] = {"alone": partial(rate, line, server, seconds), "watched": watched}
    found = run_rounds(halves, rounds)
    columns = {f"{half}_{name}": [getattr(part, name) for part in parts]
               for name in ("hz", "per_cpu_s") for half, parts in found.items()}  # fmt: skip
    return {
        "cameras": len(line.streams()),
        "viewers": viewers,
        **columns,
        "pictures_hz": mean(part.sent_hz for part in found["watched"]),
        "page_core_share": mean(part.page_share for part in found["watched"]),
        "ratio": ratios(columns["watched_hz"], columns["alone_hz"]).median,
        "ratio_per_cpu_s": ratios(columns["watched_per_cpu_s"], columns["alone_per_cpu_s"]).median,
    }


def rate(line: Line, server: WebServer, seconds: float) -> Part:
    """What happens from now on, for so long."""
    time.sleep(SETTLE_S)
    judged, sent, busy_s = line.buffer.total().judged, server.broadcast.sent, server.maker.busy_s
    start_s, cpu_s = time.monotonic(), time.process_time()
    time.sleep(seconds)
    judged, took_s = line.buffer.total().judged - judged, time.monotonic() - start_s
    sent_hz, page_share = (server.broadcast.sent - sent) / took_s, (server.maker.busy_s - busy_s) / took_s
    return Part(judged / took_s, judged / (time.process_time() - cpu_s), sent_hz, page_share)


@contextlib.contextmanager
def looking_on(server: WebServer, viewers: int) -> Iterator[None]:
    """So many viewers, each a process, for as long as the block takes."""
    command = [sys.executable, "-m", "nnet_edge.benchmarks.line.page", "--look", server.address]
    processes = [subprocess.Popen(command) for _ in range(viewers)]
    try:
        limit_s = time.monotonic() + COME_LIMIT_S
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
            add_camera(line, number, noisy_camera(number, rate_hz / cameras))
        with WebServer(line, WebSettings(port=0)) as server, running(line) as reports:
            figures = measure(line, server, viewers, rounds, seconds)
        require_balanced(reports[0])
    name, cores = f"{model.runner.name} {model.runner.precision}", psutil.cpu_count()
    click.echo(f"{command_text('nnet_edge.benchmarks.page')}: {name}, {cores} cores")
    click.echo(
        f"{cameras} cameras: {median(figures['alone_hz']):.1f} frames/s alone, {median(figures['watched_hz']):.1f} with "
        f"{viewers} viewers, median ratio of {rounds} rounds {figures['ratio']:.3f}, for each second of processor time "
        f"{figures['ratio_per_cpu_s']:.3f}; {figures['pictures_hz']:.1f} pictures/s sent, "
        f"{figures['page_core_share']:.1%} of a core for drawing them"
    )
    if json_path is not None:
        write_json(json_path, figures)


if __name__ == "__main__":
    sys.exit(run_command(command))
