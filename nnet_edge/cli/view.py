"""Terminal output of the commands: lines, how many of them, progress bars, stopping on signals."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.errors import ConfigError
from nnet_edge.text import printable

if TYPE_CHECKING:  # rich is imported where something is shown: `--help` starts without it
    from rich.console import Console
    from rich.progress import Progress as ProgressBar
    from typing_extensions import Self

    from nnet_edge.training.loop import Progress

LINE_EVERY_S = 20.0  # between two plain lines
DRAW_EVERY_S = 0.5  # between two drawings of a notebook's bar
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


class NotebookBar:
    """A bar of rich in the output of a notebook's cell, drawn again in its place; rich's own way needs ipywidgets."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar, self._next_s = bar, 0.0
        self._handle: Any = None

    def start(self) -> None:
        """Show it."""
        from IPython.display import display

        self._handle = display(self._bar, display_id=True)

    def draw(self, now: bool = False) -> None:
        """Show how far it is, unless it was drawn just before."""
        if self._handle is not None and (now or time.monotonic() >= self._next_s):
            self._next_s = time.monotonic() + DRAW_EVERY_S
            self._handle.update(self._bar)

    def stop(self) -> None:
        """Show how far it came."""
        self.draw(now=True)


class TrainingView:
    """A bar on a terminal and in a notebook, a line now and then elsewhere on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as ProgressBar

        self._console = console or Console(stderr=True)
        self._bar = ProgressBar(TextColumn("{task.description}"), BarColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task("training", total=None)
        self._shown = NotebookBar(self._bar) if self._console.is_jupyter else self._bar
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if verbosity() is not Verbosity.QUIET and (self._console.is_terminal or self._console.is_jupyter):
            self._shown.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.stop()

    def show(self, progress: Progress) -> None:
        """Show epoch, losses and time left."""
        if verbosity() is Verbosity.QUIET:
            return
        means = " ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
        losses = f" ({means})" if verbosity() is Verbosity.VERBOSE else ""
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        what = progress.afterwards or f"pass {progress.epoch} of {progress.epochs}"
        text = f"{what}{losses}, {minutes}:{seconds:02d} left at most"
        if self._console.is_terminal or self._console.is_jupyter:
            self._bar.update(self._task, description=text, completed=progress.epoch - 1, total=progress.epochs)
            if isinstance(self._shown, NotebookBar):
                self._shown.draw()
        elif (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + LINE_EVERY_S
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print a line for the person on standard error; standard output is for data. Where nobody reads, nothing fails."""
    if verbosity() is not Verbosity.QUIET or line.startswith(WARNING):
        warn(line)


def warn(line: str) -> None:
    """Print the line whatever --quiet says."""
    is_error = line.startswith(WARNING) or not in_notebook()  # a notebook shows standard error in red
    with suppress(OSError):
        click.echo("\n".join(map(printable, line.split("\n"))), err=is_error)


def in_notebook() -> bool:
    """Whether the kernel of a notebook runs this."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


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
    bar = ProgressBar(console=Console(stderr=True), transient=True, disable=is_quiet)
    task = bar.add_task(title)
    if not in_notebook():
        with bar:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    shown = NotebookBar(bar)
    if not is_quiet:
        shown.start()

    def report(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        shown.draw()

    yield report
    shown.stop()


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C or SIGTERM came; the second Ctrl-C kills as usual."""
    from nnet_edge.runtime.stream.running import stopping_on_signals

    with stopping_on_signals() as event:
        yield event.is_set
