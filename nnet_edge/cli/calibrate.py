"""`nnet-edge calibrate`: make INT8 and FP16 graphs of a bundle and judge them on every runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.options import (
    FOLDER,
    Command,
    dataset_options,
    find_dataset,
    json_option,
    nice_option,
    print_result,
    runner_options,
    runner_settings,
    shown_option,
)
from nnet_edge.cli.view import say, steps_bar
from nnet_edge.errors import CalibrationError

if TYPE_CHECKING:
    from nnet_edge.calibration.gate import Gate
    from nnet_edge.export.calibrating import Graph


HEADINGS = ("precision", "runner", "verdict", "points", "map error", "flips", "ms", "speed-up", "size")
UNSEEN = "(unseen half)"  # in the column of verdicts, as it decides nothing


def table_of(graphs: Sequence[Graph]) -> str:
    """An aligned line for each graph and runner; below, why a graph was refused and how its FP32 layers were chosen."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for graph in graphs:
        for gate in graph.gates:
            taken = graph.variants.get(gate.runner, graph)
            rows.append((graph.precision, *row_of(gate, verdict_of(gate)), f"{len(taken.content) / 1e6:.1f} MB"))
        rows += [(graph.precision, *row_of(gate, UNSEEN), "") for gate in graph.unseen]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for graph in graphs:
        for gate in graph.gates:
            lines += [f"{graph.precision} on {gate.runner}: {reason}" for reason in gate.reasons]
        named = {graph.precision: graph.made} if graph.is_common else {}
        named |= {f"{graph.precision} on {runner}": one.made for runner, one in graph.variants.items()}
        for name, made in named.items():
            if kept := made.get("kept_in_fp32"):
                lines.append(f"{name}: FP32 stay {', '.join(kept)}")
            if search := made.get("search"):
                lines.append(f"{name}: {sentence_of(search)}")
        lines.append(f"{graph.precision}: made in {graph.made['seconds']:.0f} s")
    return "\n".join(lines)


def facts_of(graph: Graph) -> dict[str, Any]:
    """The same of one graph, for JSON."""
    gates, unseen = ([gate.as_dict() for gate in ones] for ones in (graph.gates, graph.unseen))
    return {
        "precision": graph.precision,
        "bytes": len(graph.content),
        "made": graph.made,
        "variants": {name: {"bytes": len(one.content), "made": one.made} for name, one in graph.variants.items()},
        "gates": gates,
        "unseen": unseen,
    }


def verdict_of(gate: Gate) -> str:
    """The verdict as the table shows it."""
    return "accepted" if gate.accepted else "taken all the same" if gate.overridden else "REFUSED"


def row_of(gate: Gate, verdict: str) -> tuple[str, ...]:
    """The table's cells for a gate: verdict, signed changes, milliseconds."""
    if gate.threshold is None:
        return gate.runner, verdict, "-", "-", "-", "-", "-"
    change = changes_of(gate.metric_points) or f"ranks {gate.rank_correlation:.3f}"
    error = f"{gate.map_error['mean']:.2%} mean, {gate.map_error['max']:.1%} max"
    flips = f"{gate.flips} of {gate.images}, {gate.flips_outside_band} outside the band"
    if gate.latency_ms is None or gate.speed_up is None:
        return gate.runner, verdict, change, error, flips, "-", "-"
    before, after = gate.latency_ms
    return gate.runner, verdict, change, error, flips, f"{before:.1f} -> {after:.1f}", f"{gate.speed_up:.2f} x"


def changes_of(points: Mapping[str, float]) -> str:
    """Every metric's change in points, with its sign."""
    from nnet_edge.metrics import METRICS

    return ", ".join(f"{METRICS[name].short_label} {change:+.2f}" for name, change in points.items())


