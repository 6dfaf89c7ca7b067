"""The command line: one short function a verb. Heavy libraries are imported by the verb that needs them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge import __version__
from nnet_edge.errors import EXIT_FAILURE, EXIT_WRONG_USE, ConfigError, NnetEdgeError

if TYPE_CHECKING:
    from nnet_edge.config import RunnerSettings
    from nnet_edge.data import Dataset
    from nnet_edge.evaluate import Evaluation
    from nnet_edge.train import Progress

EXIT_INTERRUPTED = 130
FOLDER = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
BACKBONES = ("efficientnet_lite0", "resnet18", "resnet34", "resnet50", "wide_resnet50_2")


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


def say(line: str) -> None:
    """Print a line for the person on standard error; standard output is for data."""
    click.echo(line, err=True)


@click.group()
@click.version_option(__version__)
def commands() -> None:
    """From a folder of good photographs to a live verdict on every part.

    \b
    nnet-edge train photos/ --out runs/part
    nnet-edge stream 0 --bundle runs/part/bundle
    """


def dataset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """DATA and how it lies on disk."""
    for option in (
        click.option("--split-csv", type=FILE, help="VisA's split file (default: split_csv/1cls.csv below DATA)."),
        click.option("--category", help="The category to take where DATA holds several."),
        click.option(
            "--layout", type=click.Choice(["auto", "mvtec", "visa", "folder"]), default="auto", show_default=True
        ),
        click.option("--skip-bad-images", is_flag=True, help="Pass over images that cannot be read, and count them."),
        click.argument("data", type=FOLDER),
    ):
        command = option(command)
    return command


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is trained and how it is computed."""
    for option in (
        click.option(
            "--hold-out", type=float, default=0.15, show_default=True, help="Share held out for the threshold."
        ),
        click.option(
            "--feature-memory",
            type=float,
            default=4.0,
            show_default=True,
            help="GiB of teacher features; more goes to disk.",
        ),
        click.option("--checkpoint-every", type=int, default=10, show_default=True, help="Epochs."),
        click.option("--deterministic", is_flag=True, help="Only kernels whose sums have a fixed order."),
        click.option("--compile", is_flag=True, help="Compile the network with torch.compile."),
        click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        click.option(
            "--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Any other setting of protocol.py."
        ),
        click.option(
            "--paper-lr", is_flag=True, help="The learning rate 0.05 that the paper prints, most likely a misprint."
        ),
        click.option("--learning-rate", type=float, help="Of Adam (default: the protocol's)."),
        click.option("--batch", type=int, help="Images a step (default: the protocol's)."),
        click.option("--epochs", type=int, help="Passes over the images, no fewer (default: the protocol's length)."),
        click.option("--teacher-weights", help="A weights file; 'random' for a speed test only."),
        click.option("--backbone", type=click.Choice(BACKBONES), help="Default: efficientnet_lite0."),
        click.option("--protocol", type=click.Choice(["tuned", "paper"]), help="Default: tuned; paper for ablate."),
    ):
        command = option(command)
    return command


def runner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which runner computes the graph, and how."""
    for option in (
        click.option("--cache-dir", type=FOLDER, help="Keep OpenVINO's compiled graphs here: later starts are faster."),
        click.option(
            "--hint", type=click.Choice(["latency", "throughput"]), help="Default: latency; throughput to stream files."
        ),
        click.option("--threads", type=int, help="Processor threads (default: the runner's choice)."),
        click.option("--runner-batch", type=int, default=8, show_default=True, help="Largest batch of the runner."),
        click.option(
            "--runner",
            type=click.Choice(["auto", "openvino", "onnxruntime", "tensorrt"]),
            default="auto",
            show_default=True,
            help="tensorrt runs the bundle's engine.",
        ),
    ):
        command = option(command)
    return command


def runner_settings(options: dict[str, Any]) -> RunnerSettings:
    """The settings that `runner_options` stands for; takes its options out of `options`."""
    from nnet_edge.config import RunnerSettings

    names = {"runner": "kind", "runner_batch": "max_batch"} | {name: name for name in ("threads", "hint", "cache_dir")}
    settings = {field: options.pop(option) for option, field in names.items()}
    arithmetic = options.pop("runner_precision", None) or ("bf16" if options.get("precision") == "bf16" else "fp32")
    return RunnerSettings(**settings | {"hint": settings["hint"] or "latency", "precision": arithmetic})


runner_precision_option = click.option(
    "--runner-precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True
)
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 and int8 come from calibrate and have thresholds of their own.",
)


def false_rejects_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The share of good parts that may be rejected."""
    text = (
        "Share of good parts that may be rejected, as 1/200 or 0.005 (default: the tightest that the images support)."
    )
    return click.option("--false-rejects", callback=parse_share, help=text)(command)


