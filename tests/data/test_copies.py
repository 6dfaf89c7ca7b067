"""Copies of good images: on one side of the hold-out, and counted once."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nnet_edge.data.copies import equal_parts, near_parts
from nnet_edge.data.example_parts import make_part
from nnet_edge.data.holding_out import hold_out, with_held_out_images
from nnet_edge.data.images import read_dataset
from nnet_edge.data.training_data import load_training_data
from nnet_edge.errors import DataError


def parts(count: int, seed: int = 0) -> np.ndarray:
    """Good parts of the demo's line at the size of the graph's input."""
    rng = np.random.default_rng(seed)
    kinds = ("brick", "gravel", "grass")
    pictures = [make_part(kinds[number % 3], "good", rng).image for number in range(count)]
    return np.array([cv2.resize(picture, (256, 256)) for picture in pictures])


def folder(tmp_path: Path, images: np.ndarray, copies: dict[int, int]) -> Path:
    """A data folder of `images`, each of them as often as `copies` says, else once; copies differ in format and name."""
    good = tmp_path / "photos/good"
    good.mkdir(parents=True)
    for number, image in enumerate(images):
        for copy in range(copies.get(number, 1)):
            Image.fromarray(image).save(good / f"{copy}_{number:03}.{'png' if copy % 2 else 'bmp'}")
    return tmp_path / "photos"


def test_equal_pixels_have_one_number() -> None:
    images = parts(4)
    assert equal_parts(images) == [0, 1, 2, 3]
    assert equal_parts(images[[0, 1, 0, 3, 1]]) == [0, 1, 0, 2, 1]
    assert equal_parts(images[:0]) == []
    blank = np.zeros((3, 256, 256, 3), np.uint8)
    assert near_parts(blank, equal_parts(blank)) == [0, 0, 0]


def saved_as_jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def test_near_copies_have_one_number_and_other_parts_their_own() -> None:
    images = parts(12)
    noise = np.random.default_rng(1).normal(0, 3, images[0].shape)
    altered = [
        saved_as_jpeg(images[0]),
        np.clip(images[1] * 1.05 + 6, 0, 255).astype(np.uint8),
        np.clip(images[2] + noise, 0, 255).astype(np.uint8),
    ]
    several = np.array([*images, *altered])
    equal = equal_parts(several)
    assert equal == list(range(15))
    assert near_parts(several, equal) == [*range(12), 0, 1, 2]


def test_frames_of_one_video_have_one_number_through_each_other() -> None:
    large = np.kron(np.random.default_rng(0).integers(0, 256, (40, 60)), np.ones((16, 16))).astype(np.uint8)
    soft = cv2.GaussianBlur(large, (0, 0), 6)
    frames = np.array([np.dstack([soft[200:456, x : x + 256]] * 3) for x in range(30)])
    other = np.array([np.dstack([soft[380:636, x : x + 256]] * 3) for x in (300, 640)])
    numbers = near_parts(together := np.concatenate([frames, other]), equal_parts(together))
    assert numbers == [0] * 30 + [1, 2]


def test_a_split_without_copies_is_the_one_that_it_always_was() -> None:
    paths = [Path(f"{index:03}.png") for index in range(60)]
    order = np.random.default_rng(7).permutation(60)[:10]  # as 0.1.0 chose
    held = [paths[index] for index in sorted(order.tolist())]
    for numbers in (None, list(range(60)), list(range(60))[::-1]):
        assert hold_out(paths, 7, parts=numbers) == ([path for path in paths if path not in held], held)


def test_a_part_is_learned_in_all_its_images_or_held_out_in_one() -> None:
    paths = [Path(f"{index:03}.png") for index in range(90)]
    numbers = [index // 3 for index in range(90)]  # three images of each part
    learned, held = hold_out(paths, 0, parts=numbers)
    assert (len(learned), len(held)) == (60, 10)
    part_of = dict(zip(paths, numbers, strict=True))
    assert len({part_of[path] for path in held}) == 10
    assert not {part_of[path] for path in held} & {part_of[path] for path in learned}
    assert (learned, held) == (sorted(learned), sorted(held))


def test_a_part_with_many_images_is_learned() -> None:
    paths = [Path(f"{index:03}.png") for index in range(60)]
    numbers = [min(index, 14) for index in range(60)]  # the last of 15 parts has 46 images
    for seed in range(10):
        learned, held = hold_out(paths, seed, parts=numbers)
        assert set(paths[14:]) <= set(learned)
        assert len(held) == 10


def test_copies_do_not_count_as_parts(tmp_path: Path) -> None:
    dataset = read_dataset(folder(tmp_path, parts(1), {0: 14}))
    with pytest.raises(
        DataError, match=r"14 good images, which show 1 distinct parts \(the rest are copies\), are too few"
    ):
        load_training_data(dataset, 0)


def test_training_data_with_copies(tmp_path: Path) -> None:
    dataset = read_dataset(folder(tmp_path, parts(14), {0: 3, 5: 2, 9: 4}))
    data = load_training_data(dataset, 3)
    assert (data.facts["distinct"], data.facts["held_out"], len(data.held_out)) == (14, 10, 10)
    assert data.facts["learned"] + data.facts["held_out"] + data.facts["left_out"] == 20
    assert len(set(equal_parts(data.held_out))) == 10
    both = equal_parts(np.concatenate([data.held_out, data.learned]))
    assert not set(both[:10]) & set(both[10:])
    assert data.near is None
    judged = with_held_out_images(dataset, data.facts)  # evaluation takes the very same ones
    assert len(judged.test) == 10
    again = np.array([np.asarray(Image.open(sample.path)) for sample in judged.test])
    np.testing.assert_array_equal(again, data.held_out)


def test_near_copies_are_told_of_or_kept_together(tmp_path: Path) -> None:
    images = parts(16)
    root = folder(tmp_path, images, {})
    for number in range(4):
        Image.fromarray(saved_as_jpeg(images[number])).save(root / f"good/again_{number}.png")
    dataset = read_dataset(root)
    told = load_training_data(dataset, 0)
    assert (told.facts["distinct"], told.facts["distinct_by_near_copies"], told.facts["left_out"]) == (20, 16, 0)
    assert told.near is not None
    assert told.near[1].name.startswith("again_")
    kept = load_training_data(dataset, 0, together="near")
    assert kept.near is None
    assert kept.facts["held_out"] == 10
    joined = np.concatenate([kept.held_out, kept.learned])
    numbers = near_parts(joined, equal_parts(joined))
    assert not set(numbers[:10]) & set(numbers[10:])
    judged = with_held_out_images(dataset, kept.facts)
    assert [sample.path for sample in judged.test] != [
        sample.path for sample in with_held_out_images(dataset, told.facts).test
    ]
    assert len(judged.test) == 10
