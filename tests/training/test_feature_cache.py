"""The kept teacher features are the teacher's, row by row, in memory as on disk."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.compute import CHUNK, Compute
from nnet_edge.methods.nnet.network import NNet, build_nnet
from nnet_edge.methods.nnet.settings import PAPER
from nnet_edge.methods.teacher_weights import load_teacher
from nnet_edge.training.feature_cache import FeatureCache, fill_cache, removing_cache

FEATURE_ATOL = 2e-4  # FP32, features up to 30; another batch size takes the sums in another order
IMAGES = 3
BYTES_AN_IMAGE = 4 * (24 * 64 * 64 + 40 * 32 * 32 + 112 * 16 * 16)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network() -> NNet:
    settings = replace(PAPER.model, memory_slots=8, use_forward=False)
    return build_nnet(settings, load_teacher(find_backbone("efficientnet_lite0")), seed=0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


@dataclass(frozen=True)
class Typed(Compute):
    """Computes in FP32 and keeps features in any type."""

    kept: torch.dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        return self.kept


def filled(
    network: NNet, images: np.ndarray, folder: Path, limit: int, dtype: torch.dtype = torch.float32
) -> FeatureCache:
    return fill_cache(network, images, Typed("cpu", "fp32", dtype), folder, limit)


def test_features_are_the_teacher_s(network: NNet, images: np.ndarray, tmp_path: Path) -> None:
    cache = filled(network, images, tmp_path, BYTES_AN_IMAGE * IMAGES)
    rows = np.array([2, 0])
    with torch.no_grad():
        expected = network.teacher(network.normalise(torch.from_numpy(images[rows])))
    for found, value in zip(cache.features(rows), expected, strict=True):
        torch.testing.assert_close(found, value, atol=FEATURE_ATOL, rtol=1e-4)
    assert cache.bytes == BYTES_AN_IMAGE * IMAGES
    assert cache.teacher_ms > 0
    assert cache.folder is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_disk_as_in_memory(network: NNet, images: np.ndarray, dtype: torch.dtype, tmp_path: Path) -> None:
    in_memory = filled(network, images, tmp_path, 1 << 30, dtype)
    on_disk = filled(network, images, tmp_path, BYTES_AN_IMAGE // 2, dtype)
    rows = np.arange(IMAGES)
    for one, other in zip(in_memory.features(rows), on_disk.features(rows), strict=True):
        assert one.dtype == other.dtype == dtype
        assert torch.equal(one, other)
    assert on_disk.folder == tmp_path
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == on_disk.bytes


def test_more_images_than_the_teacher_takes_at_once(network: NNet, images: np.ndarray, tmp_path: Path) -> None:
    many = np.concatenate([images[:1]] * CHUNK + [images[1:2]])
    last = filled(network, many, tmp_path, 1 << 30).features(np.array([CHUNK]))
    alone = filled(network, images[1:2], tmp_path, 1 << 30).features(np.array([0]))
    for one, other in zip(last, alone, strict=True):
        torch.testing.assert_close(one, other, atol=FEATURE_ATOL, rtol=1e-4)


def test_files_go_when_the_training_ends_however_it_ends(network: NNet, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("of somebody else")
    found: list[Path] = []

    def break_in_the_middle() -> None:
        with removing_cache(tmp_path):
            filled(network, images[:1], tmp_path, 0)
            found.extend(tmp_path.iterdir())
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        break_in_the_middle()
    assert len(found) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


def test_files_of_a_killed_training_are_replaced(network: NNet, images: np.ndarray, tmp_path: Path) -> None:
    filled(network, images, tmp_path, 0)
    again = filled(network, images[:1], tmp_path, 0)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == again.bytes


def test_disk_without_room_is_an_error_that_names_the_file(network: NNet, images: np.ndarray, tmp_path: Path) -> None:
    """Never a process that the system kills when a mapped page finds no room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # files of 1 MiB at most, as on a full disk
    try:
        with pytest.raises(OSError, match="no room for") as caught:
            filled(network, images, tmp_path, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == tmp_path / "features_0.bin"


def test_standardised_channels_have_mean_0_and_deviation_1(images: np.ndarray, tmp_path: Path) -> None:
    settings = replace(PAPER.model, memory_slots=8, use_forward=False, standardise=True)
    network = build_nnet(settings, load_teacher(find_backbone("efficientnet_lite0")), seed=0)
    network.measure_channels(images, Compute("cpu", "fp32"))
    for values in filled(network, images, tmp_path, 1 << 30).maps:
        channels = values.double().permute(1, 0, 2, 3).flatten(1)
        torch.testing.assert_close(
            channels.mean(dim=1), torch.zeros(len(channels), dtype=torch.float64), atol=1e-4, rtol=0
        )
        deviation = channels.std(dim=1, correction=0)
        assert float(deviation.max()) == pytest.approx(1, abs=1e-3)
        assert float(deviation.median()) == pytest.approx(1, abs=1e-3)


def test_unstandardised_features_are_left_alone(network: NNet, images: np.ndarray) -> None:
    normalised = network.normalise(torch.from_numpy(images[:1]))
    with torch.no_grad():
        raw = network.teacher(normalised)
    assert all(torch.equal(one, other) for one, other in zip(network.teacher_features(normalised), raw, strict=True))
