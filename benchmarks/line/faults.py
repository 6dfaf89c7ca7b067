"""What each fault of a line costs: the tests that cause it with the real component, run once, and their counts as a table.

A test says what it counted after its assertions held (`note_fault` in tests/runtime/conftest.py), so a row stands here only
when nothing was lost and nothing unaccounted for. Needs a checkout, and Debian's packages that .ci/run installs: what is
absent is named as not run, and the exit code is 1.

    python -m nnet_edge.benchmarks.faults --json faults.json       (about three minutes)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.report import table_text, write_json
from nnet_edge.errors import ConfigError, StreamError

ROWS_FILE = "NNET_EDGE_FAULTS"  # the environment variable that names the file which tests append their rows to
LIMIT_S = 900.0
HEADS = ("fault", "counted", "captured", "judged", "dropped by cause", "lost", "time to recover")

# fault -> the test that causes it, below tests/runtime
TESTS: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Row:
    """What one fault cost."""

    fault: str
    counted: str  # "frames", or "verdicts" on their way to a sink, which are judged when they were delivered
    captured: int
    judged: int
    dropped: Mapping[str, int]  # cause -> count
    recovered: str  # how long it took, in words

    @property
    def lost(self) -> int:
        """What is accounted for nowhere."""
        return self.captured - self.judged - sum(self.dropped.values())


def run_tests(tests: Sequence[str], folder: Path) -> tuple[list[Row], str]:
    """The rows of the tests below `folder`/tests/runtime, and pytest's last line. Raises ConfigError without a checkout."""
    where = folder / "tests" / "runtime"
    if not where.is_dir():
        raise ConfigError(f"{folder} holds no tests/runtime: run this in a checkout of nnet-edge")
    with tempfile.TemporaryDirectory(prefix="nnet-edge-faults-") as scratch:
        rows = Path(scratch) / "rows.jsonl"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
        try:
            done = subprocess.run(
                [*command, *(str(where / test) for test in tests)],
                cwd=folder, env=os.environ | {ROWS_FILE: str(rows)}, capture_output=True, text=True, timeout=LIMIT_S,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise StreamError(f"the tests of the faults took more than {LIMIT_S:g} s: does one hang?") from error
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    said = (done.stdout.strip().splitlines() or [done.stderr.strip() or "pytest said nothing"])[-1]
    return [Row(**json.loads(line)) for line in lines], said


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, in the order of TESTS."""
    cells = []
    for row in sorted(rows, key=lambda row: list(TESTS).index(row.fault)):
        dropped = ", ".join(f"{count} {cause}" for cause, count in row.dropped.items()) or "none"
        cells.append([row.fault, row.counted, row.captured, row.judged, dropped, row.lost, row.recovered])
    return table_text(HEADS, cells)


def require_complete(rows: Sequence[Row], wanted: Sequence[str], said: str) -> None:
    """Raise StreamError when a fault has no row, or something was lost."""
    missing = [fault for fault in wanted if fault not in {row.fault for row in rows}]
    if missing:
        raise StreamError(f"not run, or not passed: {', '.join(missing)}; pytest said: {said}")
    if lost := [f"{row.fault}: {row.lost}" for row in rows if row.lost]:
        raise StreamError(f"unaccounted for: {'; '.join(lost)}")


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(TESTS)), help="May be repeated; default: all.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the rows here too.")
def command(only: tuple[str, ...], json_path: Path | None) -> None:
    """Cause every fault of a line once and print what it cost."""
    wanted = only or tuple(TESTS)
    rows, said = run_tests(list(dict.fromkeys(TESTS[fault] for fault in wanted)), Path.cwd())
    rows = [row for row in rows if row.fault in wanted]
    click.echo(f"{command_text('nnet_edge.benchmarks.faults')}: {said}")
    click.echo(table(rows))
    if json_path is not None:
        write_json(json_path, [asdict(row) | {"lost": row.lost} for row in rows])
    require_complete(rows, wanted, said)


if __name__ == "__main__":
    sys.exit(run_command(command))
