"""Contenders take turns: each is a process that waits at its pipe until it is asked, so environments never meet.

Only one computes at a time. Every round begins with another contender, so that whatever slows the machine down slows all.
All stay in memory to the end; what each takes there is part of the answer, and one that the memory left would not hold does
not start.
"""

from __future__ import annotations

import json
import math
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from nnet_edge.benchmarks.peers.environment import process_variables
from nnet_edge.benchmarks.speed.report import Spread, spread
from nnet_edge.errors import DataError

SERVE = "nnet_edge.benchmarks.peers.serve"
ANSWER_TIMEOUT_S = 600.0
PROBE_FRAMES = 2
LEAST_FREE_MIB = 1024.0  # to start one more, and twice its artefact: anomalib took 420 to 840 MiB, weights included
MOST_FRAMES = 1000  # of one turn
MS_PER_S = 1000.0
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Entry:
    """Who runs: everything that a process of serve.py is told."""

    name: str  # as the table has it: "PaDiM, anomalib OpenVINO fp32"
    python: Path
    system: str  # of serve.SYSTEMS
    artefact: Path
    precision: str = "fp32"


@dataclass(frozen=True)
class Timed:
    """All turns of one contender: the latencies of every frame, a tuple a round."""

    rounds: tuple[tuple[float, ...], ...]  # ms
    memory_mib: float | None = None  # of its process: its own pages, and its share of those that several map

    @property
    def frames_per_s(self) -> Spread:
        """Frames a second, one after the other, over the rounds."""
        return spread([MS_PER_S * len(turn) / sum(turn) for turn in self.rounds])

    @property
    def latencies_ms(self) -> tuple[float, float, float]:
        """p50, p95 and p99 over all frames."""
        import numpy as np

        p50, p95, p99 = np.percentile([value for turn in self.rounds for value in turn], (50, 95, 99))
        return float(p50), float(p95), float(p99)

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        p50, p95, p99 = self.latencies_ms
        return {
            "frames_per_s": self.frames_per_s.as_dict(),
            "latency_ms": {"p50": p50, "p95": p95, "p99": p99, "count": sum(len(turn) for turn in self.rounds)},
            "rounds": [MS_PER_S * len(turn) / sum(turn) for turn in self.rounds],
            "memory_mib": self.memory_mib,
        }


Running = tuple[Entry, "Pipe", int]  # with its frames a turn


class Pipe:
    """A contender's process from `with` to the end of the block. Raises DataError, naming the log, when it dies."""

    def __init__(self, entry: Entry, frames: Path, threads: int, work: Path) -> None:
        self._entry, self._frames, self._threads, self._work = entry, frames, threads, work
        self._log = work / "".join(c if c.isalnum() else "-" for c in f"{entry.name}.log")

    def __enter__(self) -> Pipe:
        entry = self._entry
        command = [str(entry.python), "-m", SERVE, entry.system, str(entry.artefact.absolute()), str(self._frames),
                   str(self._threads), entry.precision]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1,
                cwd=self._work, env=process_variables(self._threads))  # fmt: skip
        try:
            self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def time(self, frames: int) -> tuple[float, ...]:
        """The latencies in ms of `frames` frames."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"frames": frames}) + "\n")
        except BrokenPipeError as error:
            raise DataError(f"{self._entry.name} cannot be timed ({self._last_word()})") from error
        return tuple(self._answer()["latencies_ms"])

    def memory_mib(self) -> float | None:
        """What its process takes of the memory now; None where the system does not say."""
        import psutil

        try:
            return float(psutil.Process(self._process.pid).memory_full_info().pss) / MEBIBYTE
        except (psutil.Error, AttributeError):
            return None

    def _answer(self) -> dict[str, list[float]]:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], ANSWER_TIMEOUT_S)
        line = stdout.readline() if ready else ""
        try:
            return dict(json.loads(line))
        except ValueError as error:  # nothing, or half a line of one that was killed
            why = self._last_word() if ready else f"no answer within {ANSWER_TIMEOUT_S:g} s"
            raise DataError(f"{self._entry.name} cannot be timed ({why})") from error

    def _last_word(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it ended without a word"


def take_turns(
    entries: Sequence[Entry],
    frames: Path,
    threads: int,
    rounds: int,
    turn_s: float,
    work: Path,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Timed], dict[str, str]]:
    """(name -> its turns, name -> why it could not be timed); all processes live at once and one computes at a time.

    One that dies in a round is left out of the answer and of the rounds to come; the others go on.
    """
    timed: dict[str, list[tuple[float, ...]]] = {}
    failed: dict[str, str] = {}

    def lose(entry: Entry, error: DataError, when: str = "") -> None:
        timed.pop(entry.name, None)
        failed[entry.name] = f"{error}{when}"
        say(f"warning: {failed[entry.name]}")

    with ExitStack() as stack:
        running: list[Running] = []
        round_s = 0.0
        for entry in entries:
            try:
                require_memory(entry)
                pipe = stack.enter_context(Pipe(entry, frames, threads, work))
                once_ms = sum(pipe.time(PROBE_FRAMES)) / PROBE_FRAMES
            except DataError as error:
                lose(entry, error)
                continue
            count = max(PROBE_FRAMES, min(MOST_FRAMES, math.ceil(turn_s * MS_PER_S / once_ms)))
            running.append((entry, pipe, count))
            timed[entry.name] = []
            round_s += (count + 1) * once_ms / MS_PER_S
        say(f"{len(running)} contenders, {rounds} rounds: about {rounds * round_s / 60:.1f} minutes")
        began = time.perf_counter()
        for number in range(rounds):
            for entry, pipe, count in in_turn(running, number):
                if entry.name not in timed:
                    continue
                try:
                    timed[entry.name].append(pipe.time(count))
                except DataError as error:
                    lose(entry, error, f" in round {number + 1} of {rounds}: its turns before are left out")
            left = (time.perf_counter() - began) / (number + 1) * (rounds - number - 1)
            say(f"round {number + 1} of {rounds}, {left:.0f} s left")
        memory = {entry.name: pipe.memory_mib() for entry, pipe, _ in running if entry.name in timed}
    return {name: Timed(tuple(turns), memory[name]) for name, turns in timed.items()}, failed


def in_turn(running: Sequence[Running], number: int) -> list[Running]:
    """All, beginning with another one each round."""
    first = number % len(running) if running else 0
    return [*running[first:], *running[:first]]


def require_memory(entry: Entry) -> None:
    """Raises DataError where the memory left would not hold one more contender."""
    import psutil

    free = psutil.virtual_memory().available / MEBIBYTE
    files = entry.artefact.parent.glob(f"{entry.artefact.stem}.*")  # an .xml has its weights beside it
    wanted = LEAST_FREE_MIB + 2 * sum(file.stat().st_size for file in files if file.is_file()) / MEBIBYTE
    if free < wanted:
        raise DataError(
            f"{entry.name} was not started: {free:.0f} MiB of memory are free and it is given {wanted:.0f}: end what takes "
            "the memory, or race fewer with --method"
        )
