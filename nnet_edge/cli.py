"""The command line: one short function a verb. Heavy libraries are imported by the verb that needs them."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge import __version__
from nnet_edge.bench_verb import bench
from nnet_edge.cli_line import config_group, stream, swap
from nnet_edge.cli_options import (
    FOLDER,
    Verbs,
    dataset_options,
    false_rejects_option,
    labelled_data_options,
    precision_option,
    runner_options,
    runner_precision_option,
    runner_settings,
    training_options,
)
from nnet_edge.cli_view import say, steps_bar, stop_on_signal, training_bar
from nnet_edge.errors import EXIT_FAILURE, EXIT_WRONG_USE, ConfigError, NnetEdgeError

if TYPE_CHECKING:
    from nnet_edge.data import Dataset

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; every expected failure is one line on standard error and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing half-written stays behind
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of `nnet-edge` with these arguments: 0, 1 for a failure, 2 for wrong use, 130 when interrupted."""
    try:
        return int(commands.main(arguments, prog_name="nnet-edge", standalone_mode=False) or 0)
    except NnetEdgeError as error:
        return complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return EXIT_WRONG_USE
    except click.ClickException as error:
        return complain(error.format_message(), EXIT_WRONG_USE)
    except (click.Abort, KeyboardInterrupt):
        return complain("interrupted", EXIT_INTERRUPTED)
    except MemoryError:
        return complain("out of memory: use fewer images, a smaller --batch or a smaller --backbone", EXIT_FAILURE)
    except OSError as error:  # a full disk, a folder without permission: whatever the operating system refuses
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}", EXIT_FAILURE)


def complain(message: str, code: int) -> int:
    """Print one line on standard error; gives the exit code back."""
    click.echo(f"nnet-edge: error: {' '.join(message.split())}", err=True)
    return code


@click.group(cls=Verbs)
@click.version_option(__version__)
def commands() -> None:
    """From a folder of good photographs to a live verdict on every part.

    \b
    nnet-edge train photos/ --out runs/part
    nnet-edge stream 0 --bundle runs/part/bundle
    """


for group in (bench, stream, config_group, swap):
    commands.add_command(group)


@commands.command()
@dataset_options
@click.option("--out", type=FOLDER, help="Where bundle and training go (default: runs/NAME OF DATA).")
@training_options
@click.option("--ablation", help="A row of the paper's tables, as 4.2 for Table 4 row 2.")
@click.option("--seed", type=int, default=111, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@click.option("--force", is_flag=True, help="Replace what --out holds.")
@false_rejects_option
@runner_precision_option
@runner_options
def train(data: Path, out: Path | None, resume: bool, force: bool, **options: Any) -> int:
    """Learn from the good images of DATA and leave a bundle that stream and evaluate load."""
    from nnet_edge.train_verb import train_bundle

    settings = runner_settings(options)
    dataset = find_dataset(data, options)
    with training_bar() as report:
        finished = train_bundle(dataset, out or Path("runs") / dataset.category, settings, resume, force, options,
                                report, stop_on_signal, say)  # fmt: skip
    return 0 if finished else EXIT_INTERRUPTED


@commands.command()
@click.argument("training", type=FOLDER)
@click.option("--out", type=FOLDER, help="The bundle to write (default: bundle beside TRAINING).")
@click.option("--force", is_flag=True, help="Replace the bundle.")
@false_rejects_option
@runner_precision_option
@runner_options
def export(training: Path, out: Path | None, force: bool, false_rejects: float | None, **options: Any) -> None:
    """Make a bundle of the folder TRAINING that train left: graph, parity, threshold."""
    from nnet_edge.export.bundling import export_bundle
    from nnet_edge.train_verb import tell_exported

    out = out or training.parent / "bundle"
    exported = export_bundle(training, out, false_rejects, runner_settings(options), force, say)
    tell_exported(exported, say)


@commands.command()
@click.argument("bundle", type=FOLDER)
@dataset_options
@click.option("--out", type=FOLDER, help="Where the report goes (default: evaluation beside BUNDLE).")
@click.option("--torch", "in_torch", is_flag=True, help="Compute in PyTorch instead of a runner.")
@click.option("--mask-rule", type=click.Choice(["half", "any"]), default="half", show_default=True)
@click.option("--record", is_flag=True, help="Keep the metrics in the bundle's manifest.")
@precision_option
@runner_options
def evaluate(bundle: Path, data: Path, out: Path | None, in_torch: bool, record: bool, **options: Any) -> None:
    """Measure BUNDLE (or a checkpoint's weights) on the test images of DATA: table, JSON, pictures."""
    from nnet_edge.bundle import record_metrics
    from nnet_edge.evaluate import evaluate as measure
    from nnet_edge.evaluate import write_evaluation
    from nnet_edge.evaluate_verb import open_artifact, table_of
    from nnet_edge.training_data import with_held_out_images

    settings = runner_settings(options)
    dataset = find_dataset(data, options)
    artifact = open_artifact(bundle, settings, in_torch, options["precision"])
    for line in artifact.warnings:
        say(line)
    if artifact.bundle is not None:
        dataset = with_held_out_images(dataset, artifact.bundle.manifest["data"])
        for note in dataset.notes:
            say(f"note: {note}")
    with artifact.runner as runner, steps_bar("evaluating") as progress:
        found = measure(
            runner,
            dataset,
            artifact.threshold,
            settings.max_batch,
            options["skip_bad_images"],
            options["mask_rule"],
            progress,
        )
    found = replace(found, warnings=artifact.warnings)
    written = write_evaluation(found, out or bundle.parent / "evaluation")
    if record and artifact.bundle is not None:
        record_metrics(artifact.bundle, found.metrics.as_dict())
    click.echo(table_of(found))
    for path in written:
        say(f"wrote {path}")


@commands.command()
@click.argument("bundle", type=FOLDER)
@dataset_options
@click.option("--precision", "precisions", multiple=True, default=["int8,fp16"], show_default=True,
              help="int8, fp16 or both, with a comma or said twice.")  # fmt: skip
@click.option(
    "--method",
    type=click.Choice(["auto", "max", "entropy", "percentile"]),
    default="auto",
    show_default=True,
    help="How ranges follow from activations; auto: the best of the three for each tensor. modelopt has max and entropy.",
)
@click.option("--tool", type=click.Choice(["onnxruntime", "modelopt"]), default="onnxruntime", show_default=True)
@click.option("--frames", type=int, default=64, show_default=True, help="Good images to calibrate on.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--metric-points", type=float, default=0.5, show_default=True, help="That any metric may fall.")
@click.option("--band", type=float, default=0.01, show_default=True,
              help="Verdicts may flip where FP32's score is so close to its threshold.")  # fmt: skip
@click.option("--accept", is_flag=True, help="Keep graphs that the gate refuses; the manifest says so.")
@runner_options
def calibrate(bundle: Path, data: Path, **options: Any) -> None:
    """Make INT8 and FP16 graphs of BUNDLE on good images of DATA; one that changes verdicts is refused.

    Measured against FP32 on every installed runner: metrics where DATA holds defects, verdicts, maps, speed.
    """
    from nnet_edge.calibrate_verb import calibrate_bundle, require_taken, table_of
    from nnet_edge.calibration.gate import GateLimits
    from nnet_edge.calibration.quantize import QuantizeSettings
    from nnet_edge.export.calibrating import CalibrateSettings

    runner = runner_settings(options)
    settings = CalibrateSettings(
        precisions=tuple(dict.fromkeys(name.strip() for said in options["precisions"] for name in said.split(","))),
        quantize=QuantizeSettings(options["tool"], options["method"], runner.threads),
        frames=options["frames"],
        seed=options["seed"],
        accept=options["accept"],
        limits=GateLimits(options["metric_points"], options["band"]),
    )
    dataset = find_dataset(data, options)
    graphs = calibrate_bundle(bundle, dataset, runner, settings, options["skip_bad_images"], steps_bar, say)
    click.echo(table_of(graphs))
    require_taken(graphs, bundle)


@commands.command("build-engine")
@click.argument("bundle", type=FOLDER)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8", "best"]), default="best", show_default=True,
              help="best: the fastest that passes the gate here.")  # fmt: skip
