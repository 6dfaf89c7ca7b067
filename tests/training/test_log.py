"""The picture of the losses: no empty curve, no decades for a flat line."""

from __future__ import annotations

from pathlib import Path

from nnet_edge.training.log import TrainingLog

ROWS = [
    {"epoch": 1.0, "loss": 6.0, "forward": 4.0, "align": 2.0, "query": 0.0008, "pairs": 0.0, "held_out": None},
    {"epoch": 2.0, "loss": 2.0, "forward": 2.0, "align": None, "query": 0.0008, "pairs": 0.0, "held_out": 0.7},
]


def test_small_and_empty_terms_are_named_and_not_drawn(tmp_path: Path) -> None:
    (axes,) = TrainingLog(tmp_path, ("forward", "align", "query", "pairs"), ROWS).figure().axes
    assert [line.get_label() for line in axes.lines] == ["loss", "forward", "align", "held-out"]
    assert axes.get_xlabel() == "epoch (not drawn, never 1% of it: query, pairs)"
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    assert all(line.get_marker() == "o" for line in axes.lines)  # a curve of one point is seen


def test_a_loss_that_falls_far_has_decades_but_none_below_it(tmp_path: Path) -> None:
    rows = [{"epoch": float(n), "loss": 100.0 / 4**n, "forward": 100.0 / 4**n, "query": 1e-6} for n in range(1, 30)]
    (axes,) = TrainingLog(tmp_path, ("forward", "query"), rows).figure().axes
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] >= 0.25
    assert all(line.get_marker() in ("", "None") for line in axes.lines)


def test_a_log_without_rows_can_be_drawn(tmp_path: Path) -> None:
    assert TrainingLog(tmp_path, ("forward",)).draw().is_file()
