"""How much memory one system takes: a process of its own loads it, infers at every batch, and tells its peak.

In the process that measures the rounds all candidates lie beside each other, so nothing can be said of one there.

    python -m nnet_edge.benchmarks.memory_probe BUNDLE --system openvino --precision int8 --batch 8
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.benchmarks.speed.plan import Plan, SpeedSettings
from nnet_edge.benchmarks.speed.report import Memory
from nnet_edge.benchmarks.speed.systems import open_system
from nnet_edge.bundle import read_bundle
from nnet_edge.errors import StreamError
from nnet_edge.machine import program_output

CALLS = 3  # at every batch
PATIENCE_S = 600.0  # torch.compile on a slow machine
LIBRARIES = {"torch": "torch", "torch.compile": "torch"}  # system -> module, where they differ


def measure_memory(bundle: Path, plan: Plan, settings: SpeedSettings) -> Memory:
    """The memory of that system and precision at the batches of `settings`. Raises StreamError when the process fails."""
    command = [sys.executable, "-m", "nnet_edge.benchmarks.speed.memory", str(bundle), "--system", plan.system,
               "--precision", plan.precision]  # fmt: skip
    command += [text for batch in settings.batches for text in ("--batch", str(batch))]
    command += [] if settings.threads is None else ["--threads", str(settings.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise StreamError(f"{plan.name} was not ready within {PATIENCE_S:g} s in a process of its own") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise StreamError(f"{plan.name} failed in a process of its own (code {done.returncode}): {said}")
    return Memory(**json.loads(done.stdout))


def resident_mib(name: str) -> float:
    """A line of the kernel's account of this process, MiB: VmRSS is what it holds now, VmHWM the most it ever held.

    Not `getrusage`: its peak starts at that of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) / 1024
    raise StreamError(f"/proc/self/status has no {name}: memory is measured on Linux only; say --no-memory")


def gpu_mib() -> float | None:
    """What this process holds of the card's memory, as nvidia-smi says; None without a card, or where it does not say."""
    said, _ = program_output(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"])
    for line in (said or "").splitlines():
        pid, _, used = (part.strip() for part in line.partition(","))
        if pid == str(os.getpid()) and used.isdigit():
            return float(used)
    return None


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--system", required=True)
@click.option("--precision", required=True)
@click.option("--batch", "batches", type=int, multiple=True, required=True)
@click.option("--threads", type=int)
def command(bundle: Path, system: str, precision: str, batches: tuple[int, ...], threads: int | None) -> None:
    """Load SYSTEM, infer, and print the peak of this process as JSON."""
    settings = SpeedSettings((system,), (precision,), ("map",), batches, threads=threads)
    read = read_bundle(bundle)
    importlib.import_module(LIBRARIES.get(system, system))
    before = resident_mib("VmRSS")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-memory-")))
        for opened in open_system(read, Plan(system, precision), settings, folder, stack):
            images = np.zeros((opened.batch, *opened.runner.input_shape), np.uint8)
            for _ in range(CALLS):
                opened.runner.infer(images)
        found = {"peak_mib": resident_mib("VmHWM"), "before_mib": before, "gpu_mib": gpu_mib()}
    click.echo(json.dumps(found))


if __name__ == "__main__":
    sys.exit(run_command(command))
