"""Options that several commands share, and what they stand for. No heavy library is imported here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.errors import ConfigError

if TYPE_CHECKING:
    from nnet_edge.data.images import Dataset
    from nnet_edge.settings.runner import RunnerSettings

FOLDER = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
BACKBONES = ("efficientnet_lite0", "resnet18", "resnet34", "resnet50", "wide_resnet50_2")


class Command(click.Command):
    """A command that refuses an option said twice, of which click alone would silently keep the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments that are left. Raises UsageError that names the option."""
        _, _, said = self.make_parser(ctx).parse_args(list(args))
        for one in said:
            once = isinstance(one, click.Option) and not (one.multiple or one.count)
            if once and said.count(one) > 1:
                raise click.UsageError(f"{' / '.join(one.opts + one.secondary_opts)} was given twice: say it once", ctx)
        return super().parse_args(ctx, args)


class Group(click.Group):
    """A group of them."""

    command_class = Command


Verb = Command  # the old names, which bench, config, demo, stream and swap import
Verbs = Group


_LAYOUT = (
    click.option("--split-csv", type=FILE, help="VisA's split file (default: split_csv/1cls.csv below DATA)."),
    click.option("--layout", type=click.Choice(["auto", "mvtec", "visa", "folder"]), default="auto", show_default=True),
    click.option("--skip-bad-images", is_flag=True, help="Pass over images that cannot be read, and count them."),
)


def dataset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """DATA and how it lies on disk."""
    for option in (
        *_LAYOUT,
        click.option("--category", help="The category to take where DATA holds several."),
        click.argument("data", type=FOLDER),
    ):
        command = option(command)
    return command


def labelled_data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data DATA and how it lies on disk, for commands that can do without."""
    for option in (
        *_LAYOUT,
        click.option("--category", help="The category to take where DATA holds several."),
        click.option("--data", type=FOLDER, help="Judge on its test images too: metrics count where it has defects."),
    ):
        command = option(command)
    return command


def several_datasets(command: Callable[..., Any]) -> Callable[..., Any]:
    """DATA..., each a category or a folder of them, and the seeds."""
    for option in (
        *_LAYOUT,
        click.option("--categories", help="Only these, with commas (default: all under DATA)."),
        click.option("--seeds", default="1,2,3", show_default=True, help="With commas."),
        click.argument("data", type=FOLDER, nargs=-1, required=True),
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
            "--set",
            "overrides",
            multiple=True,
            metavar="NAME=VALUE",
            help="Any other setting of methods/nnet/settings.py.",
        ),
        click.option(
            "--paper-lr", is_flag=True, help="The learning rate 0.05 that the paper prints, most likely a misprint."
        ),
        click.option("--learning-rate", type=float, help="Of Adam (default: the protocol's)."),
        click.option("--batch", type=int, help="Images a step (default: the protocol's)."),
        click.option("--epochs", type=int, help="Passes over the images, no fewer (default: the protocol's length)."),
        click.option("--teacher-weights", help="A weights file; 'random' for a speed test only."),
        click.option("--backbone", type=click.Choice(BACKBONES), help="Default: efficientnet_lite0."),
        click.option(
            "--protocol", type=click.Choice(["tuned", "paper"]), help="Default: tuned; paper for Tables 4 to 7."
        ),
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
    from nnet_edge.settings.runner import RunnerSettings

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
    show_default="fp32; with --runner tensorrt the engine that build-engine kept as best",
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


def find_dataset(data: Path, options: dict[str, Any]) -> Dataset:
    """The dataset that `dataset_options` stand for, its notes said."""
    import warnings

    from nnet_edge.cli.view import say
    from nnet_edge.data.images import read_dataset

    warnings.filterwarnings("ignore", module="PIL")  # what Pillow only warns of comes as an error that names the file
    if options["split_csv"] is not None and options["layout"] not in ("auto", "visa"):
        raise ConfigError("--split-csv belongs to the layout visa")
    dataset = read_dataset(data, options["layout"], options["category"], options["split_csv"])
    for note in dataset.notes:
        say(f"note: {note}")
    return dataset
