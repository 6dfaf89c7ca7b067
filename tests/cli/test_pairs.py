"""`nnet-edge pairs`: its picture, and what it says of input that cannot be used."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.cli.main import run


def test_a_picture_of_twenty_pairs(parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "pairs.png"
    assert run(["pairs", str(parts_folder), "--out", str(out), "--kind", "cutpaste"]) == 0
    assert "20 pairs, 0 without an anomaly; masks cover" in capsys.readouterr().err
    sheet = cv2.imread(str(out))
    assert sheet.shape == (5 * 166 + 6, 4 * (3 * 160 + 24), 3)
    good, damaged, outlined = (sheet[6:166, left : left + 160].astype(int) for left in (6, 172, 338))
    assert 0.01 < (np.abs(good - damaged).max(axis=2) > 8).mean() < 0.2
    is_outline = (np.abs(outlined - (60, 60, 255)).max(axis=2) < 90) & (np.abs(outlined - damaged).max(axis=2) > 0)
    assert is_outline.sum() > 50


def test_the_seed_decides_the_picture(parts_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        command = ["pairs", str(parts_folder), "--out", str(tmp_path / name), "--kind", "simplex", "--count", "30"]
        assert run([*command, "--seed", seed]) == 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_pairs_are_of_the_input_that_is_trained(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Washers of 96x96: in a letterbox of 64x128 grey lies at both sides; tiles show their quarters; a crop its middle."""
    command = ["pairs", str(parts_folder), "--kind", "cutpaste", "--count", "6", "--out"]
    sheets = {}
    for name, asked in {
        "letterbox": ["--size", "64x128", "--fit", "letterbox"],
        "tiles": ["--size", "64", "--tiles", "2x2"],
        "crop": ["--crop", "0.25,0.25,0.5,0.5"],
    }.items():
        assert run([*command, str(tmp_path / f"{name}.png"), *asked]) == 0
        sheets[name] = cv2.imread(str(tmp_path / f"{name}.png")).astype(int)
    assert "(8x8 of the network, which gets pictures of 96x96 1.0 times larger as 2x2 tiles)" in capsys.readouterr().err
    assert sheets["letterbox"].shape == (2 * 86 + 6, 4 * (3 * 160 + 24), 3)
    good, damaged = (sheets["letterbox"][6:86, left : left + 160] for left in (6, 172))
    for beside in (slice(0, 38), slice(122, 160)):
        assert (good[:, beside] == 128).all()
        assert (damaged[:, beside] == 128).all()  # no anomaly lies where no picture does
    corners = [
        good_of(sheets["tiles"], number)[place] for number in range(6) for place in ((8, 8), (8, -8), (-8, 8), (-8, -8))
    ]
    assert any(is_ring(corner) for corner in corners)  # the washer, cut by a tile's border, reaches into a corner
    assert all(is_ring(good_of(sheets["crop"], number)[20, 20]) for number in range(6))


def good_of(sheet: np.ndarray, number: int) -> np.ndarray:
    """The good image of a pair in a sheet of square ones."""
    row, column = divmod(number, 4)
    return sheet[6 + 166 * row :][:160, 504 * column + 6 :][:, :160]


def is_ring(pixel: np.ndarray) -> bool:
    """Whether it is of a washer's ring."""
    return bool(np.abs(pixel - (150, 155, 160)).max() < 25)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--textures", "EMPTY"], "holds no image: give a folder of images"),
        (["--textures", "absent"], "--textures absent does not exist"),
        (["--textures", "EMPTY", "--kind", "simplex"], "textures belong to the kind perlin"),
        (["--probability", "2"], "probability of an anomaly is 2.0"),
        (["--noise", "nan"], "noise is nan"),
        (["--size", "100"], "the nearest is 96x96"),
        (["--tiles", "9x9"], "9x9 tiles are invalid"),
        (["--overlap", "0.3"], "--overlap belongs to --tiles"),
        (["--kind", "cutpaste", "--out", "EMPTY/file/pairs.png"], "choose another --out"),
    ],
)
def test_one_line_for_what_cannot_be_used(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    (tmp_path / "file").touch()
    asked = [option.replace("EMPTY", str(tmp_path)) for option in options]
    out = [] if "--out" in options else ["--out", str(tmp_path / "pairs.png")]
    assert run(["pairs", str(parts_folder), *asked, *out]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert told in line
    assert not (tmp_path / "pairs.png").exists()
