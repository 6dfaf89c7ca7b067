"""The ways of a frame to the graph's input are compared with the reference, and one that differs is refused."""

from __future__ import annotations

import numpy as np
import pytest

from nnet_edge.benchmarks.experiments import frame_choices
from nnet_edge.benchmarks.experiments.frame_choices import (
    ALLOWED,
    COLOURS_LAST,
    DEFINITION,
    EXACT,
    NOW,
    markdown,
    measure,
)
from nnet_edge.errors import StreamError


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (300, 400, 3), np.uint8)


def test_every_way_has_a_row_and_says_how_far_off_it_is(frame: np.ndarray) -> None:
    rows = {row.way: row for row in measure("BGR", frame, 2)}
    assert rows.keys() >= EXACT.keys()
    assert all(rows[name].off == 0 for name in EXACT)
    assert rows[NOW].off <= ALLOWED[NOW]
    assert rows["OpenCV INTER_AREA"].off > 1, "another filter"
    assert rows[DEFINITION].ratio == 1
    grey = measure("grey", frame[..., 0], 2)
    assert [row.way for row in grey] == [DEFINITION, NOW, COLOURS_LAST]
    assert "| grey | to_input (now) |" in markdown(grey)


def test_a_way_that_would_change_verdicts_is_refused(frame: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        frame_choices, "EXACT", {**EXACT, COLOURS_LAST: lambda frame: frame_choices.definition(frame) ^ 1}
    )
    with pytest.raises(StreamError, match="1 grey levels off for BGR"):
        measure("BGR", frame, 1)
