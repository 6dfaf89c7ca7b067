"""Terminal output of the commands: lines, progress bars, stopping on signals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from nnet_edge.text import printable

if TYPE_CHECKING:  # rich is imported where something is shown: `--help` starts without it
    from rich.console import Console
    from typing_extensions import Self

    from nnet_edge.training.loop import Progress

LINE_EVERY_S = 20.0  # between two plain lines


class TrainingView:
    """A bar on a terminal, a line now and then elsewhere; both on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as ProgressBar

        self._console = console or Console(stderr=True)
        self._bar = ProgressBar(TextColumn("{task.description}"), BarColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task("training", total=None)
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show epoch, losses and time left."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        text = f"epoch {progress.epoch}/{progress.epochs} {losses}, {minutes}:{seconds:02d} left at most"
        if self._console.is_terminal:
            self._bar.update(self._task, description=text, completed=progress.epoch - 1, total=progress.epochs)
        elif (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + LINE_EVERY_S
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print a line for the person on standard error; standard output is for data. Where nobody reads, nothing fails."""
    with suppress(OSError):
        click.echo("\n".join(map(printable, line.split("\n"))), err=True)


@contextmanager
def training_bar() -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the losses and the time left; plain lines now and then where there is no terminal."""
    with TrainingView() as view:
        yield view.show


@contextmanager
def steps_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of steps done and steps in all."""
    from rich.console import Console
    from rich.progress import Progress as ProgressBar

    with ProgressBar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C or SIGTERM came; the second Ctrl-C kills as usual."""
    from nnet_edge.runtime.stream.running import stopping_on_signals

    with stopping_on_signals() as event:
        yield event.is_set
