"""A speed report as Markdown: the machine, latency at batch 1, rates and ratios over batches, and what could not run.

What a speed measurement found: rounds in, medians with their spread and ratios of the same round out.

Every contender ran once in every round, one after the other, so that whatever slows the machine down slows all of them; a
ratio is taken inside each round, and its median and range are of those. `schemas/speed.json` describes the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nnet_edge.benchmarks.harness.roofline import Roofline
from nnet_edge.benchmarks.harness.work_count import Work
from nnet_edge.benchmarks.speed.plan import Missing, Opened

SCHEMA = "nnet-edge speed 1"
PERCENTS = (50, 95, 99)
REFERENCE = "torch fp32"  # that everything else is compared with
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Round:
    """One turn of one contender."""

    frames: int
    seconds: float
    latencies_ms: tuple[float, ...]  # of each call (model, map); of each picture alone (camera at batch 1)
    calls: int  # of the runner: frames / calls is the batch that was met
    joules: float | None = None  # of the whole card or module
    rejected: int | None = None  # frames above the threshold; a reject costs the search for its regions

    @property
    def frames_per_s(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds

    def with_latencies(self, latencies_ms: tuple[float, ...]) -> Round:
        """The round with latencies that were measured beside its rate."""
        return replace(self, latencies_ms=latencies_ms)


@dataclass(frozen=True)
class Spread:
    """A median and the range that it comes from."""

    median: float
    smallest: float
    largest: float

    def text(self, digits: int) -> str:
        """Median (smallest..largest)."""
        return f"{self.median:.{digits}f} ({self.smallest:.{digits}f}..{self.largest:.{digits}f})"

    def as_dict(self) -> dict[str, float]:
        """The three numbers."""
        return {"median": self.median, "min": self.smallest, "max": self.largest}


def spread(values: Sequence[float]) -> Spread:
    """Median and range of `values`."""
    return Spread(float(np.median(values)), min(values), max(values))


@dataclass(frozen=True)
class Result:
    """All rounds of one contender."""

    system: str
    precision: str
    scope: str  # "model", "map" or "camera"
    batch: int
    hint: str
    rounds: tuple[Round, ...]

    @classmethod
    def of(cls, opened: Opened, scope: str, rounds: Sequence[Round]) -> Result:
        """The rounds of a contender."""
        return cls(opened.plan.system, opened.plan.precision, scope, opened.batch, opened.hint, tuple(rounds))

    @property
    def name(self) -> str:
        """System and precision."""
        return f"{self.system} {self.precision}"

    @property
    def frames_per_s(self) -> Spread:
        """Over the rounds."""
        return spread([turn.frames_per_s for turn in self.rounds])

    @property
    def latencies_ms(self) -> tuple[float, float, float] | None:
        """p50, p95 and p99 over all rounds together; None where none were measured: a full buffer waits for itself."""
        values = [value for turn in self.rounds for value in turn.latencies_ms]
        if not values:
            return None
        p50, p95, p99 = np.percentile(values, PERCENTS)
        return float(p50), float(p95), float(p99)

    @property
    def met_batch(self) -> float:
        """Frames a call of the runner: a stream takes what waits, up to its batch."""
        return sum(turn.frames for turn in self.rounds) / sum(turn.calls for turn in self.rounds)

    @property
    def joules_per_frame(self) -> float | None:
        """Over all rounds; None where the machine tells no energy."""
        joules = [turn.joules for turn in self.rounds if turn.joules is not None]
        return sum(joules) / sum(turn.frames for turn in self.rounds) if len(joules) == len(self.rounds) else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `rounds` are frames a second in the order they ran."""
        latencies = self.latencies_ms
        count = sum(len(turn.latencies_ms) for turn in self.rounds)
        return {
            "system": self.system,
            "precision": self.precision,
            "scope": self.scope,
            "batch": self.batch,
            "hint": self.hint,
            "batch_met": self.met_batch,
            "frames_per_s": self.frames_per_s.as_dict(),
            "rounds": [turn.frames_per_s for turn in self.rounds],
            "latency_ms": None
            if latencies is None
            else dict(zip(("p50", "p95", "p99"), latencies, strict=True)) | {"count": count},
            "joules_per_frame": self.joules_per_frame,
            "rejected": self.rounds[-1].rejected,
        }


@dataclass(frozen=True)
class Ratio:
    """How many times the frames a second of `to` `of` reaches."""

    of: str
    to: str
    scope: str
    batch: int
    value: Spread

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"of": self.of, "to": self.to, "scope": self.scope, "batch": self.batch, **self.value.as_dict()}


