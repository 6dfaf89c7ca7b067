"""A speed report as one picture: latency at batch 1 in three scopes, rates over batches, the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.benchmarks.harness.report import new_figure, png_of
from nnet_edge.benchmarks.speed.report import Result, SpeedReport
from nnet_edge.files import write_atomically

COLOURS = {"torch": "#8a8a8a", "torch.compile": "#4d4d4d", "onnxruntime": "#d08770", "openvino": "#2f6fb0",
           "tensorrt": "#5f9e3f", "tensorrt_rtx": "#2e6b2e"}  # fmt: skip
LINES = {"fp32": "-", "bf16": "--", "fp16": ":", "int8": "-."}
MARKERS = {"fp32": "o", "bf16": "s", "fp16": "^", "int8": "D"}
SHADES = {"model": 0.35, "map": 0.65, "camera": 1.0}  # opacity of a scope's bar
NARROWER = {"bf16": 2, "fp16": 2, "int8": 4}  # times fewer bytes than FP32
INCHES = (15, 9.5)


def plot_speed(report: SpeedReport, path: Path) -> None:
    """Write the picture to `path` (PNG), headed by what was measured where. Raises MissingExtraError without matplotlib."""
    figure = new_figure(INCHES)
    axes = figure.subplots(2, 2, width_ratios=(1.1, 1))
    draw_latencies(axes[0][0], report)
    draw_rates(axes[0][1], report, "map")
    draw_rates(axes[1][1], report, "camera")
    draw_roofline(axes[1][0], report)
    processor = report.machine["processor"].split(";")[0]
    figure.suptitle(f"{report.bundle['bundle']}; {processor}; threads: {report.machine['threads']}", fontsize=11)
    if report.warnings:
        figure.supxlabel(report.warnings[0], color="#b00020", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png_of(figure))


def draw_latencies(axes: Any, report: SpeedReport) -> None:
    """Bars to p50, whiskers to p99; a bar a scope."""
    found = [one for one in report.results if one.batch == 1 and one.latencies_ms is not None]
    names = list(dict.fromkeys(one.name for one in found))
    scopes = list(dict.fromkeys(one.scope for one in found))
    height = 0.8 / max(len(scopes), 1)
    for one in found:
        assert one.latencies_ms is not None
        p50, _, p99 = one.latencies_ms
        place = names.index(one.name) + (scopes.index(one.scope) - (len(scopes) - 1) / 2) * height
        axes.barh(place, p50, height, color=COLOURS[one.system], alpha=SHADES[one.scope])
        axes.plot([p50, p99], [place, place], color="black", linewidth=0.8)
        axes.text(p99, place, f" {p50:.1f}", va="center", fontsize=6.5)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms; bar and number: p50, line: to p99")
    axes.set_title(f"Latency at batch 1; light to dark: {', '.join(scopes)}", fontsize=10)
    axes.margins(x=0.12)


def draw_rates(axes: Any, report: SpeedReport, scope: str) -> None:
    """Frames a second over the batch, bars from the slowest to the fastest round."""
    found = [one for one in report.results if one.scope == scope]
    for name in dict.fromkeys(one.name for one in found):
        own = sorted((one for one in found if one.name == name), key=lambda one: one.batch)
        rates = [one.frames_per_s for one in own]
        ranges = np.array([[rate.median - rate.smallest, rate.largest - rate.median] for rate in rates]).T
        axes.errorbar(
            [one.batch for one in own], [rate.median for rate in rates], ranges, label=name, capsize=2, **style(own[0])
        )
    batches = sorted({one.batch for one in found})
    if batches:
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.set_ylim(0, 1.4 * max(one.frames_per_s.largest for one in found))  # the legend above the lines
        axes.legend(fontsize=7, ncols=3, loc="upper center")
    axes.set_xlabel("batch")
    axes.set_ylabel("frames a second")
    axes.set_title(f"Rate, scope {scope}", fontsize=10)
    axes.grid(alpha=0.3)


def style(result: Result) -> dict[str, Any]:
    """Colour by system, line and marker by precision."""
    return {"color": COLOURS[result.system], "linestyle": LINES[result.precision], "marker": MARKERS[result.precision],
            "markersize": 5}  # fmt: skip


def draw_roofline(axes: Any, report: SpeedReport) -> None:
    """Roofs of each precision over the operations for each byte, and the best rate of each system in the scope model or map.

    A narrower number moves fewer bytes for the same operations, so each precision has its own place on the axis.
    """
    axes.set_title("Roofline: operations a second against operations for each byte, nothing fused", fontsize=10)
    if report.work is None:
        axes.text(
            0.5, 0.5, "torch, which counts the operations, is not installed", ha="center", transform=axes.transAxes
        )
        return
    spans = np.geomspace(1, 1000, 200)
    copies = {one.device: one.median for one in report.roofline.ceilings if one.what == "copy"}
    for one in report.roofline.ceilings:
        if one.what == "copy":
            continue
        roof = np.minimum(one.median, spans * copies[one.device])
        axes.plot(spans, roof, LINES[one.what], color="black", linewidth=1)
        axes.text(
            spans[-1], one.median, f"{one.device} {one.what} {one.median:.0f}", ha="right", va="bottom", fontsize=7
        )
    for name in dict.fromkeys(one.name for one in report.results):
        own = [one for one in report.results if one.name == name and one.scope != "camera"]
        if own:
            best = max(own, key=lambda one: one.frames_per_s.median)
            ceiling = report.roofline.ceiling_of(best.system, best.precision)
            narrower = NARROWER.get(ceiling.what if ceiling else best.precision, 1)
            place = report.work.intensity_at(round(best.met_batch)) * narrower
            rate = 2 * report.work.macs * best.frames_per_s.median / 1e9
            axes.plot(
                place, rate, MARKERS[best.precision], color=COLOURS[best.system], label=f"{name}, batch {best.batch}"
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte")
    axes.set_ylabel("1e9 operations a second")
    axes.legend(fontsize=7, loc="lower right")
    axes.grid(alpha=0.3)
