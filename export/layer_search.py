"""Which layers of an INT8 graph stay FP32: the fewest for which the gate holds.

Where there are labelled images enough they are searched on one half, and the other half, which they were not chosen on, says
beside the gate what to expect of new images. Where what was found so fails on all images, the search has to see all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnet_edge.calibration.gate import Gate
from nnet_edge.calibration.halves import choose_halves
from nnet_edge.calibration.qdq import Plan
from nnet_edge.calibration.quantize import quantize
from nnet_edge.calibration.ranges import Activations
from nnet_edge.calibration.sensitivity import Found, Sensitivity, fewest_kept
from nnet_edge.export.graph_judge import GraphJudge


@dataclass(frozen=True)
class Choice:
    """The blocks and layers that stay FP32, and what they were chosen on."""

    kept: tuple[str, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)  # block -> map error when it alone is INT8
    search: Mapping[str, Any] | None = None  # for the manifest; None where nothing had to be searched
    unseen: np.ndarray | None = None  # rows of the test images that they were not chosen on


@dataclass(frozen=True)
class LayerSearch:
    """Everything that a search asks: the plan, what was measured of it, and the judge."""

    planned: Plan
    activations: Activations
    judge: GraphJudge
    say: Callable[[str], None]

    def content(self, kept: Collection[str]) -> bytes:
        """The INT8 graph with these blocks and layers in FP32."""
        return quantize(self.planned, self.activations, kept).SerializeToString()

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
                answers = judge.ask(self.content(found.kept), "int8")
                gate = judge.compare(judge.references[0], answers)
                if gate.accepted:
                    half = {"on": "half", "seed": seed, "seen": seen, "unseen": unseen}
                    return Choice(found.kept, costs, half, halves.unseen)
                self.say(f"found on one half, that fails on all: {'; '.join(gate.reasons)}; looking on all of them")
                elsewhere = judge.compare_rows(judge.references[0], answers, halves.unseen)
                search["failed_half"] = {
                    "kept_in_fp32": list(found.kept),
                    "all": gate.as_dict(),
                    "unseen": elsewhere.as_dict(),
                }
        found = self.fewest_kept(order)
        if not found.holds:
            self.say("no choice of layers satisfies the gate: what follows has all of them in INT8")
        return Choice(found.kept if found.holds else (), costs, search)

    def fewest_kept(self, order: Sequence[str], rows: np.ndarray | None = None) -> Found[Gate]:
        """The fewest of `order` for which the gate holds on these rows of the test images, or on all."""

        def judge_kept(kept: tuple[str, ...]) -> Gate:
            gate = self.judge.judge(self.content(kept), "int8", rows)
            count = f"{len(self.planned.layers_in(kept))} of {len(self.planned.layers)}"
            self.say(f"{count} layers in FP32: {'; '.join(gate.reasons) or 'the gate holds'}")
            return gate

        return fewest_kept(order, judge_kept, lambda gate: gate.accepted)
