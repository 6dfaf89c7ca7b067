"""JPEGs by nvImageCodec, by its own decoder on the processor where there is no GPU: what comes out, what is refused."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.gpu import GpuFacts, find_gpu
from nnet_edge.jpeg import whole_picture
from nnet_edge.runtime import gpu_jpegs
from nnet_edge.runtime.gpu_jpegs import MOST_OFF, GpuJpegs, JpegReader
from nnet_edge.runtime.sources.decoding import DecodeOptions
from nnet_edge.runtime.sources.open import open_source

AS_LIBJPEG = 2  # grey levels: its processor decoder is libjpeg-turbo of another version
needs_no_gpu = pytest.mark.skipif(isinstance(find_gpu(), GpuFacts), reason="there is a GPU, which decodes")


def part(height: int = 90, width: int = 120) -> Image.Image:
    """A picture with edges, colours and a little noise."""
    rng = np.random.default_rng(height)
    pixels = np.zeros((height, width, 3), np.uint8)
    cv2.circle(pixels, (width // 2, height // 2), height // 3, (200, 140, 60), -1)
    return Image.fromarray(np.clip(pixels + rng.integers(0, 30, pixels.shape), 0, 255).astype(np.uint8))


def coded(image: Image.Image, **options: object) -> bytes:
    """The picture as a JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 92} | options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    """A JPEG whose EXIF says how it is to be turned."""
    exif = Image.Exif()
    exif[274] = orientation
    return coded(part(), exif=exif)


def complaint(decode: Callable[[bytes], np.ndarray], data: bytes) -> str | None:
    """Which kind of fault the picture is refused for; None where it is not."""
    try:
        decode(data)
    except DataError as error:
        return str(error).split(":")[0]
    return None


@pytest.fixture(scope="module")
def jpegs() -> GpuJpegs:
    return GpuJpegs(None)


@pytest.mark.parametrize(
    "data",
    [
        coded(part()),
        coded(part(), subsampling=0),
        coded(part(), progressive=True),
        coded(part().convert("L")),
        coded(part().convert("CMYK")),
        coded(part(33, 47)),
        *(turned(orientation) for orientation in range(2, 9)),
    ],
)
def test_pictures_are_those_of_the_processor(jpegs: GpuJpegs, data: bytes) -> None:
    found, expected = jpegs.picture(data), whole_picture(data)

    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert found.flags.writeable
    assert np.abs(found.astype(int) - expected).max() <= AS_LIBJPEG


def test_damage_is_refused_as_by_the_processor(jpegs: GpuJpegs) -> None:
    whole, rng, said = coded(part(240, 320), quality=95), np.random.default_rng(3), []
    for number in range(60):
        data = bytearray(whole)
        at = int(rng.integers(700, len(data) - 700))
        if number % 3 == 0:
            del data[at : at + 300]
        elif number % 3 == 1:
            data[at : at + 400] = rng.bytes(400)
        else:
            del data[at:]
        said.append((complaint(whole_picture, bytes(data)), complaint(jpegs.picture, bytes(data))))

    assert all(expected == found for expected, found in said)
    assert sum(expected is not None for expected, _ in said) > 40  # the others libjpeg notices nothing of


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff\xe0" + bytes(40), coded(part())[:60]])
def test_what_is_no_jpeg_is_refused(jpegs: GpuJpegs, data: bytes) -> None:
    with pytest.raises(DataError):
        jpegs.picture(data)


def test_what_it_cannot_decode_the_processor_does_and_it_is_told_once(
    jpegs: GpuJpegs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jpegs, "_decode", lambda data: None)

    for _ in range(3):
        assert np.array_equal(jpegs.picture(coded(part())), whole_picture(coded(part())))

    assert [record.message.split(" JPEG")[0] for record in caplog.records] == ["nvImageCodec could not decode a"]


@pytest.mark.parametrize("image", [None, np.zeros((64, 64, 3), np.uint8)], ids=["nothing", "another picture"])
def test_a_decoder_that_fails_its_trial_is_not_used(image: np.ndarray | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GpuJpegs, "_decode", lambda self, data: image)

    with pytest.raises(ConfigError, match="nvImageCodec"):
        GpuJpegs(None)


def test_without_the_library_the_extra_is_named_and_the_processor_decodes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_jpegs, "find_gpu", lambda index: None)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)

    assert np.array_equal(JpegReader(0, "line 1").picture(coded(part())), whole_picture(coded(part())))
    assert "nvImageCodec is not installed: pip install 'nnet-edge[decode]'" in caplog.text
    assert caplog.text.count("line 1") == 1


@needs_no_gpu
def test_a_folder_without_a_gpu_is_decoded_on_the_processor_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(coded(part(60 + number)))
    part().save(tmp_path / "2.png")

    with caplog.at_level(logging.WARNING), open_source(str(tmp_path), decode="gpu") as source:
        found = [frame.image for frame in source]
    with open_source(str(tmp_path)) as source:
        expected = [frame.image for frame in source]

    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    assert caplog.text.count("decoded on the processor, not on GPU 0: there is no NVIDIA driver here") == 1


def test_a_folder_goes_through_the_gpus_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jpegs: GpuJpegs
) -> None:
    seen = []
    monkeypatch.setattr(gpu_jpegs, "GpuJpegs", lambda gpu: seen.append(gpu) or jpegs)
    (tmp_path / "0.jpg").write_bytes(turned(6))
    (tmp_path / "1.jpg").write_bytes(coded(part())[:-400])

    with open_source(str(tmp_path), decode="gpu:1", skip_bad_images=True) as source:
        (frame,) = source

    assert seen == [1]
    assert source.skipped == 1
    assert np.abs(frame.image.astype(int) - whole_picture(turned(6))).max() <= AS_LIBJPEG


@pytest.mark.parametrize("text", ["", "GPU", "cuda", "gpu:", "gpu:x", "gpu:-1", "gpu:1 "])
def test_another_word_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="it must be cpu, checked, gpu or gpu:N"):
        DecodeOptions(text)


@needs_no_gpu
def test_the_command_says_where_it_decodes(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/0.jpg").write_bytes(coded(part()))

    arguments = ["stream", str(tmp_path / "photos"), "--bundle", str(trained_run / "bundle"), "--decode", "gpu"]
    result = subprocess.run(
        [Path(sys.executable).with_name("nnet-edge"), *arguments], capture_output=True, text=True, timeout=60
    )

    assert result.returncode == 0
    assert "its JPEGs are decoded on the processor" in result.stderr


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_here")
def test_a_gpu_decodes_as_the_processor_within_its_rounding() -> None:
    found = GpuJpegs(0).picture(coded(part(480, 640)))

    off = np.abs(found.astype(int) - whole_picture(coded(part(480, 640))))
    assert off.max() <= MOST_OFF
    assert off.mean() < 1
