"""Pictures of 10, 12 or 14 bits in 16: one scaling, decided once for a set, the same in training and stream."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from nnet_edge.bits import choose_bits, kept_bits, to_8_bit
from nnet_edge.data.images import load_images
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.image_files import read_image, read_picture
from nnet_edge.imaging import resize
from nnet_edge.runtime.sinks import CallbackSink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.stream import LineStream, Trigger, VerdictSettings


def ramp(brightest: int, seed: int = 0) -> np.ndarray:
    """A grey picture of 16 bits, uint16 (20, 30), up to that value."""
    values = np.random.default_rng(seed).integers(0, brightest + 1, (20, 30)).astype(np.uint16)
    values[3, 4] = brightest
    return values


def save(path: Path, values: np.ndarray, declared: int | None = None) -> Path:
    """The picture as a PNG, with the sBIT chunk where bits are declared."""
    data = cv2.imencode(".png", values)[1].tobytes()
    if declared is not None:
        content = b"sBIT" + bytes([declared])
        chunk = struct.pack(">I", 1) + content + struct.pack(">I", zlib.crc32(content))
        data = data[:33] + chunk + data[33:]  # behind the header
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_scaling_reaches_white_and_rounds(bits: int) -> None:
    values = np.arange(1 << bits).astype(np.uint16)
    np.testing.assert_array_equal(to_8_bit(values, bits), np.round(values * 255.0 / values[-1]).astype(np.uint8))


@pytest.mark.parametrize(
    ("brightest", "declared", "bits"),
    [
        (0, None, 8), (255, None, 8), (256, None, 10), (1023, None, 10), (1024, None, 12), (4095, None, 12),
        (4096, None, 14), (16384, None, 16), (65535, None, 16),
        (900, 12, 12),  # dark, and the file says how dark
        (65520, 12, 16),  # scaled up, as PNG's standard wants it
    ],
)  # fmt: skip
def test_bits_are_declared_or_the_fewest_that_hold_the_brightest(
    brightest: int, declared: int | None, bits: int
) -> None:
    assert choose_bits(brightest, declared) == bits


def test_files_say_their_bits(tmp_path: Path) -> None:
    assert read_picture(save(tmp_path / "a.png", ramp(900), 12)).bits == 12
    assert read_picture(save(tmp_path / "b.png", ramp(900))).bits is None
    tifffile.imwrite(tmp_path / "c.tif", ramp(900), extratags=[(281, "H", 1, 1023, True)])
    assert read_picture(tmp_path / "c.tif").bits == 10
    assert read_picture(tmp_path / "c.tif").pixels.dtype == np.uint16


def test_the_bits_of_a_set_are_decided_once(tmp_path: Path) -> None:
    pictures = [ramp(700, 1), ramp(4000, 2), ramp(90, 3)]  # alone, the first would be 10 bits and the third 8
    paths = [save(tmp_path / f"{index}.png", values) for index, values in enumerate(pictures)]
    grey = save(tmp_path / "eight.png", np.full((20, 30), 77, np.uint8))
    images = load_images([*paths, grey])
    assert images.depth is not None
    assert (images.depth.bits, images.depth.brightest, images.depth.origin) == (12, 4000, "recognised")
    assert "read as 12 bits" in images.depth.sentence()
    for image, values in zip(images.images, pictures, strict=False):
        expected = np.round(values * 255.0 / 4095).astype(np.uint8)
        np.testing.assert_array_equal(image, resize(np.repeat(expected[..., None], 3, axis=2)))
    assert (images.images[3] == 77).all()
    assert load_images([grey]).depth is None
    said = load_images(paths, bits=14)
    assert said.depth is not None
    assert (said.depth.bits, said.depth.origin) == (14, "said")
    np.testing.assert_array_equal(said.images[1], resize(read_image(paths[1], 14)))


def test_a_value_beyond_the_bits_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    paths = [save(tmp_path / "dark.png", ramp(700)), save(tmp_path / "bright.png", ramp(5000))]
    for skip_bad in (False, True):  # the bits are wrong, not the picture
        with pytest.raises(DataError, match=r"bright\.png: its brightest value 5000 is beyond the 12 bits.*--bits 14"):
            load_images(paths, skip_bad, bits=12)


class Deep(Source):
    """A camera of 16 bits: the pictures once, as a driver would give them."""

    def __init__(self, pictures: list[np.ndarray], declared: int | None = None) -> None:
        super().__init__("deep")
        self._pictures, self._declared = pictures, declared

    def __iter__(self) -> Iterator[Frame]:
        for index, picture in enumerate(self._pictures):
            yield Frame(picture, index, time.monotonic(), self.stream, bits=self._declared)

    def describe(self) -> str:
        return "deep camera"


def judged(
    make_runner: Callable[..., Any],
    source: Source,
    bits: int | None = None,
    manifest: dict[str, Any] | None = None,
    verdict: VerdictSettings | None = None,
) -> tuple[list[Prediction], Line]:
    """What became of a camera's pictures, by a runner whose score is the largest brightness over 255."""
    seen: list[Prediction] = []
    line = Line(Model("m", None, make_runner(), 0.9, manifest=manifest or {}), [CallbackSink(seen.append)])
    settings = LineStream("deep", CameraSettings("synthetic", bits=bits), verdict=verdict or VerdictSettings())
    line.add_source(settings, source)
    run_line(line)
    return seen, line


