"""What the race found: Markdown for people, plain values for JSON; what others published stands in published.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from nnet_edge.benchmarks.harness.report import head_lines, markdown_table, told
from nnet_edge.benchmarks.peers.pipes import Entry, Timed
from nnet_edge.benchmarks.peers.rdpp import Counted

SCHEMA = "nnet-edge peers 1"
Metrics = dict[str, float | None]
MEGA, GIGA, MEBIBYTE = 1e6, 1e9, 1 << 20
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
    timed: Timed | None = None
    metrics_from: str = ""  # the system whose maps the metrics are of; "" where it has none

    def mean_of(self, figure: str, categories: tuple[str, ...]) -> float | None:
        """The mean of a figure over these categories, None unless it is known for each."""
        values = [self.metrics.get(name, {}).get(figure) for name in categories]
        known = [value for value in values if value is not None]
        return mean(known) if known and len(known) == len(values) else None

    @property
    def pro(self) -> float | None:
        """Mean PRO over its own categories with masks; RaceReport.categories compares over those all have."""
        known = [metrics["pro"] for metrics in self.metrics.values() if metrics["pro"] is not None]
        return mean(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        names = ("name", "method", "system", "precision", "backbone", "parameters", "values", "macs", "artefact_bytes",
                 "metrics", "metrics_from", "note")  # fmt: skip
        speed = None if self.timed is None else self.timed.as_dict()
        return {name: getattr(self, name) for name in names} | {"speed": speed}


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
    claim: tuple[Counted, ...]
    verdict: str
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
            "contenders": [one.as_dict() for one in self.candidates],
            "absent": [asdict(one) for one in self.absent],
            "rdpp": {"verdict": self.verdict, "counted": [one.as_dict() for one in self.claim]},
            "published": PUBLISHED,
        }

    def markdown(self) -> str:
        """The report."""
        lines = [*head_lines(self.warnings, self.header), "", *self._speed_table(), "", *self._accuracy_table(), ""]
        lines += [*self._absent_table(), "", self.verdict, "", *self._claim_table(), "", *published_table(), "", NOTES]
        return "\n".join(lines)

    def _speed_table(self) -> list[str]:
        rows = []
        for one in sorted(self.candidates, key=lambda one: -(one.timed.frames_per_s.median if one.timed else 0)):
            rate, latencies, held = "-", "-", None
            if one.timed is not None:
                rate, held = one.timed.frames_per_s.text(1), one.timed.memory_mib
                latencies = " / ".join(f"{value:.1f}" for value in one.timed.latencies_ms)
            size = None if one.artefact_bytes is None else one.artefact_bytes / MEBIBYTE
            pro = one.mean_of("pro", self.categories) if self.categories else None
            good = percent(pro) if pro is None else f"{percent(pro)} ({one.metrics_from})"
            rows.append([one.name, one.backbone, rate, latencies, f"{one.parameters / MEGA:.2f}",
                         f"{one.values / MEGA:.2f}", f"{one.macs / GIGA:.2f}", told(size, ".1f"), told(held, ".0f"),
                         good, one.note])  # fmt: skip
        over = ", ".join(self.categories) or "no common category"
        heads = ["contender", "backbone", "frames/s, median (min..max)", "p50 / p95 / p99 ms", "M parameters",
                 "M values", "GMACs", "file MiB", "process MiB", f"PRO, mean of {over} (of whose maps)",
                 "note"]  # fmt: skip
        return markdown_table(heads, rows)

    def _accuracy_table(self) -> list[str]:
        categories = sorted({name for one in self.candidates for name in one.metrics})
        rows: dict[str, list[str]] = {}
        for one in self.candidates:
            if one.metrics:
                cells = [" / ".join(percent(one.metrics[name][figure]) for figure in FIGURES)
                         if name in one.metrics else "-" for name in categories]  # fmt: skip
                rows.setdefault(f"{one.method}, {one.precision}", cells)
        heads = [f"method, precision: {' / '.join(FIGURES.values())}, %", *categories]
        return markdown_table(heads, [[name, *cells] for name, cells in rows.items()])

    def _absent_table(self) -> list[str]:
        rows = [[one.method, one.category, one.reason] for one in self.absent]
        return markdown_table(["no row of", "category", "why"], rows) or ["Every method has a row of every category."]

    def _claim_table(self) -> list[str]:
        heads = ["WideResNet-50-2, random weights", "M parameters", "GMACs", "frames/s, torch eager FP32"]
        return markdown_table(heads, [
            [one.name, f"{one.parameters / MEGA:.2f}", f"{one.macs / GIGA:.2f}",
             "-" if one.frames_per_s is None else one.frames_per_s.text(2)] for one in self.claim
        ])  # fmt: skip


def published_table() -> list[str]:
    """The published points, which nothing here was compared with."""
    rows = [[one["method"], f"{one['frames_per_s']:.0f}", one["hardware"], f"{one['pro']:.1f}",
             f"speed: {one['speed_source']}; PRO: {one['pro_source']}"] for one in PUBLISHED]  # fmt: skip
    heads = ["published, MVTec AD", "frames/s", "hardware", "PRO, %", "sources"]
    return [*markdown_table(heads, rows), "", f"Not among them: {LITERATURE['unplotted']}."]


def percent(value: float | None) -> str:
    """In percent, a dash for what is not known."""
    return "-" if value is None else f"{100 * value:.1f}"


NOTES = (
    "A frame: a decoded RGB picture of 256x256 in memory to map and score in NumPy, one at a time; every candidate is a "
    "process of its own, measured in every round. Other methods run in anomalib's TorchInferencer and OpenVINOInferencer "
    "on anomalib's own exports, made for a batch of one and without its post-processor, whose scaling and clamping would "
    "lose information: less work than their default. They learn from every good training image up to the limit, those "
    "that N-Net holds out included; nothing is chosen on test images. Metrics are measured once a precision and stand "
    "beside every system that computes it, with the one whose maps they are of: theirs in FP32 their torch module's, in "
    "INT8 (NNCF, calibrated on half of the training images) their OpenVINO graph's, ours the runner's of bench accuracy; "
    "all by this project's metrics on raw maps. Process MiB: its own pages and its share of those that several map. M "
    "values adds memory banks and stored statistics to the parameters."
)
