"""Teacher and forward student as one grouped network give what the two give one after the other."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from nnet_edge.benchmarks.encoder_pair import ATOL, SCALES, Grouped, Pair, build_sides, command, to_onnx
from nnet_edge.benchmarks.inference_choices import Way
from nnet_edge.config import RunnerSettings
from nnet_edge.model.backbone import build_encoder, find_backbone


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "resnet18"])
def test_both_networks_stay_apart_in_the_grouped_one(backbone: str) -> None:
    torch.manual_seed(3)
    teacher, student = (build_encoder(find_backbone(backbone)).eval() for _ in range(2))
    other = copy.deepcopy(student)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(0.01)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected, found = Pair(teacher, student)(images), Grouped(teacher, student).eval()(images)
        changed = Grouped(teacher, other).eval()(images)
    for one, same, third in zip(expected, found, changed, strict=True):
        torch.testing.assert_close(one, same, atol=ATOL, rtol=1e-4)
        half = one.shape[1] // 2
        torch.testing.assert_close(third[:, :half], same[:, :half], atol=ATOL, rtol=1e-4)
        assert not torch.allclose(third[:, half:], same[:, half:], atol=10 * ATOL)


def test_openvino_computes_the_grouped_network(tmp_path: Path) -> None:
    network = build_sides("resnet18")["one grouped network"]
    image = torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8)
    compiled = Way(to_onnx(network, tmp_path / "pair.onnx"), RunnerSettings("openvino", threads=1))
    with torch.inference_mode():
        expected = network(image)
    compiled(image.numpy())
    for scale, features in zip(SCALES, expected, strict=True):
        found = torch.from_numpy(compiled.tensor(scale))
        torch.testing.assert_close(found, features, atol=1e-3, rtol=1e-3)


def test_the_command_prints_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--backbone", "resnet18", "--rounds", "1"], standalone_mode=False)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| OpenVINO", "| torch"))]
    assert len(rows) == 3
    for row in rows:
        clock, processor = (float(cell) for cell in row.strip("| ").split(" | ")[2:])
        assert 0.01 < clock < 100
        assert 0.01 < processor < 100
