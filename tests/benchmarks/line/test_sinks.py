"""The benchmark of the sinks measures what it says: every verdict arrives, and the table holds every figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnet_edge.benchmarks.line import sinks


@pytest.mark.parametrize("name", sorted(sinks.cases(None)))
def test_each_case_delivers_what_it_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "PACED_S", 0.1)
    make, _ = sinks.cases(None)[name]
    taken_us, lost = sinks.paced_puts_us(make, tmp_path / "paced")
    assert (len(taken_us), lost) == (12, 0)
    assert taken_us.min() > 0
    assert sinks.verdicts_per_s(make, tmp_path / "full", 20) > 0
    if name.startswith("json"):
        assert len((tmp_path / "full" / "log.jsonl").read_text().splitlines()) == 20


def test_the_table_holds_every_figure() -> None:
    text = sinks.table([("log", np.array([1.0, 2.0, 30.0]), 4, 567.8)])
    assert text.splitlines()[-1] == "| log | 2 / 29 / 30 | 4 | 568 |"
