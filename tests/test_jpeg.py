"""JPEGs of files, HTTP cameras and pipes go through one decoder: upright, bounded, never damaged."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from nnet_edge.data.images import load_images
from nnet_edge.errors import ConfigError, DataError, SourceError
from nnet_edge.image_files import read_image, read_mask
from nnet_edge.jpeg import MAX_PIXELS, header_of, whole_picture, without_strays
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.stream.judge import Judge
from nnet_edge.settings.stream import VerdictSettings

PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8), (64, 48))


def jpeg(orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.fromarray(PICTURE).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


def damaged() -> bytes:
    data = jpeg()
    return data[:-300] + bytes(200) + data[-100:]


def promising(height: int, width: int) -> bytes:
    """A JPEG whose header promises that size."""
    data = jpeg()
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_and_files_are_turned_alike(tmp_path: Path, orientation: int) -> None:
    data = jpeg(orientation)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(whole_picture(data)[..., ::-1], upright)
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), upright)


def test_a_pipe_gives_upright_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(jpeg(6)), daemon=True)
    with open_source(str(tmp_path / "pipe")) as source:
        writer.start()
        frame = next(iter(source))
    assert frame.image.shape == (64, 48, 3)


def test_exif_that_cannot_be_read_turns_nothing() -> None:
    data = jpeg(6)
    place = data.index(b"Exif\0\0")
    broken = data[: place + 6] + b"\xff" * 12 + data[place + 18 :]
    np.testing.assert_array_equal(whole_picture(broken), whole_picture(jpeg()))


def test_no_more_pixels_than_allowed_are_decoded(tmp_path: Path) -> None:
    side = 1 + int(MAX_PIXELS**0.5)
    bomb = promising(side, side)
    with pytest.raises(DataError, match=f"{side} x {side} pixels are more than the 89,478,485 allowed"):
        whole_picture(bomb)
    (tmp_path / "bomb.jpg").write_bytes(bomb)
    with pytest.raises(DataError, match=r"bomb\.jpg: .*89,478,485 allowed"):
        read_image(tmp_path / "bomb.jpg")
    with pytest.raises(ConfigError, match=r"bomb\.jpg .*89,478,485 allowed"):
        Judge(VerdictSettings(interest_picture=tmp_path / "bomb.jpg"), 0.5).admit(PICTURE)


@pytest.mark.parametrize("name", ["b.jpg", "b.png"])  # the content tells, not the suffix
def test_a_damaged_jpeg_is_neither_learned_nor_judged(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    for broken in (name, f"c{name}"):
        (tmp_path / broken).write_bytes(damaged())
        assert np.array(Image.open(tmp_path / broken)).shape == PICTURE.shape  # Pillow sees nothing
    paths = sorted(tmp_path.iterdir())
    with pytest.raises(
        DataError, match=rf"2 of 3 images cannot be used: .*{name}, .*c{name}; .*it is damaged"
    ) as caught:
        load_images(paths)
    assert "--skip-bad-images" in str(caught.value)
    images = load_images(paths, skip_bad=True)
    assert [path.name for path in images.paths] == ["a.jpg"]
    assert [one.path.name for one in images.skipped] == [name, f"c{name}"]
    with open_source(str(tmp_path)) as source, pytest.raises(SourceError, match="it is damaged"):
        list(source)


def test_four_inks_are_decoded_and_their_damage_is_noticed() -> None:
    file = io.BytesIO()
    Image.fromarray(PICTURE).convert("CMYK").save(file, "JPEG", quality=95)
    data = file.getvalue()
    np.testing.assert_array_equal(whole_picture(data, "RGB"), np.array(Image.open(file).convert("RGB")))
    np.testing.assert_array_equal(whole_picture(data), whole_picture(data, "RGB")[..., ::-1])
    with pytest.raises(DataError, match="it is damaged"):
        whole_picture(data[:-400] + bytes(300) + data[-100:])


def test_a_named_pipe_is_no_picture_and_no_mask(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes: what opened it would wait for ever
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"pipe\.png: it is not a file"):
            read(tmp_path / "pipe.png")
    with pytest.raises(ConfigError, match=r"pipe\.png .*it is not a file"):
        Judge(VerdictSettings(ignored_picture=tmp_path / "pipe.png"), 0.5).admit(PICTURE)


def with_restarts(interval: int, kind: str, seed: int = 0) -> bytes:
    """A picture of noise that restarts every `interval` units of its coding; 0: never."""
    noise = np.random.default_rng(seed).integers(0, 80, (100, 140, 3)).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    if kind == "444":
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return bytes(cv2.imencode(".jpg", noise[..., 0] if kind == "grey" else noise, options)[1])


def with_strays(data: bytes, strays: bytes) -> bytes:
    """The picture with `strays` before each of its restart markers and its end."""
    start, _ = header_of(data)
    return data[:start] + re.sub(rb"\xff[\xd0-\xd7\xd9]", lambda mark: strays + mark[0], data[start:])


@pytest.mark.parametrize("kind", ["420", "444", "grey"])
@pytest.mark.parametrize("interval", [0, 1, 7, 20])
def test_stray_bytes_before_markers_are_taken_out_and_the_picture_is_the_same(interval: int, kind: str) -> None:
    data = with_restarts(interval, kind)
    assert without_strays(data) == data
    for strays in (b"\0\x11", b"\0\0\0\0\x55\0\x12\x34"):
        assert np.array_equal(whole_picture(without_strays(with_strays(data, strays))), whole_picture(data))


def test_more_than_a_few_stray_bytes_and_other_damage_are_refused() -> None:
    data = with_restarts(7, "420")
    with pytest.raises(DataError, match="it is damaged: Corrupt JPEG data"):
        without_strays(with_strays(data, bytes(9)))
    start, _ = header_of(data)
    middle = (start + len(data)) // 2
    for damaged in (data[:middle] + bytes(300) + data[middle + 300 :], data[:middle] + data[middle + 200 :]):
        with pytest.raises(DataError):
            whole_picture(without_strays(with_strays(damaged, b"\0\x11")))
    with pytest.raises(DataError, match="no JPEG of one sequential scan"):
        without_strays(data[:-2])
    with pytest.raises(DataError, match="its header is damaged"):
        without_strays(data[:100])
