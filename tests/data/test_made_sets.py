"""Made sets: the same seed gives the same pixels, a defect changes them where its mask is, a folder can be trained on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from nnet_edge.cli.main import commands
from nnet_edge.data.layouts import read_dataset
from nnet_edge.data.made_sets import FULL_WELL, GOOD, READ_NOISE, SETS, exposed, lit, picture, write_set
from nnet_edge.errors import ConfigError
from nnet_edge.image_files import read_image, read_mask

DEFECTS = [(name, defect) for name, made in SETS.items() for defect in made.defects]


@pytest.mark.parametrize("name", SETS)
def test_a_good_picture_has_the_size_of_its_set_and_no_defect(name: str) -> None:
    image, mask = picture(name, GOOD, np.random.default_rng(0))
    assert image.shape == (SETS[name].height, SETS[name].width, 3)
    assert image.dtype == np.uint8
    assert not mask.any()
    assert 20 < image.mean() < 230
    assert (image == 255).mean() < 0.01  # not burnt out


@pytest.mark.parametrize(("name", "defect"), DEFECTS)
def test_a_defect_is_marked_and_can_be_seen(name: str, defect: str) -> None:
    made = SETS[name]
    for seed in range(4):
        light, mask = made.scene(defect, np.random.default_rng(seed))
        twin, empty = made.scene(GOOD, np.random.default_rng(seed))
        change = np.abs(cv2.GaussianBlur(light - twin, (0, 0), 1.0)).max(axis=2)
        assert 0 < mask.mean() < 0.2
        assert not empty.any()
        assert change[mask].max() > 0.03  # eight grey levels, and noise averages out
        near = cv2.dilate(mask.astype(np.uint8), np.ones((31, 31))) > 0
        if (name, defect) != ("dial", "range"):  # there the pointer has left its place
            assert change[~near].max(initial=0) < 0.03  # nothing else is strange


def test_noise_is_that_of_the_photons_and_the_reader() -> None:
    for light in (0.05, 0.5, 0.9):
        spreads = [
            exposed(np.full((64, 64, 1), light, np.float32), np.random.default_rng(seed)).std() for seed in range(4)
        ]
        expected = 255 / FULL_WELL * np.sqrt(light * FULL_WELL + READ_NOISE**2)
        expected = np.hypot(expected, 12**-0.5)  # rounding to grey levels
        assert np.mean(spreads) == pytest.approx(expected, rel=0.05)


def test_a_slope_that_faces_the_lamp_is_brighter() -> None:
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    side = again.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:8, :8].astype(float)
    towards = -(rows * np.sin(side) + columns * np.cos(side)) * 0.3
    albedo = np.ones((8, 8, 3), np.float32)
    facing = lit(towards, albedo, rng)
    away = lit(-towards, albedo, np.random.default_rng(5))
    assert facing[4, 4, 0] > away[4, 4, 0] + 0.1


def test_a_set_is_a_folder_to_train_on_and_comes_out_the_same_again(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_set("bricks", tmp_path / place, seed=3, test_good=2, test_each=1)
    one, two = (sorted((tmp_path / place).rglob("*.png")) for place in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    dataset = read_dataset(tmp_path / "one")
    assert len(dataset.train) == SETS["bricks"].good
    bad = [sample for sample in dataset.test if sample.is_anomalous]
    assert sorted(sample.defect for sample in bad) == sorted(SETS["bricks"].defects)
    for sample in bad:
        assert sample.mask_path is not None
        assert read_mask(sample.mask_path).shape == read_image(sample.path).shape[:2]
    with pytest.raises(ConfigError):
        write_set("bricks", tmp_path / "one")


def test_unknown_names_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no made set 'x': choose brushed"):
        write_set("x", tmp_path / "x")
    with pytest.raises(ConfigError, match="no defect 'rust' in the set tray: choose good, missing"):
        picture("tray", "rust", np.random.default_rng(0))
    result = CliRunner().invoke(commands, ["bench", "sets", str(tmp_path / "out"), "--set", "x"])
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_sets_it_is_asked_for(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["bench", "sets", str(tmp_path / "out"), "--set", "bricks"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bricks"]
