"""What the verbs show a person: lines, progress bars, and the question whether to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nnet_edge.train import Progress


def say(line: str) -> None:
    """Print a line for the person on standard error; standard output is for data."""
    click.echo(line, err=True)


@contextmanager
def training_bar() -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the losses and the time left; plain lines now and then where there is no terminal."""
    from nnet_edge.training_view import TrainingView

    with TrainingView() as view:
        yield view.show


@contextmanager
def steps_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of steps done and steps in all."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Asks whether Ctrl-C or SIGTERM came; the second Ctrl-C kills as usual."""
    from nnet_edge.runtime.stream import stopping_on_signals

    with stopping_on_signals() as event:
        yield event.is_set
