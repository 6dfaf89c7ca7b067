"""`nnet-edge bench`: one short function a question; libraries are imported by the function that needs them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import (
    FILE,
    FOLDER,
    Command,
    CommandGroup,
    asked_input,
    grouped,
    json_option,
    print_result,
    runner_options,
    runner_settings,
    several_datasets,
    shown_option,
    threads_option,
    training_options,
    use_threads,
)
from nnet_edge.cli.view import say, stop_on_signal, training_bar
from nnet_edge.errors import EXIT_FAILURE, EXIT_INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from nnet_edge.benchmarks.accuracy.trainings import Watch
    from nnet_edge.benchmarks.accuracy.variants import VariantTable
    from nnet_edge.benchmarks.harness.report import Report
    from nnet_edge.data.images import Dataset


@click.group("bench", cls=CommandGroup, example="nnet-edge bench speed runs/part/bundle photos/")
def command() -> None:
    """Measure speed and accuracy on this machine: every figure with its command, its spread and the machine in words."""


SYSTEMS = ("torch", "torch.compile", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SCOPES = ("model", "map", "camera")


def command_text() -> str:
    """The command that this process was started with, for the report: a number never stands without it."""
    return shlex.join(["nnet-edge", *sys.argv[1:]])


def leave(out: Path, name: str, report: Report, plot: Callable[[Path], None] | None) -> None:
    """The table on standard output, and `name`.json, .md and, with `plot`, .png in the folder `out`."""
    from nnet_edge.benchmarks.harness.report import write_report

    print_result(report.markdown(), report.as_dict())
    write_report(out, name, report)
    say(f"wrote {out / name}.json and {name}.md")
    if plot is not None:
        plot(out / f"{name}.png")
        say(f"wrote {out / name}.png")


@click.command(cls=Command, example="nnet-edge bench speed runs/part/bundle photos/ --system openvino")
@click.argument("bundle", type=FOLDER)
@click.argument("folder", type=FOLDER)
@shown_option("--out", type=FOLDER, default=Path("runs/bench-speed"), help="Where speed.json, .md and .png go.")
@click.option(
    "--system", "systems", type=click.Choice(SYSTEMS), multiple=True, help="May be repeated (default: every one)."
)
@click.option(
    "--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, help="As --system (default: every one)."
)
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, help="As --system (default: every one).")
@shown_option("--batch", "batches", type=int, metavar="IMAGES", multiple=True, default=(1, 8), help="May be repeated.")
@shown_option("--repeats", type=int, metavar="ROUNDS", default=5, help="Rounds; every candidate is measured in each.")
@shown_option("--turn-seconds", type=float, metavar="SECONDS", default=0.5, help="Of every candidate in a round.")
@click.option("--threads", type=int, metavar="THREADS", help="Of every candidate (default: one a usable core).")
@click.option("--no-memory", is_flag=True, help="Leave out the processes that measure memory.")
@click.option("--no-plot", is_flag=True, help="Write no picture.")
@json_option
def speed(bundle: Path, folder: Path, out: Path, no_memory: bool, no_plot: bool, **options: Any) -> None:
    """How fast BUNDLE judges the pictures of FOLDER: every system that runs here, in three scopes, interleaved.

    \b
    model    images lie ready; the network alone, without tail
    map      images lie ready; upload, network, fusion and blur: map and score
    camera   a picture file becomes a verdict: decode, resize, inference, JSON line
    """
    from nnet_edge.benchmarks.speed.plan import SpeedSettings
    from nnet_edge.benchmarks.speed.plot import plot_speed
    from nnet_edge.benchmarks.speed.speed import measure_speed

    chosen = {name: options[name] for name in ("systems", "precisions", "scopes") if options[name]}
    settings = SpeedSettings(**chosen, batches=options["batches"], repeats=options["repeats"],
                             turn_s=options["turn_seconds"], threads=options["threads"],
                             with_memory=not no_memory)  # fmt: skip
    report = measure_speed(bundle, folder, settings, command_text(), say)
    leave(out, "speed", report, None if no_plot else partial(plot_speed, report))


@click.command(cls=Command, example="nnet-edge bench guard")
@click.option("--write", is_flag=True, help="Measure this processor's baseline again (4 minutes, on a quiet machine).")
@click.option(
    "--only", multiple=True, metavar="RATIO", help="With --write: measure this one alone, others stay; repeatable."
)
@click.option("--baselines", type=FILE, help="The file of baselines (default: benchmarks/guard.json).")
@json_option
def guard(write: bool, only: tuple[str, ...], baselines: Path | None) -> int:
    """Fail when runner, stream, line, start, training, export or import became slower than the baseline allows; two minutes."""
    from nnet_edge.benchmarks.speed import guard as guarding

    file = baselines or guarding.BASELINES
    if write:
        guarding.write_baseline(file, command_text(), say, only)
        say(f"wrote {file}")
        return 0
    verdicts = guarding.guard(file, say)
    facts = [asdict(verdict) | {"best": verdict.best, "is_worse": verdict.is_worse} for verdict in verdicts]
    print_result(guarding.markdown(verdicts), facts)
    return EXIT_FAILURE if any(verdict.is_worse for verdict in verdicts) else 0


def chosen_datasets(data: tuple[Path, ...], options: dict[str, Any]) -> list[Dataset]:
    """The data sets that `several_datasets` stands for, their notes said."""
    import warnings

    from nnet_edge.benchmarks.accuracy.trainings import read_datasets

    warnings.filterwarnings("ignore", module="PIL")  # what Pillow only warns of comes as an error that names the file
    datasets = read_datasets(
        data, options["layout"], names_of(options["categories"]), options["split_csv"], options["mask_mark"]
    )
    for dataset in datasets:
        for note in dataset.notes:
            say(f"note: {dataset.category}: {note}")
    return datasets


def names_of(text: str | None) -> list[str]:
    """["a", "b"] for "a, b"."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """(1, 2, 3) for "1,2,3". Raises ConfigError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text}: give whole numbers with commas, as 1,2,3") from error


