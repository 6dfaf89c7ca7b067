"""The support table says of GPUs what the results say that ran there, in their own words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_each_row_says_what_ran_on_which_gpu_and_when(file: Path) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for what, words in found.get("support", {}).items():
        (row,) = [row for row in rows if row.startswith(f"| {what}") and words.removeprefix(what) in row] or [None]
        assert row is not None, f"no row of README.md that begins with {what!r} says {words!r}"
        assert found["gpu"] in words
        assert found["when"] in words


def test_no_row_names_a_gpu_that_no_result_names() -> None:
    """A date in the table is that of a session whose results are kept."""
    known = {date for file in RESULTS if (date := json.loads(file.read_text(encoding="utf-8")).get("when"))}
    rows = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    for row in rows:
        if "NVIDIA H" in row or "NVIDIA L" in row or "RTX " in row.replace("TensorRT-RTX", ""):
            assert any(date in row for date in known), row
