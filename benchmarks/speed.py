"""How fast a bundle judges pictures on this processor: torch eager, the bare runners, and the stream, in one run.

    python -m nnet_edge.benchmarks.speed BUNDLE FOLDER --frames 64 --repeats 5 --json speed.json

All contenders take turns in every round, the order moving on by one each round; each is warmed up before the first round,
and bare ones make one uncounted call at the start of a turn, when the thread pools of the one before go to sleep.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

import click

from nnet_edge.benchmarks.command_line import command_text, run_command
from nnet_edge.benchmarks.contenders import DEFAULTS, Contender, SpeedSettings, runner_contenders, torch_contenders
from nnet_edge.benchmarks.gpu_machine import jetson_state
from nnet_edge.benchmarks.speed_report import Result, Round, SpeedReport
from nnet_edge.bundle import Bundle, read_bundle, versions
from nnet_edge.config import CPU_RUNNER_KINDS as KINDS
from nnet_edge.data import load_images
from nnet_edge.errors import DataError
from nnet_edge.files import write_atomically
from nnet_edge.imaging import SIDE, read_size
from nnet_edge.layouts import find_images
from nnet_edge.machine import find_processor
from nnet_edge.power import power_and_clocks
from nnet_edge.runtime.graph_runner import cores
from nnet_edge.runtime.tensorrt_library import JETSON_RELEASE

IDLE_LOOK_S = 1.0
BUSY_PERCENT = 10.0  # above it the report warns


def measure_speed(
    bundle_path: Path,
    folder: Path,
    settings: SpeedSettings = DEFAULTS,
    command: str = "nnet_edge.benchmarks.speed.measure_speed",
    say: Callable[[str], None] = lambda line: None,
) -> SpeedReport:
    """How fast the bundle judges the images in `folder` and below; `command` is what the report names as its origin.

    Raises BundleError, DataError for a folder without readable images, ConfigError, MissingExtraError for a runner that
    is not installed.
    """
    bundle = read_bundle(bundle_path)
    known = (find_images(folder) if folder.is_dir() else [])[: settings.frames]
    if not known:
        raise DataError(f"no images in {folder}: give a folder that holds some")
    paths = list(islice(cycle(known), settings.frames))
    images = load_images(paths).images
    busy = busy_percent()
    with ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-speed-"))) / "verdicts.jsonl"
        contenders = [
            *torch_contenders(bundle, images, settings, stack),
            *runner_contenders(bundle, images, paths, settings, out, stack),
        ]
        rounds = take_turns(contenders, settings.repeats, say)
    results = tuple(
        Result(one.kind, one.system, one.precision, one.batch, tuple(turns))
        for one, turns in zip(contenders, rounds, strict=True)
    )
    header = {"command": command, **describe(bundle, known, settings), "busy before": f"{busy:.0f} % of all cores"}
    warnings = [*bundle.warnings]
    if busy > BUSY_PERCENT:  # threads that wait for each other suffer out of proportion, torch's most
        warnings.append(f"THE MACHINE WAS NOT IDLE ({busy:.0f} % busy before): quote none of this, measure again")
    return SpeedReport(header, tuple(warnings), results)


def take_turns(
    contenders: Sequence[Contender], repeats: int, say: Callable[[str], None] = lambda line: None
) -> list[list[Round]]:
    """`repeats` rounds of each contender, in the contenders' order; each round starts with another one."""
    for contender in contenders:
        contender.warm_up()
    rounds: list[list[Round]] = [[] for _ in contenders]
    for number in range(repeats):
        say(f"round {number + 1} of {repeats}")
        for turn in range(len(contenders)):
            index = (number + turn) % len(contenders)
            rounds[index].append(contenders[index].measure())
    return rounds


def describe(bundle: Bundle, paths: Sequence[Path], settings: SpeedSettings) -> dict[str, str]:
    """What a reader must know to judge the numbers."""
    processor = find_processor()
    sizes = sorted({read_size(path) for path in paths})
    listed = " to ".join(f"{height}x{width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    kinds = ", ".join(sorted({path.suffix.lower().removeprefix(".") for path in paths}))
    return {
        "processor": f"{processor.model}, {processor.cores} cores, {processor.usable_cores} usable; "
        f"{', '.join(processor.features)}",
        "power and clocks": power_and_clocks(),
        **(jetson_state() if JETSON_RELEASE.exists() else {}),
        "threads": f"{settings.threads or cores()} for every contender",
        "bundle": f"{bundle.name}, {bundle.manifest['backbone']}, input {SIDE}x{SIDE}",
        "pictures": f"{len(paths)} ({listed} pixels, {kinds}), {settings.frames} a turn, {settings.repeats} turns each",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items() if version is not None),
    }


def busy_percent() -> float:
    """How busy others keep all cores, 0 to 100, over IDLE_LOOK_S in which this process sleeps."""
    import psutil

    return float(psutil.cpu_percent(IDLE_LOOK_S))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--frames", type=int, default=64, show_default=True, help="Frames of every turn.")
@click.option("--repeats", type=int, default=5, show_default=True, help="Turns of every contender.")
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8), show_default=True)
@click.option("--threads", type=int, help="Of every contender (default: one a usable core).")
@click.option("--runner", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS,
              show_default=True)  # fmt: skip
@click.option("--no-torch", is_flag=True, help="Leave torch out.")
@click.option("--bf16", "with_bf16", is_flag=True, help="Measure BF16 too; its verdicts are not compared here.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the report here too.")
def command(
    bundle: Path,
    folder: Path,
    frames: int,
    repeats: int,
    batches: tuple[int, ...],
    threads: int | None,
    kinds: tuple[str, ...],
    no_torch: bool,
    with_bf16: bool,
    json_path: Path | None,
) -> None:
    """Measure how fast BUNDLE judges the images of FOLDER: a Markdown table on standard output."""
    settings = SpeedSettings(frames, repeats, batches, threads, kinds, not no_torch, with_bf16)
    origin = command_text("nnet_edge.benchmarks.speed")
    report = measure_speed(bundle, folder, settings, origin, lambda line: click.echo(line, err=True))
    click.echo(report.markdown())
    if json_path is not None:
        write_atomically(json_path, json.dumps(report.as_dict(), indent=2, allow_nan=False).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(run_command(command))
