"""Checkpoints: everything comes back, writing is atomic, and what cannot be read says so."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nnet_edge.errors import TrainingError
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.nnet.network import build_nnet
from nnet_edge.methods.nnet.settings import PAPER
from nnet_edge.methods.teacher_weights import load_teacher
from nnet_edge.training.checkpoint import (
    CHECKPOINT,
    HELD_OUT,
    Checkpoint,
    optimiser_tensors,
    read_checkpoint,
    read_held_out,
    restore_optimiser,
    write_checkpoint,
    write_held_out,
)

FACTS = {
    "epoch": 3,
    "step": 1,
    "sums": {"loss": 0.1 + 0.2},
    "seconds": 1.5,
    "finished": False,
    "teacher": {"origin": "here"},
}


def some_checkpoint(seed: int = 0, rows: int = 3) -> Checkpoint:
    generator = torch.Generator().manual_seed(seed)
    network = {
        "part.weight": torch.randn(rows, 4, generator=generator),
        "part.image": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "part.num_batches_tracked": torch.tensor(7),
    }
    averaged = {name: value.clone() + 1 for name, value in network.items()}
    optimiser = {"0.step": torch.tensor(12.0), "0.exp_avg": torch.randn(rows, 4, generator=generator)}
    best = {name: value.clone() + 2 for name, value in network.items()}
    return Checkpoint(replace(PAPER, seed=seed), network, averaged, optimiser, FACTS, best)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.settings == other.settings
    assert one.facts == other.facts
    for part in ("network", "averaged", "best", "optimiser"):
        first, second = getattr(one, part), getattr(other, part)
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert value.dtype == second[name].dtype
            assert torch.equal(value, second[name]), name


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The operating system refuses files above 64 KiB, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_everything_comes_back(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, some_checkpoint())
    assert path == tmp_path / CHECKPOINT
    for place in (tmp_path, path):
        assert_same(read_checkpoint(place), some_checkpoint())
    assert (read_checkpoint(path).epoch, read_checkpoint(path).step) == (3, 1)


def test_a_newer_checkpoint_replaces_the_older(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, some_checkpoint(1))
    write_checkpoint(tmp_path, some_checkpoint(2))
    assert_same(read_checkpoint(tmp_path), some_checkpoint(2))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_failing_write_leaves_the_old_one(tmp_path: Path, small_files_only: None) -> None:
    write_checkpoint(tmp_path, some_checkpoint(1))
    with pytest.raises(OSError, match="File too large"):
        write_checkpoint(tmp_path, some_checkpoint(2, rows=1 << 14))
    assert_same(read_checkpoint(tmp_path), some_checkpoint(1))
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_missing_checkpoint_says_where(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint at"):
        read_checkpoint(tmp_path)
    with pytest.raises(TrainingError, match=r"absent.*train first"):
        read_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_not_readable(share: float, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, some_checkpoint())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TrainingError, match="no readable checkpoint"):
        read_checkpoint(tmp_path)


def test_other_safetensors_are_no_checkpoint(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / CHECKPOINT)
    with pytest.raises(TrainingError, match="no checkpoint of this version"):
        read_checkpoint(tmp_path)


def test_network_of_a_checkpoint_has_the_weights_to_deploy() -> None:
    settings = replace(PAPER, model=replace(PAPER.model, memory_slots=16))
    network = build_nnet(settings.model, load_teacher(find_backbone("efficientnet_lite0")), seed=0)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    averaged = {name: value + 1 for name, value in state.items()}
    plain = Checkpoint(settings, state, {}, {}, FACTS).build_network()
    smooth = Checkpoint(settings, state, averaged, {}, FACTS).build_network()
    for built, expected in ((plain, state), (smooth, averaged)):
        assert not built.training
        assert all(torch.equal(value, expected[name]) for name, value in built.state_dict().items())


def test_optimiser_goes_on_as_if_never_stopped() -> None:
    def a_model() -> torch.nn.Sequential:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 2, 3))
        return model.to(memory_format=torch.channels_last)

    def steps(model: torch.nn.Module, optimiser: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            optimiser.zero_grad()
            model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
            optimiser.step()

    straight = a_model()
    steps(straight, torch.optim.Adam(straight.parameters(), 0.01), range(6))
    stopped = a_model()
    optimiser = torch.optim.Adam(stopped.parameters(), 0.01)
    steps(stopped, optimiser, range(3))
    stored = {name: value.clone().contiguous() for name, value in optimiser_tensors(optimiser).items()}
    again = torch.optim.Adam(stopped.parameters(), 0.01)
    restore_optimiser(again, stored)
    steps(stopped, again, range(3, 6))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, stopped.state_dict()[name]), name


def test_held_out_images_come_back(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    write_held_out(tmp_path, images[:, ::-1])  # not contiguous
    found = read_held_out(tmp_path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images[:, ::-1])


def test_missing_or_damaged_held_out_images_say_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="missing or damaged"):
        read_held_out(tmp_path)
    (tmp_path / HELD_OUT).write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="missing or damaged"):
        read_held_out(tmp_path)
