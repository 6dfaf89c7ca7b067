"""The benchmark of the training step: what it undoes is undone, computes the same, and is put back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Conv2d, Module
from torch.nn.modules.module import register_module_forward_hook
from torch.profiler import ProfilerActivity, profile

from nnet_edge.benchmarks.experiments.training_steps import SETTINGS, Choice, choices, costs, measure, row_of
from nnet_edge.methods.compute import choose_precision

SMALL = replace(SETTINGS, batch=2, model=replace(SETTINGS.model, memory_slots=32))
LOSS_RTOL = 2e-2  # of a step in BF16, 8 significant bits, and between steps
CHANNELS_LAST = "convolutions whose maps are channels_last"
Events = Counter[str]
SIGNS: dict[str, Callable[[Events, Events], bool]] = {  # what a profile shows with and without each choice
    "teacher's features": lambda there, undone: undone["aten::conv2d"] > there["aten::conv2d"],
    "BF16": lambda there, undone: undone["aten::_to_copy"] < there["aten::_to_copy"],
    "channels_last": lambda there, undone: 4 * undone[CHANNELS_LAST] < there[CHANNELS_LAST],  # 6 and 62 seen
    "quick depthwise": lambda there, undone: there["_DepthwiseBackward"] == 11 and undone["_DepthwiseBackward"] == 0,
    "memory by": lambda there, undone: undone["aten::mm"] == 0 < there["aten::mm"],
    "cosine": lambda there, undone: undone["_DistanceBackward"] == 0 < there["_DistanceBackward"],
    "Adam": lambda there, undone: undone["aten::_fused_adam_"] == 0 < there["aten::_fused_adam_"],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Choice]:
    return choices(SMALL, tmp_path_factory.mktemp("steps"))


def profiled(choice: Choice) -> tuple[Events, float]:
    """The operations of one step and its loss; after it the weights are as before."""
    network = choice.trainer.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    orders: list[bool] = []

    def note_order(module: Module, inputs: object, outputs: object) -> None:
        if isinstance(module, Conv2d) and isinstance(outputs, Tensor):
            orders.append(outputs.is_contiguous(memory_format=torch.channels_last) and not outputs.is_contiguous())

    hook = register_module_forward_hook(note_order)
    try:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            loss = choice.trainer.train_step(np.arange(2), 0, 0)["loss"]
    finally:
        hook.remove()
    network.load_state_dict(before)
    return Counter(event.name for event in seen.events()) + Counter({CHANNELS_LAST: sum(orders)}), loss


@pytest.fixture(scope="module")
def usual(found: list[Choice]) -> tuple[Events, float]:
    return profiled(found[-1])


@pytest.mark.parametrize("name", SIGNS)
def test_what_is_undone_computes_the_same_by_the_other_way(
    name: str, found: list[Choice], usual: tuple[Events, float]
) -> None:
    if name == "BF16" and choose_precision("auto", "cpu") == "fp32":
        pytest.skip("this processor multiplies no BF16 in hardware")
    (choice,) = (one for one in found if one.name.startswith(name))
    with choice.beside(), choice.undo():
        undone, loss = profiled(choice)
    assert SIGNS[name](usual[0], undone)
    assert loss == pytest.approx(usual[1], rel=LOSS_RTOL)


def test_everything_is_put_back(found: list[Choice], usual: tuple[Events, float]) -> None:
    for choice in found:
        with choice.beside(), choice.undo():
            pass
    events, _ = profiled(found[-1])
    assert not [name for name, is_undone in SIGNS.items() if is_undone(usual[0], events)]


def test_no_choice_is_without_a_test(found: list[Choice]) -> None:
    assert all(any(choice.name.startswith(name) for name in SIGNS) for choice in found)


def test_a_row_holds_the_ratio_of_its_rounds(found: list[Choice]) -> None:
    step_ms, ratios = measure(found[-1], rounds=2)
    assert step_ms > 0
    assert len(ratios) == 2
    assert min(ratios) > 0
    choice = Choice("one", "the other", found[-1].trainer, found[-1].undo)
    assert row_of(choice, 812.4, [1.5, 1.0, 1.25]) == ["one", "the other", "1.25", "1.00 to 1.50", "812"]


def test_costs_are_shares_the_dearest_first(found: list[Choice]) -> None:
    rows = costs(found[-1].trainer)
    shares = [share for _, share, _ in rows]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert {name: count for name, _, count in rows}["_DepthwiseBackward"] == 11