def sentence_of(search: Mapping[str, Any]) -> str:
    """Which images chose the layers in FP32, and how the others are judged."""
    if search["on"] == "half":
        return (
            f"these layers were chosen on {search['seen']} labelled images; {search['unseen']} others, {UNSEEN} above, say "
            "what to expect of new ones"
        )
    text = "these layers were chosen on all the images that judge them: new images may say less good things"
    failed = search.get("failed_half")
    if failed is None:
        return text
    unseen, reasons = failed["unseen"], "; ".join(failed["all"]["reasons"])
    text += f"; the {len(failed['kept_in_fp32'])} blocks and layers found on one half alone fail on all ({reasons})"
    if unseen is not None:
        changes = changes_of(unseen["metric_points"])
        text += f", on the unseen half {changes}, {unseen['flips']} of {unseen['images']} flip"
    return text


def require_taken(graphs: Sequence[Graph], path: Path) -> None:
    """Raise CalibrationError, with what to do, unless each graph is accepted on some runner."""
    broken = [graph.precision for graph in graphs if all(gate.threshold is None for gate in graph.gates)]
    if broken:
        raise CalibrationError(
            f"{' and '.join(broken)} gives no verdicts on {path} (the table says why) and was not written, which --accept does "
            "not change: choose another --method or --precision, or give more good images"
        )
    refused = [graph.precision for graph in graphs if not graph.is_wanted]
    if refused:
        raise CalibrationError(
            f"{' and '.join(refused)} changes the verdicts of {path} too much (the table says how) and was not written: give "
            "more good images, choose another --method, or say --accept to use it anyway"
        )


@click.command("calibrate", cls=Command, example="nnet-edge calibrate runs/part/bundle photos/ --precision int8")
@click.argument("bundle", type=FOLDER)
@dataset_options
@shown_option("--precision", "precisions", metavar="NAME,...", multiple=True, default=["int8,fp16"],
              help="int8, fp16 or both, with a comma or said twice.")  # fmt: skip
@shown_option("--method", type=click.Choice(["auto", "max", "entropy", "percentile"]), default="auto",
              help="How ranges follow from activations; auto: the best of the three for each tensor. "
                   "modelopt has max and entropy.")  # fmt: skip
@shown_option(
    "--tool", type=click.Choice(["onnxruntime", "modelopt"]), default="onnxruntime", help="That makes the graphs."
)
@shown_option("--frames", type=int, metavar="IMAGES", default=64, help="Good images to calibrate on.")
@shown_option("--seed", type=int, metavar="SEED", default=0, help="Of the choice of images.")
@shown_option(
    "--metric-points", type=float, metavar="POINTS", default=0.5, help="Percentage points that any metric may fall."
)
@shown_option("--band", type=float, metavar="SHARE", default=0.01,
              help="Verdicts may flip where FP32's score is so close to its threshold, a share of that.")  # fmt: skip
@click.option("--accept", is_flag=True, help="Keep graphs that the gate refuses; the manifest says so.")
@runner_options
@nice_option
@json_option
def command(bundle: Path, data: Path, **options: Any) -> None:
    """Make INT8 and FP16 graphs of BUNDLE on good images of DATA; one that changes verdicts is refused.

    Measured against FP32 on every installed runner: metrics where DATA holds defects, verdicts, maps, speed.
    """
    from nnet_edge.calibration.gate import GateLimits
    from nnet_edge.calibration.quantize import QuantizeSettings
    from nnet_edge.export.calibrating import CalibrateSettings, calibrate_bundle

    runner = runner_settings(options)
    settings = CalibrateSettings(
        precisions=tuple(dict.fromkeys(name.strip() for said in options["precisions"] for name in said.split(","))),
        quantize=QuantizeSettings(options["tool"], options["method"], runner.threads),
        frames=options["frames"],
        seed=options["seed"],
        accept=options["accept"],
        limits=GateLimits(options["metric_points"], options["band"]),
    )
    dataset = find_dataset(data, options)
    graphs = calibrate_bundle(
        bundle, dataset, runner, settings, options["skip_bad_images"], steps_bar, say, options["bits"]
    )
    print_result(table_of(graphs), [facts_of(graph) for graph in graphs])
    require_taken(graphs, bundle)
