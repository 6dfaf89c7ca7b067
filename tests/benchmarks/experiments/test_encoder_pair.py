"""Teacher and forward student as one grouped network give what the two give one after the other."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from nnet_edge.benchmarks.experiments.encoder_pair import ATOL, Grouped, Pair
from nnet_edge.methods.backbone import build_encoder, find_backbone


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


def test_the_command_prints_ratios() -> None:
    words = ["-m", "nnet_edge.benchmarks.experiments.encoder_pair", "--backbone", "resnet18", "--rounds", "1"]
    # a process of its own: after its exports in this one, torch 2.13 crashed at another test's alarm signal
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, timeout=300)
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| OpenVINO", "| torch"))]
    assert len(rows) == 3
    for row in rows:
        clock, processor = (float(cell) for cell in row.strip("| ").split(" | ")[2:])
        assert 0.01 < clock < 100
        assert 0.01 < processor < 100
