"""Report of an evaluation: the page report.html, beside the files that `write_evaluation` leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnet_edge import __version__
from nnet_edge.evaluation.evaluate import Evaluation
from nnet_edge.evaluation.page import decimals, render, write_page
from nnet_edge.evaluation.sweep import Costs, cheapest, proposal, shown, sweep
from nnet_edge.metrics import METRICS, SPRO_LIMIT

TEMPLATE = "report.html.j2"
FILES = {
    "metrics.json": "all figures, and every image's score",
    "images.csv": "every image's score and verdict",
    "sweep.csv": "what every threshold would cost",
    "sheet.png": "the pictures above",
    "histogram.png": "the scores above",
}


def write_report(evaluation: Evaluation, folder: Path, costs: Costs, facts: Mapping[str, str]) -> Path:
    """Write report.html into the `folder` of the evaluation's files; `facts` are shown as they are.

    Raises DataError when one of those is missing or the page cannot be written, MissingExtraError without jinja2.
    """
    page = render("nnet_edge.evaluation", TEMPLATE, folder, values(evaluation, folder, costs, facts))
    return write_page(page, folder / "report.html")


def values(evaluation: Evaluation, folder: Path, costs: Costs, facts: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows."""
    good, bad = int((~evaluation.labels).sum()), int(evaluation.labels.sum())
    steps = sweep(evaluation)
    proposed = cheapest(evaluation, steps, costs)
    promise = None if evaluation.promised is None else evaluation.promised.sentence()
    return {
        "evaluation": evaluation,
        "folder": folder,
        "good": good,
        "bad": bad,
        "summary": summary(evaluation),
        "figures": figures(evaluation),
        "confusion": confusion(evaluation),
        "promise": promise and promise[0].upper() + promise[1:],
        "steps": [] if proposed is None else [
            [f"{one.relative:.3f}", one.false_rejects, one.misses, "-" if one.found is None else one.found, mark]
            for one, mark in shown(evaluation, steps, proposed)
        ],
        "proposal": "" if proposed is None else capital(proposal(evaluation, proposed, costs)),
        "metric_rows": [[metric.label, decimals(evaluation.metrics[metric.name])] for metric in METRICS.values()]
        + ([[f"sPRO to {SPRO_LIMIT:g}", decimals(evaluation.spro)]] if evaluation.spro is not None else []),
        "facts": [[name, value] for name, value in facts.items()],
        "files": [(folder / name, meaning) for name, meaning in FILES.items()],
        "version": __version__,
    }  # fmt: skip


def capital(text: str) -> str:
    """The sentence with a capital letter."""
    return text[0].upper() + text[1:]


def summary(evaluation: Evaluation) -> str:
    """What was judged, and how that went."""
    good, recall = int((~evaluation.labels).sum()), evaluation.recall_of(evaluation.labels)
    text = f"{len(evaluation.scores)} images, judged by {evaluation.runner} in {evaluation.precision}"
    parts = (
        [f"{len(evaluation.false_rejects)} of {good} good ones were rejected"] if good else ["no good ones among them"]
    )
    if recall.of:
        parts.append(f"of {recall.of} with a defect {recall.rejected} were rejected")
        if recall.found is not None:
            parts.append(f"of {recall.marked} marked defects {recall.found} were found where they are")
    return f"{text}: {', '.join(parts)}."


def figures(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """Label, value, note and tone of each figure on top."""
    metrics, recall = evaluation.metrics, evaluation.recall_of(evaluation.labels)
    good = int((~evaluation.labels).sum())
    all_found = "good" if recall.of and recall.rejected == recall.of else "plain"
    found = [] if recall.found is None else [
        ("Defects found", f"{recall.found} of {recall.marked}", "a region overlaps the mask",
         "good" if recall.found == recall.marked else "plain")
    ]  # fmt: skip
    return [
        ("False rejects", f"{len(evaluation.false_rejects)} of {good}", "good images", "plain"),
        ("Defects rejected", f"{recall.rejected} of {recall.of}", "wherever the region lies", all_found),
        *found,
        ("Image AUROC", decimals(metrics.image_auroc), "good against defective images", "plain"),
        ("Pixel AP", decimals(metrics.pixel_ap), "how well maps outline defects", "plain"),
        ("PRO", decimals(metrics.pro), "small defects weigh as large ones", "plain"),
    ]


def confusion(evaluation: Evaluation) -> list[list[object]]:
    """Truth, images, passed, rejected, found: a row for good images, for each kind of defect, and for all defects."""
    good, wrong = int((~evaluation.labels).sum()), len(evaluation.false_rejects)
    rows: list[list[object]] = [["good", good, good - wrong, wrong, ""]]
    kinds = evaluation.recall_by_defect
    if len(kinds) > 1:
        kinds = {**kinds, "all defects": evaluation.recall_of(evaluation.labels)}
    for kind, one in kinds.items():
        found = "no mask" if one.found is None else f"{one.found} of {one.marked}" if one.marked < one.of else one.found
        rows.append([kind, one.of, one.of - one.rejected, one.rejected, found])
    return rows
