"""The curves of a growth report as one picture, each with its sentence below it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.benchmarks.growth_report import Curve, GrowthReport
from nnet_edge.benchmarks.plot import new_figure, save_measured

COLUMNS = 3
CELL_INCHES = (5.2, 4.6)
LETTERS_A_LINE = 66
COLOUR, RATE_COLOUR = "#2f6fb0", "#8a8a8a"


def plot_growth(report: GrowthReport, path: Path) -> None:
    """Write the picture to `path` (PNG). Raises MissingExtraError without matplotlib."""
    rows = -(-len(report.curves) // COLUMNS)
    columns = min(COLUMNS, len(report.curves))
    figure = new_figure((CELL_INCHES[0] * columns, CELL_INCHES[1] * rows))
    cells = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, curve in zip(cells, report.curves, strict=False):
        draw(axes, curve)
    for axes in cells[len(report.curves) :]:
        axes.set_axis_off()
    save_measured(figure, path, report.bundle, report.machine, report.warnings)


def draw(axes: Any, curve: Curve) -> None:
    """Milliseconds an image over the places, with the range over the rounds; the axis begins at 0."""
    places = [point.place for point in curve.points]
    medians = [point.ms.median for point in curve.points]
    ranges = np.array([[one.ms.median - one.ms.smallest, one.ms.largest - one.ms.median] for one in curve.points]).T
    axes.errorbar(places, medians, ranges, marker="o", color=COLOUR, capsize=2)
    if curve.name in ("batch", "cameras"):
        axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places], fontsize=8)
    if curve.name == "slots":
        axes.set_xscale("log")
        axes.set_xticks(places, [str(place) for place in places], fontsize=8)
        axes.minorticks_off()
    axes.set_ylim(0, 1.15 * max(one.ms.largest for one in curve.points))
    axes.set_ylabel("ms an image")
    axes.set_title(f"{curve.name}: {curve.what}", fontsize=9)
    said = "\n".join(textwrap.wrap(curve.sentence, LETTERS_A_LINE))
    axes.set_xlabel(f"{curve.axis}\n\n{said}", fontsize=8)
    axes.grid(alpha=0.3)
