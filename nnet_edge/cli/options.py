"""Command classes and the options that several commands share. Imports no heavy library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.errors import ConfigError
from nnet_edge.threads import give_way, limit_threads

if TYPE_CHECKING:
    from nnet_edge.data.images import Dataset
    from nnet_edge.data.seen import AskedInput
    from nnet_edge.settings.runner import RunnerSettings

FOLDER = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
BACKBONES = (
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet18", "resnet34", "resnet50", "wide_resnet50_2"
)  # fmt: skip


class Command(click.Command):
    """A command that refuses an option said twice, of which click alone would silently keep the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments that are left. Raises UsageError that names the option."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            once = isinstance(option, click.Option) and not (option.multiple or option.count)
            if once and given.count(option) > 1:
                names = " / ".join(option.opts + option.secondary_opts)
                raise click.UsageError(f"{names} was given twice: say it once", ctx)
        return super().parse_args(ctx, args)


class CommandGroup(click.Group):
    """A group of such commands."""

    command_class = Command


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
shown_option = partial(click.option, show_default=True)


def together(*parameters: Decorator) -> Decorator:
    """The parameters as one decorator, in the order that --help lists them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for parameter in reversed(parameters):
            command = parameter(command)
        return command

    return decorate


_layout = together(
    click.option("--skip-bad-images", is_flag=True, help="Pass over images that cannot be read, and count them."),
    shown_option("--layout", type=click.Choice(["auto", "mvtec", "visa", "real-iad", "ksdd2", "folder"]), default="auto"),
    click.option("--split-csv", type=FILE, help="VisA's split file (default: split_csv/1cls.csv below DATA)."),
    shown_option("--mask-mark", metavar="auto|nonzero|bright|dark|alpha|VALUE", default="auto",
                 help="What marks a defect in masks; auto is nonzero, and asks in doubt."),
)  # fmt: skip
bits_option = click.option(
    "--bits",
    type=click.IntRange(8, 16),
    help="Bits that the camera gives, in pictures of 16 (default: as in training, where they are recognised).",
)
_category = click.option("--category", help="The category to take where DATA holds several.")
dataset_options = together(click.argument("data", type=FOLDER), _category, _layout, bits_option)
labelled_data_options = together(  # for commands that can do without DATA
    click.option("--data", type=FOLDER, help="Judge on its test images too: metrics count where it has defects."),
    _category,
    _layout,
)
several_datasets = together(
    click.argument("data", type=FOLDER, nargs=-1, required=True),
    shown_option("--seeds", default="1,2,3", help="With commas."),
    click.option("--categories", help="Only these, with commas (default: all under DATA)."),
    _layout,
)
input_options = together(
    click.option("--size", metavar="SIDE|HxW",
                 help="Height and width of the input, multiples of 32 (default: 256): 384, or 256x512."),
    click.option("--fit", type=click.Choice(["squeeze", "letterbox", "crop"]),
                 help="How pictures of another aspect ratio get into the input (default: the one that suits them)."),
    click.option("--tiles", metavar="ROWSxCOLUMNS|auto",
                 help="Cut each picture into so many tiles, each as large as the input (default: none)."),
    click.option("--overlap", type=float, help="Of neighbouring tiles, a share of a tile (default: 0.25)."),
    click.option("--crop", metavar="X,Y,WIDTH,HEIGHT|auto",
                 help="See only that part of each picture, in pixels or as shares (auto: where the parts lie)."),
)  # fmt: skip
training_options = together(
    click.option("--method", metavar="NAME",
                 help="How it learns: nnet (default), dmdd, bikd, rbd, or auto: the one that suits the good parts."),
    click.option("--protocol", help="Named settings of the method (default: tuned; paper for Tables 4 to 7 of N-Net)."),
    click.option("--backbone", type=click.Choice((*BACKBONES, "auto")),
                 help="Teacher (default: efficientnet_lite0; auto: the installed EfficientNet-Lite that suits)."),
    click.option("--teacher-weights", help="A weights file; 'random' for a speed test only."),
    click.option("--epochs", type=int, help="Passes over the images, no fewer (default: the protocol's length)."),
    click.option("--batch", type=int, help="Images a step (default: the protocol's)."),
    click.option("--learning-rate", type=float, help="Of Adam (default: the protocol's)."),
    click.option("--paper-lr", is_flag=True, help="The learning rate 0.05 that the paper prints, most likely a misprint."),
    click.option("--textures", type=FOLDER, help="Pictures for synthetic anomalies, as DTD (default: procedural textures)."),
    input_options,
    click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE",
                 help="Any other setting of methods/METHOD/settings.py."),
    shown_option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
    shown_option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto"),
    click.option("--compile", is_flag=True, help="Compile the network with torch.compile."),
    click.option("--deterministic", is_flag=True, help="Only kernels whose sums have a fixed order."),
    shown_option("--checkpoint-every", type=int, default=1, help="Epochs."),
    shown_option("--feature-memory", type=float, default=4.0, help="GiB of teacher features; more goes to disk."),
    shown_option("--hold-out", type=float, default=0.15, help="Share held out for the threshold."),
)  # fmt: skip
runner_options = together(
    shown_option("--runner", type=click.Choice(["auto", "openvino", "onnxruntime", "tensorrt"]), default="auto",
                 help="tensorrt runs the bundle's engine."),
    shown_option("--runner-batch", type=int, default=8, help="Largest batch of the runner."),
    click.option("--threads", type=int, help="Processor threads of runner and torch (default: one a usable core)."),
    click.option("--hint", type=click.Choice(["latency", "throughput"]),
                 help="Default: latency; throughput to stream files."),
    click.option("--cache-dir", type=FOLDER, help="Keep OpenVINO's compiled graphs here: later starts are faster."),
)  # fmt: skip
nice_option = click.option(
    "--nice",
    type=click.IntRange(0, 19),
    expose_value=False,
    callback=lambda context, option, niceness: None if niceness is None else give_way(niceness),
    help="Let other programs go first: 10 beside a line that runs (default: as started).",
)
RUNNER_OPTIONS = {  # option -> its name in RunnerSettings
    "runner": "kind", "runner_batch": "max_batch", "threads": "threads", "hint": "hint", "cache_dir": "cache_dir",
}  # fmt: skip


def asked_input(options: Mapping[str, Any]) -> AskedInput:
    """How pictures are to get into the input, by `input_options`."""
    from nnet_edge.data.seen import AskedInput

    return AskedInput(*(options[name] for name in ("fit", "tiles", "overlap", "crop")))


def runner_settings(options: dict[str, Any]) -> RunnerSettings:
    """The settings that `runner_options` stands for; takes its options out of `options`."""
    from nnet_edge.settings.runner import RunnerSettings

    settings = {field: options.pop(option) for option, field in RUNNER_OPTIONS.items()}
    arithmetic = options.pop("runner_precision", None) or ("bf16" if options.get("precision") == "bf16" else "fp32")
    made = RunnerSettings(**settings | {"hint": settings["hint"] or "latency", "precision": arithmetic})
    if made.threads is not None:
        limit_threads(made.threads)
    return made


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


runner_precision_option = shown_option("--runner-precision", type=click.Choice(["fp32", "bf16"]), default="fp32")
precision_option = click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "int8"]),
    show_default="fp32; with --runner tensorrt the engine that build-engine kept as best",
    help="fp16 and int8 come from calibrate and have thresholds of their own.",
)
false_rejects_option = click.option(
    "--false-rejects",
    callback=parse_share,
    help="Share of good parts that may be rejected, as 1/200 or 0.005 (default: the tightest that the images support).",
)
margin_option = shown_option(
    "--margin",
    type=float,
    default=0.0,
    help="Raise the threshold by so many deviations of good scores, for their drift (mean_shift of the drift monitor).",
)


def find_dataset(data: Path, options: dict[str, Any]) -> Dataset:
    """The dataset that `dataset_options` stand for, its notes said."""
    import warnings

    from nnet_edge.cli.view import say
    from nnet_edge.data.images import read_dataset

    warnings.filterwarnings("ignore", module="PIL")  # what Pillow only warns of comes as an error that names the file
    if options["split_csv"] is not None and options["layout"] not in ("auto", "visa"):
        raise ConfigError("--split-csv belongs to the layout visa")
    places = (options[name] for name in ("layout", "category", "split_csv", "mask_mark"))
    dataset = read_dataset(data, *places)
    for note in dataset.notes:
        say(f"note: {note}")
    return dataset
