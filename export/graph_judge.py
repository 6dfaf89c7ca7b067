"""Judge of a bundle's graphs: their predictions against those of its FP32 graph, on every runner of the processor."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from nnet_edge.bundle import Bundle, graph_name
from nnet_edge.calibration.gate import Gate, GateLimits, compare, time_both
from nnet_edge.calibration.predictions import Predictions, TestImages, predict
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
        self.bundle, self.test, self.kinds = bundle, test, kinds
        self.runner, self.limits, self.say = runner, limits, say
        self.held_out = bundle.frames("held_out")
        self._expected: dict[str, Predictions] = {}  # runner -> of FP32, computed once
        self._stack = ExitStack()

    def __enter__(self) -> GraphJudge:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-calibrate-")))
        runners = [load_runner(self.bundle.graph, replace(self.runner, kind=kind)) for kind in self.kinds]
        self.references: list[Runner] = [self._stack.enter_context(runner) for runner in runners]
        return self

    def __exit__(self, *about: object) -> None:
        self._stack.close()

    def predict_all(self, content: bytes, precision: str, reference: Runner) -> tuple[Predictions, tuple[float, float]]:
        """The graph's predictions for all images on that runner, and the milliseconds of FP32 and of it."""
        with self._load(content, precision, reference.name) as candidate:
            predictions = predict(candidate, self.held_out, self.test, self.bundle.threshold.asked)
            return predictions, time_both(reference, candidate, self.held_out)

    def predict(self, content: bytes, precision: str, rows: np.ndarray | None = None) -> Predictions:
        """The graph's predictions on the deciding runner, for the held-out frames and these rows."""
        test = self.test if self.test is None or rows is None else self.test.rows(rows)
        with self._load(content, precision, self.references[0].name) as candidate:
            return predict(candidate, self.held_out, test, self.bundle.threshold.asked)

    def judge(self, content: bytes, precision: str, rows: np.ndarray | None = None) -> Gate:
        """The deciding runner's verdict, without timing, on the held-out frames and these rows."""
        predictions = self.predict(content, precision, rows)
        if self.test is None or rows is None:
            return self.compare(self.references[0], predictions)
        expected = self._expected_of(self.references[0]).for_rows(self.test, rows, held_out=True)
        return compare(expected, predictions, self.test.rows(rows), self.limits)

    def compare(self, reference: Runner, found: Predictions, latency_ms: tuple[float, float] | None = None) -> Gate:
        """The verdict on what was found for all images."""
        return compare(self._expected_of(reference), found, self.test, self.limits, latency_ms)

    def compare_rows(self, reference: Runner, predictions: Predictions, rows: np.ndarray) -> Gate:
        """The verdict on these rows alone, of predictions for all images; the thresholds are those of the held-out frames."""
        assert self.test is not None
        expected = self._expected_of(reference).for_rows(self.test, rows, held_out=False)
        found = predictions.for_rows(self.test, rows, held_out=False)
        return compare(expected, found, self.test.rows(rows), self.limits)

    def _load(self, content: bytes, precision: str, kind: str) -> Runner:
        file = self._folder / graph_name(precision)
        file.write_bytes(content)
        return load_runner(file, replace(self.runner, kind=kind))

    def _expected_of(self, reference: Runner) -> Predictions:
        """The predictions of FP32 on that runner."""
        if reference.name not in self._expected:
            self.say(f"predicting with FP32 on {reference.name}")
            self._expected[reference.name] = predict(reference, self.held_out, self.test, self.bundle.threshold.asked)
        return self._expected[reference.name]
