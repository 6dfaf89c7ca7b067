"""`nnet-edge history`: what a line's history says of a shift, in words, as CSV or as JSON lines."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import FILE, Command
from nnet_edge.cli.view import say
from nnet_edge.errors import ConfigError

if TYPE_CHECKING:
    from nnet_edge.runtime.history.queries import Kept

COLUMNS = (
    "time", "stream", "crop", "session", "index", "trigger", "recipe", "verdict", "score", "threshold", "relative_score",
    "regions", "latency_ms", "label", "defect", "labelled_by", "bundle", "bundle_id", "precision", "runner", "threshold_from",
    "name",
)  # fmt: skip


@click.command("history", cls=Command, example="nnet-edge history history.db --since 8h --report shift.html")
@click.argument("path", type=FILE)
@click.option("--since", default="8h", show_default=True, metavar="TIME", help="8h, 30m, 06:00 or 2026-11-29T06:00.")
@click.option("--until", metavar="TIME", help="As --since (default: now).")
@click.option("--stream", metavar="NAME", help="Of this camera only (default: of all).")
@click.option("--rejects", is_flag=True, help="Only rejects, in CSV and JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Every verdict as a row.")
@click.option("--json", "as_json", is_flag=True, help="Every verdict as a JSON object on a line.")
@click.option(
    "--summary", is_flag=True, help="With --json: what the shift comes to, as one object, in place of its verdicts."
)
@click.option("--report", type=FILE, help="Write the shift's report there, one HTML file that a browser prints as PDF.")
@click.option(
    "--language", type=click.Choice(["en", "de", "zh"]), default="en", show_default=True, help="Of the report."
)
def command(
    path: Path, since: str, until: str | None, stream: str | None, rejects: bool, as_csv: bool, as_json: bool,
    summary: bool, report: Path | None, language: str,
) -> None:  # fmt: skip
    """Show what a line's history PATH says of a shift.

    PATH is the file that `nnet-edge stream --history PATH`, or a sink of the kind history, writes; the line may run meanwhile.
    """
    from nnet_edge.runtime.history.queries import History, window_of

    given = [name for name, is_given in (("--csv", as_csv), ("--json", as_json), ("--report", report)) if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} contradict each other: give one")
    if summary and not as_json:
        raise ConfigError("--summary belongs to --json: without both it is printed in words")
    window = window_of(since, until, stream, ("--since", "--until"))
    with History(path) as history:
        history.require_stream(window)
        found = history.verdicts(window, "rejects" if rejects else "")
        if as_csv:
            write_csv(found)
        elif as_json and summary:
            click.echo(json.dumps(history.shift(window), indent=2, ensure_ascii=False, default=str))
        elif as_json:
            for one in found:
                click.echo(json.dumps(one.as_dict(), ensure_ascii=False))
        elif report is not None:
            from nnet_edge.files import write_atomically
            from nnet_edge.runtime.history.report import shift_report

            write_atomically(report, shift_report(history, window, language).encode(errors="backslashreplace"))
            say(f"wrote {report}")
        else:
            for line in lines(history.shift(window)):
                click.echo(line)


def write_csv(verdicts: Iterator[Kept]) -> None:
    """The verdicts on standard output as CSV."""
    from nnet_edge.text import safe_cell

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in verdicts:
        fields = one.as_dict() | {"labelled_by": one.labels[-1].who if one.labels else None}
        fields["regions"] = json.dumps(fields["regions"]) if one.regions else None
        writer.writerow([safe_cell(fields.get(name)) for name in COLUMNS])


def lines(shift: dict[str, Any]) -> Iterator[str]:
    """The shift in words."""
    yield f"{shift['since']} to {shift['until']}"
    for one in [*shift["cameras"], {"camera": "all", **shift}][: None if len(shift["cameras"]) > 1 else 1]:
        share = "no verdict" if one["yield"] is None else f"yield {100 * one['yield']:.2f} %"
        late = (
            ""
            if one["latency"] is None
            else f", latency {one['latency']['mean_ms']:.1f} ms, at most {one['latency']['max_ms']:.1f} ms"
        )
        yield f"  {one['camera']}: {one['verdicts']} verdicts, {one['rejects']} rejects, {share}{late}"
    if shift["outcomes"]:
        yield "  triggers without a verdict: " + ", ".join(
            f"{count} {name}" for name, count in shift["outcomes"].items()
        )
    for hour in shift["hours"]:
        yield f"  {hour['time'][:16]}Z {hour['camera']}: {hour['rejects']} of {hour['verdicts']} rejected"
    for place in shift["places"]:
        where = ", ".join(f"{cell['regions']} at ({cell['x']}, {cell['y']})" for cell in place["cells"][:5])
        yield f"  {place['camera']}: regions {where}"
    for outage in shift["outages"][:10]:
        until = outage["until"] or "now"
        yield f"  {outage['stream']}: {outage['what']} from {outage['since']} to {until}, {outage['took_s']:.0f} s"
    for drift in shift["drift"][:5]:
        yield f"  {drift['stream']}: drift told at {drift['time']}"
    if shift["labels"]["held"]:
        yield "  labelled: " + ", ".join(
            f"{count} {label.replace('_', ' ')}" for label, count in shift["labels"]["held"].items()
        )
