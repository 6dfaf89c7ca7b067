"""`nnet-edge evaluate`: measure a bundle or a checkpoint on a test set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import (
    FOLDER,
    Command,
    cost_options,
    dataset_options,
    find_dataset,
    json_option,
    nice_option,
    precision_option,
    print_result,
    runner_options,
    runner_settings,
    shown_option,
)
from nnet_edge.cli.view import say, steps_bar
from nnet_edge.text import printable

if TYPE_CHECKING:
    from nnet_edge.evaluation.evaluate import Evaluation


@click.command("evaluate", cls=Command, example="nnet-edge evaluate runs/part/bundle photos/")
@click.argument("bundle", type=FOLDER)
@dataset_options
@click.option("--out", type=FOLDER, help="Where the report goes (default: evaluation beside BUNDLE).")
@click.option("--torch", "in_torch", is_flag=True, help="Compute in PyTorch instead of a runner.")
@shown_option("--mask-rule", type=click.Choice(["half", "any"]), default="half",
              help="A pixel of the small map is defective where half of it is, or any.")  # fmt: skip
@click.option("--record", is_flag=True, help="Keep the metrics in the bundle's manifest.")
@cost_options
@precision_option
@runner_options
@nice_option
@json_option
def command(**options: Any) -> None:
    """Measure BUNDLE (or a checkpoint's weights) on the test images of DATA: table, page, CSV, JSON, pictures."""
    measured = measure(**options)
    print_result(measured.table, measured.evaluation.as_dict())
    for path in measured.files:
        say(f"wrote {path}")


@dataclass(frozen=True)
class Measured:
    """An evaluation, and what was written of it."""

    evaluation: Evaluation
    table: str  # for a terminal
    files: tuple[Path, ...]


def measure(bundle: Path, data: Path, out: Path | None, in_torch: bool, record: bool, cost_miss: float, cost_false: float,
            **options: Any) -> Measured:  # fmt: skip
    """Do what the command does, but for printing the table."""
    from nnet_edge.bundle import record_metrics
    from nnet_edge.data.holding_out import with_held_out_images
    from nnet_edge.evaluation.artefact import open_artifact, table_of
    from nnet_edge.evaluation.evaluate import evaluate
    from nnet_edge.evaluation.pictures import write_evaluation
    from nnet_edge.evaluation.report import write_report
    from nnet_edge.evaluation.sweep import Costs, sweep_lines
    from nnet_edge.image_path import ImagePath, in_words
    from nnet_edge.runtime.runners.base import words_of

    costs = Costs(cost_miss, cost_false)
    settings = runner_settings(options)
    dataset = find_dataset(data, options)
    artifact = open_artifact(bundle, settings, in_torch, options["precision"])
    say(f"{bundle} on {words_of(artifact.runner)}")
    for line in artifact.warnings:
        say(line)
    if artifact.bundle is not None:
        known = len(dataset.notes)
        dataset = with_held_out_images(dataset, artifact.bundle.manifest["data"])
        for note in dataset.notes[known:]:
            say(f"note: {note}")
    with artifact.runner as runner, steps_bar("evaluating") as progress:
        found = evaluate(runner, dataset, artifact.threshold, runner.max_batch, options["skip_bad_images"],
                         options["mask_rule"], progress, options["bits"] or artifact.bits, artifact.geometry,
                         artifact.sizes)  # fmt: skip
    for note in found.notes:
        say(f"note: {note}")
    if found.depth is not None:
        say(found.depth.sentence())
    learned = None if artifact.bundle is None else ImagePath.in_manifest(artifact.bundle.manifest)
    changes = {} if learned is None else learned.changes(found.image_path)
    others = (
        [f"the test images were made otherwise than those that were learned: {in_words(changes)}"] if changes else []
    )
    for line in others:
        say(f"warning: {line}")
    promised = None if artifact.bundle is None else artifact.bundle.threshold
    found = replace(found, warnings=(*artifact.warnings, *others), promised=promised)
    folder = out or bundle.parent / "evaluation"
    written = write_evaluation(found, folder)
    facts = {
        "bundle": printable(str(bundle)),
        "data": printable(str(data)),
        "runner": f"{found.runner}, {found.precision}",
    }
    written.append(write_report(found, folder, costs, facts))
    if record and artifact.bundle is not None:
        record_metrics(artifact.bundle, found.metrics.as_dict())
    return Measured(found, "\n".join((table_of(found), *sweep_lines(found, costs))), tuple(written))
