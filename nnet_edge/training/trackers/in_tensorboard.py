"""TensorBoard: one folder of event files a training; `tensorboard --logdir runs` shows those of many."""

from __future__ import annotations

from collections.abc import Mapping

from nnet_edge.errors import missing_library
from nnet_edge.frame import new_session
from nnet_edge.training.trackers.base import TRACKERS, TrackedRun, Tracker, TrackerKind


class TensorBoardTracker(Tracker):
    """Curves as scalars, settings and final figures as texts and scalars."""

    def __init__(self, run: TrackedRun) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_library("tensorboard", "tensorboard", error) from error
        folder = run.folder / "tensorboard" / f"{run.name}-{new_session()}"  # a resumed training is a run of its own
        self._writer = SummaryWriter(str(folder))
        table = "\n".join(f"| {name} | {value} |" for name, value in run.settings.items())
        self._write("text", "settings", f"| setting | value |\n|---|---|\n{table}")

    def _write(self, kind: str, *values: object) -> None:
        getattr(self._writer, f"add_{kind}")(*values)

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write("scalar", f"training/{name}", value, epoch)
        self._writer.flush()

    def end(self, figures: Mapping[str, float], is_finished: bool) -> None:
        for name, value in figures.items():
            self._write("scalar", f"final/{name}", value)
        self._writer.close()


TRACKERS.register(TrackerKind("tensorboard", "tensorboard", TensorBoardTracker))
