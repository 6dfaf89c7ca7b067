"""Image paths: what an encoder, a blur or another colour matrix changes is told, and parts, good or bad, are not."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from nnet_edge.bundle import MANIFEST, read_bundle
from nnet_edge.cli.main import run
from nnet_edge.errors import BundleError
from nnet_edge.image_path import (
    FEWEST,
    ImagePath,
    Values,
    advice,
    columns_of,
    in_words,
    measure,
    measure_file,
    middle_of,
    other_kind,
    usual_of,
)
from nnet_edge.imaging import resize
from tests.conftest import bad_part, good_part

SIDE = 192
OLD = Path(__file__).parent / "data/from_0_1/bundle"


def part(seed: int) -> np.ndarray:
    """A washer with a red and a green spot, uint8 RGB (192, 192, 3), with a camera's noise."""
    picture = good_part(seed, SIDE)[..., ::-1].copy()
    cv2.circle(picture, (40, 40), 20, (220, 30, 30), -1)
    cv2.circle(picture, (150, 40), 20, (30, 200, 40), -1)
    noise = np.random.default_rng(seed).normal(0, 4, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


GOOD = [part(seed) for seed in range(40)]


def values_of(pictures: Sequence[np.ndarray]) -> Values:
    return columns_of([measure(resize(picture)) | measure_file(picture) for picture in pictures])


@pytest.fixture(scope="module")
def learned() -> ImagePath:
    return ImagePath(20, usual_of(values_of(GOOD[:20])))


def as_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def as_video(path: Path, code: str, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The pictures, encoded and decoded by OpenCV."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10.0, (SIDE, SIDE))
    for picture in pictures:
        writer.write(picture[..., ::-1])
    writer.release()
    reader = cv2.VideoCapture(str(path))
    found = []
    while (read := reader.read())[0]:
        found.append(read[1][..., ::-1].copy())
    reader.release()
    assert len(found) == len(pictures)
    return found


def by_another_matrix(picture: np.ndarray) -> np.ndarray:
    """Pictures of BT.601, read as BT.709."""
    luma, red, blue = np.moveaxis(cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb).astype(float), 2, 0)
    red, blue = red - 128, blue - 128
    channels = (luma + 1.5748 * red, luma - 0.1873 * blue - 0.4681 * red, luma + 1.8556 * blue)
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def test_the_same_path_changes_nothing(learned: ImagePath) -> None:
    assert learned.changes(values_of(GOOD[20:])) == {}


def test_bad_parts_among_good_ones_change_nothing(learned: ImagePath) -> None:
    pictures = list(GOOD[20:])
    for number in range(0, 20, 3):
        pictures[number][60:120, 60:120] = bad_part(number, 60)[0]
    assert learned.changes(values_of(pictures)) == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda picture: as_jpeg(picture, 40), "blockiness"),
        (lambda picture: cv2.GaussianBlur(picture, (0, 0), 1.5), "grain"),
        (lambda picture: cv2.addWeighted(picture, 2.0, cv2.GaussianBlur(picture, (0, 0), 1.5), -1.0, 0), "sharpness"),
        (lambda picture: (0.8 * picture).astype(np.uint8), "brightness"),
        (lambda picture: np.clip(picture + np.array([12, 0, -12]), 0, 255).astype(np.uint8), "red"),
    ],
)
def test_another_path_is_told(change: Callable[[np.ndarray], np.ndarray], named: str, learned: ImagePath) -> None:
    changes = learned.changes(values_of([change(picture) for picture in GOOD[20:]]))
    assert named in changes
    assert in_words(changes)
    assert advice(changes)


@pytest.mark.parametrize("code", ["mp4v", "MJPG"])
def test_videos_of_the_same_parts_are_told_from_pictures(code: str, learned: ImagePath, tmp_path: Path) -> None:
    video = as_video(tmp_path / f"parts.{'mp4' if code == 'mp4v' else 'avi'}", code, GOOD[20:])
    changes = learned.changes(values_of(video))
    assert changes["fine_colour"] < -1  # 4:2:0
    assert "less of the finest colour (-" in in_words(changes)
    assert "compression" in advice(changes)


def test_another_colour_matrix_is_told_and_its_flag_named() -> None:
    strong = [cv2.rectangle(picture.copy(), (0, 100), (SIDE, SIDE), (40, 170, 60), -1) for picture in GOOD]
    learned = ImagePath(20, usual_of(values_of(strong[:20])))
    changes = learned.changes(values_of([by_another_matrix(picture) for picture in strong[20:]]))
    assert changes["red"] > 3
    assert "--colour-matrix" in advice(changes)


