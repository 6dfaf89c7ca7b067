"""Bundles beside each other: `python -m nnet_edge.benchmarks.speed.bundles BUNDLE... --precision fp32 --precision int8`.

Frames/s of each bundle's whole graph (network, fusion, blur) with one thread and one of its own held-out pictures a call, all
of them in every round; and how many times as fast as the first it is, round by round.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say
from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning, describe_machine
from nnet_edge.benchmarks.harness.report import markdown_table
from nnet_edge.benchmarks.harness.rounds import Spread, ratios, run_rounds, spread
from nnet_edge.benchmarks.speed.models import rate
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.stream.model import choose_runner, open_graph
from nnet_edge.settings.line import PRECISIONS
from nnet_edge.settings.runner import RunnerSettings

Candidate = tuple[str, str]  # of which bundle, in which precision
Measured = Mapping[Candidate, tuple[Spread, Spread]]  # frames/s; times the first


def measure(
    bundles: Mapping[str, Bundle], precisions: Sequence[str], rounds: int, turn_s: float, threads: int = 1,
    tell: Callable[[str], None] = say,
) -> Measured:  # fmt: skip
    """Frames/s of each bundle in each precision, and ratios to the first. Raises BundleError for one without that graph."""
    asked, work = RunnerSettings(threads=threads, max_batch=1), dict[Candidate, Callable[[], float]]()
    with ExitStack() as stack:
        for precision in precisions:
            for name, bundle in bundles.items():
                runner = stack.enter_context(
                    open_graph(bundle, choose_runner(bundle, asked, precision)[0], precision)[0]
                )
                image = bundle.frames("held_out")[:1]
                runner.infer(image)
                work[name, precision] = lambda infer=runner.infer, image=image: rate(infer, image, turn_s)  # type: ignore[misc]
        found = run_rounds(work, rounds, tell)
    first = next(iter(found.values()))
    return {candidate: (spread(rates), ratios(rates, first)) for candidate, rates in found.items()}


def named(folders: Sequence[Path]) -> dict[str, Bundle]:
    """The bundles by their folders' last parts that tell them apart. Raises ConfigError for one that is given twice."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) != len(parts):
        raise ConfigError("a bundle is given twice: each is measured once")
    length = next(
        size for size in range(1, 1 + max(map(len, parts))) if len({one[-size:] for one in parts}) == len(parts)
    )
    return {"/".join(one[-length:]): read_bundle(folder) for one, folder in zip(parts, folders, strict=True)}


@click.command()
@click.argument("folders", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, default=("fp32",),
              help="May be repeated (default: fp32).")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True)
@click.option("--turn", "turn_s", type=float, default=1.0, show_default=True, help="Seconds of a bundle in a round.")
def command(folders: Sequence[Path], precisions: Sequence[str], threads: int, rounds: int, turn_s: float) -> None:
    """Print how fast several bundles are beside each other, a Markdown table."""
    for warning in busy_warning(busy_percent()):
        say(warning)
    bundles = named(folders)
    found = measure(bundles, precisions, rounds, turn_s, threads)
    rows = [
        [name, bundles[name].method, precision, speed.text(1), times.text(2)]
        for (name, precision), (speed, times) in found.items()
    ]
    click.echo("\n".join(markdown_table(["bundle", "method", "precision", "frames/s", "times the first"], rows)))
    click.echo(
        f"\n`{command_text('nnet_edge.benchmarks.speed.bundles')}`: " + "; ".join(describe_machine(threads).values())
    )


if __name__ == "__main__":
    sys.exit(run_command(command))
