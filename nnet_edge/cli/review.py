"""`nnet-edge review`: what the labelled parts of a history say of a bundle; it proposes and changes nothing."""

from __future__ import annotations

from pathlib import Path

import click

from nnet_edge.cli.options import FILE, FOLDER, Command, cost_options, json_option, print_result
from nnet_edge.cli.view import say


@click.command("review", cls=Command, example="nnet-edge review runs/part/bundle history.db --export parts")
@click.argument("bundle", type=FOLDER)
@click.argument("history", type=FILE)
@click.option("--since", metavar="TIME", help="8h, 30d, 06:00 or 2026-11-29T06:00 (default: everything).")
@click.option("--stream", metavar="NAME", help="Of this camera only (default: of all).")
@cost_options
@click.option("--export", type=FOLDER, help="Write the labelled parts there, to train with: good/ and bad/KIND/.")
@json_option
def command(
    bundle: Path,
    history: Path,
    since: str | None,
    stream: str | None,
    cost_miss: float,
    cost_false: float,
    export: Path | None,
) -> None:
    """Propose from the parts that people labelled in HISTORY, and that BUNDLE judged.

    Another threshold, with its price in misses and false rejects; masks over areas that fire on good parts; a training set.
    Nothing is changed: the bundle, the line and the history stay as they are.
    """
    from nnet_edge.bundle import id_of, read_bundle
    from nnet_edge.evaluation.review import collect, export_parts, propose_masks, review_facts, review_lines
    from nnet_edge.evaluation.sweep import Costs
    from nnet_edge.runtime.history.queries import History, Window, moment

    costs = Costs(cost_miss, cost_false)
    bundle_id = id_of(read_bundle(bundle).manifest)
    window = Window(0 if since is None else moment(since, "--since"), None, stream)
    with History(history) as found:
        found.require_stream(window)
        review = collect(found, bundle_id, window)
        masks = propose_masks(found, review)
        print_result("\n".join(review_lines(review, masks, costs)), review_facts(review, masks, costs))
        if export is not None:
            good, bad, absent = export_parts(found, review, export)
            without = f"; {absent} have no picture any more" if absent else ""
            say(f"wrote {good} good and {bad} defective parts to {export}{without}")
            say(f"next: nnet-edge train OLD_PHOTOGRAPHS --resume-from {bundle} --add {export} --out runs/next")
            say("or anew, which takes longer and is sometimes better: --no-worse-than in place of --resume-from")
