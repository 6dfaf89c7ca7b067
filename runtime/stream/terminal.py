"""The view of a running line in a terminal: a live table there, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from nnet_edge.runtime.stream.meters import Percentiles
from nnet_edge.runtime.stream.report import LineReport

if TYPE_CHECKING:
    from typing_extensions import Self

LINE_EVERY_S = 10.0  # between two plain lines
COLUMNS = ("stage", "p50 ms", "p95 ms", "p99 ms", "frames")
LINE_COLUMNS = ("stream", "p50 ms", "p95 ms", "p99 ms", "frames", "rejected", "dropped")


class TerminalView:
    """Shows a line's reports on standard error; give its `show` to `run_line`. The last report stays on the screen."""

    def __init__(self, title: str, console: Console | None = None, every_s: float = LINE_EVERY_S) -> None:
        self._title, self._every_s = title, every_s
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._next_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def show(self, report: LineReport) -> None:
        """Show `report`: the table anew, or a line when it is time for one; the last report in full."""
        if report.ended != "running":
            self._stop()
            for line in report.lines():
                self._line(line)
        elif self._live is not None:
            try:
                self._live.update(table_of(report, self._title), refresh=True)
            except OSError:  # the terminal is gone: the line goes on without its table
                self._live = None
        elif (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + self._every_s
            self._line(f"{self._title}: {report.lines()[0]}")

    def _line(self, text: str) -> None:
        """Print it where that is possible. Rich would end the program at a closed pipe, and keep what a full disk refused."""
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            self._console.file.write(f"{text}\n")
            self._console.file.flush()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError):
                live.stop()


def table_of(report: LineReport, title: str) -> Table:
    """The report as a table: the stages of a single stream, or each stream from capture to verdict; counts and rate below."""
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
