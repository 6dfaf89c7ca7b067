"""What a speed measurement found: rounds in, medians with their spread, ratios of the same round, a table out.

Every contender ran once in every round, one after the other, so that whatever slows the machine down slows all of them; a
ratio is taken inside each round, and its median and range are of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PERCENTS = (50, 95, 99)


@dataclass(frozen=True)
class Round:
    """One turn of one contender."""

    frames: int
    seconds: float
    latencies_ms: tuple[float, ...]  # of each call (bare), of each frame from decoded to verdict (stream)
    calls: int  # of the runner: frames / calls is the batch that was met
    rejected: int | None = None  # frames above the threshold; a reject costs the search for its regions

    @property
    def frames_per_s(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds


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


@dataclass(frozen=True)
class Result:
    """All rounds of one contender."""

    kind: str  # "torch eager", "torch network alone", "bare", "stream"
    system: str  # the library that computes
    precision: str
    batch: int
    rounds: tuple[Round, ...]

    @property
    def frames_per_s(self) -> Spread:
        """Over the rounds."""
        return spread([turn.frames_per_s for turn in self.rounds])

    @property
    def latencies_ms(self) -> tuple[float, float, float]:
        """p50, p95 and p99 over all rounds together."""
        p50, p95, p99 = np.percentile([value for turn in self.rounds for value in turn.latencies_ms], PERCENTS)
        return float(p50), float(p95), float(p99)

    @property
    def latency_count(self) -> int:
        """Latencies that the percentiles come from."""
        return sum(len(turn.latencies_ms) for turn in self.rounds)

    @property
    def met_batch(self) -> float:
        """Frames a call of the runner: a stream takes what waits, up to its batch."""
        return sum(turn.frames for turn in self.rounds) / sum(turn.calls for turn in self.rounds)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; `rounds` are frames a second in the order they ran."""
        p50, p95, p99 = self.latencies_ms
        return {
            "kind": self.kind,
            "system": self.system,
            "precision": self.precision,
            "batch": self.batch,
            "batch_met": self.met_batch,
            "frames_per_s": self.frames_per_s.as_dict(),
            "rounds": [turn.frames_per_s for turn in self.rounds],
            "latency_ms": {"count": self.latency_count, "p50": p50, "p95": p95, "p99": p99},
            "rejected": self.rounds[-1].rejected,
        }


@dataclass(frozen=True)
class Ratio:
    """How many times the frames a second of `below` `above` reaches."""

    above: str
    below: str
    precision: str
    batch: int
    value: Spread

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"of": self.above, "to": self.below, "precision": self.precision, "batch": self.batch,
                **self.value.as_dict()}  # fmt: skip


@dataclass(frozen=True)
class SpeedReport:
    """A measurement: what it was made on, and every contender."""

    header: dict[str, str]  # what a person must know to judge the numbers, in this order
    warnings: tuple[str, ...]  # of the bundle
    results: tuple[Result, ...]

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """Every stream against its own runner and against torch, in the same precision, at the same batch."""
        found = []
        for result in self.results:
            for other in self.results:
                if _belong(result, other):
                    pairs = zip(result.rounds, other.rounds, strict=True)
                    value = spread([above.frames_per_s / below.frames_per_s for above, below in pairs])
                    found.append(Ratio(name_of(result), name_of(other), result.precision, result.batch, value))
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "header": self.header,
            "warnings": list(self.warnings),
            "results": [result.as_dict() for result in self.results],
            "ratios": [ratio.as_dict() for ratio in self.ratios],
        }

    def markdown(self) -> str:
        """The report as two tables below their header."""
        lines = [*(f"**{warning}**" for warning in self.warnings), ""] if self.warnings else []
        lines += [f"- {name}: {value}" for name, value in self.header.items()]
        lines += ["", "| what | precision | batch | frames/s, median (min..max) | p50 / p95 / p99 ms | of | batch met |",
                  "|---|---|---|---|---|---|---|"]  # fmt: skip
        for result in self.results:
            latencies = " / ".join(f"{value:.1f}" for value in result.latencies_ms)
            unit = "frames" if result.kind == "stream" else "calls"
            lines.append(f"| {name_of(result)} | {result.precision} | {result.batch} | {result.frames_per_s.text(1)} | "
                         f"{latencies} | {result.latency_count} {unit} | {result.met_batch:.1f} |")  # fmt: skip
        if self.ratios:
            lines += ["", "| frames/s of | to those of | precision | batch | ratio, median (min..max) |",
                      "|---|---|---|---|---|"]  # fmt: skip
            for ratio in self.ratios:
                lines.append(
                    f"| {ratio.above} | {ratio.below} | {ratio.precision} | {ratio.batch} | {ratio.value.text(2)} |"
                )
        return "\n".join([*lines, "", NOTES])


NOTES = (
    "torch and bare: pictures already decoded and resized; a latency is one call. torch eager fuses the layer maps in "
    "NumPy as `evaluate --torch` does; torch network alone leaves that out, so it does less than the others. stream: "
    "decode, resize, inference, verdict, JSON lines; a latency is one frame from decoded to verdict, its wait in the full "
    "buffer included, and frames/s count from start to end, the first decode included."
)


def spread(values: Sequence[float]) -> Spread:
    """Median and range of `values`."""
    return Spread(float(np.median(values)), min(values), max(values))


def name_of(result: Result) -> str:
    """The contender in a table."""
    return result.kind if result.kind.startswith("torch") else f"{result.kind} {result.system}"


def _belong(result: Result, other: Result) -> bool:
    """Whether the ratio of the two says something: a stream to its own runner, or to torch."""
    if result.kind != "stream" or (result.precision, result.batch) != (other.precision, other.batch):
        return False
    return other.kind.startswith("torch") or (other.kind == "bare" and other.system == result.system)