def flat(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint16)


def test_a_stream_reads_deep_frames_as_training_did(make_runner: Callable[..., Any]) -> None:
    for bits, manifest in ((12, {}), (None, {"data": {"bits": 12}}), (12, {"data": {"bits": None}})):
        seen, _ = judged(make_runner, Deep([flat(2048), flat(4095)]), bits, manifest)
        assert [one.image_score for one in seen] == pytest.approx([128 / 255, 1])
        assert all(one.frame.image.dtype == np.uint8 for one in seen)  # for every sink behind it
    seen, _ = judged(make_runner, Deep([flat(2048)]), None, {"data": {}})  # a bundle of version 0.1 knew 16 only
    assert seen[0].image_score == pytest.approx(8 / 255)


def test_bits_that_nobody_said_are_recognised_at_the_first_frame_and_said(
    make_runner: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [flat(4000), flat(100)]
    seen, _ = judged(make_runner, Deep(pictures), None, {"data": {"bits": None}})
    assert [one.image_score for one in seen] == pytest.approx([249 / 255, 6 / 255])
    assert "deep: pictures of 16 bits are read as 12 bits" in caplog.text
    seen, _ = judged(make_runner, Deep([flat(512)], declared=12))
    assert seen[0].image_score == pytest.approx(32 / 255)
    assert "exceeds a quarter of that range" in caplog.text


def test_a_frame_beyond_the_bits_has_no_verdict_and_says_so(
    make_runner: Callable[..., Any], note_fault: Callable[..., None]
) -> None:
    seen, line = judged(make_runner, Deep([flat(100), flat(5000), flat(4000)]), 12)
    assert [one.frame.index for one in seen] == [0, 2]
    assert line.buffer.total().dropped["failed"] == 1
    (event,) = (event for event in line.events.newest() if event.kind == "frame.failed")
    assert "its brightest value 5000 is beyond the 12 bits" in str(event.facts["reason"])
    total = line.buffer.total()
    note_fault("a frame beyond its bits", total.captured, total.judged, total.dropped, "the next frame")


def test_a_trigger_sees_the_scaled_picture(make_runner: Callable[..., Any]) -> None:
    trigger = VerdictSettings(trigger=Trigger((2, 2), (12, 2), level=100))
    seen, line = judged(make_runner, Deep([flat(200), flat(3000), flat(200), flat(9000)]), 12, verdict=trigger)
    assert [one.frame.index for one in seen] == [1]
    assert dict(line.buffer.total().dropped) == {"untriggered": 2, "failed": 1}


def test_impossible_bits_are_refused() -> None:
    for bits in (7, 17):
        with pytest.raises(ConfigError, match="bits"):
            CameraSettings("synthetic", bits=bits)


def test_what_a_bundle_keeps() -> None:
    assert kept_bits({}) is None
    assert kept_bits({"data": {}}) == 16
    assert kept_bits({"data": {"bits": 12}}) == 12
    assert kept_bits({"data": {"bits": None}}) is None
