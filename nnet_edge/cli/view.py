"""Terminal output of the commands: lines, how many of them, progress bars, stopping on signals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TYPE_CHECKING

import click

from nnet_edge.errors import ConfigError
from nnet_edge.text import printable

if TYPE_CHECKING:  # rich is imported where something is shown: `--help` starts without it
    from rich.console import Console
    from typing_extensions import Self

    from nnet_edge.training.loop import Progress

LINE_EVERY_S = 20.0  # between two plain lines
WARNING = "warning:"  # begins a line that --quiet shows too


class Verbosity(IntEnum):
    """How much the command says."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_chosen = Verbosity.NORMAL


def verbosity() -> Verbosity:
    """How much the command that runs in this process says."""
    return _chosen


def set_verbosity(chosen: Verbosity) -> None:
    """Say so much from now on; with --verbose what modules log, too. Raises ConfigError where another was chosen already."""
    global _chosen
    if {chosen, _chosen} == {Verbosity.QUIET, Verbosity.VERBOSE}:
        raise ConfigError("--quiet and --verbose contradict each other: give one")
    if Verbosity.VERBOSE in (chosen, _chosen):
        _log_everything(chosen is Verbosity.VERBOSE)
    _chosen = chosen


def _log_everything(is_wanted: bool) -> None:
    import logging  # which costs --help 12 ms

    log = logging.getLogger("nnet_edge")
    log.setLevel(logging.DEBUG if is_wanted else logging.NOTSET)
    log.handlers = [logging.StreamHandler()] if is_wanted else []


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
        if self._console.is_terminal and verbosity() is not Verbosity.QUIET:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show epoch, losses and time left."""
        if verbosity() is Verbosity.QUIET:
            return
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
    if verbosity() is not Verbosity.QUIET or line.startswith(WARNING):
        warn(line)


def warn(line: str) -> None:
    """Print the line whatever --quiet says."""
    with suppress(OSError):
        click.echo("\n".join(map(printable, line.split("\n"))), err=True)


def say_in_detail(line: str) -> None:
    """Print the line with --verbose only."""
    if verbosity() is Verbosity.VERBOSE:
        warn(line)


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

    is_quiet = verbosity() is Verbosity.QUIET
    with ProgressBar(console=Console(stderr=True), transient=True, disable=is_quiet) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C or SIGTERM came; the second Ctrl-C kills as usual."""
    from nnet_edge.runtime.stream.running import stopping_on_signals

    with stopping_on_signals() as event:
        yield event.is_set
