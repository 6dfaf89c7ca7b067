"""A result says its verdict, shows it, and saves it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nnet_edge import Inspector, Result
from nnet_edge.errors import ConfigError, DataError
from tests.conftest import bad_part, good_part
from tests.runtime.inspector.conftest import Opened


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("part") / "part.png"
    cv2.imwrite(str(path), cv2.resize(bad_part(4)[0], (120, 90)))
    return path


@pytest.fixture(scope="module")
def result(opened: Opened, part: Path) -> Result:
    return opened("plain", threshold=0.6 * opened()(part).score)(part)


def test_it_says_its_verdict(result: Result, inspector: Inspector) -> None:
    count = len(result.regions)
    regions = f"{count} region{'s' if count > 1 else ''}"
    assert repr(result) == (
        f"Result(REJECT, score {result.score:.4g}, threshold {result.threshold:.4g}, ratio 1.67, {regions}, part.png)"
    )
    good = inspector(np.full((96, 96, 3), 40, np.uint8))
    assert repr(good).startswith("Result(GOOD" if not good.is_anomalous else "Result(REJECT")
    assert good.path is None
    assert 0 < result.latencies_ms["inference"] <= result.latency_ms


def test_its_map_has_the_images_size_and_lies_where_its_regions_do(result: Result) -> None:
    assert (result.map.shape, result.map.dtype) == ((90, 120), np.float32)
    assert result.map.max() == pytest.approx(result.score, rel=0.05)
    row, column = np.unravel_index(result.map.argmax(), result.map.shape)
    first = result.regions[0]
    assert first.x <= column < first.x + first.width
    assert first.y <= row < first.y + first.height
    assert first.peak == pytest.approx(result.score)


def test_it_is_plotted_and_saved(result: Result, tmp_path: Path) -> None:
    picture = result.plot()
    assert isinstance(picture, Image.Image)
    assert picture._repr_png_()  # a notebook shows it  # type: ignore[attr-defined]
    assert picture.getpixel((3, 3)) == (230, 60, 60)  # a reject's red bar
    assert result.save(tmp_path / "new/part.png") == tmp_path / "new/part.png"
    with Image.open(tmp_path / "new/part.png") as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(picture))
    for suffix, kind in ((".jpg", "JPEG"), (".webp", "WEBP")):
        with Image.open(result.save(str(tmp_path / f"part{suffix}"))) as saved:
            assert (saved.format, saved.size) == (kind, picture.size)
    assert json.loads(result.save(tmp_path / "part.json").read_text())["score"] == result.score
    assert np.array_equal(np.load(result.save(tmp_path / "part.npy")), result.map)
    with pytest.raises(ConfigError, match=r"cannot be saved as part\.gif: end it in \.png, \.jpg"):
        result.save(tmp_path / "part.gif")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        result.save(tmp_path / "file/part.png")


def test_results_of_many_files_let_go_of_their_pixels_and_read_them_again(inspector: Inspector, part: Path) -> None:
    (many,) = inspector([part])
    alone = inspector(part)
    held = many._prediction.frame.image
    assert held.base is not None
    assert held.strides == (0, 0, 0)
    assert np.array_equal(many.image, alone.image)
    assert np.array_equal(np.asarray(many.plot()), np.asarray(alone.plot()))
    assert np.array_equal(many.map, alone.map)


def test_a_file_that_was_changed_since_is_not_shown_with_an_old_verdict(inspector: Inspector, tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    cv2.imwrite(str(path), good_part(1))
    (result,) = inspector([path])
    cv2.imwrite(str(path), good_part(2))
    with pytest.raises(DataError, match="was changed since it was judged"):
        result.plot()
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        result.image  # noqa: B018
