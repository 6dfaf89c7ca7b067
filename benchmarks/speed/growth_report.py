"""A growth report: curves of milliseconds an image, the measured sentence that each of them says, and all as one picture.

`schemas/growth.json` describes the JSON.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.benchmarks.harness.plot import new_figure, save_measured
from nnet_edge.benchmarks.harness.report import head_lines, markdown_table, told
from nnet_edge.benchmarks.harness.rounds import Spread

SCHEMA = "nnet-edge growth 1"
UNCERTAIN = "; the spread of its ends overlaps, so whether it grows at all was not seen"


@dataclass(frozen=True)
class Point:
    """One measured place of a curve."""

    place: int  # batch, cameras, pixels or slots
    ms: Spread  # milliseconds an image
    images: int  # that were measured
    # of cameras only, medians of the rounds: of the bare runner's rate just before and after; capture to verdict of the
    # slowest camera
    share_of_bare: float | None = None
    p99_ms: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"place": self.place, "ms": self.ms.as_dict(), "images": self.images,
                "share_of_bare": self.share_of_bare, "p99_ms": self.p99_ms}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Milliseconds an image over one quantity."""

    name: str
    what: str  # what computes, for people
    axis: str
    points: tuple[Point, ...]

    @property
    def sentence(self) -> str:
        """What the curve says, in one measured sentence."""
        first, last = self.points[0], self.points[-1]
        before, after = first.ms.median, last.ms.median
        said = _SENTENCES[self.name](self.points, f"{before:.2f}", f"{after:.2f}", after / before)
        overlaps = len({first.ms.smallest, first.ms.largest}) > 1 and overlap(first.ms, last.ms)
        return f"{said}{UNCERTAIN if overlaps else ''}."

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "what": self.what, "axis": self.axis, "sentence": self.sentence,
                "points": [point.as_dict() for point in self.points]}  # fmt: skip


def overlap(one: Spread, other: Spread) -> bool:
    """Whether the two ranges have a value in common."""
    return one.smallest <= other.largest and other.smallest <= one.largest


def exponent(points: Sequence[Point]) -> float:
    """k of the power law ms = c * place ** k that fits the medians best (least squares of the logarithms)."""
    places, values = [point.place for point in points], [point.ms.median for point in points]
    return float(np.polyfit(np.log(places), np.log(values), 1)[0])


def slope(points: Sequence[Point]) -> float:
    """Milliseconds for one more of the axis: least squares of the medians."""
    return float(np.polyfit([point.place for point in points], [point.ms.median for point in points], 1)[0])


def _batch(points: Sequence[Point], before: str, after: str, ratio: float) -> str:
    best = min(points, key=lambda point: point.ms.median)
    return (
        f"An image costs {before} ms alone and {after} ms in a batch of {points[-1].place}, {ratio:.2f} times as much; "
        f"least in a batch of {best.place} ({best.ms.median:.2f} ms)"
    )


def _cameras(points: Sequence[Point], before: str, after: str, ratio: float) -> str:
    first, last = points[0], points[-1]
    assert first.p99_ms is not None
    assert last.p99_ms is not None
    assert last.share_of_bare is not None
    return (
        f"{last.place} cameras get {1e3 / last.ms.median:.1f} frames a second together, {1 / ratio:.2f} times what one gets, "
        f"{last.share_of_bare:.0%} of the bare runner; the slowest camera's p99 from capture to verdict goes from "
        f"{first.p99_ms:.0f} to {last.p99_ms:.0f} ms"
    )


def _side(points: Sequence[Point], before: str, after: str, ratio: float) -> str:
    first, last = points[0].place, points[-1].place
    area = (last / first) ** 2
    return (
        f"The bare network costs {before} ms at {first}x{first} and {after} ms at {last}x{last}, {ratio:.2f} times as much "
        f"for {area:g} times the pixels (power {exponent(points):.2f} of the side)"
    )


def _picture(points: Sequence[Point], before: str, after: str, ratio: float) -> str:
    first, last = points[0].place, points[-1].place
    middle = next((point for point in points if point.place == 512), points[len(points) // 2])
    return (
        f"A camera's picture costs {before} ms before the network at {first}x{first}, {middle.ms.median:.2f} ms at "
        f"{middle.place}x{middle.place} and {after} ms at {last}x{last}"
    )


def _slots(points: Sequence[Point], before: str, after: str, ratio: float) -> str:
    first, last = points[0].place, points[-1].place
    return (
        f"The bare network costs {before} ms with {first} slots and {after} ms with {last}, {ratio:.2f} times as much, "
        f"{100 * slope(points):.3f} ms for a hundred slots"
    )


_SENTENCES = {"batch": _batch, "cameras": _cameras, "side": _side, "picture": _picture, "slots": _slots}


@dataclass(frozen=True)
class GrowthReport:
    """All curves, and what they were measured on."""

    command: str
    when: str
    machine: dict[str, str]
    bundle: str
    warnings: tuple[str, ...]
    curves: tuple[Curve, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"schema": SCHEMA, "command": self.command, "when": self.when, "machine": self.machine,
                "bundle": self.bundle, "warnings": list(self.warnings),
                "curves": [curve.as_dict() for curve in self.curves]}  # fmt: skip

    def markdown(self) -> str:
        """The report as Markdown: a sentence and a table for each curve."""
        facts = {"command": f"`{self.command}`", "when": self.when, "bundle": self.bundle, **self.machine}
        lines = head_lines(self.warnings, facts)
        for curve in self.curves:
            lines += ["", f"### {curve.name}: {curve.what}", "", curve.sentence, "", *curve_table(curve)]
        return "\n".join(lines)


def curve_table(curve: Curve) -> list[str]:
    """The points of a curve; a camera's further figures where there are some."""
    heads = [curve.axis, "ms an image, median (min..max)", "images a second", "images measured"]
    rows = [[point.place, point.ms.text(2), f"{1e3 / point.ms.median:.1f}", point.images] for point in curve.points]
    if any(point.p99_ms is not None for point in curve.points):
        heads += ["of the bare runner", "p99 ms"]
        rows = [[*row, told(point.share_of_bare, ".0%"), told(point.p99_ms, ".0f")]
                for row, point in zip(rows, curve.points, strict=True)]  # fmt: skip
    return markdown_table(heads, rows)


COLUMNS = 3
CELL_INCHES = (5.2, 4.6)
LETTERS_A_LINE = 66
COLOUR = "#2f6fb0"


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
