"""What the race found: Markdown for people, plain values for JSON, and the paper's Figure 4 beside what others published."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from nnet_edge.benchmarks.harness.report import new_figure, plain, plain_fields, png_of, render
from nnet_edge.benchmarks.peers.pipes import Entry, TimedProcess

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = "nnet-edge peers 1"
Metrics = dict[str, float | None]
FIGURES = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP", "pro": "PRO", "pro_rd4ad": "PRO (RD4AD)"}
LITERATURE: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
PUBLISHED: list[dict[str, Any]] = LITERATURE["points"]  # never set on one line with what is measured here


@dataclass(frozen=True)
class Candidate:
    """One method in one form: what it is, how good and how fast."""

    name: str
    method: str
    system: str
    precision: str
    backbone: str
    parameters: int
    values: int  # with memory banks and stored statistics
    macs: int
    artefact_bytes: int | None
    metrics: dict[str, Metrics]  # by category; empty where it never learned
    entry: Entry | None  # None: it cannot run
    note: str = ""
    timed: TimedProcess | None = None
    metrics_from: str = ""  # the system whose maps the metrics are of; "" where it has none
    is_ours: bool = False

    def mean_of(self, figure: str, categories: tuple[str, ...]) -> float | None:
        """The mean of a figure over these categories, None unless it is known for each."""
        values = [self.metrics.get(name, {}).get(figure) for name in categories]
        known = [value for value in values if value is not None]
        return mean(known) if known and len(known) == len(values) else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        known = {name: value for name, value in plain_fields(self).items() if name not in ("entry", "timed")}
        return known | {"speed": plain(self.timed)}


@dataclass(frozen=True)
class Absent:
    """Why a method has no row of a category."""

    method: str
    category: str
    reason: str


@dataclass(frozen=True)
class RaceReport:
    """A race."""

    header: dict[str, str]
    warnings: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    absent: tuple[Absent, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether somebody was raced or measured; what could not be is among the warnings and the notes."""
        return bool(self.candidates)

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories with masks that every FP32 candidate with metrics was measured on.

        An INT8 graph that dies on one of them costs its own candidate the mean, and nobody else's.
        """
        sets = [{name for name, found in one.metrics.items() if found["pro"] is not None}
                for one in self.candidates if one.metrics and one.precision == "fp32"]  # fmt: skip
        return tuple(sorted(set.intersection(*sets))) if sets else ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, schemas/peers.json."""
        return {
            "schema": SCHEMA,
            "header": self.header,
            "warnings": list(self.warnings),
            "compared_over": list(self.categories),
            "contenders": plain(self.candidates),
            "absent": plain(self.absent),
            "published": PUBLISHED,
        }

    def markdown(self) -> str:
        """The report."""
        return render("peers/peers.md.j2", report=self, figures=FIGURES, literature=LITERATURE)

    @property
    def fastest_first(self) -> list[Candidate]:
        """The candidates by their speed."""
        return sorted(self.candidates, key=lambda one: -(one.timed.frames_per_s.median if one.timed else 0))

    @property
    def measured(self) -> dict[str, Candidate]:
        """Method and precision -> the first candidate with its metrics."""
        found: dict[str, Candidate] = {}
        for one in self.candidates:
            if one.metrics:
                found.setdefault(f"{one.method}, {one.precision}", one)
        return found


BUBBLE_PER_ROOT_M = 60.0  # points^2 for each root of a million values: areas that differ 40 times stay readable
SMALLEST_BUBBLE = 25.0
COLOURS = {"ours": "#c0392b", "other": "#2c6fbb", "published": "#777777"}


def draw_figure(report: RaceReport) -> bytes:
    """A PNG: frames a second (log), PRO in %, bubble = values kept; left measured here, right published.

    Raises MissingExtraError without matplotlib.
    """
    figure = new_figure((15, 9))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_measured(left, report)
    draw_published(right)
    figure.suptitle("Speed, PRO and size (after Figure 4 of the N-Net paper); the two panels are not comparable")
    return png_of(figure)


def draw_measured(axes: Axes, report: RaceReport) -> None:
    """Everybody with speed and PRO over the common categories."""
    for one in report.candidates:
        pro = one.mean_of("pro", report.categories)
        if one.timed is None or pro is None:
            continue
        rate, colour = one.timed.frames_per_s, COLOURS["ours" if one.is_ours else "other"]
        name = f"{one.method}, {one.system.removeprefix('anomalib ')} {one.precision}"
        draw_point(axes, rate.median, 100 * pro, name, s=bubble(one.values), color=colour, alpha=0.45)
        axes.errorbar(rate.median, 100 * pro, xerr=[[rate.median - rate.smallest], [rate.largest - rate.median]],
                      color=colour, fmt="none", capsize=2)  # fmt: skip
    axes.set_title("measured here: " + report.header["processor"].partition(",")[0] + ",\n"
                   + "threads: " + report.header["threads"] + "; " + ", ".join(report.categories), fontsize=10)  # fmt: skip
    finish(axes, "PRO, mean of the categories above, %")


def draw_published(axes: Axes) -> None:
    """The literature's points, hollow diamonds, each with its hardware."""
    for one in PUBLISHED:
        draw_point(axes, one["frames_per_s"], one["pro"], f"{one['method']}, {one['hardware']}", s=bubble(one["parameters"]),
                   marker="D", facecolors="none", edgecolors=COLOURS["published"])  # fmt: skip
    axes.set_title("published: GPUs as named, MVTec AD\n(smallest diamond: size not stated)", fontsize=10)
    finish(axes, "PRO on MVTec AD, %")


def draw_point(axes: Axes, rate: float, pro: float, name: str, **style: Any) -> None:
    """A point with its number in the legend, which has the name."""
    number = len(axes.collections) + 1 - len(axes.containers)
    axes.scatter(rate, pro, label=f"{number}  {name}", **style)
    axes.annotate(str(number), (rate, pro), xytext=(6, 6), textcoords="offset points", fontsize=9)


def finish(axes: Axes, title: str) -> None:
    """Axes, grid and names."""
    axes.set_xscale("log")
    axes.margins(0.1)
    legend: Any = axes.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=2, fontsize=8, frameon=False)
    for handle in legend.legend_handles:
        handle.set_sizes([SMALLEST_BUBBLE])
    axes.set_xlabel("frames a second, batch 1 (bubble: parameters and stored values)")
    axes.set_ylabel(title)
    axes.grid(True, which="both", alpha=0.2)
    formatter: Any = "{x:g}"
    axes.xaxis.set_major_formatter(formatter)


def bubble(values: int | None) -> float:
    """The area of a bubble, points^2."""
    return SMALLEST_BUBBLE if values is None else SMALLEST_BUBBLE + BUBBLE_PER_ROOT_M * (values / 1e6) ** 0.5
