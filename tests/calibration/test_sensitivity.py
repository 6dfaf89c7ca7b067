"""Costs of blocks, and the shortest list of them that satisfies a gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from nnet_edge.calibration.qdq import Plan, insert_qdq
from nnet_edge.calibration.ranges import Activations
from nnet_edge.calibration.sensitivity import Sensitivity, fewest_kept, loudest, measure_sensitivity

ORDER = [f"block{n}" for n in range(13)]


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 11, 12])
def test_the_fewest_blocks_are_kept(needed: int) -> None:
    found = fewest_kept(ORDER, len, lambda count: count >= needed)
    assert (found.holds, len(found.kept), found.verdict) == (True, needed, needed)
    assert found.kept == tuple(ORDER[:needed])
    assert found.tried <= 11


def test_a_gate_that_never_holds_leaves_one_block_and_says_so() -> None:
    found = fewest_kept(ORDER, len, lambda count: False)
    assert not found.holds
    assert len(found.kept) == 12


def test_loud_blocks_make_nearly_all_of_the_error() -> None:
    assert loudest({"a": 0.1, "b": 10.0, "c": 0.2, "d": 5.0}) == ["b", "d"]
    assert loudest({"a": 1.0}) == ["a"]
    assert loudest({"a": 0.1, "b": np.inf, "c": 3.0}) == ["b"], "NaN in the maps drowns all others"


def test_the_order_weighs_cost_against_work() -> None:
    blocks = {"t.0.0": 2.0, "t.0.1": 1.9, "t.0.2": 0.1}
    layers = {"t.0.0.conv_dw": 1.9, "t.0.0.conv_pw": 0.2}
    efforts = {"t.0.0": 1.0, "t.0.1": 10.0, "t.0.2": 0.001, "t.0.0.conv_dw": 0.1, "t.0.0.conv_pw": 0.9}
    order = Sensitivity(blocks, layers, efforts).order
    assert order == ["t.0.0.conv_dw", "t.0.2", "t.0.1", "t.0.0.conv_pw"], (
        "a block taken apart stands for itself no more"
    )


def test_costs_of_the_real_graph_show_a_block_that_was_spoiled(
    planned: Plan, activations: Activations, frames: np.ndarray
) -> None:
    """Of four blocks the one whose input range is 1000 times too wide costs the most by far."""
    names = ["teacher.stages.1.0.1", "fusion.mix.0", "reverse_student.stages.1.1", "forward_student.stages.1.0.1"]
    layers = [layer for name in names for layer in planned.blocks[name]]
    some = Plan(
        planned.model, tuple(planned.layers[layer] for layer in layers), {}, planned.multiplications, planned.moved
    )
    spoiled = planned.layers["reverse_student.stages.1.1.body.0"].input[0]
    wide = replace(activations, ranges={**activations.ranges, spoiled: 1000 * activations.ranges[spoiled]})
    steps: list[tuple[int, int]] = []
    found = measure_sensitivity(
        some, wide, frames[:1], 1e-3, lambda done, total: steps.append((done, total)), threads=1
    )
    assert list(found.blocks) == list(some.blocks)
    assert all(cost > 0 for cost in found.blocks.values())
    assert max(found.blocks, key=lambda name: found.blocks[name]) == "reverse_student.stages.1.1"
    assert steps[-1][0] == steps[-1][1] == len(found.blocks) + len(found.layers)
    assert isinstance(insert_qdq(some, wide, kept=[found.order[0]]), onnx.ModelProto)
