"""`nnet-edge config`: a line's settings file, checked and described."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nnet_edge.cli.options import FILE, Verbs


@click.group("config", cls=Verbs)
def command() -> None:
    """A line's settings file."""


@command.command("check")
@click.argument("file", type=FILE)
@click.option("--without-bundle", is_flag=True, help="For a file that is checked on another machine than the line's.")
def check(file: Path, without_bundle: bool) -> None:
    """Check every key of FILE, and that its bundles hold what it asks for, without running anything; say what it means."""
    from nnet_edge.cli.stream import check_config

    for line in check_config(file, not without_bundle):
        click.echo(line)


@command.command("schema")
def print_schema() -> None:
    """Print the JSON schema of the settings file, for editors."""
    from nnet_edge.settings.line import schema

    click.echo(json.dumps(schema(), indent=2))