def parse_share(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """0.005 for '1/200' or '0.005'."""
    if value is None:
        return None
    try:
        above, _, below = value.partition("/")
        share = float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError) as error:
        raise click.BadParameter(f"{value!r} is no share; write 1/200 or 0.005") from error
    if not 0 < share < 1:
        raise click.BadParameter(f"{value!r} is not between 0 and 1")
    return share


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
    from nnet_edge.evaluate_verb import open_artifact
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
@click.argument("sources", metavar="SOURCE...", nargs=-1)
@click.option("--bundle", type=FOLDER, help="The folder that train or export wrote.")
@click.option(
    "--config", type=FILE, help="A line's settings file (TOML) instead of SOURCE; other options stand over it."
)
@click.option("--json", "json_path", type=FILE, help="One JSON object a frame into this file; - for standard output.")
@click.option("--rejects", type=FOLDER, help="A picture of every reject into this folder.")
@click.option("--video", type=FILE, help="Annotated video (.mp4 or .avi).")
@click.option("--threshold", type=float, help="Instead of the bundle's.")
@click.option("--buffer", "buffer_frames", type=int, help="Frames that wait at most.")
@click.option("--when-full", type=click.Choice(["wait", "drop-oldest"]), help="Default: files wait, live sources drop.")
@click.option("--min-area", type=float, default=0.0, show_default=True, help="Smallest region reported, pixels.")
@click.option("--skip-bad-images", is_flag=True, help="Pass over images that cannot be read, and count them.")
@precision_option
@runner_options
@click.pass_context
def stream(
    context: click.Context, sources: tuple[str, ...], bundle: Path | None, config: Path | None, **options: Any
) -> None:
    """Judge every frame of SOURCE: an image folder, a video, a camera's number, an rtsp:// or http:// address, synthetic.

    Several sources are one line: they share the model, and each may have a name: left=0 right=rtsp://camera/1.
    """
    if config is not None:
        if sources:
            raise ConfigError(f"{sources[0]} and --config: give a source, or a settings file that names sources")
        stream_config(config, typed_options(context))
        return
    if not sources or bundle is None:
        raise ConfigError("stream needs a SOURCE and --bundle, or --config line.toml")
    from nnet_edge.stream_verb import stream_bundle, stream_line

    is_hinted = options["hint"] is not None
    if len(sources) > 1:
        for line in stream_line(sources, bundle, runner_settings(options), options, say):
            say(line)
        return
    for line in stream_bundle(sources[0], bundle, runner_settings(options), is_hinted, options, say):
        say(line)


def typed_options(context: click.Context) -> dict[str, Any]:
    """The options that were typed, by name; defaults are left out."""
    from click.core import ParameterSource

    return {name: value for name, value in context.params.items()
            if name != "config" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE}  # fmt: skip


def stream_config(config: Path, typed: dict[str, Any]) -> None:
    """Run the line of the settings file, what was typed over it."""
    from nnet_edge.line_verb import stream_config as run_config

    names = {
        "runner": "kind",
        "runner_batch": "max_batch",
        "threads": "threads",
        "hint": "hint",
        "cache_dir": "cache_dir",
    }
    runner = {names[name]: typed.pop(name) for name in list(typed) if name in names}
    if "cache_dir" in runner:
        runner["cache_dir"] = str(Path(runner["cache_dir"]).absolute())
    if "bundle" in typed:
        typed["bundle"] = Path(typed["bundle"]).absolute()
    for line in run_config(config, typed | ({"runner": runner} if runner else {}), say):
        say(line)


@commands.group("config")
def config_group() -> None:
    """A line's settings file."""


@config_group.command("check")
@click.argument("file", type=FILE)
def check(file: Path) -> None:
    """Check every key of FILE without running anything; say what the line would be."""
    from nnet_edge.line_verb import check_config

    for line in check_config(file):
        click.echo(line)


@config_group.command("schema")
def print_schema() -> None:
    """Print the JSON schema of the settings file, for editors."""
    import json

    from nnet_edge.line_config import schema

    click.echo(json.dumps(schema(), indent=2))


