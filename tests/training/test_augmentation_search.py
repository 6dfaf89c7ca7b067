"""The augmentation follows from how parts lie: any way round, or always the same."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from nnet_edge.data.made_sets import picture
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.nnet.network import NNet, build_nnet
from nnet_edge.methods.nnet.settings import ModelSettings
from nnet_edge.methods.teacher_weights import load_teacher
from nnet_edge.settings.augmentation import Augmentation
from nnet_edge.training.augmentation import (
    HALF,
    NONE,
    SMALL,
    TURNED,
    augment,
    choose_augmentation,
    nearest_distance,
    suitable,
)

CPU = Compute("cpu", "fp32")


def arrow(seed: int, turned: bool) -> np.ndarray:
    """A bright arrow on a dark ground, uint8 (256, 256, 3), upright or at a random angle."""
    rng = np.random.default_rng(seed)
    picture = np.full((256, 256, 3), 40, np.uint8)
    cv2.arrowedLine(picture, (128, 210), (128, 50), (200, 210, 220), 14, cv2.LINE_AA, tipLength=0.4)
    cv2.rectangle(picture, (150, 150), (200, 200), (120, 60, 60), -1)
    angle = rng.uniform(0, 360) if turned else rng.uniform(-1, 1)
    turn = cv2.getRotationMatrix2D((128, 128), angle, 1)
    moved = cv2.warpAffine(picture, turn, (256, 256), borderMode=cv2.BORDER_REFLECT_101).astype(float)
    return np.clip(moved + rng.normal(0, 4, moved.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> NNet:
    settings = ModelSettings()
    return build_nnet(settings, load_teacher(find_backbone(settings.backbone)), seed=0).eval()


@pytest.mark.parametrize(("turned", "expected"), [(True, TURNED), (False, SMALL)])
def test_how_parts_lie_decides(network: NNet, turned: bool, expected: object) -> None:
    images = np.stack([arrow(seed, turned) for seed in range(24)])
    choice = choose_augmentation(network, images, copies=4, seed=3, compute=CPU)
    assert choice.lie_any_way is turned
    assert choice.augmentation.copies == 4
    assert choice.augmentation.rotation_degrees == expected.rotation_degrees  # type: ignore[attr-defined]
    assert f"{choice.stranger_when_turned:.1f} times" in choice.sentence()


def test_quarter_turns_must_be_as_normal_as_half_turns() -> None:
    seen = {"cookie": (1.60, 1.63), "gravel": (1.04, 1.01), "casting": (1.0, 1.0)}
    assert {suitable(*ratios) for ratios in seen.values()} == {TURNED}
    assert suitable(0.99, 1.69) == HALF  # brushed metal
    assert suitable(1.52, 4.85) == SMALL  # a tray of pockets: turned by half its items are in wrong places
    assert suitable(3.71, 5.5) == SMALL  # a toy that stands
    assert suitable(1.0, np.inf) == HALF  # pictures that are not square have no quarter turns


def test_brushed_metal_is_turned_by_half_only(network: NNet) -> None:
    images = np.stack([cv2.resize(picture("brushed", "good", np.random.default_rng(seed))[0], (256, 256))
                       for seed in range(16)])  # fmt: skip
    choice = choose_augmentation(network, images, copies=4, seed=3, compute=CPU)
    assert choice.augmentation == replace(HALF, copies=4)
    assert "half turns" in choice.sentence()


def test_half_turns_turn_every_second_copy() -> None:
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    rng = np.random.default_rng(0)
    copies = [augment(image, Augmentation(copies=2, half_turns=True), rng) for _ in range(40)]
    turned = sum(np.array_equal(copy, image[::-1, ::-1]) for copy in copies)
    assert 10 < turned < 30
    assert turned + sum(np.array_equal(copy, image) for copy in copies) == 40


def test_there_is_nothing_to_choose_without_copies(network: NNet) -> None:
    choice = choose_augmentation(network, np.zeros((9, 256, 256, 3), np.uint8), 1, 3, CPU)
    assert choice.augmentation == NONE
    assert not choice.lie_any_way


def test_the_nearest_distance_by_hand() -> None:
    stored = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert nearest_distance(queries, stored) == pytest.approx((0.0 + 0.2) / 2, abs=1e-6)
