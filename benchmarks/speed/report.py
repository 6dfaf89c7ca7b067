"""A speed report: medians with their spread and ratios of the same round, as plain values and as Markdown.

`schemas/speed.json` describes the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nnet_edge.benchmarks.harness.report import head_lines, markdown_table, told
from nnet_edge.benchmarks.harness.roofline import Roofline
from nnet_edge.benchmarks.harness.rounds import Round, Spread, percentiles, ratios, spread
from nnet_edge.benchmarks.harness.work_count import Work
from nnet_edge.benchmarks.speed.plan import Missing, Opened

SCHEMA = "nnet-edge speed 1"
BASELINE = "torch fp32"  # that everything else is compared with
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Result:
    """All rounds of one candidate."""

    system: str
    precision: str
    scope: str  # "model", "map" or "camera"
    batch: int
    hint: str
    rounds: tuple[Round, ...]

    @classmethod
    def of(cls, opened: Opened, scope: str, rounds: Sequence[Round]) -> Result:
        """The rounds of a candidate."""
        return cls(opened.plan.system, opened.plan.precision, scope, opened.batch, opened.hint, tuple(rounds))

    @property
    def name(self) -> str:
        """System and precision."""
        return f"{self.system} {self.precision}"

    @property
    def rates(self) -> list[float]:
        """Frames a second of each round, in the order they ran."""
        return [one.frames_per_s for one in self.rounds]

    @property
    def frames_per_s(self) -> Spread:
        """Over the rounds."""
        return spread(self.rates)

    @property
    def latencies_ms(self) -> tuple[float, float, float] | None:
        """p50, p95 and p99 over all rounds together; None where none were measured: a full buffer waits for itself."""
        values = [value for one in self.rounds for value in one.latencies_ms]
        return percentiles(values) if values else None

    @property
    def latency_count(self) -> int:
        """How many latencies those are of."""
        return sum(len(one.latencies_ms) for one in self.rounds)

    @property
    def met_batch(self) -> float:
        """Frames a call of the runner: a stream takes what waits, up to its batch."""
        return sum(one.frames for one in self.rounds) / sum(one.calls for one in self.rounds)

    @property
    def joules_per_frame(self) -> float | None:
        """Over all rounds; None where the machine tells no energy."""
        joules = [one.joules for one in self.rounds if one.joules is not None]
        return sum(joules) / sum(one.frames for one in self.rounds) if len(joules) == len(self.rounds) else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `rounds` are frames a second in the order they ran."""
        latencies = self.latencies_ms
        percents = None if latencies is None else dict(zip(("p50", "p95", "p99"), latencies, strict=True))
        return {
            **{name: getattr(self, name) for name in ("system", "precision", "scope", "batch", "hint")},
            "batch_met": self.met_batch,
            "frames_per_s": self.frames_per_s.as_dict(),
            "rounds": self.rates,
            "latency_ms": None if percents is None else percents | {"count": self.latency_count},
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
    """A measurement: what it was made on, and every candidate."""

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
                    to = other.name if other.scope == result.scope else f"{other.name}, {other.scope}"
                    value = ratios(result.rates, other.rates)
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
        shares = [{"share_of_matrix_rate": self.share_of_matrix_rate(one), "share_of_roof": self.share_of_roof(one)}
                  for one in self.results]  # fmt: skip
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
            "results": [one.as_dict() | share for one, share in zip(self.results, shares, strict=True)],
            "ratios": [ratio.as_dict() for ratio in self.ratios],
            "missing": [asdict(one) for one in self.missing],
        }


def _belong(result: Result, other: Result) -> bool:
    """Whether the ratio of the two says something: to torch in the same scope, or of a stream to its own map."""
    if result.scope == other.scope:
        return other.name == BASELINE
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
    facts = {"command": f"`{report.command}`", "when": report.when, **report.machine, **report.bundle}
    if report.work is not None:
        facts["network"] = (
            f"{report.work.parameters / 1e6:.2f} M parameters ({report.work.trained_parameters / 1e6:.2f} M "
            f"trained), {report.work.macs / 1e9:.2f} GMACs and {report.work.traffic_bytes / 1e6:.0f} MB of traffic in FP32 "
            f"an image ({report.work.intensity_at(1):.0f} operations a byte), counted by {report.work.counted_by}"
        )
    lines = head_lines(report.warnings, facts)
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
        lines += ["", f"### {title}", "", *table] if table else []
    return "\n".join([*lines, "", NOTES])


def latency_table(report: SpeedReport) -> list[str]:
    """p50, p95 and p99 of every system in every scope."""
    found = {(one.name, one.scope): one for one in report.results if one.batch == 1}
    scopes = list(dict.fromkeys(scope for _, scope in found))
    rows = [[name, *(_latency(found.get((name, scope))) for scope in scopes)]
            for name in dict.fromkeys(name for name, _ in found)]  # fmt: skip
    return markdown_table(["system", *(f"{scope}, p50 / p95 / p99 (calls)" for scope in scopes)], rows)


def _latency(result: Result | None) -> str:
    if result is None or result.latencies_ms is None:
        return "-"
    return " / ".join(f"{value:.1f}" for value in result.latencies_ms) + f" ({result.latency_count})"


def rate_table(report: SpeedReport) -> list[str]:
    """Frames a second of every candidate, beside torch eager and its own map in the same rounds, and of the matrix rate."""
    found = {(one.of, one.to, one.scope, one.batch): one.value.text(2) for one in report.ratios}
    rows = []
    for one in report.results:
        beside = [found.get((one.name, to, one.scope, one.batch), "-") for to in (BASELINE, f"{one.name}, map")]
        shares = [told(share, ".0%") for share in (report.share_of_matrix_rate(one), report.share_of_roof(one))]
        rows.append([one.name, one.scope, one.batch, f"{one.met_batch:.1f}", one.frames_per_s.text(1), *beside, *shares,
                     told(one.joules_per_frame, ".3f")])  # fmt: skip
    return markdown_table(["system", "scope", "batch", "met", "frames/s, median (min..max)", f"x {BASELINE}",
                           "x own map", "of matrix rate", "of roof", "J a frame"], rows)  # fmt: skip


def system_table(report: SpeedReport) -> list[str]:
    """Files, memory and first calls."""
    rows = []
    for one in report.systems:
        memory = ["-", "-", "-"]
        if one.memory is not None:
            memory = [told(value, ".0f") for value in (one.memory.peak_mib, one.memory.before_mib, one.memory.gpu_mib)]
        first = ", ".join(f"{seconds:.1f} (batch {batch})" for batch, seconds in one.first_call_s.items()) or "-"
        name, size = f"{one.system} {one.precision}", f"{one.artefact_bytes / MEBIBYTE:.1f}"
        rows.append([name, one.artefact, size, *memory, first])
    heads = ["system", "file", "MB", "peak memory, MiB", "of it before loading", "GPU, MiB", "first warm-up, s"]
    return markdown_table(heads, rows)


def missing_table(report: SpeedReport) -> list[str]:
    """What could not be measured, and why."""
    rows = [[f"{one.system} {one.precision}", one.scope or "all", one.reason.replace("|", "/")]
            for one in report.missing]  # fmt: skip
    return markdown_table(["system", "scope", "why"], rows)
