"""How a benchmark's command begins and ends: every expected failure is one line and an exit code."""

from __future__ import annotations

import sys

import click

from nnet_edge.errors import EXIT_INTERRUPTED, EXIT_WRONG_USE, NnetEdgeError


def run_command(command: click.Command, arguments: list[str] | None = None) -> int:
    """The exit code of `command` with these arguments (the process's own): 0, 1 for a failure, 2 for wrong use."""
    try:
        return int(command.main(arguments, standalone_mode=False) or 0)
    except NnetEdgeError as error:
        return _complain(str(error), error.exit_code)
    except click.ClickException as error:
        return _complain(error.format_message(), EXIT_WRONG_USE)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", EXIT_INTERRUPTED)


def command_text(module: str) -> str:
    """The command that this process was started with, for the report: a number never stands without it."""
    return " ".join(["python", "-m", module, *sys.argv[1:]])


def say(line: str) -> None:
    """A line on standard error."""
    click.echo(line, err=True)


def _complain(message: str, code: int) -> int:
    say(f"error: {' '.join(message.split())}")
    return code
