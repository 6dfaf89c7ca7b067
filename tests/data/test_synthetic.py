"""Anomaly synthesis against plain loops over the written formulas, its determinism, and input that cannot be used."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.data.noise import perlin, simplex
from nnet_edge.data.synthetic import PairSynthesis, grabcut_foreground, perlin_mask
from nnet_edge.data.textures import FIELDS, MOST_TEXTURES, augmented, load_textures, procedural_textures, turned
from nnet_edge.errors import ConfigError
from nnet_edge.geometry import Box
from nnet_edge.settings.synthesis import Synthesis


@pytest.fixture(scope="module")
def good() -> np.ndarray:
    """Bright discs on a dark belt, uint8 (4, 256, 256, 3)."""
    rng = np.random.default_rng(0)
    pictures = np.full((4, 256, 256, 3), 40.0)
    for number, picture in enumerate(pictures):
        cv2.circle(picture, (110 + 10 * number, 128), 60, (200, 180, 150), -1)
    return (pictures + rng.normal(0, 3, pictures.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def make(good: np.ndarray) -> Callable[..., PairSynthesis]:
    """Makes a synthesis of `good` with these settings; the procedural textures of a seed are the same ones."""
    return lambda seed=3, **settings: PairSynthesis(Synthesis(**settings), seed, good)


def perlin_by_loops(side: int, rows: int, columns: int, angles: np.ndarray, y: int, x: int) -> float:
    """The noise at one pixel, as the formula is written."""

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    def between(a: float, b: float, t: float) -> float:
        return a + (b - a) * t

    v, u = y * rows / side, x * columns / side
    i, j = int(v), int(u)
    corners = [
        [math.cos(angles[i + a, j + b]) * (v - i - a) + math.sin(angles[i + a, j + b]) * (u - j - b) for b in (0, 1)]
        for a in (0, 1)
    ]
    left, right = (between(corners[0][b], corners[1][b], fade(v - i)) for b in (0, 1))
    return math.sqrt(2) * between(left, right, fade(u - j))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 32), (16, 4)])
def test_perlin_is_the_written_formula(rows: int, columns: int) -> None:
    angles = np.random.default_rng(rows).uniform(0, 2 * np.pi, (rows + 1, columns + 1))
    noise = perlin((256, 256), rows, columns, angles)
    for y, x in [(0, 0), (255, 255), *np.random.default_rng(1).integers(0, 256, (300, 2)).tolist()]:
        assert noise[y, x] == pytest.approx(perlin_by_loops(256, rows, columns, angles, y, x), abs=2e-6)


def test_the_mask_is_the_turned_noise_above_one_half() -> None:
    """The draws in order: grid, gradients, angle. OpenCV turns to 1/32 of a pixel: about 0.5 it may differ."""
    compared = 0
    for seed in range(6):
        mask, rng = perlin_mask(np.random.default_rng(seed), (256, 256)), np.random.default_rng(seed)
        rows, columns = (2**power for power in rng.integers(0, 6, 2).tolist())
        angles = rng.uniform(0, 2 * np.pi, (rows + 1, columns + 1))
        angle = math.radians(rng.uniform(-90, 90))

        def noise(y: int, x: int, rows: int = rows, columns: int = columns, angles: np.ndarray = angles) -> float:
            is_inside = 0 <= y < 256 and 0 <= x < 256
            return perlin_by_loops(256, rows, columns, angles, y, x) if is_inside else 0.0

        for y, x in np.random.default_rng(seed + 9).integers(0, 256, (400, 2)).tolist():
            u = math.cos(angle) * (x - 127.5) - math.sin(angle) * (y - 127.5) + 127.5
            v = math.sin(angle) * (x - 127.5) + math.cos(angle) * (y - 127.5) + 127.5
            i, j = math.floor(v), math.floor(u)
            four = [noise(i + a, j + b) for a in (0, 1) for b in (0, 1)]
            weights = [(1 - v + i) * (1 - u + j), (1 - v + i) * (u - j), (v - i) * (1 - u + j), (v - i) * (u - j)]
            value = sum(weight * one for weight, one in zip(weights, four, strict=True))
            if abs(value - 0.5) > (max(four) - min(four)) / 16 + 1e-5:
                assert mask[y, x] == (value > 0.5)
                compared += 1
    assert compared > 2000


def test_simplex_noise_is_the_written_formula() -> None:
    """Gustavson's noise at single points: the four corners of the simplex around it, each falling by (0.6 - r^2)^4."""
    rng = np.random.default_rng(5)
    permutation, points = rng.permutation(256), rng.uniform(-20, 20, (3, 60)).astype(np.float32)
    edges = [(1, 1, 0), (-1, 1, 0), (1, -1, 0), (-1, -1, 0), (1, 0, 1), (-1, 0, 1), (1, 0, -1), (-1, 0, -1),
             (0, 1, 1), (0, -1, 1), (0, 1, -1), (0, -1, -1)]  # fmt: skip
    found = simplex(points, permutation)
    for place, (x, y, z) in enumerate(points.T.astype(float)):
        cell = [math.floor(value + (x + y + z) / 3) for value in (x, y, z)]
        first = [value - (one - sum(cell) / 6) for value, one in zip((x, y, z), cell, strict=True)]
        order = sorted(range(3), key=lambda axis: -first[axis])
        corner, total = [0, 0, 0], 0.0
        for number in range(4):
            way = [first[axis] - corner[axis] + number / 6 for axis in range(3)]
            i, j, k = ((cell[axis] + corner[axis]) & 255 for axis in range(3))
            edge = edges[permutation[(i + permutation[(j + permutation[k]) & 255]) & 255] % 12]
            reach = max(0.6 - sum(value**2 for value in way), 0) ** 4
            total += reach * sum(one * value for one, value in zip(edge, way, strict=True))
            if number < 3:
                corner[order[number]] = 1
        assert found[place] == pytest.approx(32 * total, abs=2e-4)
    assert np.abs(found).max() > 0.3