@dataclass(frozen=True)
class Memory:
    """What a system takes in a process of its own that loads it and infers, MiB of resident memory."""

    peak_mib: float
    before_mib: float  # Python and the libraries that were imported before the artefact was loaded
    gpu_mib: float | None  # of the card, as nvidia-smi says it of that process; None without one


@dataclass(frozen=True)
class SystemFacts:
    """What is known of a system and precision beside its speed."""

    system: str
    precision: str
    artefact: str  # the file's name
    artefact_bytes: int
    first_call_s: dict[int, float]  # batch -> the warm-up in the scope that came first; torch.compile compiles there
    memory: Memory | None  # None where it was not asked for


@dataclass(frozen=True)
class SpeedReport:
    """A measurement: what it was made on, and every contender."""

    command: str
    when: str
    machine: dict[str, str]  # what a person must know to judge the numbers, in this order
    bundle: dict[str, str]
    warnings: tuple[str, ...]
    work: Work | None  # None where torch, which counts it, is not installed
    roofline: Roofline
    systems: tuple[SystemFacts, ...]
    results: tuple[Result, ...]
    missing: tuple[Missing, ...]

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """Everything against torch eager in FP32 in its scope and batch, and every stream against its own map."""
        found = []
        for result in self.results:
            for other in self.results:
                if result.batch == other.batch and result is not other and _belong(result, other):
                    pairs = zip(result.rounds, other.rounds, strict=True)
                    value = spread([above.frames_per_s / below.frames_per_s for above, below in pairs])
                    to = other.name if other.scope == result.scope else f"{other.name}, {other.scope}"
                    found.append(Ratio(result.name, to, result.scope, result.batch, value))
        return tuple(found)

    def share_of_matrix_rate(self, result: Result) -> float | None:
        """Operations a second of the network over the measured matrix rate in that precision; None: not known."""
        if self.work is None:
            return None
        return self.roofline.share(2 * self.work.macs * result.frames_per_s.median, result.precision, result.system)

    def share_of_roof(self, result: Result) -> float | None:
        """The same over min(matrix rate, intensity x copy rate), which that traffic would allow at most; None: not known."""
        if self.work is None:
            return None
        rate, batch = 2 * self.work.macs * result.frames_per_s.median, round(result.met_batch)
        return self.roofline.share_of_roof(rate, self.work.intensity_at(batch), result.precision, result.system)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema": SCHEMA,
            "command": self.command,
            "when": self.when,
            "machine": self.machine,
            "bundle": self.bundle,
            "warnings": list(self.warnings),
            "work": None if self.work is None else asdict(self.work),
            "roofline": self.roofline.as_dict(),
            "systems": [asdict(one) for one in self.systems],
            "results": [
                one.as_dict()
                | {"share_of_matrix_rate": self.share_of_matrix_rate(one), "share_of_roof": self.share_of_roof(one)}
                for one in self.results
            ],
            "ratios": [ratio.as_dict() for ratio in self.ratios],
            "missing": [asdict(one) for one in self.missing],
        }


def _belong(result: Result, other: Result) -> bool:
    """Whether the ratio of the two says something: to torch in the same scope, or of a stream to its own map."""
    if result.scope == other.scope:
        return other.name == REFERENCE
    return result.name == other.name and (result.scope, other.scope) == ("camera", "map")


NOTES = (
    "model: images lie ready, the network gives its layer maps, no tail. map: upload, network, fusion and blur give map and "
    "score (torch fuses in torch, FP32, on the same threads). camera: a picture file becomes a verdict in a JSON line. "
    "Latency: one call; of the camera, one picture from file to verdict with none beside it. A camera's rate is that of the "
    "full stream, which decodes and resizes while the network computes. OpenVINO works a batch off image by image. torch "
    "in BF16 is autocast, and nobody compared its verdicts. Roof: min(matrix rate, operations a byte x copy rate); the bytes "
    "are weights (once a batch) and activations that convolutions and matrix products read and write, in the width of the "
    "precision, nothing fused and no cache, so fusing and caches can lift a system above it."
)


