"""`nnet-edge bench peers`: other methods' accuracy and speed beside ours, on this machine, in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nnet_edge.cli_options import FOLDER, Verb


@click.command(cls=Verb)
@click.argument("data", nargs=-1, required=True, type=FOLDER)
@click.option("--out", type=FOLDER, default=Path("runs/peers"), show_default=True, help="Rows, exports, table, figure.")
@click.option(
    "--ours",
    type=FOLDER,
    help="What `bench accuracy` left as its --out: N-Net's bundles and rows. Without it N-Net is not in the race.",
)
@click.option("--categories", help="Only these, with commas (default: all under DATA).")
@click.option("--method", "methods", multiple=True, help="May be repeated (default: all that anomalib is asked for).")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--images", type=int, default=150, show_default=True, help="Good training images of a peer, at most.")
@click.option("--epochs", type=int, help="Of peers that are trained (default: anomalib's own for each).")
@click.option("--minutes", type=float, help="Limit of one training; the table says what was cut short.")
@click.option("--no-int8", is_flag=True, help="Leave anomalib's INT8 export out.")
@click.option("--threads", type=int, default=2, show_default=True, help="Of every contender and training.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Turns of every contender; 0: no speed.")
@click.option("--turn-s", type=float, default=2.0, show_default=True, help="Seconds that a turn shall last.")
@click.option("--no-learning", is_flag=True, help="Only time and report what lies in --out.")
@click.option("--cache", type=FOLDER, help="Where anomalib's environment lies (default: ~/.cache/nnet-edge/peers).")
def peers(data: tuple[Path, ...], out: Path, **options: Any) -> int:
    """Measure anomalib's methods beside N-Net: accuracy on DATA, speed in turns; a table, JSON and the paper's Figure 4.

    N-Net runs with --ours: train and measure it first (nnet-edge bench accuracy DATA --out runs/accuracy), then give that
    folder. anomalib is installed into an environment of its own. Finished rows in --out are not computed again; rows of other
    settings or images are refused. The table says why a method has no row.
    """
    from nnet_edge.benchmarks.peers.race import RaceSettings, run_race
    from nnet_edge.benchmarks.peers.rows import LearnSettings
    from nnet_edge.cli_view import say

    settings = RaceSettings(
        learning=LearnSettings(
            options["seed"], options["images"], options["epochs"], options["minutes"], options["threads"],
            not options["no_int8"],
        ),
        methods=options["methods"],
        categories=tuple(name.strip() for name in (options["categories"] or "").split(",") if name.strip()),
        rounds=options["rounds"],
        turn_s=options["turn_s"],
        learns=not options["no_learning"],
    )  # fmt: skip
    found = run_race(data, out, options["ours"], options["cache"], settings, say)
    click.echo(found.markdown())
    return 0 if found.finished else 1