def test_blend_is_the_written_formula(make: Callable[..., PairSynthesis], good: np.ndarray) -> None:
    synthesis = make()
    for row in range(4):
        damaged, mask = synthesis.pair(row, 7)
        rng = np.random.default_rng([3, 5, 7, row])
        assert rng.random() < 1
        np.testing.assert_array_equal(mask, perlin_mask(rng, (256, 256)))
        texture, beta = synthesis.textures[rng.integers(len(synthesis.textures))], rng.uniform(0, 0.8)
        inside = mask[..., None].astype(float)
        expected = good[row] * (1 - inside) + (1 - beta) * texture * inside + beta * good[row] * inside
        assert np.abs(damaged - expected).max() <= 0.51
        np.testing.assert_array_equal(damaged[~mask], good[row][~mask])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"texture_augmentation": "draem", "noise": 3.0},
        {"kind": "simplex"},
        {"kind": "cutpaste"},
        {"foreground": "otsu"},
    ],
    ids=str,
)
def test_seed_step_and_row_decide_whatever_the_threads(make: Callable[..., PairSynthesis], settings: dict) -> None:
    one, other = make(**settings), make(**settings)
    asked = [(row, step) for step in range(3) for row in range(4)]
    in_order = [one.pair(*place) for place in asked]
    with ThreadPoolExecutor(5) as pool:
        at_once = list(pool.map(lambda place: other.pair(*place), reversed(asked)))[::-1]
    for first, second in zip(in_order, at_once, strict=True):
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
    images, masks = one.pairs([2, 0], 1)
    np.testing.assert_array_equal(images[0], in_order[asked.index((2, 1))][0])
    np.testing.assert_array_equal(masks[1], in_order[asked.index((0, 1))][1])
    assert len({mask.tobytes() for _, mask in in_order if mask.any()}) == sum(mask.any() for _, mask in in_order)
    assert not all(
        np.array_equal(a[0], b) for a, b in zip(in_order[:4], make(4, **settings).pairs(range(4), 0)[0], strict=True)
    )


