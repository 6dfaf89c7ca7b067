"""What a tracker is: one training's settings, curves and final figures, kept where people compare trainings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnet_edge.errors import MissingExtraError
from nnet_edge.settings.registry import Registry

FOLDER = "tracked"  # below --out, of those that write files


class Tracker(ABC):
    """One training in one tracker."""

    @abstractmethod
    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Take one epoch of the training's log."""

    @abstractmethod
    def end(self, figures: Mapping[str, float], is_finished: bool) -> None:
        """Take the final figures and close; `is_finished` is False for a training that was stopped or that failed."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told before the first epoch."""

    folder: Path  # for those that write files
    name: str  # of the training, for people
    settings: Mapping[str, str | int | float | bool]  # flat: "model.backbone"


@dataclass(frozen=True, eq=False)
class TrackerKind:
    """A kind of tracker: what --log and its extra are called, the module that it needs, and what begins a run."""

    name: str
    needs: str
    begin: Callable[[TrackedRun], Tracker]  # raises MissingExtraError


TRACKERS: Registry[TrackerKind] = Registry("tracker", "nnet_edge.training.trackers")


class Tracking:
    """The trackers of one training in `out`; one that fails later is said once and left out, and the training goes on."""

    def __init__(self, kinds: Sequence[TrackerKind], out: Path, say: Callable[[str], None]) -> None:
        self._kinds, self._out, self._say = kinds, out, say
        self._trackers: dict[str, Tracker] = {}
        self.figures: dict[str, float] = {}  # for the end of a training that has a bundle

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Begin a run in each. Raises MissingExtraError."""
        run = TrackedRun(self._out / FOLDER, self._out.name or self._out.resolve().name, flat(settings))
        for kind in self._kinds:
            self._trackers[kind.name] = kind.begin(run)

    def add(self, row: Mapping[str, float | None]) -> None:
        """Take a row of the training's log: "epoch" and whatever that epoch has a value of."""
        values = {name: float(value) for name, value in row.items() if value is not None and name != "epoch"}
        self._each(lambda tracker: tracker.add(int(row["epoch"] or 0), values))

    def end(self) -> None:
        """Tell the final figures and close."""
        self._each(lambda tracker: tracker.end(self.figures, bool(self.figures)))

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:  # a server that went away is no reason to lose hours of training
                del self._trackers[name]
                self._say(f"warning: {name} takes no more of this training ({' '.join(str(error).split())[:200]})")


@contextmanager
def tracking(names: Sequence[str], out: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[Tracking]:
    """The trackers of these names for the training in `out`.

    Raises ConfigError for an unknown name and MissingExtraError for an absent library, before anything is trained.
    """
    kinds = [TRACKERS.find(name, "--log") for name in dict.fromkeys(names)]
    for kind in kinds:
        if find_spec(kind.needs) is None:
            raise MissingExtraError(f"{kind.needs} is not installed: pip install 'nnet-edge[{kind.name}]'")
    tracked = Tracking(kinds, out, say)
    try:
        yield tracked
    finally:
        tracked.end()


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """The settings without tables inside tables: {"model.backbone": ...}; lists become texts, None is left out."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[prefix + key] = value if isinstance(value, str | int | float) else str(value)
    return found
