"""What a command of nnet-edge takes, in fresh processes by turns: by the clock, of the processor, and its peak of memory.

`--beside` is the `nnet-edge` of another installation, measured in the same rounds. `{out}` in the command becomes a new folder
each time; a command that does not end by itself is interrupted after `--seconds`, as Ctrl-C would. The peak is what the
kernel says was resident at most, libraries included, asked for every LOOK_S; not that of `wait4`, which begins with the
size of the process that started this one.

    python -m nnet_edge.benchmarks.speed.commands --beside ../before/.venv/bin/nnet-edge -- train DATA --out {out} --threads 1
"""

from __future__ import annotations

import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import click

from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.benchmarks.harness.rounds import Took, run_rounds
from nnet_edge.errors import StreamError

HERE = f"{Path(sys.executable).with_name('nnet-edge')}"
OUT = "{out}"  # in a command: a folder that is not there yet
PATIENCE_S = 30.0  # for a command that was interrupted
LOOK_S = 0.02
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


@dataclass(frozen=True)
class Cost(Took):
    """What a process took from its start to its end."""

    peak_mib: float  # resident at most


def cost_of(command: Sequence[str], seconds: float | None = None) -> Cost:
    """The command's cost; interrupted after so many `seconds`. Raises StreamError, with its last words, where it fails."""
    with tempfile.TemporaryDirectory(prefix="nnet-edge-command-") as name, tempfile.TemporaryFile("w+") as words:
        filled = [word.replace(OUT, f"{Path(name) / 'out'}") for word in command]
        began_s = time.perf_counter()
        child = subprocess.Popen(filled, stdout=words, stderr=words, start_new_session=True)
        try:
            status, used, peak_mib = wait_for(child.pid, seconds)
        except BaseException:
            child.kill()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)  # wait4 has taken it from Popen
        clock_s = time.perf_counter() - began_s
        if child.returncode not in ((0,) if seconds is None else (0, 130)):
            words.seek(0)
            said = (words.read().strip().splitlines() or ["it said nothing"])[-1]
            raise StreamError(f"{' '.join(filled)} failed (code {child.returncode}): {said}")
    return Cost(clock_s, used.ru_utime + used.ru_stime, peak_mib)


def wait_for(pid: int, seconds: float | None) -> tuple[int, resource.struct_rusage, float]:
    """Status, use and peak in MiB of the process that has ended, interrupted after `seconds`.

    Raises StreamError where it does not end then.
    """
    interrupt_s = math.inf if seconds is None else time.monotonic() + seconds
    is_told, peak_mib = False, 0.0
    while True:
        found, status, used = os.wait4(pid, os.WNOHANG)
        if found:
            return status, used, peak_mib
        if said := PEAK.search(
            Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        ):  # none at its end
            peak_mib = int(said[1]) / 1024
        if not is_told and time.monotonic() > interrupt_s:
            os.kill(pid, signal.SIGINT)
            is_told = True
        if time.monotonic() > interrupt_s + PATIENCE_S:
            raise StreamError(f"it goes on {PATIENCE_S:g} s after it was interrupted")
        time.sleep(LOOK_S)


def table(found: dict[str, list[Cost]]) -> str:
    """Medians of each installation, and this one's share of the other's."""
    middle = {
        name: [median(values) for values in zip(*((one.clock_s, one.processor_s, one.peak_mib) for one in costs), strict=True)]
        for name, costs in found.items()
    }  # fmt: skip
    rows = [[name, *(f"{value:.1f}" for value in values)] for name, values in middle.items()]
    if len(middle) == 2:
        here, beside = middle.values()
        rows.append(["ratio", *(f"{a / b:.2f}" for a, b in zip(here, beside, strict=True))])
    return table_text(["installation", "clock, s", "processor, s", "peak, MiB"], rows)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...")
@click.option("--beside", type=click.Path(path_type=Path, exists=True), help="The nnet-edge of another installation.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="In each, one run of a kind.")
@click.option("--seconds", type=click.FloatRange(1), help="After which the command is interrupted.")
def command(words: tuple[str, ...], beside: Path | None, rounds: int, seconds: float | None) -> None:
    """Measure what a COMMAND of nnet-edge takes, and its peak of memory."""
    costs = {"this one": partial(cost_of, [HERE, *words], seconds)}
    if beside is not None:
        costs["beside"] = partial(cost_of, [f"{beside}", *words], seconds)
    found = run_rounds(costs, rounds, say)
    click.echo(f"{command_text('nnet_edge.benchmarks.speed.commands')}\n\n{table(found)}")


if __name__ == "__main__":
    sys.exit(run_command(command))
