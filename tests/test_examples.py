"""The examples of operation are what the tools that read them take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_the_notebook_runs_and_shows_its_pictures_and_its_progress(desk: Path) -> None:
    """In a kernel of its own, which sends over pipes of the file system."""
    pytest.importorskip("nbclient", reason="NOT RUN: pip install nbclient ipykernel")
    script = desk / "execute.py"
    script.write_text(EXECUTE)
    done = subprocess.run([sys.executable, script, EXAMPLES / "python.ipynb"], cwd=desk, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)
    outputs = {place: [kind for output in cell for kind in output.get("data", {})] for place, cell in enumerate(cells)}
    texts = ["".join(output.get("text", "") for output in cell) for cell in cells]
    shown = "".join(str(output.get("data", {}).get("text/plain", "")) for cell in cells for output in cell)
    assert sum("image/png" in kinds for kinds in outputs.values()) == 2  # both plots
    assert re.search(r"Result\((GOOD|REJECT), score .*, part\.png\)", shown)
    report = next(output["data"]["text/html"] for cell in cells for output in cell if "<img" in output_html(output))
    assert report.count("data:image/png;base64,") == 2  # histogram and sheet
    assert "image AUROC" in shown
    assert "evaluating" in shown  # the bar, drawn in its place
    assert "0:07 left at most" in shown  # that of a training
    assert "a line for people" in texts[-1]
    assert not [output for cell in cells for output in cell if output.get("name") == "stderr"]


def output_html(output: dict[str, Any]) -> str:
    return str(output.get("data", {}).get("text/html", ""))


EXECUTE = '''
import json, sys
import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient

PROGRESS = """
from nnet_edge.cli.view import say, training_bar
from nnet_edge.training.loop import Progress
with training_bar() as show:
    show(Progress(epoch=3, epochs=4, losses={"loss": 1.5}, seconds_left=7.0))
say("a line for people")
"""
notebook = nbformat.read(sys.argv[1], 4)
notebook.cells.append(nbformat.v4.new_code_cell(PROGRESS))
manager = KernelManager(kernel_name="python3", transport="ipc")
manager.kernel_spec.argv[0] = sys.executable
NotebookClient(notebook, km=manager, timeout=300).execute()
print(json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"]))
'''
