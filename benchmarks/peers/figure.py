"""The paper's Figure 4 with what this machine measured, and what others published beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nnet_edge.benchmarks.harness.plot import DPI, new_figure, png_of
from nnet_edge.benchmarks.peers.table import PUBLISHED, RaceReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUBBLE_PER_ROOT_M = 60.0  # points^2 for each root of a million values: areas that differ 40 times stay readable
SMALLEST_BUBBLE = 25.0
POINT_PX = 16.0  # half of what a bubble covers
CHARACTER_PX, LINE_PX = 7.0, 15.0  # of a name at 8 points and DPI
COLOURS = {"N-Net": "#c0392b", "other": "#2c6fbb", "published": "#777777"}


def draw_figure(report: RaceReport) -> bytes:
    """A PNG: frames a second (log), PRO in %, bubble = values kept; left measured here, right published.

    Raises MissingExtraError without matplotlib.
    """
    figure = new_figure((15, 7))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_measured(left, report)
    draw_published(right)
    figure.suptitle("Speed, PRO and size (after Figure 4 of the N-Net paper); the two panels are not comparable")
    return png_of(figure)


def draw_measured(axes: Axes, report: RaceReport) -> None:
    """Everybody with speed and PRO over the common categories."""
    shown = [
        (one, one.timed.frames_per_s, 100 * pro)
        for one in report.candidates
        if one.timed is not None and (pro := one.mean_of("pro", report.categories)) is not None
    ]
    for one, rate, pro in shown:
        colour = COLOURS.get(one.method, COLOURS["other"])
        axes.scatter(rate.median, pro, s=bubble(one.values), color=colour, alpha=0.45, edgecolors=colour)
        axes.errorbar(rate.median, pro, xerr=[[rate.median - rate.smallest], [rate.largest - rate.median]],
                      color=colour, fmt="none", capsize=2)  # fmt: skip
    label_points(
        axes,
        [
            (rate.median, pro, f"{one.method}\n{one.system.removeprefix('anomalib ')} {one.precision}")
            for one, rate, pro in shown
        ],
    )
    axes.set_title("measured here: " + report.header["processor"].partition(",")[0] + ",\n"
                   + "threads: " + report.header["threads"] + "; " + ", ".join(report.categories), fontsize=10)  # fmt: skip
    finish(axes, "PRO, mean of the categories above, %")


def draw_published(axes: Axes) -> None:
    """The literature's points, hollow diamonds, each with its hardware."""
    for one in PUBLISHED:
        axes.scatter(one["frames_per_s"], one["pro"], s=bubble(one["parameters"]), marker="D", facecolors="none",
                     edgecolors=COLOURS["published"])  # fmt: skip
    label_points(axes, [(one["frames_per_s"], one["pro"], f"{one['method']}\n{one['hardware']}") for one in PUBLISHED])
    axes.set_title("published: GPUs as named, MVTec AD\n(smallest diamond: size not stated)", fontsize=10)
    finish(axes, "PRO on MVTec AD, %")


def label_points(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Each name near its point, at the first of `PLACES` where it covers neither a point nor another name."""
    axes.set_xscale("log")
    axes.margins(0.18)
    axes.autoscale_view()
    axes.figure.canvas.draw()
    here = [tuple(axes.transData.transform((x, y))) for x, y, _ in points]
    taken = [Box(x - POINT_PX, y - POINT_PX, x + POINT_PX, y + POINT_PX) for x, y in here]
    for (x, y, text), (left, low) in sorted(zip(points, here, strict=True), key=lambda pair: pair[1]):
        width = CHARACTER_PX * max(len(line) for line in text.split("\n"))
        height = LINE_PX * (text.count("\n") + 1)
        boxes = [Box(left + dx - width / 2, low + dy - height / 2, left + dx + width / 2, low + dy + height / 2)
                 for dx, dy in places(width, height)]  # fmt: skip
        best = min(range(len(boxes)), key=lambda n: (sum(boxes[n].overlaps(other) for other in taken), n))
        taken.append(boxes[best])
        dx, dy = places(width, height)[best]
        points_per_px = 72 / DPI
        axes.annotate(text, (x, y), xytext=(dx * points_per_px, dy * points_per_px), textcoords="offset points",
                      fontsize=8, ha="center", va="center",
                      arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.6})  # fmt: skip


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    low: float
    right: float
    high: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share a pixel."""
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high


def places(width: float, height: float) -> list[tuple[float, float]]:
    """Where the middle of a name may lie, in pixels from its point: near first."""
    up, side = height / 2 + POINT_PX + 4, width / 2 + POINT_PX + 4
    near = [(0, up), (0, -up), (side, 0), (-side, 0), (side, up), (-side, up), (side, -up), (-side, -up)]
    return [(factor * x, factor * y) for factor in (1, 1.8, 2.6, 3.6) for x, y in near]


def finish(axes: Axes, title: str) -> None:
    """Axes, grid and room for the names."""
    axes.set_xlabel("frames a second, batch 1 (bubble: parameters and stored values)")
    axes.set_ylabel(title)
    axes.grid(True, which="both", alpha=0.2)
    formatter: Any = "{x:g}"
    axes.xaxis.set_major_formatter(formatter)


def bubble(values: int | None) -> float:
    """The area of a bubble, points^2."""
    return SMALLEST_BUBBLE if values is None else SMALLEST_BUBBLE + BUBBLE_PER_ROOT_M * (values / 1e6) ** 0.5
