"""How long `nnet-edge stream` takes to its first verdict, phase by phase: medians of fresh processes.

Compiled graphs are kept with --cache-dir only: OpenVINO finds one by graph, options, version and the processor's name and does
not notice when its bytes have changed, while a bundle's hashes are checked at every start (benchmarks/notes.md).

    python -m nnet_edge.benchmarks.start BUNDLE
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import click
import cv2

from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say_if_busy
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.benchmarks.harness.rounds import child_took, run_rounds
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.errors import StreamError

PHASES = ("python", "imports", "bundle read, hashes checked", "graph read and compiled", "first verdict")
HELP = "nnet-edge --help"
Phases = Mapping[str, tuple[float, float]]  # milliseconds by the clock and of the processor


@dataclass(frozen=True)
class Case:
    """One way to start."""

    name: str
    precision: str
    is_cached: bool = False


def cases_of(bundle: Bundle) -> list[Case]:
    """What is compared: the first is the plain start."""
    held = [item.precision for item in bundle.artefacts if item.kind == "graph" and item.precision in ("fp32", "int8")]
    cached = [Case(f"{precision}, --cache-dir", precision, is_cached=True) for precision in held]
    return [*(Case(precision, precision) for precision in held), *cached]


def start(case: Case, bundle: Path, picture: Path, folder: Path) -> Phases:
    """The phases of one new process. Raises StreamError with its last line when it fails."""
    cache = str(folder / case.precision) if case.is_cached else "-"
    command = [sys.executable, "-m", "nnet_edge.benchmarks.speed.start_probe", str(time.monotonic())]
    done = subprocess.run(
        [*command, str(bundle), str(picture), case.precision, cache],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no word"]
        raise StreamError(f"a start with {case.name} failed: {lines[-1]}; try nnet-edge stream with that bundle")
    found: Phases = {name: (both[0], both[1]) for name, both in json.loads(done.stdout.splitlines()[-1]).items()}
    return found


def ask_for_help() -> tuple[float, float]:
    """Milliseconds by the clock and of the processor of `nnet-edge --help`."""
    found = child_took([sys.executable, "-c", "import sys; from nnet_edge.cli import run; sys.exit(run(['--help']))"])
    return 1e3 * found.clock_s, 1e3 * found.processor_s


def measure(bundle: Bundle, rounds: int) -> dict[str, list[Phases]]:
    """Case -> the phases of each of its starts; one more, uncounted, first fills the caches."""
    with tempfile.TemporaryDirectory(prefix="nnet-edge-start-") as name:
        folder = Path(name)
        picture = folder / "frame.png"
        cv2.imwrite(str(picture), bundle.frames("held_out")[0][..., ::-1])
        starts: dict[str, Callable[[], Phases]] = {
            case.name: partial(start, case, bundle.path, picture, folder) for case in cases_of(bundle)
        }
        for number, case in enumerate(cases_of(bundle)):
            if case.is_cached or number == 0:
                starts[case.name]()
        return run_rounds({**starts, HELP: lambda: {"python": ask_for_help()}}, rounds)


def medians(starts: Sequence[Phases], which: int) -> list[float]:
    """The median of each phase, milliseconds, and last that of the sums; `which`: 0 by the clock, 1 of the processor."""
    each = [median(one[phase][which] for one in starts) for phase in PHASES if phase in starts[0]]
    return [*each, median(sum(both[which] for both in one.values()) for one in starts)]


def markdown(found: Mapping[str, Sequence[Phases]]) -> str:
    """Milliseconds by the clock / of the processor of every phase, and the sum beside that of the first case."""
    (base, starts), *_ = found.items()
    first = [medians(starts, which)[-1] for which in (0, 1)]
    rows = []
    for name, each in found.items():
        clock, processor = medians(each, 0), medians(each, 1)
        cells = [f"{one:.0f} / {other:.0f}" for one, other in zip(clock, processor, strict=True)]
        blank = ["-"] * (len(PHASES) + 1 - len(cells)) if name == HELP else []
        ratio = "-" if name == HELP else f"{clock[-1] / first[0]:.2f} / {processor[-1] / first[1]:.2f}"
        rows.append([name, *cells[:-1], *blank, cells[-1], ratio])
    return table_text(["start, ms clock / processor", *PHASES, "sum", f"beside {base}"], rows)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="In each, one start of a kind.")
def command(bundle: Path, rounds: int) -> None:
    """Measure how long a stream with BUNDLE takes to its first verdict."""
    say_if_busy()
    found = measure(read_bundle(bundle), rounds)
    click.echo(f"{command_text('nnet_edge.benchmarks.start')}\n\n{markdown(found)}")


if __name__ == "__main__":
    sys.exit(run_command(command))
