"""The optimiser moves the weights as plain Adam does, from its state too."""

from __future__ import annotations

from dataclasses import replace

import torch

from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.base import METHODS
from nnet_edge.methods.nnet.network import NNet, build_nnet
from nnet_edge.methods.nnet.settings import PAPER
from nnet_edge.methods.teacher_weights import RANDOM, load_teacher
from nnet_edge.training.checkpoint import optimiser_tensors, restore_optimiser
from nnet_edge.training.optimiser import build_optimiser, learning_rate, parameter_groups

SETTINGS = replace(PAPER, memory_rate=0.1, model=replace(PAPER.model, memory_slots=32))
RATES = METHODS.find("nnet").parameter_groups(SETTINGS)


def small_network() -> NNet:
    network = build_nnet(SETTINGS.model, load_teacher(find_backbone("efficientnet_lite0"), RANDOM), 0)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def give_gradients(network: NNet, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.trained_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(values)  # as autograd gives it: in the parameter's order


def test_a_state_that_plain_adam_left_goes_on() -> None:
    """Checkpoints written before the fused kernel was used must be read as they are."""
    plain, quick = small_network(), small_network()
    old = torch.optim.Adam(parameter_groups(plain, RATES), SETTINGS.learning_rate, SETTINGS.betas, fused=False)
    give_gradients(plain, 1)
    old.step()
    quick.load_state_dict(plain.state_dict())
    new = build_optimiser(quick, SETTINGS, RATES, "cpu")
    restore_optimiser(
        new,
        {name: value.clone(memory_format=torch.contiguous_format) for name, value in optimiser_tensors(old).items()},
    )
    assert new.param_groups[0]["fused"] is True
    for network, optimiser in ((plain, old), (quick, new)):
        give_gradients(network, 2)
        optimiser.step()
    for expected, found in zip(plain.trained_parameters(), quick.trained_parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    before, after = optimiser_tensors(old), optimiser_tensors(new)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-7)


def test_the_memory_is_a_group_with_a_share_of_the_rate() -> None:
    network = small_network()
    groups = parameter_groups(network, RATES)
    assert network.memory is not None
    assert [group["share"] for group in groups] == [1.0, 0.1]
    assert groups[1]["params"] == [network.memory.memory]
    assert sum(len(group["params"]) for group in groups) == len(list(network.trained_parameters()))


def test_the_cosine_schedule_rises_falls_and_never_ends_at_zero() -> None:
    settings = replace(SETTINGS, schedule="cosine")
    rates = [learning_rate(settings, step, 200) for step in range(200)]
    assert 0 < rates[0] < rates[19] <= settings.learning_rate
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert 0 < rates[-1] < 1e-3 * settings.learning_rate
    assert learning_rate(SETTINGS, 150, 200) == SETTINGS.learning_rate
