"""What `nnet-edge bench speed`, `bench growth` and `bench guard` read from the command line."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from nnet_edge.cli_options import FILE, FOLDER, Verb
from nnet_edge.cli_view import say
from nnet_edge.errors import EXIT_FAILURE

SYSTEMS = ("torch", "torch.compile", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SCOPES = ("model", "map", "camera")
CURVES = ("batch", "cameras", "side", "picture", "slots")


def command_text() -> str:
    """The command that this process was started with, for the report: a number never stands without it."""
    return shlex.join(["nnet-edge", *sys.argv[1:]])


def leave(out: Path, name: str, report: dict[str, Any], markdown: str, plot: Callable[[Path], None] | None) -> None:
    """The table on standard output, and `name`.json, .md and, with `plot`, .png in the folder `out`, whole or not at all."""
    from nnet_edge.files import write_atomically

    click.echo(markdown)
    text = json.dumps(report, indent=2, allow_nan=False)
    for file, content in ((f"{name}.json", text), (f"{name}.md", markdown)):
        write_atomically(out / file, f"{content}\n".encode())
        say(f"wrote {out / file}")
    if plot is not None:
        plot(out / f"{name}.png")
        say(f"wrote {out / name}.png")


@click.command(cls=Verb)
@click.argument("bundle", type=FOLDER)
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, default=Path("runs/bench-speed"), show_default=True, help="speed.json, .md, .png.")
@click.option("--system", "systems", type=click.Choice(SYSTEMS), multiple=True, help="Default: every one.")
@click.option("--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, help="Default: every one.")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, help="Default: every one.")
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8), show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True, help="Rounds; every contender has a turn in each.")
@click.option("--turn-seconds", type=float, default=0.5, show_default=True, help="Of every turn.")
@click.option("--threads", type=int, help="Of every contender (default: one a usable core).")
@click.option("--no-memory", is_flag=True, help="Leave out the processes that measure memory.")
@click.option("--no-plot", is_flag=True, help="Write no picture.")
def speed(bundle: Path, folder: Path, out: Path, no_memory: bool, no_plot: bool, **options: Any) -> None:
    """How fast BUNDLE judges the pictures of FOLDER: every system that runs here, in three scopes, interleaved.

    \b
    model    images lie ready; the network alone, without tail
    map      images lie ready; upload, network, fusion and blur: map and score
    camera   a picture file becomes a verdict: decode, resize, inference, JSON line
    """
    from nnet_edge.benchmarks.speed import measure_speed
    from nnet_edge.benchmarks.speed_plot import plot_speed
    from nnet_edge.benchmarks.speed_settings import SpeedSettings
    from nnet_edge.benchmarks.speed_table import markdown

    chosen = {name: options[name] for name in ("systems", "precisions", "scopes") if options[name]}
    settings = SpeedSettings(**chosen, batches=options["batches"], repeats=options["repeats"],
                             turn_s=options["turn_seconds"], threads=options["threads"],
                             with_memory=not no_memory)  # fmt: skip
    report = measure_speed(bundle, folder, settings, command_text(), say)
    leave(out, "speed", report.as_dict(), markdown(report), None if no_plot else partial(plot_speed, report))


@click.command(cls=Verb)
@click.argument("bundle", type=FOLDER)
@click.option(
    "--out", type=FOLDER, default=Path("runs/bench-growth"), show_default=True, help="growth.json, .md, .png."
)
@click.option("--curve", "curves", type=click.Choice(CURVES), multiple=True, help="Default: every one.")
@click.option("--system", type=click.Choice(SYSTEMS[2:4]), default="openvino", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True,
              help="Of the curves batch and cameras.")  # fmt: skip
@click.option("--repeats", type=int, default=5, show_default=True, help="Rounds; every point has a turn in each.")
@click.option("--turn-seconds", type=float, default=0.5, show_default=True, help="Of every turn.")
@click.option(
    "--line-seconds", type=float, default=3.0, show_default=True, help="Of every turn of a number of cameras."
)
@click.option("--threads", type=int, help="Default: one a usable core.")
@click.option("--no-plot", is_flag=True, help="Write no picture.")
def growth(bundle: Path, out: Path, curves: tuple[str, ...], no_plot: bool, **options: Any) -> None:
    """How BUNDLE's cost grows: batch 1 to 64, cameras 1 to 8, image 256 to 512, memory slots 50 to 2000."""
    from nnet_edge.benchmarks.growth import GrowthSettings, measure_growth
    from nnet_edge.benchmarks.growth_plot import plot_growth

    settings = GrowthSettings(curves or CURVES, options["system"], options["precision"], options["repeats"],
                              options["turn_seconds"], options["line_seconds"], options["threads"])  # fmt: skip
    report = measure_growth(bundle, settings, command_text(), say)
    leave(out, "growth", report.as_dict(), report.markdown(), None if no_plot else partial(plot_growth, report))


@click.command(cls=Verb)
@click.option("--write", is_flag=True, help="Measure this processor's baseline again (4 minutes, on a quiet machine).")
@click.option("--baselines", type=FILE, help="The file of baselines (default: benchmarks/guard.json).")
def guard(write: bool, baselines: Path | None) -> int:
    """Fail when runner, stream, export or import became slower than their baseline allows; at most two minutes."""
    from nnet_edge.benchmarks import guard as guarding

    file = baselines or guarding.BASELINES
    if write:
        guarding.write_baseline(file, command_text(), say)
        say(f"wrote {file}")
        return 0
    verdicts = guarding.guard(file, say)
    click.echo(guarding.markdown(verdicts))
    return EXIT_FAILURE if any(verdict.is_worse for verdict in verdicts) else 0