def markdown(report: SpeedReport) -> str:
    """The report as Markdown."""
    lines = [*(f"**{warning}**" for warning in report.warnings), ""] if report.warnings else []
    lines += [f"- command: `{report.command}`", f"- when: {report.when}"]
    lines += [f"- {name}: {value}" for name, value in {**report.machine, **report.bundle}.items()]
    if report.work is not None:
        lines.append(
            f"- network: {report.work.parameters / 1e6:.2f} M parameters ({report.work.trained_parameters / 1e6:.2f} M "
            f"trained), {report.work.macs / 1e9:.2f} GMACs and {report.work.traffic_bytes / 1e6:.0f} MB of traffic in FP32 "
            f"an image ({report.work.intensity_at(1):.0f} operations a byte), counted by {report.work.counted_by}"
        )
    lines += [
        f"- {one.device}, {one.what}: {one.median:.0f} {'GB/s' if one.what == 'copy' else 'GOP/s'} "
        f"({one.smallest:.0f}..{one.largest:.0f}), {one.measured_with}"
        for one in report.roofline.ceilings
    ]
    for title, table in (
        ("Latency at batch 1, ms", latency_table(report)),
        ("Frames a second", rate_table(report)),
        ("Systems", system_table(report)),
        ("Not measured", missing_table(report)),
    ):
        if len(table) > 2:
            lines += ["", f"### {title}", "", *table]
    return "\n".join([*lines, "", NOTES])


def latency_table(report: SpeedReport) -> list[str]:
    """p50, p95 and p99 of every system in every scope."""
    found = [one for one in report.results if one.batch == 1]
    scopes = list(dict.fromkeys(one.scope for one in found))
    rows = []
    for name in dict.fromkeys(one.name for one in found):
        cells = [
            _latency(next((one for one in found if (one.name, one.scope) == (name, scope)), None)) for scope in scopes
        ]
        rows.append([name, *cells])
    return table_of(["system", *(f"{scope}, p50 / p95 / p99 (calls)" for scope in scopes)], rows)


def _latency(result: Result | None) -> str:
    if result is None or result.latencies_ms is None:
        return "-"
    count = sum(len(turn.latencies_ms) for turn in result.rounds)
    return " / ".join(f"{value:.1f}" for value in result.latencies_ms) + f" ({count})"


def rate_table(report: SpeedReport) -> list[str]:
    """Frames a second of every contender, beside torch eager and its own map in the same rounds, and of the matrix rate."""
    rows = []
    for one in report.results:
        shares, joules = (report.share_of_matrix_rate(one), report.share_of_roof(one)), one.joules_per_frame
        cells = [one.name, one.scope, str(one.batch), f"{one.met_batch:.1f}", one.frames_per_s.text(1)]
        cells += [_ratio(report, one, REFERENCE), _ratio(report, one, f"{one.name}, map")]
        cells += ["-" if share is None else f"{share:.0%}" for share in shares]
        cells += ["-" if joules is None else f"{joules:.3f}"]
        rows.append(cells)
    return table_of(["system", "scope", "batch", "met", "frames/s, median (min..max)", f"x {REFERENCE}", "x own map",
                     "of matrix rate", "of roof", "J a frame"], rows)  # fmt: skip


def _ratio(report: SpeedReport, result: Result, to: str) -> str:
    wanted = (result.name, to, result.scope, result.batch)
    found = (one.value.text(2) for one in report.ratios if (one.of, one.to, one.scope, one.batch) == wanted)
    return next(found, "-")


def system_table(report: SpeedReport) -> list[str]:
    """Files, memory and first calls."""
    return table_of(
        ["system", "file", "MB", "peak memory, MiB", "of it before loading", "GPU, MiB", "first warm-up, s"],
        [_facts(one) for one in report.systems],
    )


def _facts(one: SystemFacts) -> list[str]:
    memory = one.memory
    cells = ["-", "-", "-"] if memory is None else [
        f"{memory.peak_mib:.0f}", f"{memory.before_mib:.0f}", "-" if memory.gpu_mib is None else f"{memory.gpu_mib:.0f}"
    ]  # fmt: skip
    first = ", ".join(f"{seconds:.1f} (batch {batch})" for batch, seconds in one.first_call_s.items())
    return [f"{one.system} {one.precision}", one.artefact, f"{one.artefact_bytes / MEBIBYTE:.1f}", *cells, first or "-"]


def missing_table(report: SpeedReport) -> list[str]:
    """What could not be measured, and why."""
    rows = [
        [f"{one.system} {one.precision}", one.scope or "all", one.reason.replace("|", "/")] for one in report.missing
    ]
    return table_of(["system", "scope", "why"], rows)


def table_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table as lines: two and one for each row."""
    return [_row(heads), _row(["---"] * len(heads)), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
