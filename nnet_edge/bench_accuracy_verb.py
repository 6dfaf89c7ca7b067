"""What `nnet-edge bench accuracy` and `bench levers` read from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli_options import (
    FOLDER,
    Verb,
    runner_options,
    runner_settings,
    several_datasets,
    training_options,
)
from nnet_edge.errors import ConfigError

if TYPE_CHECKING:
    from nnet_edge.data import Dataset
    from nnet_edge.train import Progress

EXIT_UNFINISHED = 130  # as after Ctrl-C: the same command goes on


def chosen_datasets(data: tuple[Path, ...], options: dict[str, Any], say: Callable[[str], None]) -> list[Dataset]:
    """The data sets that `several_datasets` stands for, their notes said."""
    import warnings

    from nnet_edge.benchmarks.categories import read_datasets

    warnings.filterwarnings("ignore", module="PIL")  # what Pillow only warns of comes as an error that names the file
    names = [name.strip() for name in (options["categories"] or "").split(",") if name.strip()]
    datasets = read_datasets(data, options["layout"], names, options["split_csv"])
    for dataset in datasets:
        for note in dataset.notes:
            say(f"note: {dataset.category}: {note}")
    return datasets


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """(1, 2, 3) for "1,2,3". Raises ConfigError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text}: give whole numbers with commas, as 1,2,3") from error


@click.command(cls=Verb)
@several_datasets
@click.option("--out", type=FOLDER, default=Path("runs/accuracy"), show_default=True, help="Where rows and tables go.")
@click.option("--table", "tables", type=click.Choice(["1", "3", "4", "5", "6", "7"]), multiple=True,
              help="Of the paper, may be repeated (default: 1 and 3, with all that was measured). 4 modules, 5 inside MF, "
              "6 losses, 7 maps.")  # fmt: skip
@click.option("--measure", default="fp32,int8", show_default=True, help="Precisions of the bundle, with commas.")
@click.option("--peers", type=FOLDER, help="Rows of other methods: the folder that bench peers filled.")
@training_options
@runner_options
def accuracy(data: tuple[Path, ...], out: Path, tables: tuple[str, ...], **options: Any) -> int:
    """Train and measure N-Net on every category and seed of DATA, ours beside the paper's tables and beside peers.

    DATA is MVTec AD, VisA, or categories of one's own. Finished rows are not run again, and several processes may share
    --out. Tables 4 to 7 are trained by --protocol paper unless another is said.
    """
    from nnet_edge.cli_view import say, stop_on_signal, training_bar

    datasets = chosen_datasets(data, options, say)
    finished = []
    with training_bar() as report, stop_on_signal() as stop:
        if not tables or {"1", "3"} & set(tables):
            finished.append(measure_accuracy(datasets, out, options, report, stop, say))
        finished += [
            measure_ablation(int(table), datasets, out, options, report, stop, say)
            for table in tables
            if table not in ("1", "3")
        ]
    return 0 if all(finished) else EXIT_UNFINISHED


def measure_accuracy(
    datasets: list[Dataset],
    out: Path,
    options: dict[str, Any],
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Tables 1 and 3 and the table by category, printed; whether they are finished."""
    from nnet_edge.benchmarks.accuracy import AccuracySettings, run_accuracy
    from nnet_edge.benchmarks.peer_rows import read_peer_rows
    from nnet_edge.train_verb import choose_settings, train_options

    seeds = parse_numbers("--seeds", options["seeds"])
    settings = AccuracySettings(
        training=choose_settings(options | {"seed": seeds[0]}),
        options=train_options(options),
        seeds=seeds,
        precisions=tuple(name.strip() for name in options["measure"].split(",")),
        runner=runner_settings(options | {"runner_precision": "fp32"}),
        held_out_share=options["hold_out"],
        skip_bad=options["skip_bad_images"],
    )
    peers = read_peer_rows(options["peers"]) if options["peers"] is not None else []
    found = run_accuracy(datasets, out, settings, command_line("accuracy"), peers, report, stop, say)
    click.echo(found.markdown())
    return found.finished


def measure_ablation(
    table: int,
    datasets: list[Dataset],
    out: Path,
    options: dict[str, Any],
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Table 4, 5, 6 or 7, printed; whether it is finished."""
    from nnet_edge.benchmarks.ablation import AblationSettings, run_table
    from nnet_edge.train_verb import choose_settings, train_options

    seeds = parse_numbers("--seeds", options["seeds"])
    training = choose_settings(options | {"seed": seeds[0], "protocol": options["protocol"] or "paper"})
    settings = AblationSettings(
        training, train_options(options), seeds, options["hold_out"], options["skip_bad_images"]
    )
    found = run_table(table, datasets, out, settings, report, stop, say, command_line("accuracy"))
    click.echo(found.markdown())
    return found.finished


@click.command(cls=Verb)
@several_datasets
@click.option("--out", type=FOLDER, default=Path("runs/accuracy"), show_default=True, help="Where rows and table go.")
@click.option("--lever", "levers", multiple=True, help="May be repeated; the order counts (default: all).")
@click.option("--variant", "variants", multiple=True, help="Only these of the levers, as the table names them.")
@click.option("--readings-only", is_flag=True, help="Train the base alone; of the variants those that read its maps.")
@click.option("--test-limit", type=int, help="Good and bad test images each, at most.")
@training_options
def levers(
    data: tuple[Path, ...], out: Path, levers: tuple[str, ...], variants: tuple[str, ...], **options: Any
) -> int:
    """Measure what each lever of training and reading changes on DATA, seed by seed against the settings as they are.

    Finished rows are not run again, and several processes may share --out. `--protocol paper` makes the paper's settings
    the base.
    """
    from nnet_edge.benchmarks.lever_bench import LeverSettings, run_levers
    from nnet_edge.cli_view import say, stop_on_signal, training_bar
    from nnet_edge.train_verb import choose_settings, train_options

    seeds = parse_numbers("--seeds", options["seeds"])
    settings = LeverSettings(
        training=choose_settings(options | {"seed": seeds[0]}),
        options=train_options(options),
        seeds=seeds,
        levers=levers,
        variants=variants,
        with_training=not options["readings_only"],
        test_limit=options["test_limit"],
        held_out_share=options["hold_out"],
        skip_bad=options["skip_bad_images"],
    )
    datasets = chosen_datasets(data, options, say)
    with training_bar() as report, stop_on_signal() as stop:
        found = run_levers(datasets, out, settings, command_line("levers"), report, stop, say)
    click.echo(found.markdown())
    return 0 if not found.missing else EXIT_UNFINISHED


def command_line(verb: str) -> str:
    """What was typed, `--out` and levers left out: a number never stands without its command."""
    import shlex
    import sys

    words = sys.argv[sys.argv.index(verb) + 1 :] if verb in sys.argv else []
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word in ("--out", "--lever", "--variant", "--readings-only"):
            skip = word in ("--out", "--lever", "--variant")
            continue
        kept.append(word)
    return shlex.join(["nnet-edge", "bench", verb, *kept])
