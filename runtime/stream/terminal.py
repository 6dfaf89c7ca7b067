"""The view of a running line in a terminal: a line a part; a live table there, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from nnet_edge.frame import REJECT, Prediction
from nnet_edge.runtime.sinks.base import Sink
from nnet_edge.runtime.stream.meters import Percentiles
from nnet_edge.runtime.stream.report import LineReport

if TYPE_CHECKING:  # rich is imported where there is a terminal
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
    from typing_extensions import Self

NAME_WIDTH = 24  # letters; a longer name moves the rest
LINE_EVERY_S = 10.0  # between two plain lines
COLUMNS = ("stage", "p50 ms", "p95 ms", "p99 ms", "frames")
LINE_COLUMNS = ("stream", "p50 ms", "p95 ms", "p99 ms", "frames", "rejected", "dropped")


class TerminalView:
    """Shows a line's reports on standard error; give its `show` to `run_line`. The last report stays on the screen."""

    def __init__(
        self, title: str, console: Console | None = None, every_s: float = LINE_EVERY_S, in_detail: bool = True
    ) -> None:
        self.title, self._every_s, self._in_detail = title, every_s, in_detail
        self._console = console or standard_error()
        self._live: Live | None = None
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if self._console is not None and self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def show(self, report: LineReport) -> None:
        """Show `report`: the table anew, or a line when it is time for one; the last report in full."""
        if report.ended != "running":
            self._stop()
            for line in report.lines(self._in_detail):
                self._line(line)
        elif self._live is not None:
            try:
                self._live.update(table_of(report, self.title), refresh=True)
            except OSError:  # the terminal is gone: the line goes on without its table
                self._live = None
        elif (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + self._every_s
            self._line(f"{self.title}: {report.lines()[0]}")

    def _line(self, text: str) -> None:
        """Print it where that is possible. Rich would end the program at a closed pipe, and keep what a full disk refused."""
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            file = sys.stderr if self._console is None else self._console.file
            file.write(f"{text}\n")
            file.flush()

    def print_above(self, text: Text) -> bool:
        """Print a line above the table; False where there is none."""
        if self._live is None or self._console is None:
            return False
        with suppress(OSError):
            self._console.print(text, soft_wrap=True)
        return True

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError):
                live.stop()


def standard_error() -> Console | None:
    """Rich's view of standard error; None where it is no terminal, nor a variable says that it is to be taken for one."""
    if not (sys.stderr.isatty() or any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))):
        return None
    from rich.console import Console

    return Console(stderr=True)


class VerdictLines(Sink):
    """A line a part on standard output: name, GOOD or REJECT, score over the threshold; with `in_detail` the latency too.

    Of cameras and videos, whose frames are more than anybody reads, only rejects, unless `in_detail`. Where nobody reads,
    nothing fails. On a terminal `print_above` is given each line first, so that it does not tear the table.
    """

    name = "terminal"
    wants_maps = wants_pixels = False

    def __init__(
        self, is_live: Callable[[str], bool], print_above: Callable[[Text], bool], in_detail: bool = False
    ) -> None:
        self._is_live, self._print_above, self._in_detail = is_live, print_above, in_detail
        self._terminal: Console | None = None
        if sys.stdout.isatty():
            from rich.console import Console

            self._terminal = Console(file=sys.stdout)

    def write(self, prediction: Prediction) -> None:
        frame = prediction.frame
        is_part = frame.trigger is not None or (frame.in_file_s is None and not self._is_live(frame.stream))
        if not (prediction.is_anomalous or is_part or self._in_detail):
            return
        line = line_of(prediction, self._in_detail)
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            if self._terminal is None:
                coding = sys.stdout.encoding or "utf-8"
                sys.stdout.write(line.encode(coding, "backslashreplace").decode(coding) + "\n")
                sys.stdout.flush()
                return
            from rich.text import Text

            text = Text(line)
            text.highlight_words([prediction.word], "bold red" if prediction.word == REJECT else "green")
            if not self._print_above(text):
                self._terminal.print(text, soft_wrap=True)


def line_of(prediction: Prediction, with_latency: bool = False) -> str:
    """The verdict as a line for people."""
    frame = prediction.frame
    name = frame.name or (f"{frame.stream} {frame.index}" if frame.trigger is None else f"part {frame.trigger.number}")
    crop = "" if frame.crop is None else f" {frame.crop.name}"
    total_ms = prediction.latencies_ms.get("total")
    late = f"  {total_ms:.1f} ms" if with_latency and total_ms is not None else ""
    score = "not taught" if prediction.is_untaught else f"{prediction.relative_score:.3f}"
    return f"{name + crop:<{NAME_WIDTH}}  {prediction.word:<6}  {score}{late}"


def table_of(report: LineReport, title: str) -> Table:
    """The report as a table: the stages of a single stream, or each stream from capture to verdict; counts and rate below."""
    from rich.table import Table

    streams = report.streams
    columns = COLUMNS if len(streams) == 1 else LINE_COLUMNS
    table = Table(*columns, title=title, title_justify="left", caption=report.lines()[0], caption_justify="left")
    for name, stream in streams.items():
        if len(streams) == 1:
            for stage, numbers in stream.latencies.items():
                table.add_row(stage, *cells(numbers))
        else:
            table.add_row(name, *cells(stream.latencies["total"]), str(stream.rejected), str(stream.dropped))
    return table


def cells(numbers: Percentiles) -> list[str]:
    """The three percentiles and their count; a dash for what is not known yet."""
    values = (numbers.p50_ms, numbers.p95_ms, numbers.p99_ms)
    return [*("-" if value is None else f"{value:.1f}" for value in values), str(numbers.count)]
