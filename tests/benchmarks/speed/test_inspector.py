"""The benchmark of the inspector measures both in turn."""

from __future__ import annotations

from pathlib import Path

from nnet_edge.benchmarks.speed.inspector import measure


def test_runner_and_inspector_are_measured(second_run: Path, parts_folder: Path) -> None:
    found = measure(second_run / "run/bundle", parts_folder / "bad/stain/0.png", rounds=3)
    assert list(found) == ["bare runner", "inspector"]
    assert all(own_ms > 0 and clock_ms > 0 for own_ms, clock_ms in found.values())