def grid_settings(options: dict[str, Any]) -> dict[str, Any]:
    """What the trainings of a grid have in common, as `GridSettings` names it."""
    from nnet_edge.cli.training_settings import choose_settings, train_options

    seeds = parse_numbers("--seeds", options["seeds"])
    training = choose_settings(options | {"seed": seeds[0]})
    return {"training": training, "options": train_options(options), "seeds": seeds, "asked": asked_input(options),
            "held_out_share": options["hold_out"], "skip_bad": options["skip_bad_images"]}  # fmt: skip


@click.command(cls=Command, example="nnet-edge bench accuracy mvtec/ --seeds 1,2,3")
@several_datasets
@shown_option("--out", type=FOLDER, default=Path("runs/accuracy"), help="Where rows and tables go.")
@click.option("--table", "tables", type=click.Choice(["1", "3", "4", "5", "6", "7"]), multiple=True,
              help="Of the paper, may be repeated (default: 1 and 3, with all that was measured). 4 modules, 5 inside MF, "
              "6 losses, 7 maps.")  # fmt: skip
@shown_option("--measure", metavar="NAME,NAME,...", default="fp32,int8", help="Precisions of the bundle, with commas.")
@click.option("--peers", type=FOLDER, help="Rows of other methods: the folder that bench peers filled (default: none).")
@click.option(
    "--leave-one-out", is_flag=True, help="Then choose how maps are read on all sets but one, judge on that one."
)
@training_options
@runner_options
@json_option
def accuracy(data: tuple[Path, ...], out: Path, tables: tuple[str, ...], **options: Any) -> int:
    """Train and measure N-Net on every category and seed of DATA, ours beside the paper's tables and other methods.

    DATA is MVTec AD, VisA, or categories of one's own. Finished rows are not run again, and several processes may share
    --out. Tables 4 to 7 are trained by --protocol paper unless another is said.
    """
    datasets = datasets_for(data, options)
    wanted = [int(table) for table in tables if table not in ("1", "3")]
    with watching() as watch:
        grid = Grid(datasets, out, options, watch)
        finished = [grid.accuracy()] if len(wanted) < len(tables) or not tables else []
        finished += [grid.ablation(table) for table in wanted]
        if options["leave_one_out"]:
            finished.append(grid.leave_one_out())
    return 0 if all(finished) else EXIT_INTERRUPTED


@contextmanager
def watching() -> Iterator[Watch]:
    """Who looks on at trainings: a bar, and signals that stop them."""
    from nnet_edge.benchmarks.accuracy.trainings import Watch

    with training_bar() as report, stop_on_signal() as stop:
        yield Watch(report, stop, say)


