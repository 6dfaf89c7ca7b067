"""Training log: one row an epoch in log.csv, one picture of the losses."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.drawing import empty_figure
from nnet_edge.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = "log.csv"
PICTURE = "losses.png"
SMALL_SHARE = 0.01  # of the whole loss: a smaller term is not drawn
DECADE = 10.0  # a loss that falls by more is drawn by decades
FEW_POINTS = 20  # of a curve, which are marked


class TrainingLog:
    """Rows of mean losses, one an epoch: their sum and its `terms`; an absent term is empty, never zero."""

    def __init__(self, folder: Path, terms: Sequence[str], rows: Sequence[Mapping[str, float | None]] = ()) -> None:
        self.folder, self.terms = folder, ("loss", *terms)
        self.rows = [dict(row) for row in rows]

    def add(self, row: Mapping[str, float | None]) -> None:
        """Append the row of one epoch and write the file anew."""
        self.rows.append(dict(row))
        self.write()

    def write(self) -> None:
        """Put all rows into log.csv, atomically."""
        columns = ("epoch", *self.terms, "held_out", "mark", "learning_rate", "seconds")
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({name: "" if value is None else f"{value:.6g}" for name, value in row.items()})
        write_atomically(self.folder / LOG, text.getvalue().encode())

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Term -> its points (epoch, value); terms without a value above 0 are absent."""
        found: dict[str, list[tuple[float, float]]] = {}
        for term in (*self.terms, "held_out"):
            points = [(row["epoch"] or 0.0, value) for row in self.rows if (value := row.get(term)) is not None]
            if any(value > 0 for _, value in points):
                found[term] = points
        return found

    def figure(self) -> Figure:
        """The picture of the losses over the epochs, from 0 on; of a loss that falls tenfold by decades.

        Terms that are never 1 % of the whole loss would be a line on the axis, or stretch it: they are named, not drawn.
        """
        figure = empty_figure(
            8, 4.5, dpi=120, layout="constrained"
        )  # first: it keeps matplotlib's files out of the home
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        curves = self.curves()
        whole = [value for _, value in curves.get("loss", [])]
        least = SMALL_SHARE * max(whole, default=0.0)
        drawn = {term: points for term, points in curves.items() if max(value for _, value in points) >= least}
        for term, points in drawn.items():
            style = {"loss": "-k", "held_out": "--"}.get(term, "-")
            marker = "o" if len(points) <= FEW_POINTS else ""
            axes.plot(*zip(*points, strict=True), style, label=term.replace("_", "-"), linewidth=1.4, marker=marker)
        small = [term.replace("_", "-") for term in (*self.terms, "held_out") if term not in drawn and self._has(term)]
        more = f" (not drawn, never {SMALL_SHARE:.0%} of it: {', '.join(small)})" if small else ""
        axes.set(xlabel=f"epoch{more}", ylabel="mean loss: the whole and its terms")
        if whole and max(whole) > DECADE * min(whole) > 0:
            axes.set_yscale("log")
            axes.set_ylim(
                bottom=max(least, min(value for points in drawn.values() for _, value in points if value > 0) / 2)
            )
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if drawn:
            axes.legend(ncols=3, frameon=False)
        return figure

    def draw(self) -> Path:
        """Write the picture of the losses."""
        picture, figure = io.BytesIO(), self.figure()
        figure.savefig(picture, format="png")
        path = self.folder / PICTURE
        write_atomically(path, picture.getvalue())
        return path

    def _has(self, term: str) -> bool:
        return any(row.get(term) is not None for row in self.rows)


def read_log(folder: Path, terms: Sequence[str], until_epoch: int) -> TrainingLog:
    """The log of a training that goes on, without the rows from `until_epoch` on."""
    path = folder / LOG
    if not path.is_file():
        return TrainingLog(folder, terms)
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]
    return TrainingLog(folder, terms, [row for row in rows if (row["epoch"] or 0) <= until_epoch])
