"""`nnet-edge data`: what a data folder holds, as it is read; a contact sheet; the same set as a plain folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from nnet_edge.cli.options import FILE, FOLDER, Command, category_option, find_dataset, layout_options
from nnet_edge.cli.view import say, steps_bar
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.text import printable


@click.command(
    "data", cls=Command, example="nnet-edge data photos/ --sheet sheet.png\nnnet-edge data export/ --convert photos/"
)
@click.argument("data", type=FOLDER)
@category_option
@layout_options
@click.option(
    "--sheet", type=FILE, help="Write a contact sheet here, a PNG: some pictures of each kind, masks outlined."
)
@click.option(
    "--convert", "out", type=FOLDER, metavar="OUT", help="Write the set as a plain folder, new or empty, here."
)
@click.option("--headers", "headers_only", is_flag=True, help="Counts and sizes only; no picture is decoded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    data: Path, sheet: Path | None, out: Path | None, headers_only: bool, as_json: bool, **options: Any
) -> None:
    """Show what DATA holds and how it is read.

    Layout, counts, sizes, bit depths, pictures of equal pixels, near copies of learned pictures in the test, pictures of
    another brightness, masks that do not fit. Ends with 1 when training or evaluation would stop at something.
    """
    from nnet_edge.data.convert import convert
    from nnet_edge.data.layouts import find_categories
    from nnet_edge.data.survey import contact_sheet, survey
    from nnet_edge.files import write_atomically

    names = find_categories(data, options["layout"], options["split_csv"])
    if len(names) > 1 and options["category"] is None:
        if sheet or out:
            raise ConfigError(f"{data} holds {len(names)} categories: choose one with --category: {', '.join(names)}")
        rows = [count_of(data, options | {"category": name}) for name in names]
        click.echo(json.dumps(rows, indent=2) if as_json else "\n".join(printable(words_of(row)) for row in rows))
        return
    dataset = find_dataset(data, options)
    with steps_bar("looking at pictures") as progress:
        found = survey(dataset, headers_only, progress)
    click.echo(json.dumps(asdict(found), indent=2) if as_json else "\n".join(map(printable, found.lines())))
    if sheet is not None:
        try:
            write_atomically(sheet, contact_sheet(dataset, found.bits))
        except OSError as error:
            raise ConfigError(f"cannot write {sheet} ({error.strerror}): choose another --sheet") from error
        say(f"wrote {sheet}")
    if out is not None:
        with steps_bar("writing") as progress:
            convert(dataset, out, progress)
        say(f"wrote {out}: {len(dataset.train)} good, {len(dataset.test)} to test; next: nnet-edge train {out}")
    if found.problems:
        raise DataError(f"{len(found.problems)} pictures or masks cannot be used; the first: {found.problems[0]}")


def count_of(data: Path, options: dict[str, Any]) -> dict[str, object]:
    """The counts of one category."""
    from nnet_edge.data.layouts import read_dataset

    dataset = read_dataset(*(data, *(options[name] for name in ("layout", "category", "split_csv", "mask_mark"))))
    defects = sum(sample.is_anomalous for sample in dataset.test)
    return {"category": dataset.category, "layout": dataset.layout, "learned": len(dataset.train),
            "test_good": len(dataset.test) - defects, "defects": defects}  # fmt: skip


def words_of(row: dict[str, object]) -> str:
    """A category for people."""
    return "{category}: {learned} good to learn, {test_good} good to test, {defects} defects ({layout})".format(**row)