@dataclass(frozen=True)
class Grid:
    """What `bench accuracy` was asked for."""

    datasets: list[Dataset]
    out: Path
    options: dict[str, Any]
    watch: Watch

    def accuracy(self) -> bool:
        """Tables 1 and 3 and the table by category, printed; whether they are finished."""
        from nnet_edge.benchmarks.accuracy.accuracy import AccuracySettings, run_accuracy
        from nnet_edge.benchmarks.accuracy.tables import read_baseline_rows

        precisions = tuple(name.strip() for name in self.options["measure"].split(","))
        runner = runner_settings(self.options | {"runner_precision": "fp32"})
        settings = AccuracySettings(**grid_settings(self.options), precisions=precisions, runner=runner)
        baselines = read_baseline_rows(self.options["peers"]) if self.options["peers"] is not None else []
        found = run_accuracy(self.datasets, self.out, settings, command_line("accuracy"), baselines, self.watch)
        print_result(found.markdown(), found.as_dict())
        return found.finished

    def leave_one_out(self) -> bool:
        """The readings of the same trainings, each chosen on all sets but one, printed; whether it is finished."""
        from nnet_edge.benchmarks.accuracy.variants import VariantSettings, run_variants

        settings = VariantSettings(**grid_settings(self.options), with_training=False)
        found = run_variants(self.datasets, self.out, settings, command_line("accuracy"), self.watch)
        say_leave_one_out(found, self.out)
        return not found.missing

    def ablation(self, table: int) -> bool:
        """Table 4, 5, 6 or 7, printed; whether it is finished."""
        from nnet_edge.benchmarks.accuracy.ablation import run_table
        from nnet_edge.benchmarks.accuracy.trainings import GridSettings

        options = self.options | {"protocol": self.options["protocol"] or "paper"}
        settings = GridSettings(**grid_settings(options))
        found = run_table(table, self.datasets, self.out, settings, command_line("accuracy"), self.watch)
        print_result(found.markdown(), found.as_dict())
        return found.finished


@click.command(cls=Command, example="nnet-edge bench levers mvtec/ --lever score --seeds 1,2,3")
@several_datasets
@shown_option("--out", type=FOLDER, default=Path("runs/accuracy"), help="Where rows and table go.")
@click.option(
    "--lever",
    "levers",
    metavar="NAME",
    multiple=True,
    help="May be repeated (default: all; own: those of the method's own parts).",
)
@click.option("--variant", "variants", metavar="NAME", multiple=True,
              help="Only these of their variants, as the table names them (default: all).")  # fmt: skip
@click.option("--readings-only", is_flag=True, help="Train the base alone; of the variants those that read its maps.")
@click.option("--test-limit", type=int, metavar="IMAGES", help="Good and bad test images each, at most (default: all).")
@click.option("--leave-one-out", is_flag=True, help="Choose on all sets but one, judge on that one: a second table.")
@training_options
@threads_option
@json_option
def levers(
    data: tuple[Path, ...], out: Path, levers: tuple[str, ...], variants: tuple[str, ...], **options: Any
) -> int:
    """Measure what each hyper-parameter of training and reading changes on DATA, seed by seed against the settings.

    Finished rows are not run again, and several processes may share --out; each --method has one of its own. `--protocol
    paper` makes the settings of N-Net's paper the base.
    """
    from nnet_edge.benchmarks.accuracy.variants import VariantSettings, run_variants
    from nnet_edge.settings.runner import RunnerSettings

    use_threads(RunnerSettings(threads=options["threads"]).threads)
    settings = VariantSettings(**grid_settings(options), hyperparameters=levers, variants=variants,
                               with_training=not options["readings_only"], test_limit=options["test_limit"])  # fmt: skip
    datasets = datasets_for(data, options)
    with watching() as watch:
        found = run_variants(datasets, out, settings, command_line("levers"), watch)
    print_result(found.markdown(), found.as_dict())
    if options["leave_one_out"]:
        say_leave_one_out(found, out)
    return 0 if not found.missing else EXIT_INTERRUPTED


def datasets_for(data: tuple[Path, ...], options: dict[str, Any]) -> list[Dataset]:
    """The data sets, enough of them for --leave-one-out; raises ConfigError before hours of training."""
    from nnet_edge.benchmarks.accuracy.leave_one_out import require_enough

    datasets = chosen_datasets(data, options)
    if options["leave_one_out"]:
        require_enough([dataset.category for dataset in datasets])
    return datasets


def say_leave_one_out(found: VariantTable, out: Path) -> None:
    """The second table, printed and written below `out`."""
    from nnet_edge.benchmarks.accuracy.leave_one_out import leave_one_out
    from nnet_edge.benchmarks.harness.report import write_report

    report = leave_one_out(found)
    print_result(report.markdown(), report.as_dict())
    write_report(out, "leave_one_out", report)