def test_few_pictures_say_nothing(learned: ImagePath) -> None:
    blurred = [cv2.GaussianBlur(picture, (0, 0), 2) for picture in GOOD[: FEWEST - 1]]
    assert learned.changes(values_of(blurred)) == {}


def test_measures_of_files_are_compared_between_pictures_of_one_size(learned: ImagePath) -> None:
    larger = [cv2.resize(as_jpeg(picture, 90), (3 * SIDE, 3 * SIDE)) for picture in GOOD[20:]]
    assert not {"blockiness", "fine_detail", "fine_colour"} & set(learned.changes(values_of(larger)))


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_the_middle_is_numpys_median(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    assert middle_of(values) == np.median(values)


def test_what_a_picture_cannot_say_is_no_number() -> None:
    assert math.isnan(measure_file(np.zeros((60, 200, 3), np.uint8))["blockiness"])
    grey = measure_file(GOOD[0][..., 1])
    assert grey["blockiness"] == measure_file(GOOD[0])["blockiness"]
    assert grey["fine_colour"] == measure_file(np.repeat(GOOD[0][..., 1:2], 3, axis=2))["fine_colour"]
    flat = measure(np.full((256, 256, 3), 90, np.uint8)) | measure_file(np.full((100, 100, 3), 90, np.uint8))
    assert all(math.isfinite(value) for value in flat.values())


def test_blocks_are_found_wherever_they_begin(learned: ImagePath) -> None:
    cut = [as_jpeg(picture, 40)[3:, 5:] for picture in GOOD[20:]]
    assert learned.changes(values_of(cut))["blockiness"] > 0.5


def test_jpegs_among_lossless_pictures_are_found() -> None:
    mixed = [as_jpeg(picture, 60) if number % 4 == 0 else picture for number, picture in enumerate(GOOD)]
    found = other_kind(values_of(mixed))
    assert found is not None
    assert np.flatnonzero(found).tolist() == list(range(0, 40, 4))
    assert other_kind(values_of(GOOD)) is None
    assert other_kind({}) is None


def test_it_comes_back_from_a_manifest(learned: ImagePath) -> None:
    manifest = json.loads(json.dumps({"image_path": learned.as_dict()}))
    back = ImagePath.in_manifest(manifest)
    assert back is not None
    assert back.usual.keys() == learned.usual.keys()
    assert back.usual["grain"].median == pytest.approx(learned.usual["grain"].median, abs=1e-5)
    assert ImagePath.in_manifest({}) is None


@pytest.mark.parametrize(
    "fields",
    [
        3,
        {},
        {"images": "many"},
        {"images": 9, "grain": 4},
        {"images": 0},
        {"images": 9, "grain": {"median": 1, "spread": -1}},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(fields: Any) -> None:
    with pytest.raises(BundleError, match="image_path"):
        ImagePath.in_manifest({"image_path": fields})


def test_training_keeps_it_and_evaluate_compares(
    trained_run: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ImagePath.in_manifest(read_bundle(trained_run / "bundle").manifest)
    assert found is not None
    assert found.images == 10
    assert {"grain", "blockiness", "fine_colour", "size"} <= set(found.usual)
    for name in ("test_good", "bad/stain"):
        (tmp_path / "parts" / name).mkdir(parents=True)
    (tmp_path / "parts/good").symlink_to(parts_folder / "good")
    for seed in range(12):
        blurred = cv2.GaussianBlur(good_part(300 + seed), (0, 0), 2)
        assert cv2.imwrite(str(tmp_path / f"parts/test_good/{seed}.png"), blurred)
    shutil.copy(parts_folder / "bad/stain/0.png", tmp_path / "parts/bad/stain")
    assert run(["evaluate", str(trained_run / "bundle"), str(tmp_path / "parts"), "--out", str(tmp_path / "out")]) == 0
    assert "warning: the test images were made otherwise than those that were learned: " in capsys.readouterr().err
    assert "less grain" in json.loads((tmp_path / "out/metrics.json").read_text())["warnings"][-1]


def test_a_bundle_of_before_says_nothing_until_answers_measures_its_frames(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(OLD, tmp_path / "bundle"))
    assert ImagePath.in_manifest(read_bundle(bundle).manifest) is None
    assert run(["answers", str(bundle)]) == 0
    first = (bundle / MANIFEST).read_bytes()
    found = ImagePath.in_manifest(read_bundle(bundle).manifest)
    assert found is not None
    assert "grain" in found.usual
    assert "blockiness" not in found.usual  # the files are gone
    assert run(["answers", str(bundle)]) == 0
    assert (bundle / MANIFEST).read_bytes() == first
