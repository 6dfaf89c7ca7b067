"""Build monitor: the progress of an engine build, from TensorRT's own phases, and the way to stop it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

STEPS = 1000  # of a whole build, as a progress bar counts them


class Phases:
    """The phases that are running, nested, and the share of the build that is done.

    A phase of n steps inside another takes the share of one step of that other, and so on to the outermost, which is the
    build. TensorRT sometimes starts a phase in a step that is already told as done: the share never goes back.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[int, int, str | None]] = {}  # name -> steps done, steps in all, parent
        self._build: str | None = None  # the outermost phase, the first that began
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase began."""
        self._build = self._build or name
        self._running[name] = (0, max(steps, 1), parent if parent in self._running else None)

    def step(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, of a phase is done."""
        if name in self._running:
            _, steps, parent = self._running[name]
            self._running[name] = (min(step + 1, steps), steps, parent)

    def finish(self, name: str) -> None:
        """A phase ended."""
        self._running.pop(name, None)
        if name == self._build:
            self._share = 1.0

    def share(self) -> float:
        """The part of the build that is done, from 0 to 1; never less than before."""
        if self._running:
            self._share = max(self._share, max(self._share_of(name) for name in self._running))
        return self._share

    def _share_of(self, name: str) -> float:
        share, seen = 0.0, set()
        current: str | None = name
        while current in self._running and current not in seen:
            seen.add(current)
            done, steps, parent = self._running[current]
            share = min((done + share) / steps, 1.0)
            current = parent
        return share


def build_monitor(trt: Any, report: Callable[[int, int], None], stop: Callable[[], bool]) -> Any:
    """A monitor for `IBuilderConfig.progress_monitor` that calls `report(steps done, STEPS)` and asks `stop` at every step.

    TensorRT calls it from any of its threads and keeps no reference: the caller holds it until the build ended.
    """

    class BuildMonitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases = Phases()
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            report(round(STEPS * self.phases.share()), STEPS)
            self.stopped = self.stopped or stop()
            return not self.stopped  # False ends the build

        def phase_finish(self, phase_name: str) -> None:
            self.phases.finish(phase_name)
            if not self.stopped:
                report(round(STEPS * self.phases.share()), STEPS)

    return BuildMonitor()
