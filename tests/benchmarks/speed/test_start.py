"""A start is measured from the new process to the first verdict, and what nobody needs is not imported."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from nnet_edge.benchmarks.speed.start import HELP, PHASES, Case, ask_for_help, cases_of, markdown, start
from nnet_edge.bundle import Bundle
from nnet_edge.errors import StreamError


@pytest.fixture
def picture(bundle: Bundle, tmp_path: Path) -> Path:
    path = tmp_path / "frame.png"
    assert cv2.imwrite(str(path), bundle.frames("held_out")[0])
    return path


def test_every_phase_of_a_real_start_is_timed(bundle: Bundle, picture: Path, tmp_path: Path) -> None:
    assert [case.name for case in cases_of(bundle)] == ["fp32", "fp32, --cache-dir"]
    found = start(Case("fp32, --cache-dir", "fp32", is_cached=True), bundle.path, picture, tmp_path)
    assert tuple(found) == PHASES
    assert all(clock > 0 and processor >= 0 for clock, processor in found.values())
    assert list((tmp_path / "fp32").rglob("*.blob")), "the compiled graph was kept"
    helped = ask_for_help()
    table = markdown({"fp32": [found], HELP: [{"python": helped}]})
    assert "| 1.00 / 1.00 |" in table
    assert f"| {HELP} | {helped[0]:.0f} / {helped[1]:.0f} | - |" in table


def test_a_start_that_fails_says_why(bundle: Bundle, picture: Path, tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="holds no int8 graph"):
        start(Case("int8", "int8"), bundle.path, picture, tmp_path)
