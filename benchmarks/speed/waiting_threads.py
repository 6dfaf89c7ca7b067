"""How long a step of a small network takes by how OpenMP's waiting threads wait, alone and beside others.

`python -m nnet_edge.benchmarks.speed.waiting_threads --together 2`: so many processes train at once, two threads each, with
each GOMP_SPINCOUNT in turn. 300000 is what GNU OpenMP does by itself.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import click
from tabulate import tabulate

STEP = """
import sys, time, torch
torch.set_num_threads(2)
torch.manual_seed(0)
def block():
    return torch.nn.Sequential(torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU())
network, images = torch.nn.Sequential(*(block() for _ in range(12))), torch.rand(4, 32, 64, 64)
optimiser = torch.optim.Adam(network.parameters())
def step():
    optimiser.zero_grad()
    network(images).square().mean().backward()
    optimiser.step()
step()
started, steps = time.perf_counter(), 0
while time.perf_counter() - started < float(sys.argv[1]):
    step()
    steps += 1
print(1000 * (time.perf_counter() - started) / steps)
"""


def step_ms(spins: int, together: int, seconds: float) -> list[float]:
    """Milliseconds a step of each of the processes that run at once."""
    waiting = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in waiting}
    environment["GOMP_SPINCOUNT"] = str(spins)
    command = [sys.executable, "-c", STEP, str(seconds)]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(together)]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise click.ClickException("a process failed: see above")
    return [float(one) for one in said]


@click.command()
@click.option("--spins", "spun", multiple=True, type=int, default=(300_000, 10_000, 1_000, 0), show_default=True)
@click.option("--together", type=click.IntRange(1), default=1, show_default=True, help="Processes at once.")
@click.option("--seconds", type=float, default=4.0, show_default=True, help="Of each process.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
def main(spun: tuple[int, ...], together: int, seconds: float, rounds: int) -> None:
    """Time a step with each GOMP_SPINCOUNT, in turns."""
    found: dict[int, list[float]] = {spins: [] for spins in spun}
    for _ in range(rounds):
        for spins, taken in found.items():
            taken += step_ms(spins, together, seconds)
    rows = [[spins, statistics.median(taken), min(taken), max(taken)] for spins, taken in found.items()]
    click.echo(
        tabulate(rows, ["GOMP_SPINCOUNT", "ms a step, median", "least", "most"], tablefmt="github", floatfmt=".0f")
    )


if __name__ == "__main__":
    main()
