"""Candidates as processes: each waits at its pipe until it is asked, so environments never meet and one computes at a time.

All stay in memory to the end; what each takes there is part of the answer, and one that the memory left would not hold does
not start.
"""

from __future__ import annotations

import json
import math
import select
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnet_edge.benchmarks.harness.rounds import Round, Say, Timed, quiet, run_rounds
from nnet_edge.benchmarks.peers.environment import process_variables
from nnet_edge.errors import DataError, NnetEdgeError

SERVE = "nnet_edge.benchmarks.peers.serve"
ANSWER_TIMEOUT_S = 600.0
PROBE_FRAMES = 2
LEAST_FREE_MIB = 1024.0  # to start one more, and twice its artefact: anomalib took 420 to 840 MiB, weights included
MOST_FRAMES = 1000  # of one round
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
class TimedProcess(Timed):
    """All rounds of one candidate, one frame after the other, and the memory of its process."""

    memory_mib: float | None = None  # its own pages, and its share of those that several map

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        return super().as_dict() | {"memory_mib": self.memory_mib}


class Pipe:
    """A candidate's process from `with` to the end of the block. Raises DataError, naming the log, when it dies."""

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
            self.__exit__()
            raise
        return self

    def __exit__(self, *about: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def time(self, frames: int) -> Round:
        """A round of `frames` frames, one after the other."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"frames": frames}) + "\n")
        except BrokenPipeError as error:
            raise DataError(f"{self._entry.name} cannot be timed ({self._last_word()})") from error
        latencies_ms = tuple(self._answer()["latencies_ms"])
        return Round(frames, sum(latencies_ms) / MS_PER_S, latencies_ms, frames)

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


def time_rounds(
    entries: Sequence[Entry], frames: Path, threads: int, rounds: int, round_s: float, work: Path, say: Say = quiet
) -> tuple[dict[str, TimedProcess], dict[str, str]]:
    """(name -> its rounds, name -> why it could not be timed); all processes live at once and one computes at a time.

    One that dies in a round is left out of the answer and of the rounds to come; the others go on.
    """
    failed: dict[str, str] = {}

    def lose(name: str, why: str) -> None:
        failed[name] = why
        say(f"warning: {why}")

    def lose_round(name: str, error: NnetEdgeError, number: int) -> None:
        lose(name, f"{error} in round {number} of {rounds}: its turns before are left out")

    with ExitStack() as stack:
        pipes: dict[str, Pipe] = {}
        measures = {}
        once_s = 0.0
        for entry in entries:
            try:
                require_memory(entry)
                pipe = stack.enter_context(Pipe(entry, frames, threads, work))
                once_ms = MS_PER_S / pipe.time(PROBE_FRAMES).frames_per_s
            except DataError as error:
                lose(entry.name, str(error))
                continue
            count = max(PROBE_FRAMES, min(MOST_FRAMES, math.ceil(round_s * MS_PER_S / once_ms)))
            pipes[entry.name], measures[entry.name] = pipe, partial(pipe.time, count)
            once_s += (count + 1) * once_ms / MS_PER_S
        say(f"{len(pipes)} candidates, {rounds} rounds: about {rounds * once_s / 60:.1f} minutes")
        found = run_rounds(measures, rounds, say, lose_round)
        timed = {name: TimedProcess(tuple(each), pipes[name].memory_mib()) for name, each in found.items()}
    return timed, failed


def require_memory(entry: Entry) -> None:
    """Raise DataError where the memory left would not hold one more candidate."""
    import psutil

    free = psutil.virtual_memory().available / MEBIBYTE
    files = entry.artefact.parent.glob(f"{entry.artefact.stem}.*")  # an .xml has its weights beside it
    wanted = LEAST_FREE_MIB + 2 * sum(file.stat().st_size for file in files if file.is_file()) / MEBIBYTE
    if free < wanted:
        raise DataError(
            f"{entry.name} was not started: {free:.0f} MiB of memory are free and it is given {wanted:.0f}: end what takes "
            "the memory, or race fewer with --method"
        )
