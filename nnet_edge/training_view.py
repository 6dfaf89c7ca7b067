"""What a person sees while a network trains: epoch, losses, time left."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:
    from typing_extensions import Self

    from nnet_edge.train import Progress as Standing

LINE_EVERY_S = 20.0  # between two plain lines


class TrainingView:
    """A bar on a terminal, a line now and then elsewhere; both on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task("training", total=None)
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, standing: Standing) -> None:
        """Show where the training stands."""
        text = describe(standing)
        if self._console.is_terminal:
            self._bar.update(self._task, description=text, completed=standing.epoch - 1, total=standing.epochs)
        elif (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + LINE_EVERY_S
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def describe(standing: Standing) -> str:
    """Epoch, losses and time left in one line."""
    losses = " ".join(f"{name} {value:.3f}" for name, value in standing.losses.items())
    minutes, seconds = divmod(round(standing.seconds_left), 60)
    return f"epoch {standing.epoch}/{standing.epochs} {losses}, {minutes}:{seconds:02d} left at most"
