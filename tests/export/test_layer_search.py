"""What the layers in FP32 are chosen on: one half of the labelled images where that holds on all of them, else all."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from nnet_edge.calibration.gate import Gate
from nnet_edge.calibration.predictions import TestImages
from nnet_edge.calibration.qdq import Plan
from nnet_edge.calibration.ranges import Activations
from nnet_edge.calibration.sensitivity import Sensitivity
from nnet_edge.export.layer_search import Choice, LayerSearch

LAYERS = [f"net.{number}" for number in range(8)]


class CountingJudge:
    """Its gate holds on one half once `on_half` layers are kept, and on all images once `on_all` are."""

    def __init__(self, on_half: int, on_all: int, defects: int = 12) -> None:
        labels = np.arange(20 + defects) >= 20
        images = np.zeros((len(labels), 256, 256, 3), np.uint8)
        self.test = TestImages(images, labels, np.zeros(images.shape[:3], bool), labels)
        self.held_out, self.references = images[:0], ["only"]
        self.on_half, self.on_all = on_half, on_all
        self.asked: list[str] = []

    def judge(self, content: bytes, precision: str, rows: np.ndarray | None, reference: str) -> Gate:
        assert reference == "only"
        self.asked.append("all" if rows is None else "half")
        return gate_of(len(content.split()) >= (self.on_all if rows is None else self.on_half))

    def predict(self, content: bytes, precision: str, *, reference: str) -> int:
        assert reference == "only"
        return len(content.split())

    def compare(self, reference: str, predictions: int) -> Gate:
        return gate_of(predictions >= self.on_all)

    def compare_rows(self, reference: str, predictions: int, rows: np.ndarray) -> Gate:
        return gate_of(predictions >= self.on_all, len(rows))


class NamesOnly(LayerSearch):
    """Its graphs are the names of the layers that are kept."""

    def content(self, kept: Collection[str]) -> bytes:
        return " ".join(kept).encode()


def gate_of(accepted: bool, images: int = 32) -> Gate:
    return Gate(accepted, () if accepted else ("too rough",), "only", None, images, 0, 0, {}, 1.0, {}, None)


def choose(judge: Any) -> tuple[Choice, list[str]]:
    nodes = tuple(helper.make_node("Conv", ["x", f"{layer}.weight"], ["y"], name=layer) for layer in LAYERS)
    planned = Plan(onnx.ModelProto(), nodes, {}, dict.fromkeys(LAYERS, 1), dict.fromkeys(LAYERS, 1))
    sensitivity = Sensitivity(dict.fromkeys(LAYERS, 1.0), {}, dict.fromkeys(LAYERS, 1.0))
    said: list[str] = []
    search = NamesOnly(planned, Activations({}, {}, {}), judge, said.append, judge.references[0])
    return search.choose(sensitivity, seed=3), said


def test_what_one_half_finds_is_taken_where_it_holds_on_all() -> None:
    judge = CountingJudge(on_half=4, on_all=2)
    choice, _ = choose(judge)
    assert choice.kept == tuple(LAYERS[:4])
    assert choice.search == {"on": "half", "seed": 3, "seen": 16, "unseen": 16}
    assert choice.unseen is not None
    assert len(choice.unseen) == 16
    assert set(judge.asked) == {"half"}


def test_where_it_does_not_hold_all_are_searched_and_the_record_says_what_the_unseen_half_said() -> None:
    choice, said = choose(CountingJudge(on_half=2, on_all=5))
    assert choice.kept == tuple(LAYERS[:5])
    assert choice.unseen is None
    assert choice.search is not None
    assert choice.search["on"] == "all"
    failed = choice.search["failed_half"]
    assert failed["kept_in_fp32"] == LAYERS[:2]
    assert (failed["unseen"]["images"], failed["unseen"]["accepted"]) == (16, False)
    assert any("found on one half, that fails on all: too rough" in line for line in said)


@pytest.mark.parametrize("judge", [CountingJudge(1, 3, defects=9), CountingJudge(99, 3)], ids=["few", "half fails"])
def test_too_few_defects_or_a_half_without_a_choice_leave_all(judge: CountingJudge) -> None:
    choice, _ = choose(judge)
    assert choice.kept == tuple(LAYERS[:3])
    assert choice.search == {"on": "all"}


def test_where_nothing_holds_all_layers_are_int8() -> None:
    choice, said = choose(CountingJudge(99, 99))
    assert (choice.kept, choice.unseen) == ((), None)
    assert "no choice of layers satisfies the gate" in said[-1]
