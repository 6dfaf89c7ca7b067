"""MLflow: a run of the experiment "nnet-edge", at MLFLOW_TRACKING_URI or in a database of its own below --out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping

from nnet_edge.errors import missing_library
from nnet_edge.training.trackers.base import TRACKERS, TrackedRun, Tracker, TrackerKind

EXPERIMENT = "nnet-edge"
LARGEST_BATCH = 100  # parameters that MLflow takes at once


class MlflowTracker(Tracker):
    """Settings as parameters, curves and final figures as metrics."""

    def __init__(self, run: TrackedRun) -> None:
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise missing_library("mlflow", "mlflow", error) from error
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of each table that it makes
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._metric, self._folder, address = Metric, run.folder, os.environ.get("MLFLOW_TRACKING_URI")
        artefacts = None
        if address is None:
            run.folder.mkdir(parents=True, exist_ok=True)
            address = f"sqlite:///{run.folder.resolve() / 'mlflow.db'}"
            artefacts = (run.folder / "mlflow-files").resolve().as_uri()
        self._client = MlflowClient(address)
        known = self._client.get_experiment_by_name(EXPERIMENT)
        number = known.experiment_id if known else self._client.create_experiment(EXPERIMENT, artefacts)
        self._run = self._client.create_run(number, run_name=run.name).info.run_id
        settings = [Param(name, str(value)) for name, value in run.settings.items()]
        for start in range(0, len(settings), LARGEST_BATCH):
            self._client.log_batch(self._run, params=settings[start : start + LARGEST_BATCH])

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now_ms = int(1e3 * time.time())
        metrics = [self._metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        self._log({f"training/{name}": value for name, value in values.items()}, epoch)

    def end(self, figures: Mapping[str, float], is_finished: bool) -> None:
        self._log({f"final/{name}": value for name, value in figures.items()}, 0)
        self._client.set_terminated(self._run, "FINISHED" if is_finished else "FAILED")


TRACKERS.register(TrackerKind("mlflow", "mlflow", MlflowTracker))
