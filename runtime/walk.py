"""The walk of a frame over a line, seven hops: camera -> lane | batch -> preprocess -> runner -> station -> sink.

Left of `|` are the cameras' threads, right of it is the caller's, with at most two batches under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.batch import Batch, Job
from nnet_edge.runtime.lanes import Lanes
from nnet_edge.runtime.runner import Runner

log = logging.getLogger(__name__)

STOP_LOOK_S = 0.1  # how often a wait for frames looks whether it should stop
FAILURES_IN_A_ROW = 8  # frames of one runner that cannot be judged even alone; with so many it is not the frame
DEADLINE_SHARE = 0.25  # of what a batch takes: waiting longer for a fuller one costs more than it saves
LONGEST_DEADLINE_S = 0.02


class Work(Protocol):
    """What the walk needs of a line."""

    lanes: Lanes

    def job_of(self, frame: Frame) -> Job | None:
        """How to judge the frame; None when its stream is gone. Raises ConfigError for settings that do not fit it."""
        ...

    def wants_maps(self) -> bool:
        """Whether somebody wants maps of good frames too."""
        ...

    def largest_batch(self) -> int:
        """Images of a full batch."""
        ...

    def runners(self) -> Sequence[Runner]:
        """Those that judge the streams which have not ended."""
        ...

    def must_switch(self) -> bool:
        """Whether a bundle waits to be swapped in."""
        ...

    def switch(self) -> None:
        """Swap it in; no batch is under way."""
        ...

    def note(self, job: Job, predictions: Sequence[Prediction]) -> None:
        """Keep and pass on the verdicts on one frame."""
        ...

    def note_batch(self, images: int) -> None:
        """Count a batch."""
        ...

    def note_failure(self, frame: Frame, error: Exception) -> None:
        """Tell that a frame could not be judged."""
        ...


class Pacer:
    """How long the first frame of a batch waits for others: a quarter of what batches took lately, at most 20 ms."""

    def __init__(self, fixed_s: float | None, batch_s: float | None) -> None:
        self._fixed_s = fixed_s
        self._batch_s = batch_s

    def add(self, batch_s: float) -> None:
        """Take notice of a batch."""
        self._batch_s = batch_s if self._batch_s is None else 0.9 * self._batch_s + 0.1 * batch_s

    @property
    def deadline_s(self) -> float:
        """Seconds."""
        if self._fixed_s is not None:
            return self._fixed_s
        return min(DEADLINE_SHARE * (self._batch_s or 0.0), LONGEST_DEADLINE_S)


class Walk:
    """Batch after batch, in order; while one is computed, the next is taken and resized."""

    def __init__(self, work: Work, pacer: Pacer) -> None:
        self._work, self._pacer = work, pacer
        self._failures: dict[int, int] = {}  # id of a runner -> its failures in a row
        self._last_failure: Exception | None = None
        self._judged = 0

    def predictions(self, stop: threading.Event) -> Iterator[list[Prediction]]:
        """The predictions of each batch; ends with the sources, or soon after `stop` was set. Raises StreamError when no
        runner judges anything any more.
        """
        under_way: Batch | None = None
        while True:
            if under_way is not None and (self._work.must_switch() or not self._work.lanes.waiting()):
                yield self._finish(under_way)  # a verdict never waits for a later frame
                under_way = None
            if self._work.must_switch():
                self._work.switch()
                self._failures.clear()  # another runner, another chance
            frames = self._take(stop, 0.0 if under_way is not None else self._pacer.deadline_s)
            following = self._start(frames)
            if under_way is not None:
                yield self._finish(under_way)
            under_way = following
            if frames == []:
                break
        if under_way is not None:
            yield self._finish(under_way)
        if self._last_failure is not None and not self._judged:
            self._give_up(self._last_failure)

    def _take(self, stop: threading.Event, deadline_s: float) -> list[Frame] | None:
        """Frames for a batch; None when it is time to look around, [] at the end."""
        if stop.is_set():
            return []
        return self._work.lanes.take(self._work.largest_batch(), deadline_s, STOP_LOOK_S)

    def _start(self, frames: Sequence[Frame] | None) -> Batch | None:
        """The frames on their way to be judged; None when there are none, or none that can be."""
        jobs: list[Job] = []
        for frame in frames or ():
            try:
                job = self._work.job_of(frame)
            except Exception as error:
                self._fail(frame, error, None)
                continue
            if job is None:
                self._work.lanes.failed([frame], "removed")
            else:
                jobs.append(job)
        return Batch(jobs) if jobs else None

    def _finish(self, batch: Batch) -> list[Prediction]:
        """Wait for the batch and judge its frames; each frame of one that fails is tried once more, alone."""
        try:
            batch.wait()
        except Exception as error:
            if len(batch.jobs) > 1:
                self._log_retry(batch.jobs, error)
            return [prediction for job in batch.jobs for prediction in self._once_more(job)]
        self._work.note_batch(batch.images)
        self._pacer.add(batch.infer_s())
        return [prediction for number in range(len(batch.jobs)) for prediction in self._judge(batch, number)]

    def _once_more(self, job: Job) -> list[Prediction]:
        try:
            batch = Batch([job])
            batch.wait()
        except Exception as error:
            self._fail(job.frame, error, job.runner)
            return []
        self._work.note_batch(batch.images)
        return self._judge(batch, 0)

    def _judge(self, batch: Batch, number: int) -> list[Prediction]:
        job = batch.jobs[number]
        try:
            found = batch.judge(number, self._work.wants_maps())
        except Exception as error:
            self._fail(job.frame, error, job.runner)
            return []
        self._work.lanes.judged([job.frame])
        self._work.note(job, found)
        self._failures.pop(id(job.runner), None)
        self._judged += 1
        return found

    def _fail(self, frame: Frame, error: Exception, runner: Runner | None) -> None:
        """Count and tell a frame that has no verdict; raise when it is one of too many of every runner."""
        count = self._failures[id(runner)] = self._failures.get(id(runner), 0) + 1
        is_over = all(self._failures.get(id(one), 0) >= FAILURES_IN_A_ROW for one in self._work.runners())
        self._work.lanes.failed([frame])
        self._last_failure = error
        if count < FAILURES_IN_A_ROW or count & (count - 1) == 0:  # then the 8th, 16th, 32nd: a log is no place for all
            self._work.note_failure(frame, error)
        if is_over and count >= FAILURES_IN_A_ROW:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        count = max(self._failures.values(), default=1)
        raise StreamError(f"{count} frames in a row could not be judged, the last one: {error}") from error

    def _log_retry(self, jobs: Sequence[Job], error: Exception) -> None:
        log.warning("a batch of %d frames failed (%s): each is tried once more, alone", len(jobs), error)


Report = TypeVar("Report")


class View(Generic[Report]):
    """Shows the report so far, not more often than asked, and the last one once."""

    def __init__(self, show: Callable[[Report], None] | None, every_s: float, report: Callable[[str], Report]) -> None:
        self._show, self._every_s, self._report = show, every_s, report
        self._next_s = 0.0

    def refresh(self) -> None:
        """Show the report if it is time."""
        now_s = time.monotonic()
        if self._show is not None and now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            self._show(self._report("running"))

    def close(self, ended: str) -> Report:
        """The last report, shown."""
        report = self._report(ended)
        if self._show is not None:
            self._show(report)
        return report
