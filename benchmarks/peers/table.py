"""What the race found: Markdown for people, plain values for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from nnet_edge.benchmarks.peers.published import PUBLISHED, UNPLOTTED
from nnet_edge.benchmarks.peers.rdpp import Counted
from nnet_edge.benchmarks.peers.turns import Entry, Timed

SCHEMA = "nnet-edge peers 1"
Metrics = dict[str, float | None]
MEGA, GIGA, MEBIBYTE = 1e6, 1e9, 1 << 20
FIGURES = {"image_auroc": "image AUROC", "pixel_ap": "pixel AP", "pro": "PRO", "pro_rd4ad": "PRO (RD4AD)"}


@dataclass(frozen=True)
class Contender:
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
        """Mean PRO over its own categories with masks; PeersReport.categories compares over those all have."""
        known = [metrics["pro"] for metrics in self.metrics.values() if metrics["pro"] is not None]
        return mean(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name, "method": self.method, "system": self.system, "precision": self.precision,
            "backbone": self.backbone, "parameters": self.parameters, "values": self.values, "macs": self.macs,
            "artefact_bytes": self.artefact_bytes, "metrics": self.metrics, "metrics_from": self.metrics_from,
            "note": self.note,
            "speed": None if self.timed is None else self.timed.as_dict(),
        }  # fmt: skip


@dataclass(frozen=True)
class Absent:
    """Why a method has no row of a category."""

    method: str
    category: str
    reason: str


@dataclass(frozen=True)
class PeersReport:
    """A race."""

    header: dict[str, str]
    warnings: tuple[str, ...]
    contenders: tuple[Contender, ...]
    claim: tuple[Counted, ...]
    verdict: str
    absent: tuple[Absent, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether somebody was raced or measured; what could not be is among the warnings and the notes."""
        return bool(self.contenders)

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories with masks that every FP32 contender with metrics was measured on.

        An INT8 graph that dies on one of them costs its own contender the mean, and nobody else's.
        """
        sets = [{name for name, found in one.metrics.items() if found["pro"] is not None}
                for one in self.contenders if one.metrics and one.precision == "fp32"]  # fmt: skip
        return tuple(sorted(set.intersection(*sets))) if sets else ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, schemas/peers.json."""
        return {
            "schema": SCHEMA,
            "header": self.header,
            "warnings": list(self.warnings),
            "compared_over": list(self.categories),
            "contenders": [one.as_dict() for one in self.contenders],
            "absent": [asdict(one) for one in self.absent],
            "rdpp": {"verdict": self.verdict, "counted": [one.as_dict() for one in self.claim]},
            "published": [one.as_dict() for one in PUBLISHED],
        }

    def markdown(self) -> str:
        """The report."""
        lines = [f"**{warning}**" for warning in self.warnings]
        lines += [*([""] if lines else []), *(f"- {name}: {value}" for name, value in self.header.items()), ""]
        lines += [*self._speed_table(), "", *self._accuracy_table(), "", *self._absent_table(), ""]
        lines += [self.verdict, "", *self._claim_table(), ""]
        return "\n".join([*lines, *published_table(), "", NOTES])

    def _speed_table(self) -> list[str]:
        over = ", ".join(self.categories) or "no common category"
        lines = [f"| contender | backbone | frames/s, median (min..max) | p50 / p95 / p99 ms | M parameters | M values | "
                 f"GMACs | file MiB | process MiB | PRO, mean of {over} (of whose maps) | note |",
                 "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for one in sorted(self.contenders, key=lambda one: -(one.timed.frames_per_s.median if one.timed else 0)):
            rate = one.timed.frames_per_s.text(1) if one.timed else "-"
            latencies = " / ".join(f"{value:.1f}" for value in one.timed.latencies_ms) if one.timed else "-"
            size = "-" if one.artefact_bytes is None else f"{one.artefact_bytes / MEBIBYTE:.1f}"
            held = "-" if one.timed is None or one.timed.memory_mib is None else f"{one.timed.memory_mib:.0f}"
            pro = one.mean_of("pro", self.categories) if self.categories else None
            good = percent(pro) if pro is None else f"{percent(pro)} ({one.metrics_from})"
            counted = f"{one.parameters / MEGA:.2f} | {one.values / MEGA:.2f} | {one.macs / GIGA:.2f} | {size} | {held}"
            lines.append(f"| {one.name} | {one.backbone} | {rate} | {latencies} | {counted} | {good} | {one.note} |")
        return lines

    def _accuracy_table(self) -> list[str]:
        titles = " / ".join(FIGURES.values())
        categories = sorted({name for one in self.contenders for name in one.metrics})
        lines = [f"| method, precision: {titles}, % | {' | '.join(categories)} |", "|---" * (len(categories) + 1) + "|"]
        seen = set()
        for one in self.contenders:
            if not one.metrics or (one.method, one.precision) in seen:
                continue
            seen.add((one.method, one.precision))
            cells = [
                " / ".join(percent(one.metrics[name][figure]) for figure in FIGURES) if name in one.metrics else "-"
                for name in categories
            ]
            lines.append(f"| {one.method}, {one.precision} | {' | '.join(cells)} |")
        return lines

    def _absent_table(self) -> list[str]:
        if not self.absent:
            return ["Every method has a row of every category."]
        lines = ["| no row of | category | why |", "|---|---|---|"]
        return [*lines, *(f"| {one.method} | {one.category} | {one.reason} |" for one in self.absent)]

    def _claim_table(self) -> list[str]:
        lines = ["| WideResNet-50-2, random weights | M parameters | GMACs | frames/s, torch eager FP32 |",
                 "|---|---|---|---|"]  # fmt: skip
        for one in self.claim:
            rate = "-" if one.frames_per_s is None else one.frames_per_s.text(2)
            lines.append(f"| {one.name} | {one.parameters / MEGA:.2f} | {one.macs / GIGA:.2f} | {rate} |")
        return lines


def published_table() -> list[str]:
    """The published points, which nothing here was compared with."""
    lines = ["| published, MVTec AD | frames/s | hardware | PRO, % | sources |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.method} | {one.frames_per_s:.0f} | {one.hardware} | {one.pro:.1f} | speed: {one.speed_source}; "
        f"PRO: {one.pro_source} |"
        for one in PUBLISHED
    ]
    return [*lines, "", f"Not among them: {UNPLOTTED}."]


def percent(value: float | None) -> str:
    """In percent, a dash for what is not known."""
    return "-" if value is None else f"{100 * value:.1f}"


NOTES = (
    "A frame: a decoded RGB picture of 256x256 in memory to map and score in NumPy, one at a time; every contender is a "
    "process of its own, all take turns. Peers run in anomalib's TorchInferencer and OpenVINOInferencer on anomalib's own "
    "exports, made for a batch of one and without its post-processor, whose scaling and clamping would lose information: "
    "less work than their default. They learn from every good training image up to the limit, those that N-Net holds out "
    "included; nothing is chosen on test images. Metrics are measured once a precision and stand beside every system that "
    "computes it, with the one whose maps they are of: peers' FP32 their torch module's, their INT8 (NNCF, calibrated on half "
    "of the training images) their OpenVINO graph's, ours the runner's of bench accuracy; all by this project's metrics on raw "
    "maps. Process MiB: its own pages and its share of those that several map. "
    "M values adds memory banks and stored statistics to the parameters."
)
