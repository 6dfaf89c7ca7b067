"""The inference server under load, beside the runner alone: requests a second, how long each takes, and processor time.

The server is a process of its own, and each client keeps one connection and one request under way. The pictures are the
bundle's held-out frames as JPEG.

    python -m nnet_edge.benchmarks.line.serving BUNDLE --clients 1,4,16 --seconds 10
"""

from __future__ import annotations

import http.client
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

import click
import cv2
import numpy as np
import psutil

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.bundle import read_bundle
from nnet_edge.errors import StreamError
from nnet_edge.image_files import decode
from nnet_edge.imaging import resize
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.stream.model import open_graph
from nnet_edge.settings.runner import RunnerSettings

HEADS = ("what", "clients", "requests/s", "p50 ms", "p99 ms", "CPU ms a request", "refused")
Ask = Callable[[int], bool]  # the request of that number; whether it was answered
Client = Callable[[], AbstractContextManager[Ask]]


@contextmanager
def server(bundle: Path, *options: str) -> Iterator[tuple[str, int, psutil.Process]]:
    """Host, port and process of `nnet-edge serve` with this bundle, which is called part."""
    program = [sys.executable, "-c", "from nnet_edge.cli.main import main; main()"]
    command = [*program, "serve", f"part={bundle}", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = []
            for line in process.stderr:
                said.append(line.strip())
                if line.startswith("serving at http://"):
                    host, _, port = line.split()[2].removeprefix("http://").removesuffix("/v2;").partition(":")
                    yield host, int(port), psutil.Process(process.pid)
                    return
            raise StreamError(f"the server did not start: {said[-1] if said else 'it said nothing'}")
        finally:
            process.terminate()


def load(clients: int, seconds: float, client: Client) -> tuple[list[float], int]:
    """Milliseconds of each request that was answered, and how many were refused."""
    took_ms: list[float] = []
    refused, numbers = [0] * clients, itertools.count()
    end_s = time.monotonic() + seconds

    def work(place: int) -> None:
        with client() as ask:
            while (begun_s := time.monotonic()) < end_s:
                if ask(next(numbers)):
                    took_ms.append(1e3 * (time.monotonic() - begun_s))
                else:
                    refused[place] += 1

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))  # raises what a client raised
    return took_ms, sum(refused)


def poster(host: str, port: int, path: str, bodies: list[bytes], headers: dict[str, str]) -> Client:
    """A client that posts the bodies in turn. Raises StreamError for an answer that is neither a verdict nor a refusal."""

    @contextmanager
    def client() -> Iterator[Ask]:
        with closing(http.client.HTTPConnection(host, port, timeout=60)) as connection:

            def ask(number: int) -> bool:
                connection.request("POST", path, bodies[number % len(bodies)], headers)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status not in (200, 503):
                    raise StreamError(f"the server answered {answer.status}: {content[:200]!r}")
                return answer.status == 200

            yield ask

    return client


def bare(runner: Runner, bodies: list[bytes], work: Callable[[bytes], np.ndarray]) -> Client:
    """A client that asks the runner itself for what `work` makes of a body."""

    def ask(number: int) -> bool:
        runner.infer(work(bodies[number % len(bodies)])[np.newaxis])
        return True

    return lambda: nullcontext(ask)


def measure(bundle_path: Path, clients: list[int], seconds: float, threads: int | None) -> list[list[object]]:
    """The rows of the table."""
    bundle = read_bundle(bundle_path)
    frames = bundle.frames("held_out")
    jpegs = [cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for frame in frames]
    shape = list(frames.shape[1:])
    given = {
        "name": "images",
        "datatype": "UINT8",
        "shape": [1, *shape],
        "parameters": {"binary_data_size": frames[0].size},
    }
    wanted = [{"name": "image_score", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [given], "outputs": wanted}).encode()
    tensors = [head + frame.tobytes() for frame in frames]
    rows: list[list[object]] = []

    def add(what: str, count: int, client: Client, process: psutil.Process) -> None:
        load(count, min(1.0, seconds), client)  # warm
        before_s = sum(process.cpu_times()[:2])
        took_ms, refused = load(count, seconds, client)
        cpu_ms = 1e3 * (sum(process.cpu_times()[:2]) - before_s) / max(len(took_ms), 1)
        p50, p99 = np.percentile(took_ms, [50, 99]) if took_ms else (np.nan, np.nan)
        rows.append(
            [what, count, f"{len(took_ms) / seconds:.1f}", f"{p50:.1f}", f"{p99:.1f}", f"{cpu_ms:.1f}", refused]
        )

    runner, _ = open_graph(bundle, RunnerSettings(threads=threads))
    inputs, ours = [frame.tobytes() for frame in frames], psutil.Process()
    with runner:
        read = bare(runner, inputs, lambda body: np.frombuffer(body, np.uint8).reshape(shape))
        add("runner alone, the input", 1, read, ours)
        read = bare(runner, jpegs, lambda body: resize(decode(body).pixels, bundle.geometry))
        add("runner alone, decode, resize", 1, read, ours)
    length = {"inference-header-content-length": str(len(head))}
    with server(bundle_path, *([] if threads is None else ["--threads", str(threads)])) as (host, port, process):
        for count in clients:
            add("judge, JPEG", count, poster(host, port, "/v2/models/part/judge", jpegs, {}), process)
            add("infer, binary", count, poster(host, port, "/v2/models/part/infer", tensors, length), process)
    return rows


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--clients", default="1,4,16", show_default=True, help="With commas.")
@click.option("--seconds", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, help="Of each row.")
@click.option("--threads", type=int, help="Of the runner.")
def command(bundle: Path, clients: str, seconds: float, threads: int | None) -> None:
    """Load `nnet-edge serve` on this machine, and compare it with its runner alone."""
    counts = [int(word) for word in clients.split(",")]
    click.echo(command_text("nnet_edge.benchmarks.line.serving"))
    click.echo(table_text(HEADS, measure(bundle, counts, seconds, threads)))


if __name__ == "__main__":
    sys.exit(run_command(command))
