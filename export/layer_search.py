"""Layer search: the fewest layers of an INT8 graph that must stay FP32 for the gate to hold.

Layers that are chosen on the images that judge them look better than they are. Where there are labelled images enough they
are searched on one half, and the other half says beside the gate what to expect of new images. Where what was found so fails
on all images, the search has to see all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnet_edge.bundle import Bundle, graph_name
from nnet_edge.calibration.gate import Gate, GateLimits, compare, time_both
from nnet_edge.calibration.predictions import Predictions, TestImages, predict
from nnet_edge.calibration.processor_forms import Form, to_unsigned
from nnet_edge.calibration.qdq import Plan
from nnet_edge.calibration.quantize import quantize
from nnet_edge.calibration.ranges import Activations
from nnet_edge.calibration.sensitivity import Found, Sensitivity, fewest_kept
from nnet_edge.kept_frames import frame_hash
from nnet_edge.known_answers import Answers, answers_at, asked_frames
from nnet_edge.runtime.runners.answers import require_answers
from nnet_edge.runtime.runners.base import Runner, load_runner
from nnet_edge.runtime.runners.structure import any_weights
from nnet_edge.runtime.runners.tiled import tiled
from nnet_edge.settings.runner import RunnerSettings

LEAST_DEFECTS = 5  # in each half: with fewer, one image moves a metric by more than the gate allows


class Halves(NamedTuple):
    """Rows of the test images, int, ascending."""

    seen: np.ndarray
    unseen: np.ndarray


@dataclass(frozen=True)
class Choice:
    """The blocks and layers that stay FP32, and what they were chosen on."""

    kept: tuple[str, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)  # block -> map error when it alone is INT8
    search: Mapping[str, Any] | None = None  # for the manifest; None where nothing had to be searched
    unseen: np.ndarray | None = None  # rows of the test images that they were not chosen on


@dataclass(frozen=True)
class LayerSearch:
    """What a search needs: the plan, what was measured of it, and the judge."""

    planned: Plan
    activations: Activations
    judge: GraphJudge
    say: Callable[[str], None]
    reference: Runner  # the runner that is searched for
    form: Form = to_unsigned  # that it takes

    def content(self, kept: Collection[str]) -> bytes:
        """The INT8 graph with these blocks and layers in FP32."""
        return quantize(self.planned, self.activations, kept, self.form).SerializeToString()

    def choose(self, sensitivity: Sensitivity, seed: int) -> Choice:
        """The layers to keep: found on one half of the labelled images, split by `seed`, where that holds on all."""
        order, costs, judge = sensitivity.order, sensitivity.blocks, self.judge
        halves = None if judge.test is None else choose_halves(judge.test, judge.held_out, seed)
        search: dict[str, Any] = {"on": "all"}
        if halves is not None:
            seen, unseen = len(halves.seen), len(halves.unseen)
            self.say(f"looking on {seen} labelled images; the other {unseen} are left unseen")
            found = self.fewest_kept(order, halves.seen)
            if found.holds:
                predictions = judge.predict(self.content(found.kept), "int8", reference=self.reference)
                gate = judge.compare(self.reference, predictions)
                if gate.accepted:
                    half = {"on": "half", "seed": seed, "seen": seen, "unseen": unseen}
                    return Choice(found.kept, costs, half, halves.unseen)
                self.say(f"found on one half, that fails on all: {'; '.join(gate.reasons)}; looking on all of them")
                elsewhere = judge.compare_rows(self.reference, predictions, halves.unseen)
                verdicts = {"all": gate.as_dict(), "unseen": elsewhere.as_dict()}
                search["failed_half"] = {"kept_in_fp32": list(found.kept)} | verdicts
        found = self.fewest_kept(order)
        if not found.holds:
            self.say("no choice of layers satisfies the gate: what follows has all of them in INT8")
        return Choice(found.kept if found.holds else (), costs, search)

    def fewest_kept(self, order: Sequence[str], rows: np.ndarray | None = None) -> Found[Gate]:
        """The fewest of `order` for which the gate holds on these rows of the test images, or on all."""

        def judge_kept(kept: tuple[str, ...]) -> Gate:
            gate = self.judge.judge(self.content(kept), "int8", rows, self.reference)
            count = f"{len(self.planned.layers_in(kept))} of {len(self.planned.layers)}"
            self.say(f"{count} layers in FP32: {'; '.join(gate.reasons) or 'the gate holds'}")
            return gate

        return fewest_kept(order, judge_kept, lambda gate: gate.accepted)


def choose_halves(test: TestImages, held_out: np.ndarray, seed: int) -> Halves | None:
    """The halves by `seed`, each with its share of every kind; None where either would have fewer than 5 defects.

    Images that are among the `held_out` frames, uint8 RGB (N, H, W, 3), are seen in any case: they chose the threshold.
    """
    rng = np.random.default_rng(seed)
    known = {frame_hash(frame) for frame in held_out}
    kinds = np.array(test.kinds) if test.kinds else test.labels.astype(str)
    seen: list[int] = []
    unseen: list[int] = []
    for kind in np.unique(kinds):
        rows = [row for row in np.flatnonzero(kinds == kind) if frame_hash(test.images[row]) not in known]
        ahead = len(seen) > len(unseen)  # the odd one goes where there are fewer
        middle = (len(rows) + (not ahead)) // 2
        shuffled = rng.permutation(rows).astype(int)
        seen += shuffled[:middle].tolist()
        unseen += shuffled[middle:].tolist()
    seen += sorted(set(range(len(test.labels))) - set(seen) - set(unseen))
    halves = Halves(np.array(sorted(seen), int), np.array(sorted(unseen), int))
    defects = [int(test.labels[rows].sum()) for rows in halves]
    return halves if min(defects) >= LEAST_DEFECTS else None


class GraphJudge:
    """Judges a bundle's graphs: their predictions against those of its FP32 graph, on every runner of the processor.

    A context manager; `kinds` are the runners, of which the first one decides.

    Rows, int (M,), are those of the labelled `test` images that count; None: all of them.
    """

    def __init__(self, bundle: Bundle, test: TestImages | None, kinds: Sequence[str], runner: RunnerSettings,
                 limits: GateLimits, say: Callable[[str], None]) -> None:  # fmt: skip
        self.bundle, self.test, self.kinds = bundle, test, kinds
        self.runner, self.limits, self.say = runner, limits, say
        self.held_out = bundle.frames("held_out")
        self._expected: dict[str, Predictions] = {}  # runner -> of FP32, computed once
        self._stack = ExitStack()

    def __enter__(self) -> GraphJudge:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-calibrate-")))
        runners = [
            tiled(load_runner(self.bundle.graph, replace(self.runner, kind=kind)), self.bundle.geometry)
            for kind in self.kinds
        ]
        self.references: list[Runner] = [self._stack.enter_context(runner) for runner in runners]
        for runner in self.references:
            require_answers(self.bundle, self.bundle.artefacts[0], runner)
        return self

    def __exit__(self, *about: object) -> None:
        self._stack.close()

    def predict_all(self, content: bytes, precision: str, reference: Runner) -> tuple[Predictions, tuple[float, float]]:
        """The graph's predictions for all images on that runner, and the milliseconds of FP32 and of it."""
        with self._load(content, precision, reference.name) as candidate:
            predictions = predict(candidate, self.held_out, self.test, self.bundle.rule)
            return predictions, time_both(reference, candidate, self.held_out)

    def predict(
        self, content: bytes, precision: str, rows: np.ndarray | None = None, reference: Runner | None = None
    ) -> Predictions:
        """The graph's predictions on a runner, or the deciding one, for the held-out frames and these rows."""
        test = self.test if self.test is None or rows is None else self.test.rows(rows)
        with self._load(content, precision, (reference or self.references[0]).name) as candidate:
            return predict(candidate, self.held_out, test, self.bundle.rule)

    def judge(
        self, content: bytes, precision: str, rows: np.ndarray | None = None, reference: Runner | None = None
    ) -> Gate:
        """The verdict of a runner, or the deciding one, without timing, on the held-out frames and these rows."""
        reference = reference or self.references[0]
        predictions = self.predict(content, precision, rows, reference)
        if self.test is None or rows is None:
            return self.compare(reference, predictions)
        expected = self._expected_of(reference).for_rows(self.test, rows, held_out=True)
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

    def answers(self, found: Predictions) -> Answers:
        """The known answers of a graph whose predictions for all images those are."""
        assert found.held_out is not None
        return answers_at(found.held_out, self.bundle.manifest["frames"]["held_out"], asked_frames(self.bundle))

    def _load(self, content: bytes, precision: str, kind: str) -> Runner:
        file = self._folder / graph_name(precision)
        file.write_bytes(content)
        with any_weights():
            return tiled(load_runner(file, replace(self.runner, kind=kind)), self.bundle.geometry)

    def _expected_of(self, reference: Runner) -> Predictions:
        """The predictions of FP32 on that runner."""
        if reference.name not in self._expected:
            self.say(f"predicting with FP32 on {reference.name}")
            self._expected[reference.name] = predict(reference, self.held_out, self.test, self.bundle.rule)
        return self._expected[reference.name]
