"""A speed report as Markdown: the machine, latency at batch 1, rates and ratios over batches, and what could not run."""

from __future__ import annotations

from collections.abc import Sequence

from nnet_edge.benchmarks.speed_report import MEBIBYTE, REFERENCE, Result, SpeedReport, SystemFacts

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
