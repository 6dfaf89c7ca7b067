"""How OpenMP's waiting threads wait, timed."""

from __future__ import annotations

from click.testing import CliRunner

from nnet_edge.benchmarks.speed.waiting_threads import main


def test_every_way_of_waiting_has_a_row_with_its_time() -> None:
    done = CliRunner().invoke(main, ["--spins", "1000", "--spins", "0", "--seconds", "0.05", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.output.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1000", "0"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
