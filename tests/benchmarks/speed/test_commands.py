"""`benchmarks.speed.commands`: what a command takes, beside another installation."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.benchmarks.speed.commands import HERE, command, cost_of
from nnet_edge.errors import StreamError


def test_a_command_beside_itself(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--beside", HERE, "--rounds", "1", "--", "--version"], standalone_mode=False)
    rows = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("| this one", "| beside", "| ratio"))
    ]
    assert len(rows) == 3
    clock_s, processor_s, peak_mib = (float(value) for value in rows[0].split("|")[2:5])
    assert 0 < processor_s + 0.05 < clock_s + 5
    assert 10 < peak_mib < 1000


def test_the_peak_is_the_command_s_own() -> None:
    pages, own = 300 << 20, np.ones(500 << 17)  # 500 MiB here, which wait4 would count
    assert own.nbytes == 500 << 20
    found = cost_of(["python3", "-c", f"import time; a = b'x' * {pages}; time.sleep(0.1)"])
    assert 300 < found.peak_mib < 400
    assert found.clock_s > 0.1


def test_one_that_goes_on_is_interrupted() -> None:
    began_s = time.monotonic()
    waits = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: raise SystemExit(130)"
    assert 1 <= cost_of(["python3", "-c", waits], 1.0).clock_s < 20
    assert time.monotonic() - began_s < 30


def test_one_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"failed \(code 3\): no such part"):
        cost_of(["python3", "-c", "print('no such part'); raise SystemExit(3)"])
    with pytest.raises(StreamError, match=r"failed .code 2.: .*absent"):
        cost_of([HERE, "train", f"{tmp_path / 'absent'}", "--out", "{out}"])
