"""`nnet-edge cameras`: what is there, with a picture of each; doctor lists the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.cli import cameras
from nnet_edge.cli.cameras import with_caption, words_of
from nnet_edge.cli.doctor import describe, examine
from nnet_edge.cli.main import run
from nnet_edge.runtime.sources import gentl
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.settings.registry import FoundCamera
from tests.private_network import private_network
from tests.runtime.sources.test_gentl import VIKY, needs_producer
from tests.runtime.sources.test_gige import FakeCamera, needs_aravis


@pytest.fixture(scope="module", autouse=True)
def own_network() -> Iterator[None]:
    with private_network("127.0.0.2"):
        yield


@pytest.fixture
def camera() -> Iterator[FakeCamera]:
    one = FakeCamera("127.0.0.2", "GV02")
    one.on()
    yield one
    one.off()


@needs_aravis
def test_cameras_are_listed_with_a_picture_of_each(
    camera: FakeCamera, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gentl.FOLDERS, raising=False)
    assert run(["cameras", "--shot", str(tmp_path / "shots")]) == 0
    path = tmp_path / "shots" / "gige_GV02.png"
    told = capsys.readouterr().out
    assert "gige://GV02  Aravis Fake, serial GV02, formats BayerBG8 " in told
    assert ", nothing automatic\n" in told
    assert f"wrote {path}" in told
    picture = cv2.imread(str(path))
    assert picture is not None
    assert picture.shape[1] >= 512
    assert picture.shape[0] > 512 + 60
    ramp = picture[0, :512, 0].astype(int)
    assert set(np.diff(ramp)) <= {1, -254}  # the camera's picture is untouched
    assert picture[520:].max() == 255  # the text below
    assert run(["cameras", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["path"], row["serial"], row["is_readable"], row["automatic"]) == ("gige://GV02", "GV02", True, [])
    assert "gige://GV02  Aravis Fake, serial GV02" in describe(examine())


@needs_aravis
def test_a_camera_of_another_program_is_listed_and_left_alone(
    camera: FakeCamera, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gentl.FOLDERS, raising=False)
    with open_source("gige://127.0.0.2") as source:
        frames = iter(source)
        next(frames)
        assert run(["cameras", "--shot", str(tmp_path)]) == 1
        assert next(frames).image.shape == (512, 512, 3)
    told = capsys.readouterr()
    assert "formats BayerBG8" in told.out
    assert "another program controls it: close that one" in told.out
    assert "no picture of 1 of 1 cameras: gige://GV02: " in told.err
    assert not list(tmp_path.iterdir())


@needs_producer
def test_a_camera_whose_pixel_format_is_not_read_is_shot_in_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gentl.FOLDERS, str(VIKY.parent))
    assert run(["cameras", "--shot", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in rows] == ["gentl:0", "gentl:1", "gentl:2"]
    assert {Path(row["picture"]).name for row in rows} == {"gentl_0.png", "gentl_1.png", "gentl_2.png"}


def test_without_a_camera_it_says_where_it_looked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cameras, "find_cameras", list)
    assert run(["cameras"]) == 0
    lines = [f"no camera: {cameras.NO_CAMERA}", *cameras.not_searched()]  # by the libraries that are missing here
    assert capsys.readouterr().out.splitlines() == lines


def test_what_is_automatic_is_said_loudly() -> None:
    camera = FoundCamera("/dev/video0", "HD", True, formats=("YUYV",), automatic=("exposure", "focus"))
    assert words_of(camera) == "HD, formats YUYV, AUTOMATIC: exposure and focus"


def test_a_caption_stands_below_and_changes_no_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    drawn = with_caption(image, ["größer than the picture is wide", "b"])
    assert (drawn[:40, :30] == image).all()
    assert drawn.shape[1] > 200
    assert drawn[40:].max() > 200
