"""Kinds of source: one takes each address, a new one is one registration, and an option belongs to its kind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.runtime.sources.open import open_source, open_source_of
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.web.controls import camera_keys, word_of
from nnet_edge.settings.camera import CameraSettings, fitting, is_path, kind_of
from nnet_edge.settings.reader import schema_of
from nnet_edge.settings.registry import SOURCES, SourceKind
from nnet_edge.settings.web import WebSettings, addable_words

SCHEMA = Path(__file__).parents[3] / "examples" / "line.schema.json"


@dataclass(frozen=True)
class NoiseOptions:
    brightness: int = 10


@pytest.fixture
def noise() -> Iterator[SourceKind]:
    """A kind of source that is known for one test."""

    def make(settings: CameraSettings, options: NoiseOptions) -> SyntheticSource:
        return SyntheticSource([np.full((4, 4, 3), options.brightness, np.uint8)])

    yield SOURCES.register(
        SourceKind("noise", "noise://", lambda text: text.startswith("noise://"), make, NoiseOptions, page="noise")
    )
    SOURCES.unregister("noise")


def test_a_new_kind_is_one_registration(noise: SourceKind) -> None:
    table = {"address": "noise://1", "brightness": 200}
    settings = CameraSettings.from_table(table, "camera", Path())
    with open_source_of(settings, "left") as source:
        (frame,) = source
    assert (frame.image[0, 0, 0], frame.stream) == (200, "left")
    assert schema_of(CameraSettings)["properties"]["brightness"] == {"type": "integer", "default": 10}
    with pytest.raises(SourceError, match=r"unknown scheme gopher: give .* noise://"):
        open_source("gopher://host")
    with pytest.raises(ConfigError, match="brightness belongs to noise://, and this is synthetic"):
        CameraSettings.of("synthetic", brightness=1)
    with pytest.raises(ConfigError, match=r"camera: brightness is 'much': it must be a whole number"):
        CameraSettings.from_table(table | {"brightness": "much"}, "camera", Path())
    assert word_of("noise://1") == "noise"
    assert "noise" in addable_words()
    assert "noise" not in WebSettings().addable  # the page may add it only where the settings say so
    assert "brightness" not in camera_keys()


def test_a_kind_that_is_gone_is_unknown() -> None:
    assert "noise" not in SOURCES.names()
    with pytest.raises(SourceError, match="unknown scheme noise"):
        open_source("noise://1")


def test_exactly_one_kind_takes_each_address(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.PNG"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "a.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "p.png")
    addresses = {
        "7": "camera", "/dev/null": "device", "gstreamer:x": "gstreamer", "HTTP://h/live": "http", "http://[x": "http",
        "http://h/video.mjpg": "http",
        "https://h/a.mp4?x": "http-video", str(tmp_path): "images", str(tmp_path / "a.PNG"): "images", "udp://h:1": "network",
        "RTMP://h/x": "network", str(tmp_path / "p.png"): "pipe", "rtsps://h/x": "rtsp", "synthetic": "synthetic",
        "synthetic:x": "synthetic", str(tmp_path / "a.mp4"): "video", "GigE://4711": "gige",
        "genicam:x": "genicam", "gentl:x": "gentl",
    }  # fmt: skip
    for address, name in addresses.items():
        kind = kind_of(address)
        assert kind is not None
        assert kind.name == name
        assert [one.name for one in SOURCES if one.takes(address)] == [name]
        assert is_path(address) == kind.is_path
    assert set(addresses.values()) == set(SOURCES.names())
    for unknown in ("", "absent", "gopher://h", "gstreamer", "a\0b", "setup.py", "file:///etc/passwd"):
        assert kind_of(unknown) is None, unknown


def test_the_camera_table_has_the_keys_that_it_always_had() -> None:
    known = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert CameraSettings.schema() == known["properties"]["stream"]["items"]["properties"]["camera"]
    types: dict[str, Any] = {}
    for kind in SOURCES:
        if kind.options is not None:
            for name, schema in schema_of(kind.options)["properties"].items():
                schema.pop("description", None)  # that of rtsps:// is not that of https://
                assert types.setdefault(name, schema) == schema  # a key means one thing, whatever the kind


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"address": "0", "transport": "udp"},
            "transport belongs to an rtsp:// address, and this is a camera's number",
        ),
        ({"address": "rtsp://h/", "transport": "smoke"}, "transport 'smoke' is unknown: choose tcp or udp"),
        ({"address": "synthetic", "seed": -1}, "seed is -1"),
        ({"address": "synthetic", "sead": 1}, "has a key 'sead' that is unknown: did you mean seed?"),
        ({"address": "synthetic", "at_own_rate": True}, "belongs to an http:// video or a video file, and this is"),
        ({"address": ""}, "a stream needs a source: give an image folder or file, a video file, a camera's number"),
    ],
)
def test_an_option_belongs_to_its_kind(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        CameraSettings.of(**settings)
    with pytest.raises(ConfigError, match=f"here: .*{says.replace('?', '.')}|here {says.replace('?', '.')}"):
        CameraSettings.from_table(settings, "here", Path())


def test_an_absent_path_keeps_options_until_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "photos"
    settings = CameraSettings.of(str(path), watch=True)
    assert not open_source_of(settings, may_be_absent=True).describe().startswith("watched")
    path.mkdir()
    assert open_source_of(settings).describe() == f"watched folder {path}"
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="watch belongs to an image folder or file, and this is a pipe: leave it out"):
        open_source_of(settings)
    assert open_source_of(CameraSettings.of(str(path), watch=False)).is_live  # asks for nothing


def test_an_image_cannot_be_watched(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ConfigError, match="is not a folder: only a folder can be watched"):
        open_source(str(tmp_path / "a.png"), watch=True)


def test_flags_for_several_sources_go_to_those_they_fit(tmp_path: Path) -> None:
    flags = {"skip_bad_images": True, "seed": 3, "rate_hz": 5.0}
    assert fitting("synthetic", flags) == {"seed": 3, "rate_hz": 5.0}
    assert fitting("0", flags) == {"rate_hz": 5.0}
    assert fitting(str(tmp_path), flags) == {"skip_bad_images": True, "rate_hz": 5.0}
    assert fitting(str(tmp_path / "absent"), flags) == {"skip_bad_images": True, "rate_hz": 5.0}


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("0", "camera"), ("/dev/video3", "camera"), ("/dev/video3/../mem", "file"), ("/dev/mem", "file"), ("/etc", "file"),
        ("rtsp://h/", "rtsp"), ("http://h/a.mp4", "http"), ("synthetic:5", "synthetic"), ("udp://h:1", "pipeline"),
        ("file:///etc/passwd", "pipeline"), ("gopher://h", "pipeline"), ("gstreamer:x", "pipeline"), ("", "pipeline"),
    ],
)  # fmt: skip
def test_the_page_knows_each_source_by_a_word_and_unknown_ones_by_one_that_is_never_allowed(
    address: str, word: str
) -> None:
    assert word_of(address) == word


def test_the_page_may_be_allowed_no_pipeline() -> None:
    assert addable_words() == ("camera", "file", "http", "rtsp", "synthetic")
    with pytest.raises(ConfigError, match="source that the page may add 'pipeline' is unknown: choose camera"):
        WebSettings(addable=("pipeline",))
    assert camera_keys() == ("address", "width", "height", "rate_hz", "pixel_format", "transport", "seed")
