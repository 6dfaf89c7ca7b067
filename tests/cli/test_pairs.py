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


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--textures", "EMPTY"], "holds no image: give a folder of images"),
        (["--textures", "absent"], "--textures absent does not exist"),
        (["--textures", "EMPTY", "--kind", "simplex"], "textures belong to the kind perlin"),
        (["--probability", "2"], "probability of an anomaly is 2.0"),
        (["--noise", "nan"], "noise is nan"),
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
