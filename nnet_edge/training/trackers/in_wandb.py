"""Weights & Biases: offline unless WANDB_MODE says otherwise; `wandb sync FOLDER` sends a run when you want it sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nnet_edge.errors import missing_library
from nnet_edge.training.trackers.base import TRACKERS, TrackedRun, Tracker, TrackerKind

PROJECT = "nnet-edge"


class WandbTracker(Tracker):
    """Settings as the run's config, curves as its history, final figures as its summary."""

    def __init__(self, run: TrackedRun) -> None:
        folder = (run.folder / "wandb").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):  # else below the user's home
            os.environ.setdefault(variable, str(folder))
        try:
            import wandb
        except ImportError as error:
            raise missing_library("wandb", "wandb", error) from error
        quiet = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False,
                               x_disable_stats=True, x_disable_meta=True, disable_job_creation=True)  # fmt: skip
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(project=project, name=run.name, dir=str(folder), mode=mode,
                               config=dict(run.settings), settings=quiet, reinit="create_new")  # fmt: skip

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log({f"training/{name}": value for name, value in values.items()}, step=epoch)

    def end(self, figures: Mapping[str, float], is_finished: bool) -> None:
        for name, value in figures.items():
            self._run.summary[f"final/{name}"] = value
        self._run.finish(0 if is_finished else 1)


TRACKERS.register(TrackerKind("wandb", "wandb", WandbTracker))
