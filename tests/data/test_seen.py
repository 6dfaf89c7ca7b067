"""What a network would see of pictures: the smallest defect, the grid that suits, the crop of a common foreground."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.data.seen import MOST_AUTO, MUCH, Scale, advice, auto_tiles, choose_tiles, common_foreground, write_crop
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.geometry import Geometry
from nnet_edge.tiles import CropShare

Size = tuple[int, int]


@pytest.mark.parametrize(
    ("picture", "grid"),
    [
        ((256, 256), None), ((384, 384), None), ((96, 96), None),  # made smaller by 1.5 times at most
        ((512, 384), "2x1"), ((443, 443), "2x2"), ((800, 800), "3x3"), ((208, 512), "1x2"), ((512, 205), "2x1"),
        ((600, 1500), "2x5"), ((2048, 2050), "4x4"), ((3000, 4096), "3x5"),  # the last two beyond 16 tiles
    ],
)  # fmt: skip
def test_auto_takes_the_fewest_tiles_that_do(picture: Size, grid: str | None) -> None:
    found = auto_tiles(Geometry(), picture)
    assert (None if found is None else str(found)) == grid
    geometry, text = choose_tiles("auto", None, Geometry(), picture)
    assert geometry.tiles == found
    assert text.startswith(f"tiles: {grid or 'none'}, ")
    if found is not None:
        scale = Scale.of(geometry, picture)
        assert min(scale.down, scale.across) >= 0.75
        assert scale.most <= MUCH or found.count > MOST_AUTO / 2


def test_tiles_are_of_the_inputs_size_and_of_what_crop_and_fit_let_in() -> None:
    assert str(auto_tiles(Geometry(512, 512), (1300, 1300))) == "2x2"
    assert auto_tiles(Geometry(512, 512), (700, 700)) is None
    assert auto_tiles(Geometry(crop=CropShare(0.25, 0.25, 0.5, 0.5)), (700, 700)) is None
    letterbox = Geometry(fit="letterbox", picture=(400, 1600))
    geometry, _ = choose_tiles("2x2", 0.5, letterbox, (400, 1600))
    assert (geometry.size, geometry.fit) == ((384, 384), "letterbox")
    assert Scale.of(geometry, (400, 1600)) == Scale(400 / 96, 1600 / 384)


def test_the_smallest_defect_is_told_and_what_tiles_would_do() -> None:
    (said,) = advice(Geometry(), (380, 300))
    assert "a defect must have about 10x12 pixels of the photograph to be seen (8x8 of the network" in said
    assert "--tiles" not in said
    (said,) = advice(Geometry(), (800, 800))
    assert "about 25x25 pixels" in said
    assert said.endswith("--tiles 3x3 would make that 10x10")
    said, warning = advice(Geometry(), (2048, 2050))
    assert "about 65x64 pixels" in said
    assert "--tiles 4x4 would make that 20x20" in said
    assert warning.startswith("warning: pictures are made 8.0 times smaller")
    geometry, _ = choose_tiles("4x4", None, Geometry(), (2048, 2050))
    (said,) = advice(geometry, (2048, 2050))
    assert "about 20x20 pixels" in said
    assert "2.5 times smaller as 4x4 tiles" in said
    geometry, _ = choose_tiles("2x2", None, Geometry(64, 64), (90, 90))
    said, warning = advice(geometry, (90, 90))
    assert warning.startswith(
        "warning: tiles of 64x64 are smaller than the 96x96 pixels that a place of the deepest maps"
    )


@pytest.mark.parametrize(
    ("tiles", "overlap", "picture", "words"),
    [
        ("4x4", None, (300, 300), "a tile would show 92x92 pixels of pictures of 300x300, and the network looks at 256x256"),
        ("1x8", None, (4000, 600), "enlarged more than 2 times it shows nothing new"),
        ("9x9", None, (4000, 4000), "from 1x2 or 2x1 to 64 in all"),
        ("1x64", None, (400, 40000), "4096 are the most: give fewer tiles"),
        ("2x2", 0.9, (4000, 4000), "an overlap of 0.9 is invalid"),
        (None, 0.25, (4000, 4000), "--overlap belongs to --tiles"),
    ],
)  # fmt: skip
def test_odd_grids_are_refused(tiles: str | None, overlap: float | None, picture: Size, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_tiles(tiles, overlap, Geometry(), picture)


def pictures(folder: Path, *, grey: int = 40, part: int = 150, noise: float = 2.0, size: int = 30) -> list[Path]:
    """Eight pictures of 200x300: a square of this size on a ground, between 80 and 120 pixels from the left."""
    rng, paths = np.random.default_rng(0), []
    for number in range(8):
        image = np.full((200, 300), grey, np.float32)
        image[60 : 60 + size, 80 + 5 * number : 80 + 5 * number + size] = part
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8))
    return paths


def test_a_common_foreground_is_found_and_shown(tmp_path: Path) -> None:
    found = common_foreground(pictures(tmp_path), 16)
    assert found.crop is not None
    top, left, height, width = found.crop.box(200, 300)
    assert top <= 60 and top + height >= 90  # noqa: PT018
    assert left <= 80 and left + width >= 145  # noqa: PT018
    assert (height, width) < (60, 100)
    assert found.text.startswith(f"crop: {found.crop}")
    shown = cv2.imread(str(write_crop(found, tmp_path / "out")))
    assert shown.shape == found.picture.shape
    assert shown[0, 0].max() < shown[75, 110].min()  # darker outside


@pytest.mark.parametrize(
    ("made", "words"),
    [({"part": 45}, "nothing stands out"), ({"noise": 0.0, "part": 40}, "nothing stands out"), ({"size": 138}, "")],
)
def test_without_a_foreground_there_is_no_crop(tmp_path: Path, made: dict[str, float], words: str) -> None:
    found = common_foreground(pictures(tmp_path, **made), 16)  # type: ignore[arg-type]
    assert (found.crop is None) == bool(words)
    assert words in found.text


def test_parts_that_fill_the_picture_are_not_cropped(tmp_path: Path) -> None:
    image = np.full((200, 300), 150, np.uint8)
    image[:4], image[-4:], image[:, :4], image[:, -4:] = 20, 20, 20, 20
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = common_foreground([tmp_path / "a.png"], 16)
    assert found.crop is None
    assert "the parts fill the good images" in found.text


def test_a_crop_of_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the good images can be read"):
        common_foreground([tmp_path / "a.png"], 16)