@click.option("--target", default="local", show_default=True, help="local, jetson, or cards: rtx:sm86,sm89,sm120.")
@click.option("--batch", default="1,8,32", show_default=True, help="Smallest,best,largest; or one number.")
@click.option("--workspace", type=int, help="MiB that the builder may use (default: all).")
@click.option("--optimization", type=int, default=3, show_default=True, help="0 builds quickest, 5 tries most.")
@click.option("--hardware-compatibility", type=click.Choice(["none", "ampere_plus", "same_compute_capability"]),
              default="none", show_default=True, help="GPUs beside this one (TensorRT only).")  # fmt: skip
@click.option("--version-compatible", is_flag=True, help="Later versions of the same major load it (TensorRT only).")
@click.option("--accept", is_flag=True, help="Use an engine that the gate refuses.")
@click.option(
    "--measure", "only_measure", is_flag=True, help="Build nothing: measure the engines that fit this machine."
)
@labelled_data_options
def build_engine(bundle: Path, precision: str, only_measure: bool, **options: Any) -> None:
    """Build a TensorRT engine of BUNDLE's graph into BUNDLE, and judge it here if this machine runs it."""
    from nnet_edge.build_engine_verb import EngineJob, build_engines, engine_settings, measure_engines
    from nnet_edge.engine_judging import Judging, load_labelled

    dataset = None if options["data"] is None else find_dataset(options["data"], options)
    judging = Judging(options["accept"], load_labelled(bundle, dataset, options["skip_bad_images"]), say)
    with stop_on_signal() as stop:
        if only_measure:
            measure_engines(bundle, judging)
        else:
            build_engines(bundle, precision, EngineJob(engine_settings(options), judging, steps_bar, stop))


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Tell what this machine has, what each verb can use, and what to install."""
    from nnet_edge.doctor import describe, examine

    findings = examine()
    click.echo(findings.as_json() if as_json else describe(findings))


@commands.command()
@click.option("--out", type=FOLDER, default=Path("demo"), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace what --out holds.")
def demo(out: Path, seed: int, force: bool) -> None:
    """Make an inspection line of real photographs, train on it, judge it live, and write a report to open."""
    from nnet_edge.demo import run_demo

    click.echo(f"open {run_demo(out, seed, force, say)}")


def find_dataset(data: Path, options: dict[str, Any]) -> Dataset:
    """The dataset that `dataset_options` stand for, its notes said."""
    import warnings

    from nnet_edge.data import read_dataset

    warnings.filterwarnings("ignore", module="PIL")  # what Pillow only warns of comes as an error that names the file
    if options["split_csv"] is not None and options["layout"] not in ("auto", "visa"):
        raise ConfigError("--split-csv belongs to the layout visa")
    dataset = read_dataset(data, options["layout"], options["category"], options["split_csv"])
    for note in dataset.notes:
        say(f"note: {note}")
    return dataset
