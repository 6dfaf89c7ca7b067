"""`nnet-edge data`: what it says of a set, its contact sheet, its conversion, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from nnet_edge.cli.main import run

SIZE = (48, 64)


def part(seed: int, level: float = 120) -> np.ndarray:
    """A textured part of that brightness."""
    noise = np.random.default_rng(seed).normal(0, 25, (*SIZE, 3))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 1) * 2 + level, 0, 255).astype(np.uint8)


def put(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Good parts with two equal, one dark; a test with a near copy; defects with masks."""
    root = tmp_path / "photos"
    for seed in range(6):
        put(root / f"good/{seed}.png", part(seed))
    put(root / "good/6.bmp", part(0))
    put(root / "good/dark.png", part(7, level=60))
    put(root / "test_good/8.png", part(8))
    put(root / "test_good/again.jpg", part(1), quality=85)
    for number, kind in enumerate(("scratch", "dent")):
        put(root / f"bad/{kind}/0.png", part(20 + number))
        mask = np.zeros(SIZE, np.uint8)
        mask[10:20, 10:30] = 255
        put(root / f"masks/{kind}/0_mask.png", mask)
    return root


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert run(["data", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_a_set_holds(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, photos)
    counts = (found["layout"], found["learned"], found["test_good"], found["defects"], found["masked"])
    assert counts == ("folder", 8, 2, {"dent": 1, "scratch": 1}, 2)
    assert found["sizes"] == {"48 x 64": 12}
    assert found["formats"] == {"PNG": 10, "BMP": 1, "JPEG": 1}
    assert found["depths"] == {"8 bits, 3 channels": 12}
    assert found["duplicates"] == [["good/0.png", "good/6.bmp"]]
    assert found["near"] == [["test_good/again.jpg", "good/1.png"]]
    assert list(found["exposure"]) == ["good/dark.png"]
    assert found["marked"]["median"] == pytest.approx(200 / (48 * 64))
    assert (found["problems"], found["notes"], found["bits"]) == ([], [], None)
    assert run(["data", str(photos)]) == 0
    text = capsys.readouterr().out
    for line in (
        "pictures 8 good to learn, 2 good to test, 2 defects (dent 1, scratch 1), 2 with a mask",
        "1 of another brightness: good/dark.png (",
        "copies   1 of equal pixels: good/0.png = good/6.bmp",
        "1 near copies of learned pictures in the test: test_good/again.jpg of good/1.png",
    ):
        assert line in text


def test_headers_alone_decode_nothing(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photos / "good/0.png"
    path.write_bytes(path.read_bytes()[:300])  # its pixels are cut off
    found = said(capsys, photos, "--headers")
    assert (found["sizes"], found["problems"], found["brightness"]) == ({"48 x 64": 12}, [], None)
    assert run(["data", str(photos)]) == 1
    printed = capsys.readouterr()
    assert f"problem  cannot read image {path}" in printed.out
    assert "error: 1 pictures or masks cannot be used; the first: cannot read image" in printed.err


def test_pictures_of_12_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        grey = part(seed)[..., 0].astype(np.uint16) * 16
        put(tmp_path / f"good/{seed}.png", np.maximum(grey, 4095 * np.eye(*SIZE, dtype=np.uint16)))
    found = said(capsys, tmp_path, "--sheet", tmp_path / "sheet.png")
    assert (found["depths"], found["bits"]) == ({"16 bits, 1 channel": 3}, 12)
    assert found["brightness"]["median"] == pytest.approx(120, abs=6)
    assert 100 < cv2.imread(str(tmp_path / "sheet.png"))[60:120, 20:150].mean() < 140


def test_a_contact_sheet_outlines_masks(photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new/sheet.png"
    assert run(["data", str(photos), "--sheet", str(sheet)]) == 0
    pixels = cv2.imread(str(sheet)).astype(int)
    assert pixels.shape == (6 + 4 * 186, 6 + 8 * 166, 3)
    outlined = (np.abs(pixels - (60, 60, 255)).max(axis=2) < 5).sum(axis=1)
    assert outlined[: 6 + 2 * 186].sum() == 0  # rows of good pictures
    assert all(outlined[6 + row * 186 : 6 + (row + 1) * 186].sum() > 100 for row in (2, 3))


def test_a_conversion_keeps_names_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, day in enumerate(("monday", "tuesday")):
        put(tmp_path / f"set/train/good/{day}/0.png", part(number))
        put(tmp_path / f"set/test/cut/{day}/0.png", part(10 + number))
        put(tmp_path / f"set/test/cut/{day}/gas_mask.png", part(20 + number))
    assert run(["data", str(tmp_path / "set"), "--convert", str(tmp_path / "out")]) == 0
    assert "next: nnet-edge train" in capsys.readouterr().err
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert names == {
        "good/0.png", "good/train_good_tuesday_0.png", "bad/cut/0.png", "bad/cut/test_cut_tuesday_0.png",
        "bad/cut/gas_mask_picture.png", "bad/cut/test_cut_tuesday_gas_mask_picture.png",
    }  # fmt: skip
    assert said(capsys, tmp_path / "out")["defects"] == {"cut": 4}


def test_a_conversion_that_fails_leaves_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(photos / "masks/dent/0_mask.png", np.zeros((9, 9), np.uint8))
    before = sorted(tmp_path.iterdir())
    assert run(["data", str(photos), "--headers", "--convert", str(tmp_path / "out")]) == 1
    assert "has 9 x 9 (height x width) pixels and its image" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_several_categories_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("nut", "bolt"):
        put(tmp_path / name / "good/0.png", part(0))
    put(tmp_path / "nut/bad/1.png", part(1))
    assert run(["data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "bolt: 1 good to learn, 0 good to test, 0 defects (folder)",
        "nut: 1 good to learn, 0 good to test, 1 defects (folder)",
    ]
    assert [row["category"] for row in said(capsys, tmp_path)] == ["bolt", "nut"]
    assert said(capsys, tmp_path, "--category", "nut")["learned"] == 1


def test_a_name_in_a_label_file_does_not_write_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("0", "1"):
        put(tmp_path / f"{name}.png", part(int(name)))
    content = {
        "images": [{"id": 0, "file_name": "0.png"}, {"id": 1, "file_name": "1.png"}],
        "categories": [{"id": 0, "name": "cut\x1b[31m"}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 0, "segmentation": []}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert run(["data", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert r"1 defects (cut\x1b[31m 1), 0 with a mask" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--convert", "FULL"], "is not empty, and nothing of it is replaced: choose another folder"),
        (["--convert", "DATA/plain"], "lies in the data itself: choose a folder elsewhere"),
        (["--convert", "FULL/file"], "is no folder: choose another"),
        (["--sheet", "FULL/file/sheet.png"], "choose another --sheet"),
        (["--layout", "cocoa"], "'cocoa' is not one of 'auto', 'visa'"),
        (["--category", "nut"], 'holds no category "nut"'),
    ],
)
def test_one_line_for_what_is_asked_wrongly(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    asked = [option.replace("FULL", str(tmp_path / "full")).replace("DATA", str(photos)) for option in options]
    assert run(["data", str(photos), *asked]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert told in line
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
