"""`nnet-edge fleet`: train many parts, and score many pictures, on one machine or on a cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from nnet_edge.cli.options import (
    FILE,
    FOLDER,
    Command,
    CommandGroup,
    bits_option,
    grouped,
    log_option,
    precision_option,
    runner_options,
    runner_settings,
    shown_option,
)
from nnet_edge.cli.view import say, steps_bar
from nnet_edge.errors import EXIT_FAILURE
from nnet_edge.text import printable

cluster_options = grouped(
    "Cluster",
    click.option("--address", metavar="auto|HOST:PORT",
                 help="Of a running Ray cluster (default: one of this machine's cores, for this run)."),
    click.option("--cpus", type=click.IntRange(1), metavar="CORES",
                 help="Of this machine, to use (default: all that this process may)."),
)  # fmt: skip


@click.group("fleet", cls=CommandGroup, example="nnet-edge fleet train parts.toml")
def command() -> None:
    """Train many parts and score many pictures, on this machine's cores or on a Ray cluster."""


@command.command("train", cls=Command, example="nnet-edge fleet train parts.toml --out runs/fleet")
@click.argument("file", type=FILE, metavar="PARTS.toml")
@click.option("--out", type=FOLDER, help="Instead of the file's out.")
@click.option("--retries", type=click.IntRange(0, 100), metavar="TIMES",
              help="Of a part whose worker was lost (default: the file's, else 2).")  # fmt: skip
@log_option
@click.option("--json", "as_json", is_flag=True, help="Print the state as JSON in place of the table.")
@cluster_options
def train(file: Path, out: Path | None, address: str | None, cpus: int | None, retries: int | None,
          trackers: tuple[str, ...], as_json: bool) -> int:  # fmt: skip
    """Train the parts of PARTS.toml, one task a part; what is finished is kept, what was stopped goes on.

    Leaves bundles/NAME, trainings/NAME, fleet.json and fleet.csv.
    """
    from dataclasses import replace

    from nnet_edge.cli.fleet.cluster import Cluster
    from nnet_edge.cli.fleet.parts import read_fleet
    from nnet_edge.cli.fleet.state import locked
    from nnet_edge.cli.fleet.training import train_fleet

    settings = read_fleet(file)
    if retries is not None:
        settings = replace(settings, retries=retries)
    place = out or settings.out
    with locked(place), Cluster(address, cpus) as cluster:
        state = train_fleet(settings, place, cluster, trackers, str(file), say)
    click.echo(json.dumps(state.as_dict()) if as_json else "\n".join(map(printable, state.lines())))
    return EXIT_FAILURE if state.count("failed") else 0


@command.command(
    "score",
    cls=Command,
    example="nnet-edge fleet score s3://photos/bolt --bundle runs/fleet/bundles/bolt --json verdicts.jsonl\n"
    "nnet-edge fleet score 'photos/*/good/*.png' --bundle runs/part/bundle --workers 1:4",
)
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--bundle", type=FOLDER, required=True, help="The folder that train wrote; workers must see it there.")
@click.option("--json", "verdicts", type=FILE,
              help="One JSON object a picture, as of stream --json, behind what this file holds.")  # fmt: skip
@click.option("--threshold", type=float, metavar="SCORE", help="Instead of the bundle's (default: the bundle's).")
@shown_option("--min-area", type=float, metavar="PIXELS", default=0.0, help="Smallest region reported.")
@bits_option
@click.option("--skip-bad-images", is_flag=True, help="End with 0 though some pictures could not be read.")
@cluster_options
@grouped(
    "Cluster",
    shown_option(
        "--workers",
        metavar="MIN:MAX",
        default="1:",
        help="Actors at once; they come and go with the work, up to what the cluster has.",
    ),
    shown_option(
        "--chunk", type=click.IntRange(1, 4096), metavar="PICTURES", default=32, help="That an actor takes at once."
    ),
)
@precision_option
@runner_options
def score(urls: tuple[str, ...], bundle: Path, verdicts: Path | None, workers: str, chunk: int, threshold: float | None,
          min_area: float, bits: int | None, skip_bad_images: bool, address: str | None, cpus: int | None,
          precision: str | None, **options: Any) -> int:  # fmt: skip
    """Judge the pictures at each URL: a folder, a picture or a pattern, here or in an object store that fsspec knows.

    s3:// needs s3fs, gs:// gcsfs, az:// adlfs; passwords come from their own settings. Verdicts are those of nnet-edge stream.
    A picture that cannot be read has no verdict, is named, and makes the exit code 1.
    """
    from nnet_edge.bundle import read_bundle
    from nnet_edge.cli.fleet.cluster import Cluster
    from nnet_edge.cli.fleet.scoring import ScoreSettings, list_pictures, parse_workers
    from nnet_edge.cli.fleet.scoring import score as score_pictures
    from nnet_edge.runtime.stream.model import choose_runnable

    threads = options["threads"] or 1
    options |= {"threads": threads, "hint": options["hint"] or "throughput", "precision": precision}
    runner = runner_settings(options)
    choose_runnable(read_bundle(bundle), runner, precision)  # what cannot be used ends here
    settings = ScoreSettings(bundle.resolve(), runner, precision, threshold, bits, min_area, threads)
    pictures = list_pictures(urls)
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(appending(verdicts)) if verdicts is not None else lambda fields: 0
        cluster = stack.enter_context(Cluster(address, cpus))
        most = max(1, cluster.cpus // threads)
        report = stack.enter_context(steps_bar("pictures"))
        found = score_pictures(pictures, settings, cluster, parse_workers(workers, most), chunk, write, progress=report)
    for fault in found.failed[:20]:
        say(f"no verdict: {fault}")
    click.echo(json.dumps(found.as_dict()))
    return EXIT_FAILURE if found.failed and not skip_bad_images else 0


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[Mapping[str, Any]], object]]:
    """A function that writes the fields of a verdict as a line behind what the file holds."""
    from nnet_edge.runtime.sinks.fields import to_json
    from nnet_edge.runtime.sinks.rotation import cut_torn_line

    path.parent.mkdir(parents=True, exist_ok=True)
    cut_torn_line(path)
    with path.open("ab") as file:
        yield lambda fields: file.write(to_json(fields) + b"\n")


@command.command("status", cls=Command, example="nnet-edge fleet status runs/fleet --json")
@click.argument("out", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(out: Path, as_json: bool) -> None:
    """Show how far the fleet in the folder OUT is, while it is trained or afterwards."""
    from nnet_edge.cli.fleet.state import read_state

    state, is_running = read_state(out)
    if as_json:
        click.echo(json.dumps({**state.as_dict(), "is_running": is_running}))
        return
    for line in state.lines():
        click.echo(printable(line))
    done = state.count("finished", "kept")
    ended = f"ended {state.ended}" if state.ended else "its command was killed: start it again, finished parts are kept"
    said = f"running on {state.host}" if is_running else ended
    click.echo(f"{done} of {len(state.parts)} parts finished, {state.count('failed')} failed; {said}")
