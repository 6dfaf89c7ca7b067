"""A triggered line and its PLC by Modbus TCP: a verdict or a named outcome for each part, and how long the answer takes.

The PLC is a process of its own: it sets `request`, reads the coils until `done`, and takes the answer. Cameras are asked for a
picture a part.

    python -m nnet_edge.benchmarks.line.triggers BUNDLE --camera gige://... --rate 10 --seconds 600
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.benchmarks.harness.streams import noisy_pictures, require_balanced, running
from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.open import open_source_of
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.running import open_line
from nnet_edge.settings.line import line_settings

DRAWN, DEADLINE_MS = "drawn", 500.0
SIZE = {"width": 1280, "height": 1024}
HEADS = (
    "camera",
    "parts",
    "triggers",
    "verdicts",
    "outcomes",
    "p50 ms",
    "p99 ms",
    "max ms",
    "trigger to verdict, p99 ms",
)
PLC = """
import json, sys, time
from pymodbus.client import ModbusTcpClient
port, rate, seconds = map(float, sys.argv[1:])
plc, took_ms, began_s = ModbusTcpClient("127.0.0.1", port=int(port)), [], time.monotonic()
for number in range(int(rate * seconds)):
    time.sleep(max(0.0, began_s + number / rate - time.monotonic()))
    asked_s = time.monotonic()
    plc.write_coil(0, True)
    while not plc.read_coils(11, count=2).bits[0]:
        time.sleep(0.001)
    took_ms.append(1e3 * (time.monotonic() - asked_s))
    plc.write_coil(0, False)
print(json.dumps(took_ms))
"""


class AskedCamera(SyntheticSource):
    """Gives a picture when it is asked."""

    def __init__(self) -> None:
        super().__init__(itertools.cycle(noisy_pictures(0)))
        self._asked = threading.Event()

    def trigger(self) -> None:
        self._asked.set()

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            while not self._asked.wait(0.1):
                if self._interrupted.is_set():
                    return
            self._asked.clear()
            yield replace(frame, captured_s=time.monotonic())


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--camera",
    "cameras",
    multiple=True,
    default=(DRAWN,),
    help="drawn (default), or gige://... at 1280x1024; again for more.",
)
@click.option("--rate", default=10.0, show_default=True, help="Parts a second of each camera.")
@click.option("--seconds", default=30.0, show_default=True)
@click.option("--port", default=15020, show_default=True, help="Of the first camera's server.")
def command(bundle: Path, cameras: tuple[str, ...], rate: float, seconds: float, port: int) -> None:
    """Measure triggered cameras on BUNDLE; fails when a part is unaccounted for."""
    trigger = {"frames": "asked", "window_ms": DEADLINE_MS, "deadline_ms": DEADLINE_MS}
    streams, sinks, plcs = [], [], []
    for number, address in enumerate(cameras):
        camera = (
            {"address": "synthetic"} if address == DRAWN else {"address": address, "trigger_mode": "software", **SIZE}
        )
        streams.append({"name": f"camera-{number}", "camera": camera, "trigger": trigger})
        sinks.append({"kind": "modbus", "name": f"plc-{number}", "stream": f"camera-{number}", "port": port + number})
        plcs.append([sys.executable, "-c", PLC, str(port + number), str(rate), str(seconds)])
    table = {"bundle": str(bundle.absolute()), "stream": streams, "sink": sinks}
    settings = line_settings(table, "the benchmark", Path())
    line = open_line(settings, [
        AskedCamera() if address == DRAWN else open_source_of(stream.camera)
        for address, stream in zip(cameras, settings.streams, strict=True)
    ])  # fmt: skip
    with running(line) as reports:
        time.sleep(2.0)
        started = [subprocess.Popen(plc, stdout=subprocess.PIPE, text=True) for plc in plcs]
        found = [np.array(json.loads(plc.communicate(timeout=2 * seconds + 60)[0])) for plc in started]
    require_balanced(reports[0])
    rows = []
    for took_ms, (name, report) in zip(found, reports[0].streams.items(), strict=True):
        counts = report.triggers
        if counts is None or counts.open or not counts.is_balanced or counts.triggers != len(took_ms):
            raise StreamError(f"{name}: {len(took_ms)} parts and {counts}: a part is unaccounted for")
        times_ms = [*np.percentile(took_ms, (50, 99, 100)), report.latencies["trigger"].p99_ms or 0.0]
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts.outcomes.items()) or "none"
        rows.append(
            [name, len(took_ms), counts.triggers, counts.verdicts, outcomes, *(f"{one:.1f}" for one in times_ms)]
        )
    click.echo(f"{command_text('nnet_edge.benchmarks.line.triggers')}\n{table_text(HEADS, rows)}")


if __name__ == "__main__":
    sys.exit(run_command(command))
