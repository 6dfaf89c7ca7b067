"""Asks graphs of a bundle and its FP32 graph the same questions, on every runner of the processor, and compares the answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from nnet_edge.bundle import Bundle, graph_name
from nnet_edge.calibration.gate import Gate, GateLimits, compare, time_both
from nnet_edge.calibration.predictions import Answers, TestImages, ask
from nnet_edge.runtime.runners.base import Runner, load_runner
from nnet_edge.settings.runner import RunnerSettings


class GraphJudge:
    """A context manager; `kinds` are the runners, of which the first one decides.

    Rows, int (M,), are those of the labelled `test` images that count; None: all of them.
    """

    def __init__(
        self,
        bundle: Bundle,
        test: TestImages | None,
        kinds: Sequence[str],
        runner: RunnerSettings,
        limits: GateLimits,
        say: Callable[[str], None],
    ) -> None:
        self.bundle, self.test, self.kinds, self.runner, self.limits, self.say = (
            bundle,
            test,
            kinds,
            runner,
            limits,
            say,
        )
        self.held_out = bundle.frames("held_out")
        self._expected: dict[str, Answers] = {}  # runner -> of FP32, asked once
        self._stack = ExitStack()

    def __enter__(self) -> GraphJudge:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-calibrate-")))
        graph = self.bundle.graph
        self.references: list[Runner] = [
            self._stack.enter_context(load_runner(graph, replace(self.runner, kind=kind))) for kind in self.kinds
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def ask_all(self, content: bytes, precision: str, reference: Runner) -> tuple[Answers, tuple[float, float]]:
        """What the graph says of all images on that runner, and the milliseconds of FP32 and of it."""
        with self._load(content, precision, reference.name) as candidate:
            answers = ask(candidate, self.held_out, self.test, self.bundle.threshold.asked)
            return answers, time_both(reference, candidate, self.held_out)

    def ask(self, content: bytes, precision: str, rows: np.ndarray | None = None) -> Answers:
        """What the graph says on the deciding runner, of the held-out frames and of these rows."""
        test = self.test if self.test is None or rows is None else self.test.rows(rows)
        with self._load(content, precision, self.references[0].name) as candidate:
            return ask(candidate, self.held_out, test, self.bundle.threshold.asked)

    def judge(self, content: bytes, precision: str, rows: np.ndarray | None = None) -> Gate:
        """The deciding runner's verdict, without timing, on the held-out frames and these rows."""
        answers = self.ask(content, precision, rows)
        if self.test is None or rows is None:
            return self.compare(self.references[0], answers)
        expected = self._expected_of(self.references[0]).of(self.test, rows, held_out=True)
        return compare(expected, answers, self.test.rows(rows), self.limits)

    def compare(self, reference: Runner, answers: Answers, latency_ms: tuple[float, float] | None = None) -> Gate:
        """The verdict on answers to all images."""
        return compare(self._expected_of(reference), answers, self.test, self.limits, latency_ms)

    def compare_rows(self, reference: Runner, answers: Answers, rows: np.ndarray) -> Gate:
        """The verdict on these rows alone, of answers to all images; the thresholds are those of the held-out frames."""
        assert self.test is not None
        both = (self._expected_of(reference), answers)
        expected, found = (some.of(self.test, rows, held_out=False) for some in both)
        return compare(expected, found, self.test.rows(rows), self.limits)

    def _load(self, content: bytes, precision: str, kind: str) -> Runner:
        file = self._folder / graph_name(precision)
        file.write_bytes(content)
        return load_runner(file, replace(self.runner, kind=kind))

    def _expected_of(self, reference: Runner) -> Answers:
        """What FP32 says on that runner."""
        if reference.name not in self._expected:
            self.say(f"asking FP32 on {reference.name}")
            self._expected[reference.name] = ask(reference, self.held_out, self.test, self.bundle.threshold.asked)
        return self._expected[reference.name]
