"""What `nnet-edge calibrate` does: reads the images, has the graphs made and judged, keeps those that some runner takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnet_edge.bundle import read_bundle
from nnet_edge.calibration.frames import choose_frames
from nnet_edge.calibration.gate import Gate
from nnet_edge.config import CPU_RUNNER_KINDS, RunnerSettings
from nnet_edge.data import Dataset, load_images
from nnet_edge.errors import CalibrationError, ConfigError, MissingExtraError
from nnet_edge.export.calibrating import Bar, Bench, CalibrateSettings, Graph
from nnet_edge.export.graph_judge import GraphJudge
from nnet_edge.labelled_images import load_test
from nnet_edge.training_data import with_held_out_images

HEADINGS = ("precision", "runner", "verdict", "points", "map error", "flips", "ms", "speed-up", "size")
METRIC_NAMES = {"image_auroc": "image", "pixel_auroc": "pixel", "pixel_ap": "AP", "pro": "PRO"}
UNSEEN = "(unseen half)"  # in the column of verdicts, as it decides nothing


def calibrate_bundle(
    path: Path,
    dataset: Dataset,
    runner: RunnerSettings,
    settings: CalibrateSettings,
    skip_bad: bool,
    bar: Bar,
    say: Callable[[str], None],
) -> list[Graph]:
    """Make the graphs that `settings` name for the bundle at `path`; those that some runner takes are in it afterwards.

    Raises CalibrationError for too few frames, DataError for images that cannot be read, ConfigError for a runner that
    computes no graph.
    """
    bundle = read_bundle(path)
    for warning in bundle.warnings:
        say(warning)
    kinds = runner_kinds(runner.kind)
    with bar("reading images") as report:
        images = load_images(dataset.train, skip_bad, report).images
    frames = choose_frames(images, settings.frames, settings.seed, tuple(bundle.manifest["frames"]["held_out"]))
    if len(frames) < settings.frames:
        say(
            f"note: calibrating on the {len(frames)} good images that were not held out; {settings.frames} were asked for"
        )
    test = load_test(with_held_out_images(dataset, bundle.manifest["data"]), skip_bad)
    graphs = []
    with GraphJudge(bundle, test, kinds, runner, settings.limits, say) as judge:
        bench = Bench(judge, frames, settings, bar, say)
        for precision in settings.precisions:
            graph = bench.make(precision)
            if graph.is_wanted:
                bundle = bench.keep(bundle, graph)
            graphs.append(graph)
    return graphs


def runner_kinds(kind: str) -> list[str]:
    """The runners to judge on: the one that was asked for, or every one of the processor that is installed."""
    if kind in CPU_RUNNER_KINDS:
        return [kind]
    if kind != "auto":
        raise ConfigError(f"{kind} computes engines, not graphs: build-engine judges those; choose another --runner")
    kinds = [name for name in CPU_RUNNER_KINDS if find_spec(name) is not None]
    if not kinds:
        raise MissingExtraError("neither openvino nor onnxruntime is installed: pip install 'nnet-edge[cpu]'")
    return kinds


def table_of(graphs: Sequence[Graph]) -> str:
    """A line for each graph and runner, aligned, and below it why a graph was refused and what its layers rest on."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    for graph in graphs:
        rows += [(graph.precision, *row_of(gate, verdict_of(gate)), size_of(graph)) for gate in graph.gates]
        rows += [(graph.precision, *row_of(gate, UNSEEN), "") for gate in graph.unseen]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for graph in graphs:
        for gate in graph.gates:
            lines += [f"{graph.precision} on {gate.runner}: {reason}" for reason in gate.reasons]
        if kept := graph.made.get("kept_in_fp32"):
            lines.append(f"{graph.precision}: FP32 stay {', '.join(kept)}")
        if search := graph.made.get("search"):
            lines.append(f"{graph.precision}: {sentence_of(search)}")
        lines.append(f"{graph.precision}: made in {graph.made['seconds']:.0f} s")
    return "\n".join(lines)


def verdict_of(gate: Gate) -> str:
    """The verdict in the table's words."""
    return "accepted" if gate.accepted else "taken all the same" if gate.overridden else "REFUSED"


def row_of(gate: Gate, verdict: str) -> tuple[str, ...]:
    """What the table says of a gate: verdict, changes with their signs, milliseconds."""
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
    """Every metric's change in hundredths: falls and rises."""
    return ", ".join(f"{METRIC_NAMES[name]} {change:+.2f}" for name, change in points.items())


def sentence_of(search: Mapping[str, Any]) -> str:
    """What the layers in FP32 were chosen on, and what images that they were not chosen on say."""
    if search["on"] == "half":
        return (
            f"these layers were chosen on {search['seen']} labelled images; {search['unseen']} others, {UNSEEN} above, say "
            "what to expect of new ones"
        )
    text = "these layers were chosen on all the images that judge them: new images may say less good things"
    failed = search.get("failed_half")
    if failed is None:
        return text
    unseen, layers = failed["unseen"], len(failed["kept_in_fp32"])
    text += (
        f"; the {layers} blocks and layers found on one half alone fail on all ({'; '.join(failed['all']['reasons'])})"
    )
    if unseen is not None:
        text += (
            f", on the unseen half {changes_of(unseen['metric_points'])}, {unseen['flips']} of {unseen['images']} flip"
        )
    return text


def size_of(graph: Graph) -> str:
    """The size of the graph's file."""
    return f"{len(graph.content) / 1e6:.1f} MB"


def require_taken(graphs: Sequence[Graph], path: Path) -> None:
    """Nothing, when some runner takes every graph. Raises CalibrationError that says which none took and what to do."""
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
            "more good images, choose another --method, or say --accept to use it all the same"
        )
