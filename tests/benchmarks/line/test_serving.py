"""The inference server under load, in a miniature: every row is measured on the real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.benchmarks.line.serving import HEADS, command

BUNDLE = Path(__file__).parents[2] / "data/from_0_1/bundle"


def test_the_server_and_its_runner_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command, [str(BUNDLE), "--clients", "2", "--seconds", "0.3", "--threads", "1"]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[3:]]
    rows = [dict(zip(HEADS, line, strict=True)) for line in lines]
    assert [row["what"] for row in rows] == [
        "runner alone, the input", "runner alone, decode, resize", "judge, JPEG", "infer, binary",
    ]  # fmt: skip
    assert [row["clients"] for row in rows] == ["1", "1", "2", "2"]
    for row in rows:
        assert 0 < float(row["p50 ms"]) <= float(row["p99 ms"])
        assert float(row["requests/s"]) > 0
        assert row["refused"] == "0"
