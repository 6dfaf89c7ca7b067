"""Training log: one row an epoch in log.csv, one picture of the losses."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnet_edge.drawing import empty_figure
from nnet_edge.files import write_atomically

LOG = "log.csv"
PICTURE = "losses.png"


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

    def draw(self) -> Path:
        """The picture of the losses over the epochs."""
        figure = empty_figure(8, 4.5, dpi=120, layout="constrained")
        axes = figure.add_subplot()
        for term in (*self.terms, "held_out"):
            points = [(row["epoch"], value) for row in self.rows if (value := row.get(term)) is not None]
            if points:
                style = {"loss": "-k", "held_out": "--"}.get(term, "-")
                axes.plot(*zip(*points, strict=True), style, label=term.replace("_", "-"), linewidth=1.4)
        axes.set(xlabel="epoch", ylabel="mean loss (weighted terms of equation 7)", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(ncols=3, frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        path = self.folder / PICTURE
        write_atomically(path, picture.getvalue())
        return path


def read_log(folder: Path, terms: Sequence[str], until_epoch: int) -> TrainingLog:
    """The log of a training that goes on, without the rows from `until_epoch` on."""
    path = folder / LOG
    if not path.is_file():
        return TrainingLog(folder, terms)
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]
    return TrainingLog(folder, terms, [row for row in rows if (row["epoch"] or 0) <= until_epoch])
