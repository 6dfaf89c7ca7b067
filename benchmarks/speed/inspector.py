"""What `inspector(image)` costs over its runner: `python -m nnet_edge.benchmarks.speed.inspector BUNDLE IMAGE`.

Bare runner (resize and infer) and inspector in turn, each round once; medians of the calling thread's processor time and of
the clock. The runner's own threads do the same in both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from nnet_edge import load
from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.image_files import read_image
from nnet_edge.imaging import to_input

ROUNDS, WARM = 150, 10


def measure(bundle: Path, image: Path, rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Bare runner and inspector -> median milliseconds of the thread's processor time and of the clock, for one image."""
    pixels = read_image(image)
    with load(bundle, threads=1) as inspector:
        runner, geometry = inspector._model.runner, inspector._model.geometry

        def bare() -> None:
            images = np.empty((1, *geometry.shape), np.uint8)
            to_input(pixels, images[0], geometry)
            runner.infer(images)

        contestants: dict[str, Callable[[], object]] = {"bare runner": bare, "inspector": lambda: inspector(pixels)}
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for number in range(-WARM, rounds):
            for name, call in contestants.items():
                thread_s, clock_s = time.thread_time(), time.perf_counter()
                call()
                if number >= 0:
                    took[name].append((time.thread_time() - thread_s, time.perf_counter() - clock_s))
    columns = {name: list(zip(*rows, strict=True)) for name, rows in took.items()}
    return {
        name: (1e3 * statistics.median(own), 1e3 * statistics.median(clock)) for name, (own, clock) in columns.items()
    }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
def command(bundle: Path, image: Path) -> None:
    """Measure what calling an inspector costs over its bare runner."""
    found = measure(bundle, image)
    for name, (own_ms, clock_ms) in found.items():
        click.echo(f"{name:<12} {own_ms:7.2f} ms of the thread, {clock_ms:7.2f} ms by the clock")
    click.echo(f"inspector adds {found['inspector'][0] - found['bare runner'][0]:.2f} ms of the thread")


if __name__ == "__main__":
    sys.exit(run_command(command))
