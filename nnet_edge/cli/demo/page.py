"""What the demo found, as the page of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnet_edge.bundle import Bundle
from nnet_edge.cli.demo.report import Block, Command, Figure, Files, Page, Picture, Section, Table, Text, Video
from nnet_edge.data.example_parts import DEFECTS, GOOD, Part
from nnet_edge.evaluation.evaluate import Evaluation
from nnet_edge.runtime.stream.report import StreamReport

GOAL_IMAGE_AUROC, GOAL_PIXEL_AP = 0.97, 0.55
METRICS = (  # name in Metrics, as people say it, what it says
    ("image_auroc", "image AUROC", "chance that a part with a defect scores above a good one"),
    ("pixel_auroc", "pixel AUROC", "the same for single pixels; flattered by the many normal ones"),
    ("pixel_ap", "pixel AP", "average precision of single pixels: how well the map outlines defects"),
    ("pro", "PRO to 0.3", "overlap with each defect, small ones as weighty as large ones"),
    ("pro_rd4ad", "PRO as in RD4AD", "the variant of that paper's code, for comparison with its tables"),
)


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
        hits = (
            index for index, rejected in sorted(self.rejected.items()) if rejected and self.parts[index].is_anomalous
        )
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


def compose(run: DemoRun) -> Page:
    """The page of the report."""
    found, defective = run.verdicts.count(None)
    false, good = run.verdicts.count(GOOD)
    total = sum(run.seconds.values())
    summary = (
        f"N-Net learned {run.learned} photographs of good parts in {duration(run.seconds['train'])} on "
        f"{run.processor}, then judged {defective + good} parts under the line's camera: it found {found} of "
        f"{defective} parts with a defect and rejected {false} of {good} good ones. No picture of a defect was used "
        "in training."
    )
    return Page(
        title="Inspection report: the demo line",
        summary=summary,
        figures=figures(run),
        sections=[
            Section("The camera", camera_blocks(run)),
            Section("How well parts are told apart", accuracy_blocks(run), columns=True),
            Section("The threshold", threshold_blocks(run)),
            Section("Parts, truth and verdict", sheet_blocks(run)),
            Section("Speed", speed_blocks(run)),
            Section("Training", training_blocks(run)),
            Section("How this was made", making_blocks(run), columns=True),
            Section("Again, and further", next_blocks(run)),
            Section("Files", [Files(run.files)]),
        ],
        warnings=run.bundle.warnings,
        footer=f"nnet-edge {run.bundle.manifest['nnet_edge']}, {duration(total)} of work in all. The photographs of "
        "bricks, gravel and grass come with scikit-image; the defects are painted, so their masks are exact.",
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


def figures(run: DemoRun) -> list[Figure]:
    """The row of figures at the page's head."""
    metrics = run.evaluation.metrics
    found, defective = run.verdicts.count(None)
    false, good = run.verdicts.count(GOOD)
    return [
        Figure(
            "Image AUROC",
            decimals(metrics.image_auroc),
            goal(GOAL_IMAGE_AUROC),
            tone(metrics.image_auroc, GOAL_IMAGE_AUROC),
        ),
        Figure("Pixel AP", decimals(metrics.pixel_ap), goal(GOAL_PIXEL_AP), tone(metrics.pixel_ap, GOAL_PIXEL_AP)),
        Figure(
            "Defects found",
            f"{found} of {defective}",
            "with a defect, on the camera",
            "good" if found == defective else "plain",
        ),
        Figure("False rejects", f"{false} of {good}", "good parts, on the camera"),
        Figure(
            "Throughput",
            decimals(run.flat_out.frames_per_s, 1),
            f"frames/s, {run.evaluation.runner}, {run.evaluation.precision}",
        ),
        Figure("Training", f"{run.seconds['train'] / 60:.1f} min", f"{run.learned} good parts"),
    ]


def camera_blocks(run: DemoRun) -> list[Block]:
    """The annotated video, and what became of each kind of part."""
    rows = []
    for defect in (GOOD, *DEFECTS):
        rejected, judged = run.verdicts.count(defect)
        rows.append([defect, str(judged), str(judged - rejected), str(rejected)])
    lost = f" {run.live.dropped} frames were dropped." if run.live.dropped else " No frame was dropped."
    caption = (
        "Left the part with the regions above the threshold, right its anomaly map; the colours run from 0 to twice "
        f"the threshold. The camera gave {run.rate_hz:g} parts a second; the video shows them more slowly.{lost}"
    )
    hit = run.verdicts.first_hit()
    poster = None if hit is None else run.out / "rejects" / f"{hit:06d}.jpg"
    return [Video(run.video, caption, poster), Table(["part", "judged", "passed", "rejected"], rows, is_short=True)]


def accuracy_blocks(run: DemoRun) -> list[Block]:
    """The metrics of the test set and what share of each defect was found."""
    evaluation = run.evaluation
    metrics = evaluation.metrics.as_dict()
    rows = [[name, meaning, decimals(metrics[key])] for key, name, meaning in METRICS]
    good = int((~evaluation.labels).sum())
    recall = [[kind, f"{hits} of {of}"] for kind, (hits, of) in evaluation.recall_by_defect.items()]
    recall.append(["good parts, wrongly", f"{len(evaluation.false_rejects)} of {good}"])
    caption = (
        f"Test set: {good} good parts, {int(evaluation.labels.sum())} with a defect: other views of the same three "
        "photographs, none of them seen in training"
    )
    return [
        Table(["metric", "what it says", "value"], rows, caption, first_number=2),
        Table(["rejected at the threshold", "parts"], recall, "By kind"),
    ]


