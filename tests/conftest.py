"""Pictures and one small trained run that the tests share; everything is made here, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.cli.main import run

LEARNED, HELD_OUT = 14, 10


def good_part(seed: int, side: int = 96) -> np.ndarray:
    """A grey washer on a dark belt, uint8 BGR (side, side, 3), a little different with every seed."""
    rng = np.random.default_rng(seed)
    picture = np.full((side, side, 3), 40, np.uint8)
    centre = tuple(int(value) for value in side // 2 + rng.integers(-2, 3, 2))
    cv2.circle(picture, centre, side // 3, (150, 155, 160), -1, cv2.LINE_AA)
    cv2.circle(picture, centre, side // 8, (45, 45, 45), -1, cv2.LINE_AA)
    noise = rng.normal(0, 3, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def bad_part(seed: int, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A washer with a bright stain, and the stain's mask, bool (side, side)."""
    picture = good_part(seed, side)
    mask = np.zeros((side, side), np.uint8)
    cv2.circle(mask, (side // 2 + side // 5, side // 2), side // 10, 255, -1)
    picture[mask > 0] = (30, 220, 240)
    return picture, mask > 0


@pytest.fixture(scope="session")
def washers() -> np.ndarray:
    """Washers of slightly different brightness and place, uint8 RGB (6, 256, 256, 3); not to be written to."""
    pictures = np.full((6, 256, 256, 3), 50, np.uint8)
    for number, picture in enumerate(pictures):
        cv2.circle(picture, (128 + 3 * number, 128), 80, (140 + 9 * number, 150, 160), -1)
        cv2.circle(picture, (128 + 3 * number, 128), 30, (60, 50, 40), -1)
    return pictures


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: the tests' networks are too small to share between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def parts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder: good/ 24, test_good/ 4, bad/stain 4 with masks."""
    root = tmp_path_factory.mktemp("parts")
    for name in ("good", "test_good", "bad/stain", "masks/stain"):
        (root / name).mkdir(parents=True)
    for seed in range(LEARNED + HELD_OUT):
        assert cv2.imwrite(str(root / "good" / f"{seed:02d}.png"), good_part(seed))
    for seed in range(4):
        picture, mask = bad_part(200 + seed)
        assert cv2.imwrite(str(root / "test_good" / f"{seed}.png"), good_part(100 + seed))
        assert cv2.imwrite(str(root / "bad/stain" / f"{seed}.png"), picture)
        assert cv2.imwrite(str(root / "masks/stain" / f"{seed}.png"), 255 * mask.astype(np.uint8))
    return root


@pytest.fixture(scope="session")
def trained_run(parts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `nnet-edge train` leaves for `parts_folder` after a few epochs: training/ and bundle/."""
    out = tmp_path_factory.mktemp("runs") / "parts"
    quick = ["--set", "augmentation_copies=0", "--set", "model.memory_slots=128", "--checkpoint-every", "2"]
    assert run(["train", str(parts_folder), "--out", str(out), "--epochs", "4", "--batch", "7", *quick]) == 0
    return out


@pytest.fixture
def bundle(trained_run: Path) -> Bundle:
    """The bundle of `trained_run`; tests that change it copy the folder first."""
    return read_bundle(trained_run / "bundle")
