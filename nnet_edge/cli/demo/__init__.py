"""`nnet-edge demo`: an example line from nothing to a report."""

from __future__ import annotations

from pathlib import Path

import click

from nnet_edge.cli.options import FOLDER, Command
from nnet_edge.cli.view import say


@click.command("demo", cls=Command, example="nnet-edge demo --out demo")
@click.option("--out", type=FOLDER, default=Path("demo"), show_default=True, help="Everything goes there.")
@click.option("--seed", type=int, metavar="SEED", default=0, show_default=True, help="Decides every part.")
@click.option("--force", is_flag=True, help="Replace what --out holds.")
def command(out: Path, seed: int, force: bool) -> None:
    """Make an inspection line of real photographs, train on it, judge it live, and write a report to open."""
    from nnet_edge.cli.demo.run import run_demo

    click.echo(f"open {run_demo(out, seed, force, say)}")
