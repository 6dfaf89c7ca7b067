"""`nnet-edge stream`: a line a part says name, GOOD or REJECT and score; -v says more, -q nothing; NO_COLOR is heeded."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.bundle import Bundle
from nnet_edge.cli.main import run
from nnet_edge.frame import Frame, Prediction, Triggered
from nnet_edge.runtime.stream.terminal import VerdictLines, line_of


@pytest.fixture
def photos(parts_folder: Path) -> Path:
    return parts_folder / "good"


def test_a_folder_gives_a_line_a_part(
    photos: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stream", str(photos), "--bundle", str(bundle.path), "--json", str(tmp_path / "v.jsonl")]
    assert run(words) == 0
    found = capsys.readouterr()
    verdicts = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    expected = [
        [one["name"], "REJECT" if one["verdict"] == "anomalous" else "GOOD", f"{one['relative_score']:.3f}"]
        for one in verdicts
    ]
    assert [line.split() for line in found.out.splitlines()] == expected
    assert len(expected) == len(list(photos.iterdir()))
    assert "source ended: " in found.err
    assert "latency" not in found.err
    assert run([*words, "--verbose"]) == 0
    found = capsys.readouterr()
    assert all(line.endswith(" ms") for line in found.out.splitlines())
    assert "inference latency p50" in found.err


def test_quiet_says_nothing_and_json_on_standard_output_stays_json(
    photos: Path, bundle: Bundle, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["stream", str(photos), "--bundle", str(bundle.path)]
    assert run([*words, "-q"]) == 0
    found = capfd.readouterr()
    assert found.out == ""
    assert "source ended" not in found.err
    assert run([*words, "--json", "-"]) == 0
    assert all("score" in json.loads(line) for line in capfd.readouterr().out.splitlines())


def prediction(score: float, **facts: object) -> Prediction:
    frame = Frame(np.zeros((2, 2, 3), np.uint8), 7, 0.0, "left", **facts)  # type: ignore[arg-type]
    return Prediction(frame, score, 2.0, None, latencies_ms={"total": 12.34})


class Terminal(io.StringIO):
    """Standard output as a person has it."""

    def isatty(self) -> bool:
        return True


def test_a_camera_shows_rejects_and_a_trigger_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    lines = VerdictLines(lambda stream: True, lambda text: False)
    lines.write(prediction(1.0))
    lines.write(prediction(3.0))
    lines.write(prediction(1.0, trigger=Triggered(41, 0.0, "page")))
    VerdictLines(lambda stream: False, lambda text: False).write(prediction(1.0, name="a.mp4", in_file_s=0.5))
    VerdictLines(lambda stream: True, lambda text: False, in_detail=True).write(prediction(1.0))
    assert capsys.readouterr().out.splitlines() == [
        f"{'left 7':<24}  REJECT  1.500",
        f"{'part 41':<24}  GOOD    0.500",
        f"{'left 7':<24}  GOOD    0.500  12.3 ms",
    ]


@pytest.mark.parametrize("no_colour", [False, True])
def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch, no_colour: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    VerdictLines(lambda stream: False, lambda text: False).write(prediction(3.0, name="a.png"))
    assert ("\x1b[1;31mREJECT" in terminal.getvalue()) is not no_colour
    assert "31m" not in terminal.getvalue() or not no_colour


def test_a_reader_that_went_and_a_name_that_cannot_be_written_fail_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    VerdictLines(lambda stream: False, lambda text: False).write(prediction(3.0))
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    VerdictLines(lambda stream: False, lambda text: False).write(prediction(3.0, name="零件.png"))
    assert ascii_only.buffer.getvalue().startswith(rb"\u96f6\u4ef6.png")  # type: ignore[attr-defined]
    assert line_of(prediction(3.0, name="a.png")) == f"{'a.png':<24}  REJECT  1.500"