@pytest.mark.parametrize("kind", ["simplex", "cutpaste"])
def test_only_the_rectangle_changes(make: Callable[..., PairSynthesis], good: np.ndarray, kind: str) -> None:
    for step in range(20):
        damaged, mask = make(kind=kind).pair(step % 4, step)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == height * width, "no rectangle"
        if kind == "simplex":
            assert 10 <= min(height, width) <= max(height, width) <= 31
        else:
            assert 0.018 < mask.mean() < 0.16
        np.testing.assert_array_equal(damaged[~mask], good[step % 4][~mask])
        assert (damaged != good[step % 4]).any(axis=2)[mask].mean() > 0.3


def test_probability_and_noise_outside_the_mask(make: Callable[..., PairSynthesis], good: np.ndarray) -> None:
    rare = make(kind="cutpaste", probability=0.25)
    assert 5 <= sum(rare.pair(0, step)[1].any() for step in range(60)) <= 25
    damaged, mask = make(noise=4.0).pair(1, 0)
    change = (damaged.astype(float) - good[1])[~mask]
    assert 3.5 < change.std() < 4.5
    np.testing.assert_array_equal(damaged[mask], make().pair(1, 0)[0][mask])


def test_anomalies_stay_on_the_foreground(make: Callable[..., PairSynthesis], good: np.ndarray) -> None:
    part = good.mean(axis=3) > 110
    for rule, expected, rows in (("grabcut", part, (0,)), ("otsu", ~part, range(4))):  # GrabCut takes its time
        synthesis = make(foreground=rule)
        for row in rows:
            found = synthesis.foreground(row)
            assert (found & expected[row]).sum() / (found | expected[row]).sum() > 0.97
            _, free = make().pair(row, 2)
            np.testing.assert_array_equal(synthesis.pair(row, 2)[1], free & found)


def test_grabcut_finds_the_same_in_every_thread(good: np.ndarray) -> None:
    cv2.setRNGSeed(99)
    with ThreadPoolExecutor(1) as pool:
        np.testing.assert_array_equal(pool.submit(grabcut_foreground, good[1]).result(), grabcut_foreground(good[1]))


def test_a_foreground_that_no_image_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="foreground grabcut finds no part in 3 images"):
        PairSynthesis(Synthesis(foreground="grabcut", kind="cutpaste"), 0, np.full((3, 256, 256, 3), 90, np.uint8))


def test_arrays_that_are_no_inputs_are_refused() -> None:
    for shape in ((2, 32, 256, 3), (2, 256, 256, 1), (256, 256, 3)):
        with pytest.raises(ConfigError, match=r"of at least 64 pixels a side, as inputs have, not uint8 \("):
            PairSynthesis(Synthesis(), 0, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("kind", ["perlin", "simplex", "cutpaste"])
@pytest.mark.parametrize("size", [(64, 96), (288, 320)])
def test_pairs_of_any_size_are_damaged_inside_the_window_alone(kind: str, size: tuple[int, int]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, *size, 3), np.uint8)
    window = Box(16, 8, size[0] - 32, size[1] - 16)
    synthesis = PairSynthesis(Synthesis(kind=kind, probability=1.0), 2, images, window)
    outside = np.ones(size, bool)
    outside[window.inside] = False
    damaged, masks = synthesis.pairs(np.arange(3).repeat(8), 0)
    assert damaged.shape == (24, *size, 3)
    assert masks.any()
    assert not masks[:, outside].any()
    np.testing.assert_array_equal(damaged[:, outside], images[np.arange(3).repeat(8)][:, outside])


