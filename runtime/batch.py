"""Frames of many streams that runners compute together, and the time that each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nnet_edge.frame import Frame, FrameOutputs, Outputs, Prediction
from nnet_edge.runtime.processing import preprocess
from nnet_edge.runtime.runner import FrameRunner, Runner
from nnet_edge.runtime.station import Station


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
