"""How long `nnet-edge stream` takes from the command to its first verdict, in fresh processes by turns on a warm disk.

By the clock and of the processor, until the line of the verdict is there; with compiled graphs kept, and without. `--beside`
is the `nnet-edge` of another installation, measured in the same rounds.

    python -m nnet_edge.benchmarks.speed.start BUNDLE --beside ../before/.venv/bin/nnet-edge
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import click
import cv2
import psutil

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.benchmarks.harness.rounds import Took, run_rounds
from nnet_edge.bundle import read_bundle
from nnet_edge.errors import StreamError

HERE = f"{Path(sys.executable).with_name('nnet-edge')}"
LIMIT_S = 120.0


def start(command: Sequence[str], environment: dict[str, str]) -> Took:
    """A stream of one picture until its verdict. Raises StreamError with its last words when none comes."""
    began_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        clock_s, used = time.perf_counter() - began_s, psutil.Process(child.pid).cpu_times()
        _, said = child.communicate(timeout=LIMIT_S)
    if "GOOD" not in line and "REJECT" not in line:
        raise StreamError(f"{' '.join(command)} gave no verdict: {(said.strip().splitlines() or ['no word'])[-1]}")
    return Took(clock_s, used.user + used.system)


def cases(
    bundle: Path, picture: Path, precisions: Sequence[str], beside: Path | None, cache: Path
) -> dict[str, list[str]]:
    """What is measured -> its command; each precision without kept graphs, with them, and as the other installation does it."""
    found = {}
    for precision in precisions:
        stream = ["stream", f"{picture}", "--bundle", f"{bundle}", "--precision", precision]
        found[f"{precision}, nothing kept"] = [HERE, *stream, "--cache-dir", "none"]
        found[precision] = [HERE, *stream, "--cache-dir", f"{cache}"]
        if beside is not None:
            found[f"{precision}, beside"] = [f"{beside}", *stream]
    return found


def table(found: dict[str, list[Took]], precisions: Sequence[str]) -> str:
    """Medians in milliseconds, and the ratios to each precision's last case."""
    rows = []
    for precision in precisions:
        names = [name for name in found if name.split(",")[0] == precision]
        clocks, processors = (
            {name: median(getattr(one, field) for one in found[name]) for name in names}
            for field in ("clock_s", "processor_s")
        )
        base = f"{precision}, beside" if f"{precision}, beside" in names else names[0]
        rows += [
            [name, f"{1e3 * clocks[name]:.0f}", f"{1e3 * processors[name]:.0f}", f"{clocks[name] / clocks[base]:.2f}",
             f"{processors[name] / processors[base]:.2f}"]
            for name in names
        ]  # fmt: skip
    return table_text(["start", "clock, ms", "processor, ms", "ratio by clock", "by processor"], rows)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", "precisions", default="fp32", show_default=True, help="One or several: fp32,int8.")
@click.option("--beside", type=click.Path(path_type=Path, exists=True), help="The nnet-edge of another installation.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="In each, one start of a kind.")
def command(bundle: Path, precisions: str, beside: Path | None, rounds: int) -> None:
    """Measure how long a stream with BUNDLE takes to its first verdict."""
    with tempfile.TemporaryDirectory(prefix="nnet-edge-start-") as name:
        folder = Path(name)
        picture = folder / "part.png"
        cv2.imwrite(f"{picture}", read_bundle(bundle).frames("held_out")[0][..., ::-1])
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = f"{folder / 'bytecode'}"
        starts = {
            case: partial(start, words, environment)
            for case, words in cases(bundle, picture, precisions.split(","), beside, folder / "cache").items()
        }
        for once in starts.values():  # files are in memory, and Python's are compiled
            once()
        found = run_rounds(starts, rounds)
    click.echo(f"{command_text('nnet_edge.benchmarks.speed.start')}\n\n{table(found, precisions.split(','))}")


if __name__ == "__main__":
    sys.exit(run_command(command))