def test_procedural_textures_are_really_different() -> None:
    drawn = procedural_textures(1, 2 * len(FIELDS))
    assert (drawn.shape, drawn.dtype) == ((2 * len(FIELDS), 256, 256, 3), np.uint8)
    np.testing.assert_array_equal(drawn[:3], procedural_textures(1, 3))
    assert min(picture.std() for picture in drawn) > 5
    spectra = [np.abs(np.fft.rfft2(field(np.random.default_rng(2)) - 0.5))[:40, :40].ravel() for field in FIELDS]
    likeness = np.corrcoef([np.log(spectrum + 1) for spectrum in spectra])
    assert (likeness - np.eye(len(FIELDS))).max() < 0.95
    rng = np.random.default_rng(0)
    assert len({augmented(drawn[0], rng).tobytes() for _ in range(20)}) > 15


def test_turning_by_a_right_angle_moves_every_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(turned(image, 90), np.rot90(image))


def write_texture(path: Path, value: int, side: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((side, 2 * side, 3), value, np.uint8))


def test_textures_of_a_folder_tree(tmp_path: Path, good: np.ndarray) -> None:
    for number in range(3):
        write_texture(tmp_path / f"kind_{number}" / "one.png", 50 * number)
    loaded = load_textures(tmp_path, 1)
    assert loaded.shape == (3, 256, 256, 3)
    assert sorted(loaded[:, 9, 9, 0].tolist()) == [0, 50, 100]
    damaged, mask = PairSynthesis(Synthesis(textures=str(tmp_path), beta_most=0.0), 0, good).pair(0, 1)
    assert set(damaged[mask].ravel().tolist()) <= {0, 50, 100}


def test_of_many_textures_the_seed_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_TEXTURES == 512
    monkeypatch.setattr("nnet_edge.data.textures.MOST_TEXTURES", 3)
    for number in range(9):
        write_texture(tmp_path / f"{number}.png", 10 * number)
    first, again, other = (load_textures(tmp_path, seed)[:, 0, 0, 0].tolist() for seed in (1, 1, 2))
    assert len(set(first)) == 3
    assert first == again != other


def test_textures_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--textures .*absent does not exist"):
        load_textures(tmp_path / "absent", 0)
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"file.png is not a folder"):
        load_textures(tmp_path / "file.png", 0)
    empty = tmp_path / "empty"
    (empty / "below").mkdir(parents=True)
    (empty / "notes.txt").write_text("no image")
    with pytest.raises(ConfigError, match="holds no image"):
        load_textures(empty, 0)
    write_texture(empty / "good.png", 9)
    (empty / "below/broken.png").write_bytes((empty / "good.png").read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"1 of 2 images cannot be read; the first: .*broken.png"):
        load_textures(empty, 0)
    (empty / "good.png").unlink()
    with pytest.raises(
        ConfigError, match=r"--textures .*empty: none of 1 images could be read; the first: .*broken.png"
    ):
        load_textures(empty, 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        with pytest.raises(ConfigError, match=r"--textures .*cannot read folder .*closed: Permission denied"):
            load_textures(tmp_path, 0)
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"kind": "dtd"}, "kind of synthetic anomaly 'dtd' is unknown: choose perlin, simplex or cutpaste"),
        ({"texture_augmentation": "rd"}, "texture_augmentation 'rd'"),
        ({"foreground": "bottle"}, "foreground 'bottle' is unknown: choose none, grabcut or otsu"),
        ({"kind": "cutpaste", "textures": "dtd"}, "textures belong to the kind perlin"),
        ({"probability": 0.0}, "probability of an anomaly is 0.0"),
        ({"probability": math.nan}, "probability of an anomaly is nan"),
        ({"beta_least": 0.9}, "beta_least 0.9 and beta_most 0.8"),
        ({"beta_most": 1.0}, "beta_least 0.0 and beta_most 1.0"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"noise": math.inf}, "noise is inf"),
    ],
)
def test_invalid_settings(settings: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Synthesis(**settings)
