"""`nnet-edge history`: words, CSV and JSON lines of a shift."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest

from nnet_edge.cli.main import run
from nnet_edge.runtime.history.database import Bounds, Entry, HistoryWriter
from nnet_edge.runtime.history.labels import add_label
from nnet_edge.runtime.sinks.fields import utc_text


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """Three verdicts of the last hour, the second a reject that somebody labelled, and one of yesterday."""
    writer = HistoryWriter(tmp_path / "h.db", Bounds(90, 1 << 40, 0))
    writer.open()
    region = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 5.0, "peak": 2.0}
    now_s = time.time()
    for index, ago_s in enumerate((90_000, 180, 120, 60)):
        is_bad = index == 2
        writer.add([Entry({
            "id": f"left/S/{index}", "stream": "left", "index": index, "time": utc_text(round(1e3 * (now_s - ago_s))),
            "score": 2.0 if is_bad else 0.5, "threshold": 1.0, "verdict": "anomalous" if is_bad else "good",
            "regions": [region] if is_bad else [], "size": [48, 64], "latencies_ms": {"total": 5.0}, "recipe": "=lids",
        })])  # fmt: skip
    writer.close()
    add_label(tmp_path / "h.db", 3, "Ann", "true_defect", "scratch")
    return tmp_path / "h.db"


def test_csv_json_and_words(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", str(history), "--since", "8h", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["index"], row["verdict"], row["label"], row["labelled_by"]) for row in rows] == [
        ("1", "good", "", ""), ("2", "anomalous", "true_defect", "Ann"), ("3", "good", "", ""),
    ]  # fmt: skip
    assert rows[0]["recipe"] == "'=lids"  # a spreadsheet computes nothing
    assert run(["history", str(history), "--since", "2d", "--json", "--rejects"]) == 0
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["index"], found["labels"][0]["defect"], found["regions"][0]["peak"]) == (2, "scratch", 2.0)
    assert run(["history", str(history)]) == 0
    said = capsys.readouterr().out
    assert "left: 3 verdicts, 1 rejects, yield 66.67 %" in said
    assert "1 true defect" in said


def test_what_cannot_be_is_one_sentence(history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [(["--since", "soon"], "is no time"), (["--csv", "--json"], "contradict"),
             (["--since", "1h", "--until", "2h"], "does not lie behind"),
             (["--stream", "nobody"], "nothing of a stream 'nobody'")]  # fmt: skip
    for options, told in wrong:
        assert run(["history", str(history), *options]) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "text").write_text("no history" * 100)
    for path in ("absent.db", "text"):
        assert run(["history", str(tmp_path / path)]) != 0
        assert capsys.readouterr().err.count("\n") == 1


def test_a_report_is_written(history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", str(history), "--report", str(tmp_path / "shift.html"), "--language", "de"]) == 0
    assert f"wrote {tmp_path / 'shift.html'}" in capsys.readouterr().err
    assert "Schichtbericht" in (tmp_path / "shift.html").read_text(encoding="utf-8")
