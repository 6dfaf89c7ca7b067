"""`nnet-edge export`: make the bundle of a finished training again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nnet_edge.cli.options import (
    FOLDER,
    Command,
    nice_option,
    runner_options,
    runner_precision_option,
    runner_settings,
    threshold_options,
)
from nnet_edge.cli.view import say


@click.command("export", cls=Command, example="nnet-edge export runs/part/training --force --false-rejects 1/200")
@click.argument("training", type=FOLDER)
@click.option("--out", type=FOLDER, help="The bundle to write (default: bundle beside TRAINING).")
@click.option("--force", is_flag=True, help="Replace the bundle.")
@threshold_options
@runner_precision_option
@runner_options
@nice_option
def command(
    training: Path, out: Path | None, force: bool, false_rejects: float | None, margin: float, **options: Any
) -> None:
    """Make a bundle of the folder TRAINING that train left: graph, parity, threshold."""
    from nnet_edge.cli.training_report import tell_bundle, tell_exported
    from nnet_edge.export.bundling import export_bundle

    out = out or training.parent / "bundle"
    tell_exported(export_bundle(training, out, false_rejects, runner_settings(options), force, say, margin))
    tell_bundle(out)
