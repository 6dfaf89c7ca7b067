"""What a sink costs the line and how many verdicts a second it takes: `python -m nnet_edge.benchmarks.sinks`.

Two figures for each: how long a put of one verdict holds the line (paced like 4 cameras of 30 frames/s), and how many
verdicts a second the sink takes when it is given all it can. MQTT is measured with `--broker HOST:PORT`. The webhook's
receiver is a plain server in this process that answers at once, or after 20 ms as one in another building does: a webhook
has one request under way, for no receiver promises to handle two in order, so it takes one verdict a round trip.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import numpy as np

from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.frame import Frame, Prediction, Region
from nnet_edge.runtime.sinks import (
    JsonLinesSettings,
    JsonLinesSink,
    MqttSettings,
    MqttSink,
    QueuedSink,
    QueueSettings,
    RejectsSettings,
    RejectsSink,
    Sink,
    WebhookSettings,
    WebhookSink,
)
from nnet_edge.runtime.sinks.spool import SpoolSettings

RATE_HZ = 120  # verdicts a second while puts are measured
PACED_S = 5.0
Make = Callable[[Path], tuple[Sink, QueueSettings]]


class LoopbackWebhook(WebhookSink):
    """A webhook with a receiver of its own on loopback, which answers after `answer_s`."""

    def __init__(self, answer_s: float) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(answer_s)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *about: object) -> None:
                """Log nothing: a line for each request would be measured too."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="receiver", daemon=True).start()
        super().__init__(WebhookSettings(url=f"http://127.0.0.1:{self._server.server_address[1]}/"))

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        self._server.shutdown()
        self._server.server_close()


def cases(broker: str | None) -> dict[str, tuple[Make, int]]:
    """What is measured: a name -> what makes the sink in a folder, and verdicts for the throughput."""

    def log(**facts: float | None) -> Callable[[Path], Sink]:
        facts = {"fsync_every_s": None, **facts}
        return lambda folder: JsonLinesSink(JsonLinesSettings(path=folder / "log.jsonl", events=False, **facts))  # type: ignore[arg-type]

    def pictures(folder: Path) -> Sink:
        return RejectsSink(RejectsSettings(folder=folder, pictures=("overlay",), budget_bytes=None, by_stream=False))

    def plain(make: Callable[[Path], Sink]) -> Make:
        return lambda folder: (make(folder), QueueSettings())

    def spooled(make: Callable[[Path], Sink]) -> Make:
        return lambda folder: (make(folder), QueueSettings(must_deliver=SpoolSettings(folder / "spool")))

    found: dict[str, tuple[Make, int]] = {
        "json lines": (plain(log()), 20_000),
        "json lines, fsync every second": (plain(log(fsync_every_s=1.0)), 20_000),
        "json lines, fsync every line": (plain(log(fsync_every_s=0.0)), 2_000),
        "json lines, must deliver": (spooled(log()), 10_000),
        "pictures, must deliver": (spooled(pictures), 200),
        "webhook": (plain(lambda folder: LoopbackWebhook(0.0)), 1_000),
        "webhook, 20 ms away": (plain(lambda folder: LoopbackWebhook(0.02)), 100),
        "webhook, must deliver": (spooled(lambda folder: LoopbackWebhook(0.0)), 1_000),
        "pictures": (plain(pictures), 200),
    }
    if broker is not None:
        host, _, port = broker.rpartition(":")
        settings = MqttSettings(host=host, port=int(port))
        found["mqtt, QoS 1"] = plain(lambda folder: MqttSink(settings)), 5_000
        found["mqtt, QoS 1, must deliver"] = spooled(lambda folder: MqttSink(settings)), 5_000
    return found


def verdicts(count: int) -> list[Prediction]:
    """Rejects of one region, 640x480, all of one picture."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    anomaly_map = np.zeros((256, 256), np.float32)
    anomaly_map[90:120, 90:120] = 3.0
    regions = (Region(225, 168, 75, 57, 4275.0, 3.0),)
    stages = {"queue": 1.2, "resize": 0.8, "inference": 20.4, "verdict": 0.4, "total": 22.8}
    return [
        Prediction(Frame(image, index, time.monotonic(), "camera-0"), 3.0, 2.0, anomaly_map, regions, stages)
        for index in range(count)
    ]


def paced_puts_us(make: Make, folder: Path) -> tuple[np.ndarray, int]:
    """Microseconds that each put took at RATE_HZ, float64 (n,), and the verdicts that were lost."""
    sink, settings = make(folder)
    given = verdicts(int(RATE_HZ * PACED_S))
    taken_us = np.empty(len(given))
    with QueuedSink(sink, settings) as queued:
        began_s = time.monotonic()
        for index, prediction in enumerate(given):
            time.sleep(max(0.0, index / RATE_HZ - (time.monotonic() - began_s)))
            put_ns = time.perf_counter_ns()
            queued.write(prediction)
            taken_us[index] = (time.perf_counter_ns() - put_ns) / 1e3
    return taken_us, sum(queued.counts().dropped.values())


def verdicts_per_s(make: Make, folder: Path, count: int) -> float:
    """Verdicts a second that arrive when the line waits for the sink."""
    sink, settings = make(folder)
    given = verdicts(count)
    with QueuedSink(sink, replace(settings, waits=True)) as queued:
        began_s = time.monotonic()
        for prediction in given:
            queued.write(prediction)
        while queued.counts().delivered < count:
            time.sleep(0.001)
        return count / (time.monotonic() - began_s)


def table(rows: Sequence[tuple[str, np.ndarray, int, float]]) -> str:
    """The figures as a table in Markdown."""
    cells = []
    for name, taken_us, lost, rate in rows:
        middle, late = np.percentile(taken_us, (50, 99))
        cells.append([name, f"{middle:.0f} / {late:.0f} / {taken_us.max():.0f}", lost, f"{rate:.0f}"])
    return table_text(["sink", "put p50 / p99 / largest, µs", "lost at 120/s", "verdicts/s"], cells)


@click.command()
@click.option("--broker", help="HOST:PORT of an MQTT broker without passwords.")
@click.option("--only", help="Cases whose name holds this.")
def main(broker: str | None, only: str | None) -> None:
    """Measure the sinks on this machine and print a table."""
    rows = []
    for name, (make, count) in cases(broker).items():
        if only is not None and only not in name:
            continue
        with tempfile.TemporaryDirectory() as paced, tempfile.TemporaryDirectory() as full:
            taken_us, lost = paced_puts_us(make, Path(paced))
            rows.append((name, taken_us, lost, verdicts_per_s(make, Path(full), count)))
    click.echo(table(rows))


if __name__ == "__main__":
    main()
