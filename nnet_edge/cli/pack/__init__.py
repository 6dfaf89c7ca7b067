"""`nnet-edge pack`: everything that a box without a network needs, in one folder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nnet_edge.cli.options import FILE, FOLDER, Command, grouped, shown_option
from nnet_edge.cli.view import say

KINDS = ("cpu", "rtx", "jetson")


@click.command(
    "pack",
    cls=Command,
    example="nnet-edge pack runs/part/bundle --for cpu --python 3.12 --line line.toml --out pack/",
)
@click.argument("bundle", type=FOLDER)
@click.option("--for", "kind", type=click.Choice(KINDS), required=True,
              help="The box (no default): a PC without a GPU, one with an NVIDIA RTX card, or a Jetson.")  # fmt: skip
@click.option("--python", metavar="3.12", required=True, help="Version of Python on the box (no default).")
@click.option("--out", type=FOLDER, required=True, help="The folder to write; it must be empty or absent.")
@click.option("--line", type=FILE, metavar="FILE",
              help="A line's settings file, packed with its bundles and masks and a service unit (default: none).")  # fmt: skip
@click.option(
    "--split",
    metavar="60M",
    help="Pieces of at most so many bytes, with a script that joins them (default: one folder).",
)
@click.option(
    "--extra", "more", multiple=True, metavar="NAME", help="More extras of nnet-edge, as web or mqtt (default: none)."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was packed as JSON.")
@grouped(
    "Where wheels come from",
    shown_option(
        "--glibc",
        type=click.IntRange(17, 99),
        metavar="MINOR",
        default=35,
        help="Of the box: 35 is 2.35 (Ubuntu 22.04, JetPack 6), 39 is Ubuntu 24.04.",
    ),
    click.option("--wheelhouse", type=FOLDER, help="Take wheels from this folder alone (default: from pip's index)."),
    click.option("--constraint", type=FILE, help="Versions to keep to, as pip's -c (default: none)."),
)
def command(bundle: Path, kind: str, python: str, out: Path, line: Path | None, split: str | None, more: tuple[str, ...],
            as_json: bool, glibc: int, wheelhouse: Path | None, constraint: Path | None) -> None:  # fmt: skip
    """Pack BUNDLE, nnet-edge and all its wheels for a box without a network.

    On the box `sh install.sh` checks every file and installs; it needs Python and nothing else.
    """
    from nnet_edge.cli.pack.machine import Target
    from nnet_edge.cli.pack.write import write_pack
    from nnet_edge.pieces import parse_bytes

    target = Target(kind, python, glibc, more)
    size = None if split is None else parse_bytes(split)
    facts = write_pack(bundle, target, out, line, size, wheelhouse, constraint, say)
    if as_json:
        click.echo(json.dumps(facts))
    pieces = f" in {facts['pieces']} pieces" if facts["pieces"] else ""
    say(
        f"packed {len(facts['wheels'])} wheels and the bundle, {facts['bytes'] / 1e6:.0f} MB{pieces}, for {target.words}: {out}"
    )
    joined = "sh join.sh && tar -xf pack.tar && sh nnet-edge-*/install.sh"
    say(f"next, on the box: {joined if facts['pieces'] else 'sh install.sh'}")
