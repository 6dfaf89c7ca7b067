"""The demo's report: what was found, as values for the page `report.html.j2` and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnet_edge.bundle import Bundle
from nnet_edge.data.example_parts import DEFECTS, GOOD, Part
from nnet_edge.evaluation.evaluate import Evaluation
from nnet_edge.evaluation.page import decimals, duration, render, write_page
from nnet_edge.methods.base import find_method
from nnet_edge.runtime.stream.report import StreamReport

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Verdicts:
    """What became of the camera's parts; the truth of part i is `parts[i]`."""

    parts: Sequence[Part]
    rejected: Mapping[int, bool]  # index of a judged part -> whether it was rejected

    def count(self, defect: str | None) -> tuple[int, int]:
        """How many parts were rejected and how many judged: of a defect, of "good", or (None) of all with a defect."""
        of = [
            was_rejected
            for index, was_rejected in self.rejected.items()
            if (self.parts[index].is_anomalous if defect is None else self.parts[index].defect == defect)
        ]
        return sum(of), len(of)

    def first_hit(self) -> int | None:
        """The index of the first part with a defect that was rejected."""
        hits = (i for i, rejected in sorted(self.rejected.items()) if rejected and self.parts[i].is_anomalous)
        return next(hits, None)


@dataclass(frozen=True)
class DemoRun:
    """Everything that the demo did and where it lies."""

    out: Path
    command: str
    processor: str
    learned: int  # good parts
    bundle: Bundle
    evaluation: Evaluation
    verdicts: Verdicts
    live: StreamReport  # at the camera's rate
    flat_out: StreamReport  # as fast as the runner takes them
    rate_hz: float
    seconds: Mapping[str, float]  # what the demo spent on each of its steps
    video: Path
    losses: Path | None
    files: Sequence[tuple[Path, str]]


def write_report(run: DemoRun, out: Path) -> Path:
    """Write the page to the file `out` in one piece and give `out` back.

    Raises DataError when a file is missing or `out` cannot be written, MissingExtraError without jinja2.
    """
    return write_page(html(run, out.parent), out)


def html(run: DemoRun, folder: Path) -> str:
    """The page as HTML; files are named relative to `folder`."""
    return render("nnet_edge.cli.demo", TEMPLATE, folder, values(run))


def values(run: DemoRun) -> dict[str, Any]:
    """What the template shows beside the run itself."""
    evaluation, manifest = run.evaluation, run.bundle.manifest
    (found, defective), (false, good) = run.verdicts.count(None), run.verdicts.count(GOOD)
    hit = run.verdicts.first_hit()
    promise = run.bundle.threshold.sentence()
    camera_rows = []
    for defect in (GOOD, *DEFECTS):
        rejected, judged = run.verdicts.count(defect)
        camera_rows.append([defect, judged, judged - rejected, rejected])
    test_good, test_bad = int((~evaluation.labels).sum()), int(evaluation.labels.sum())
    recall = [[kind, f"{one.rejected} of {one.of}"] for kind, one in evaluation.recall_by_defect.items()]
    return {
        "run": run,
        "evaluation": evaluation,
        "metrics": evaluation.metrics,
        "manifest": manifest,
        "found": found,
        "defective": defective,
        "false_rejects": false,
        "good": good,
        "poster": None if hit is None else next((run.out / "rejects").glob(f"*/{hit:06d}.jpg")),
        "promise": promise[0].upper() + promise[1:],
        "camera_rows": camera_rows,
        "test_good": test_good,
        "test_bad": test_bad,
        "recall_rows": [*recall, ["good parts, wrongly", f"{len(evaluation.false_rejects)} of {test_good}"]],
        "stage_rows": [[stage, *(decimals(value, 1) for value in (p.p50_ms, p.p95_ms, p.p99_ms)), p.count]
                       for stage, p in run.live.latencies.items()],
        "step_rows": [*([step, duration(seconds)] for step, seconds in run.seconds.items()),
                      ["in all", duration(sum(run.seconds.values()))]],
        "facts": facts(run),
        "software": [["nnet-edge", manifest["nnet_edge"]], ["Python", manifest["made_on"]["python"]],
                     *([name, version or "not installed"] for name, version in manifest["made_on"]["libraries"].items())],
    }  # fmt: skip


def facts(run: DemoRun) -> list[list[str]]:
    """The machine, the network and the teacher."""
    manifest = run.bundle.manifest
    trained, teacher, data = manifest["trained"], manifest["teacher"], manifest["data"]
    return [
        ["network", f"{find_method(manifest['system']).title} with {manifest['backbone']}"],
        [
            "good parts",
            f"{data['learned']} learned, {data['held_out']} held out, {data['distinct']} distinct in all",
        ],
        ["teacher's weights", str(teacher["origin"])],
        ["teacher is random", "YES" if teacher["is_random"] else "no"],
        ["trained", f"{trained['epochs']} epochs, {trained['precision']}"],
        ["inference", f"{run.evaluation.runner}, {run.evaluation.precision}"],
        *([f"{p['runner']} against {p['reference']}", parity_words(p)] for p in manifest["parity"]),
        ["processor", run.processor],
        ["system", manifest["made_on"]["system"]],
    ]


def parity_words(parity: Mapping[str, Any]) -> str:
    """How far two runners are apart, as the manifest keeps it."""
    return (
        f"layer maps within {parity['layer_map_error']:.0e}, scores within {parity['score_error']:.0e}, "
        f"{parity['flipped_verdicts']} of {parity['images']} verdicts differ"
    )


def in_short(run: DemoRun) -> list[str]:
    """What was found, as lines for a terminal."""
    metrics = run.evaluation.metrics
    (found, defective), (false, good) = run.verdicts.count(None), run.verdicts.count(GOOD)
    return [
        f"test set: image AUROC {decimals(metrics.image_auroc)}, pixel AP {decimals(metrics.pixel_ap)}, "
        f"PRO {decimals(metrics.pro)}",
        f"camera: {found} of {defective} parts with a defect found, {false} of {good} good parts rejected",
        f"{decimals(run.flat_out.frames_per_s, 1)} frames/s on {run.evaluation.runner}, {run.evaluation.precision}; "
        f"{duration(sum(run.seconds.values()))} of work in all",
        *run.bundle.warnings,
    ]
