"""The examples of operation are what the tools that read them take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="no systemd-analyze here: apt-get install systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (EXAMPLES / "nnet-edge.service").read_text(encoding="utf-8")
    unit = tmp_path / "nnet-edge.service"
    unit.write_text(text.replace("/opt/nnet-edge/bin/nnet-edge", "/bin/true"), encoding="utf-8")
    found = subprocess.run([str(SYSTEMD_ANALYZE), "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr) == (0, "")