def threshold_blocks(run: DemoRun) -> list[Block]:
    """What the threshold promises, and the scores of the test set around it."""
    threshold = run.bundle.threshold
    words = (
        f"{threshold.sentence()}. The score at the line is {threshold.value:.4g}; everywhere in this report scores are "
        "divided by it, so 1.0 is the line."
    )
    histogram = run.out / "evaluation" / "histogram.png"
    return [
        Text(words[0].upper() + words[1:]),
        Picture(
            histogram,
            "histogram of scores of good parts and parts with a defect",
            "Scores of the test set, 1.0 is the line.",
        ),
    ]


def sheet_blocks(run: DemoRun) -> list[Block]:
    """Pictures of the test set with mask, map and verdict."""
    caption = "A selection over all kinds of defect, with the worst errors; every map has the same scale of colours."
    return [Picture(run.out / "evaluation" / "sheet.png", "parts of the test set with mask, map and verdict", caption)]


def speed_blocks(run: DemoRun) -> list[Block]:
    """Frames a second and the latency of every stage."""
    evaluation, live, flat_out = run.evaluation, run.live, run.flat_out
    rows = [
        [stage, *(decimals(value, 1) for value in (p.p50_ms, p.p95_ms, p.p99_ms)), str(p.count)]
        for stage, p in live.latencies.items()
    ]
    return [
        Text(
            f"{evaluation.runner} in {evaluation.precision} on {run.processor}: "
            f"{decimals(flat_out.frames_per_s, 1)} frames/s from picture to verdict when {flat_out.frames} parts come "
            f"as fast as they are taken. The latencies were measured with the camera at {run.rate_hz:g} parts/s, while "
            "JSON lines and pictures of rejects were written."
        ),
        Table(
            ["stage", "p50, ms", "p95, ms", "p99, ms", "frames"],
            rows,
            "Latency from the moment of capture",
            is_short=True,
        ),
    ]


def training_blocks(run: DemoRun) -> list[Block]:
    """The course of the losses and the time of every step."""
    rows = [[step, duration(seconds)] for step, seconds in run.seconds.items()]
    rows.append(["in all", duration(sum(run.seconds.values()))])
    blocks: list[Block] = [Table(["step", "time"], rows, is_short=True)]
    if run.losses is not None:
        blocks.append(Picture(run.losses, "losses over the epochs", "Losses over the epochs."))
    return blocks


def making_blocks(run: DemoRun) -> list[Block]:
    """The command, the machine, the teacher and the versions of the libraries."""
    manifest = run.bundle.manifest
    made_on, teacher = manifest["made_on"], manifest["teacher"]
    facts = [
        ["network", f"N-Net with {manifest['backbone']}"],
        ["teacher's weights", str(teacher["origin"])],
        ["teacher is random", "YES" if teacher["is_random"] else "no"],
        ["trained", f"{manifest['trained']['epochs']} epochs, {manifest['trained']['precision']}"],
        ["inference", f"{run.evaluation.runner}, {run.evaluation.precision}"],
        *([f"{p['runner']} against {p['reference']}", parity_words(p)] for p in manifest["parity"]),
        ["processor", run.processor],
        ["system", made_on["system"]],
    ]
    libraries = [[name, version or "not installed"] for name, version in made_on["libraries"].items()]
    software = [["nnet-edge", manifest["nnet_edge"]], ["Python", made_on["python"]], *libraries]
    return [Table(["setting", "value"], facts, first_number=2), Table(["software", "version"], software)]


def next_blocks(run: DemoRun) -> list[Block]:
    """The command that made this page, and what can be tried with what it left."""
    return [
        Text("The command that made this page:"),
        Command(run.command),
        Text("In its folder, to go on with what it left:"),
        Command(
            "nnet-edge stream line/test/scratch --bundle bundle\n"
            "nnet-edge evaluate bundle line\n"
            "nnet-edge stream 0 --bundle bundle      # the first camera of this machine"
        ),
    ]


def parity_words(parity: Mapping[str, Any]) -> str:
    """How far two runners are apart, as the manifest keeps it."""
    return (
        f"layer maps within {parity['layer_map_error']:.0e}, scores within {parity['score_error']:.0e}, "
        f"{parity['flipped_verdicts']} of {parity['images']} verdicts differ"
    )


def decimals(value: float | None, places: int = 3) -> str:
    """A number as text, "not known" for None."""
    return "not known" if value is None else f"{value:.{places}f}"


def goal(value: float) -> str:
    """The note below a figure that has a goal."""
    return f"goal: at least {value:g}"


def tone(value: float | None, least: float) -> str:
    """The tone of a figure that has a goal."""
    return "plain" if value is None else "good" if value >= least else "bad"


def duration(seconds: float) -> str:
    """Seconds as people read them: "8.2 s", "2 min 05 s"."""
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 60 else f"{whole // 60} min {whole % 60:02d} s"
