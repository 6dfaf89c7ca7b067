"""A speed report: medians with their spread and ratios of the same round, as plain values and as Markdown.

`schemas/speed.json` describes the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnet_edge.benchmarks.harness.report import plain, plain_fields, render
from nnet_edge.benchmarks.harness.roofline import Roofline, Work
from nnet_edge.benchmarks.harness.rounds import Round, Spread, Timed, ratios
from nnet_edge.benchmarks.speed.plan import Missing, Opened

SCHEMA = "nnet-edge speed 1"
BASELINE = "torch fp32"  # that everything else is compared with


@dataclass(frozen=True)
class Result(Timed):
    """All rounds of one candidate."""

    system: str
    precision: str
    scope: str  # "model", "map" or "camera"
    batch: int
    hint: str

    @classmethod
    def of(cls, opened: Opened, scope: str, rounds: Sequence[Round]) -> Result:
        """The rounds of a candidate."""
        return cls(tuple(rounds), opened.plan.system, opened.plan.precision, scope, opened.batch, opened.hint)

    @property
    def name(self) -> str:
        """System and precision."""
        return f"{self.system} {self.precision}"

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
        """Plain values."""
        more = {"batch_met": self.met_batch, "joules_per_frame": self.joules_per_frame,
                "rejected": self.rounds[-1].rejected}  # fmt: skip
        return plain_fields(self) | super().as_dict() | more


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
    def facts(self) -> dict[str, str]:
        """What the report begins with."""
        network = {} if self.work is None else {"network": str(self.work)}
        return {"command": f"`{self.command}`", "when": self.when, **self.machine, **self.bundle, **network}

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

    def times(self, result: Result, to: str) -> str:
        """The ratio of a result to `to`, in words; "-" where there is none."""
        wanted = (result.name, to, result.scope, result.batch)
        return next((one.value.text(2) for one in self.ratios if (one.of, one.to, one.scope, one.batch) == wanted), "-")

    def latency(self, name: str, scope: str) -> str:
        """The latencies at batch 1, in words; "-" where there are none."""
        for one in self.results:
            if (one.name, one.scope, one.batch) == (name, scope, 1) and one.latencies_ms is not None:
                return f"{' / '.join(f'{value:.1f}' for value in one.latencies_ms)} ({one.latency_count})"
        return "-"

    def share(self, result: Result, of_roof: bool = False) -> float | None:
        """Operations a second of the network over the measured matrix rate in that precision; None: not known.

        With `of_roof` over min(matrix rate, intensity x copy rate), which the network's traffic would allow at most.
        """
        if self.work is None:
            return None
        rate, batch = 2 * self.work.macs * result.frames_per_s.median, round(result.met_batch)
        intensity = self.work.intensity_at(batch) if of_roof else None
        return self.roofline.share(rate, result.precision, result.system, intensity)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        results = [one.as_dict() | {"share_of_matrix_rate": self.share(one), "share_of_roof": self.share(one, of_roof=True)}
                   for one in self.results]  # fmt: skip
        return {"schema": SCHEMA, **plain_fields(self), "results": results, "ratios": plain(self.ratios)}

    def markdown(self) -> str:
        """The report as Markdown."""
        return render("speed/speed.md.j2", report=self, baseline=BASELINE)


def _belong(result: Result, other: Result) -> bool:
    """Whether the ratio of the two says something: to torch in the same scope, or of a stream to its own map."""
    if result.scope == other.scope:
        return other.name == BASELINE
    return result.name == other.name and (result.scope, other.scope) == ("camera", "map")