def command_line(name: str) -> str:
    """What was typed, `--out` and hyper-parameters left out: a number never stands without its command."""
    words = sys.argv[sys.argv.index(name) + 1 :] if name in sys.argv else []
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word in ("--out", "--lever", "--variant", "--readings-only"):
            skip = word in ("--out", "--lever", "--variant")
            continue
        kept.append(word)
    return shlex.join(["nnet-edge", "bench", name, *kept])


@click.command(cls=Command, example="nnet-edge bench peers mvtec/ --ours runs/accuracy")
@click.argument("data", nargs=-1, required=True, type=FOLDER)
@shown_option("--out", type=FOLDER, default=Path("runs/peers"), help="Rows, exports, table, figure.")
@click.option("--ours", type=FOLDER, help="What `bench accuracy` left as its --out: N-Net's bundles and rows. "
              "Without it N-Net is not in the race.")  # fmt: skip
@click.option("--categories", metavar="NAME,NAME,...", help="Only these, with commas (default: all under DATA).")
@click.option(
    "--method",
    "methods",
    metavar="NAME",
    multiple=True,
    help="May be repeated (default: all that anomalib is asked for).",
)
@grouped(
    "Their trainings",
    shown_option("--seed", type=int, metavar="SEED", default=1, help="Of every training."),
    shown_option(
        "--images", type=int, metavar="IMAGES", default=150, help="Good training images of a method, at most."
    ),
    click.option(
        "--epochs", type=int, metavar="EPOCHS", help="Of methods that are trained (default: anomalib's own for each)."
    ),
    click.option(
        "--minutes",
        type=float,
        metavar="MINUTES",
        help="Limit of one training; the table says what was cut short (default: none).",
    ),
    click.option("--no-int8", is_flag=True, help="Leave anomalib's INT8 export out."),
)
@grouped(
    "Speed",
    shown_option("--threads", type=int, metavar="THREADS", default=2, help="Of every candidate and training."),
    shown_option("--rounds", type=int, metavar="ROUNDS", default=5, help="Of every candidate; 0: no speed."),
    shown_option("--turn-s", type=float, metavar="SECONDS", default=2.0, help="Seconds of a candidate in a round."),
)  # fmt: skip
@click.option("--no-learning", is_flag=True, help="Only time and report what lies in --out.")
@click.option("--cache", type=FOLDER, help="Where anomalib's environment lies (default: ~/.cache/nnet-edge/peers).")
@json_option
def peers(data: tuple[Path, ...], out: Path, **options: Any) -> int:
    """Measure anomalib's methods beside N-Net: accuracy on DATA, speed in rounds; a table, JSON and the paper's Figure 4.

    N-Net runs with --ours: train and measure it first (nnet-edge bench accuracy DATA --out runs/accuracy), then give that
    folder. anomalib is installed into an environment of its own. Finished rows in --out are not computed again; rows of other
    settings or images are refused. The table says why a method has no row.
    """
    from nnet_edge.benchmarks.peers.race import RaceSettings, run_race
    from nnet_edge.benchmarks.peers.rows import LearnSettings

    settings = RaceSettings(
        learning=LearnSettings(
            options["seed"], options["images"], options["epochs"], options["minutes"], options["threads"],
            not options["no_int8"],
        ),
        methods=options["methods"],
        categories=tuple(names_of(options["categories"])),
        rounds=options["rounds"],
        turn_s=options["turn_s"],
        learns=not options["no_learning"],
    )  # fmt: skip
    found = run_race(data, out, options["ours"], options["cache"], settings, say)
    print_result(found.markdown(), found.as_dict())
    return 0 if found.finished else 1


@click.command(cls=Command, example="nnet-edge bench sets made/")
@click.argument("out", type=FOLDER)
@click.option(
    "--set", "names", metavar="NAME", multiple=True, help="Of these alone, may be repeated (default: every one)."
)
@shown_option("--seed", type=int, metavar="SEED", default=0, help="Decides every pixel.")
def sets(out: Path, names: tuple[str, ...], seed: int) -> None:
    """Write made sets below OUT, in MVTec AD layout: pictures of known physics to choose settings on.

    Narrow and wide pictures, textures, changing light, arrangements, a dial; 30 to 700 good ones. A seed decides every pixel.
    """
    from nnet_edge.data.made_sets import SETS, find, write_set

    chosen = {name: find(name) for name in names or SETS}
    for name, made in chosen.items():
        write_set(name, out / name, seed)
        say(f"wrote {out / name}: {made.asks}; {made.height} x {made.width}, defects {', '.join(made.defects)}")


for subcommand in (accuracy, levers, speed, peers, guard, sets):
    command.add_command(subcommand)
