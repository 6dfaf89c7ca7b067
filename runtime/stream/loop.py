"""The walk of a frame over a line, seven hops: camera -> lane | batch -> preprocess -> runner -> station -> sink.

Left of `|` are the cameras' threads, right of it is the caller's, with at most two batches under way.

Frames of many streams that runners compute together, and the time that each stage took.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame, FrameOutputs, Outputs, Prediction
from nnet_edge.runtime.runners.base import FrameRunner, Runner
from nnet_edge.runtime.stream.buffer import Lanes
from nnet_edge.runtime.stream.judge import Station, preprocess


@dataclass(frozen=True)
class Job:
    """One frame, cut into what is judged for itself, with the runner and the station that judge it."""

    frame: Frame
    parts: Sequence[Frame]  # the frame itself, or its crops
    runner: Runner
    station: Station


class Chunk:
    """Parts that one runner takes at once."""

    def __init__(self, parts: Sequence[Frame], runner: Runner) -> None:
        self.started_s = time.monotonic()
        self._outputs: Callable[[], Outputs | FrameOutputs]
        if isinstance(runner, FrameRunner):  # resizes on the GPU: what the processor does is the copy there
            self._outputs = runner.start_frames(parts)
            self.prepared_s = time.monotonic()
        else:
            images = preprocess(parts)
            self.prepared_s = time.monotonic()
            self._outputs = runner.start(images)

    def wait(self) -> None:
        """Wait until it is computed; raises what the runner raises."""
        self.outputs = self._outputs()
        self.inferred_s = time.monotonic()


class Batch:
    """Jobs on their way; making one starts them, in runs of parts that each runner takes. A batch's stages count for
    each of its frames.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.images = sum(len(job.parts) for job in jobs)
        self._places: list[list[tuple[Chunk, int, Sequence[Frame]]]] = [[] for _ in jobs]  # of each job's parts
        self._chunks: list[Chunk] = []
        self._error: Exception | None = None
        for numbers in by_runner(jobs):
            runner = jobs[numbers[0]].runner
            parts = [(number, part) for number in numbers for part in jobs[number].parts]
            for start in range(0, len(parts), runner.max_batch):
                try:
                    self._start(parts[start : start + runner.max_batch], runner)
                except Exception as error:  # whatever a runner raises comes out of `wait`, in the batch's turn
                    self._error = error
                    return

    def _start(self, run: Sequence[tuple[int, Frame]], runner: Runner) -> None:
        chunk = Chunk([part for _, part in run], runner)
        self._chunks.append(chunk)
        position = 0
        while position < len(run):
            number = run[position][0]
            mine = [part for owner, part in run[position:] if owner == number]
            self._places[number].append((chunk, position, mine))
            position += len(mine)

    def wait(self) -> None:
        """Wait until everything is computed; raises what a runner raised first, now or when the batch was started."""
        for chunk in self._chunks:  # all of them: what nobody waits for stays under way
            try:
                chunk.wait()
            except Exception as error:
                self._error = self._error or error
        if self._error is not None:
            raise self._error

    def infer_s(self) -> float:
        """Seconds from the start of the first chunk to the outputs of the last."""
        return max(chunk.inferred_s for chunk in self._chunks) - self._chunks[0].started_s

    def judge(self, number: int, wants_maps: bool) -> list[Prediction]:
        """The predictions of job `number`, with their latencies; `wait` comes first. Raises what Station.judge raises."""
        job = self.jobs[number]
        found: list[Prediction] = []
        for chunk, first, parts in self._places[number]:
            predictions = job.station.judge(job.frame, parts, chunk.outputs, first, wants_maps)
            latencies_ms = latencies_of(job.frame, chunk, time.monotonic())
            found += [replace(prediction, latencies_ms=latencies_ms) for prediction in predictions]
        return found


def latencies_of(frame: Frame, chunk: Chunk, judged_s: float) -> Mapping[str, float]:
    """What each stage took for this frame, milliseconds; `total` is their sum."""
    return {
        "waiting": 1e3 * (chunk.started_s - frame.captured_s),
        "preprocess": 1e3 * (chunk.prepared_s - chunk.started_s),
        "infer": 1e3 * (chunk.inferred_s - chunk.prepared_s),
        "postprocess": 1e3 * (judged_s - chunk.inferred_s),
        "total": 1e3 * (judged_s - frame.captured_s),
    }


def by_runner(jobs: Sequence[Job]) -> list[list[int]]:
    """The numbers of the jobs that share a runner, the runners in the order in which they first come."""
    found: dict[int, list[int]] = {}
    for number, job in enumerate(jobs):
        found.setdefault(id(job.runner), []).append(number)
    return list(found.values())


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