@commands.command()
@click.argument("bundle")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The page of the running line.")
@click.option("--stream", "name", help="Only for this stream.")
@click.option("--token-from", help="env:NAME or file:PATH, which hold the page's token.")
def swap(bundle: str, url: str, name: str | None, token_from: str | None) -> None:
    """Let a running line judge by BUNDLE, a folder below its bundle_folder, without losing a frame."""
    from nnet_edge.runtime.web.client import PageClient
    from nnet_edge.web_settings import read_secret

    PageClient(url, None if token_from is None else read_secret("--token-from", token_from)).swap(bundle, name)
    say(f"the line at {url} judges by {bundle}")


@commands.command()
@click.argument("bundle", type=FOLDER)
@dataset_options
@click.option("--precision", default="int8,fp16", show_default=True, help="int8, fp16 or both, with a comma.")
@click.option(
    "--method",
    type=click.Choice(["auto", "max", "entropy", "percentile"]),
    default="auto",
    show_default=True,
    help="How ranges follow from activations; auto: the best of the three for each tensor.",
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
        precisions=tuple(name.strip() for name in options["precision"].split(",")),
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


@commands.command()
@dataset_options
@click.option("--table", type=click.IntRange(4, 7), required=True, help="4 modules, 5 inside MF, 6 losses, 7 maps.")
@click.option("--out", type=FOLDER, help="Where rows and table go (default: runs/NAME OF DATA-tables).")
@click.option("--seed", "seeds", type=int, multiple=True, default=(111,), show_default=True, help="May be repeated.")
@training_options
def ablate(data: Path, table: int, out: Path | None, seeds: tuple[int, ...], **options: Any) -> int:
    """Run Table 4, 5, 6 or 7 of the paper on DATA and print ours beside it; finished rows are not run again."""
    from nnet_edge.benchmarks.ablation import AblationSettings, run_table
    from nnet_edge.train_verb import choose_settings, train_options

    dataset = find_dataset(data, options)
    training = choose_settings(options | {"seed": seeds[0], "protocol": options["protocol"] or "paper"})
    settings = AblationSettings(
        training, train_options(options), seeds, options["hold_out"], options["skip_bad_images"]
    )
    out = out or Path("runs") / f"{dataset.category}-tables"
    with training_bar() as report, stop_on_signal() as stop:
        found = run_table(table, dataset, out, settings, report, stop, say)
    click.echo(found.markdown())
    return 0 if found.finished else EXIT_INTERRUPTED


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
def build_engine(bundle: Path, precision: str, only_measure: bool, **options: Any) -> None:
    """Build a TensorRT engine of BUNDLE's graph into BUNDLE, and judge it here if this machine runs it."""
    from nnet_edge.build_engine_verb import EngineJob, build_engines, engine_settings, measure_engines

    with stop_on_signal() as stop:
        accept = options.pop("accept")
        if only_measure:
            measure_engines(bundle, accept, say)
        else:
            build_engines(bundle, precision, EngineJob(engine_settings(options), accept, say, steps_bar, stop))


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


def table_of(found: Evaluation) -> str:
    """The metrics and verdicts as lines for a terminal."""
    names = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "pro": "PRO",
             "pro_rd4ad": "PRO (RD4AD)"}  # fmt: skip
    values = found.metrics.as_dict()
    lines = [f"{found.category}: {len(found.scores)} images on {found.runner}, {found.precision}"]
    lines += [f"  {title:<14}{percent(values[name])}" for name, title in names.items()]
    good, anomalous = int((~found.labels).sum()), int(found.labels.sum())
    lines.append(f"  {'false rejects':<14}{len(found.false_rejects):6d} of {good}")
    lines.append(f"  {'missed':<14}{len(found.missed_defects):6d} of {anomalous}")
    lines += [f"    {kind:<12}{n:6d} of {of} found" for kind, (n, of) in found.recall_by_defect.items()]
    if found.skipped:
        lines.append(f"  {'skipped':<14}{len(found.skipped):6d} images that could not be read")
    if found.mask_disagreements:
        lines.append(f"  {len(found.mask_disagreements)} masks say something else than the folder: see metrics.json")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share in percent, a dash for what could not be computed."""
    return "     -" if value is None else f"{100 * value:6.1f} %"


@contextmanager
def training_bar() -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the losses and the time left; plain lines now and then where there is no terminal."""
    from nnet_edge.training_view import TrainingView

    with TrainingView() as view:
        yield view.show


@contextmanager
def steps_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of steps done and steps in all."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Asks whether Ctrl-C or SIGTERM came; the second Ctrl-C kills as usual."""
    from nnet_edge.runtime.stream import stopping_on_signals

    with stopping_on_signals() as event:
        yield event.is_set
