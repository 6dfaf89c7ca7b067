"""A triggered line of the real model, and a PLC that is another process with a real Modbus client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.benchmarks.line.triggers import HEADS, command

BUNDLE = Path(__file__).parents[2] / "data/from_0_1/bundle"


def test_every_part_has_its_answer(free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pymodbus", reason="pymodbus is not installed")
    assert run_command(command, [str(BUNDLE), "--seconds", "1", "--port", str(free_port())]) == 0
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    found = dict(zip(HEADS, row, strict=True))
    assert (found["camera"], found["parts"], found["triggers"]) == ("camera-0", "10", "10")
    assert (
        int(found["verdicts"]) + sum(int(one.split()[0]) for one in found["outcomes"].split(", ") if one != "none")
        == 10
    )
    assert 0 < float(found["p50 ms"]) <= float(found["p99 ms"]) <= float(found["max ms"])
