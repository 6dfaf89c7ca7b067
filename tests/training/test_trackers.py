"""Trackers: a training's rows, settings and figures, read back from what the real libraries wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.cli.train import command as train_command
from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.geometry import Geometry
from nnet_edge.methods.nnet.settings import PAPER
from nnet_edge.training.checkpoint import read_checkpoint
from nnet_edge.training.log import read_log
from nnet_edge.training.loop import TrainOptions, train
from nnet_edge.training.trackers.base import TRACKERS, TrackedRun, Tracker, TrackerKind, flat, tracking

ROWS: tuple[Mapping[str, float | None], ...] = (
    {"epoch": 1, "loss": 0.75, "held_out": None},
    {"epoch": 2, "loss": 0.5, "held_out": 0.625},
)
SETTINGS = {"model": {"backbone": "efficientnet_lite0", "sizes": [1, 2]}, "epochs": 2, "seed": None}


def track(kind: str, out: Path) -> None:
    """A training of two epochs as `train` tells it."""
    with tracking([kind], out) as tracked:
        tracked.begin(SETTINGS)
        for row in ROWS:
            tracked.add(row)
        tracked.figures |= {"threshold": 0.25}


def test_tensorboard_has_curves_settings_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="NOT RUN: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a training that goes on is a run of its own beside the first
        track("tensorboard", tmp_path / "bolt")
    one, other = (tmp_path / "bolt/tracked/tensorboard").iterdir()
    assert one.name.startswith("bolt-")
    assert other.name.startswith("bolt-")
    events = EventAccumulator(str(one)).Reload()
    assert [(point.step, point.value) for point in events.Scalars("training/loss")] == [(1, 0.75), (2, 0.5)]
    assert [(point.step, point.value) for point in events.Scalars("training/held_out")] == [(2, 0.625)]
    assert [point.value for point in events.Scalars("final/threshold")] == [0.25]
    (text,) = events.Tensors("settings/text_summary")
    assert b"| model.backbone | efficientnet_lite0 |" in text.tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore")  # of its libraries
def test_mlflow_has_curves_settings_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name, reason=f"NOT RUN: {name} is not installed: pip install 'nnet-edge[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track("mlflow", tmp_path / "bolt")
    with sqlite3.connect(tmp_path / "bolt/tracked/mlflow.db") as database:
        metrics = set(database.execute("select key, step, value from metrics"))
        assert metrics == {("training/loss", 1, 0.75), ("training/loss", 2, 0.5), ("training/held_out", 2, 0.625),
                           ("final/threshold", 0, 0.25)}  # fmt: skip
        assert ("model.backbone", "efficientnet_lite0") in set(database.execute("select key, value from params"))
        assert database.execute("select name, status from runs").fetchall() == [("bolt", "FINISHED")]
    database.close()


@pytest.mark.filterwarnings("ignore")
def test_wandb_is_offline_and_keeps_its_run_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="NOT RUN: wandb is not installed: pip install 'nnet-edge[wandb]'")
    for variable in ("WANDB_MODE", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    track("wandb", tmp_path / "bolt")
    (kept,) = (tmp_path / "bolt/tracked/wandb/wandb").glob("offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"training/loss" in content
    assert b"efficientnet_lite0" in content
    assert b"final/threshold" in content
    assert not (tmp_path / "home").exists()


def test_a_training_tells_its_rows_and_those_before_a_stop_again(small_washers: np.ndarray, tmp_path: Path) -> None:
    model = replace(PAPER.model, memory_slots=32)
    settings = replace(PAPER, epochs=2, batch=2, model=model, input=Geometry(64, 64))
    told: list[Mapping[str, float | None]] = []
    options = TrainOptions("cpu", "fp32", teacher_weights="random", on_row=told.append)
    train(small_washers[:2], small_washers[4:], settings, tmp_path, options)
    assert [row["epoch"] for row in told] == [1, 2]
    written = read_log(tmp_path, ["reverse"], 2).rows
    assert [row["loss"] for row in told] == pytest.approx([row["loss"] for row in written], rel=1e-5)
    train(small_washers[:2], small_washers[4:], settings, tmp_path, options, resume=read_checkpoint(tmp_path))
    assert [row["epoch"] for row in told] == [1, 2, 1, 2]


class BrokenTracker(Tracker):
    """A server that goes away after the first epoch."""

    def __init__(self, run: TrackedRun) -> None:
        self.epochs: list[int] = []

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        if epoch == 2:
            raise ConnectionError("the server\nis gone")
        self.epochs.append(epoch)

    def end(self, figures: Mapping[str, float], is_finished: bool) -> None:
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_is_said_and_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    TRACKERS.register(TrackerKind("broken", "json", BrokenTracker))
    try:
        with tracking(["broken"], tmp_path, said.append) as tracked:
            tracked.begin({})
            for row in ROWS:
                tracked.add(row)
    finally:
        TRACKERS.unregister("broken")
    assert said == ["warning: broken takes no more of this training (the server is gone)"]


def test_an_unknown_or_absent_tracker_ends_before_the_training(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="--log: tracker 'tensorbord' is unknown: did you mean tensorboard"),
        tracking(["tensorbord"], tmp_path),
    ):
        raise AssertionError("it began")
    TRACKERS.register(TrackerKind("absent", "no_such_library", BrokenTracker))
    try:
        with (
            pytest.raises(MissingExtraError, match=r"pip install 'nnet-edge\[absent\]'"),
            tracking(["absent"], tmp_path),
        ):
            raise AssertionError("it began")
    finally:
        TRACKERS.unregister("absent")


def test_the_option_offers_what_is_registered() -> None:
    (option,) = [option for option in train_command.params if option.name == "trackers"]
    assert tuple(option.type.choices) == TRACKERS.names()
    assert flat(SETTINGS) == {"model.backbone": "efficientnet_lite0", "model.sizes": "[1, 2]", "epochs": 2}
