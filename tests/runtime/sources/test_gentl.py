"""Cameras behind a GenTL producer, by harvesters: the producer that comes with the GenICam binding draws a bouncing ball."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.errors import ConfigError, MissingExtraError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources import gentl
from nnet_edge.runtime.sources.genicam import GenicamSource
from nnet_edge.runtime.sources.open import open_source

FOUND = importlib.util.find_spec("genicam")
VIKY = Path(FOUND.origin or "").with_name("viky.cti") if FOUND else Path("absent")
needs_producer = pytest.mark.skipif(
    not VIKY.is_file(),
    reason="needs harvesters, and a genicam that comes with viky.cti: pip install 'nnet-edge[genicam]'",
)
SMALL: dict[str, Any] = {"producer": VIKY, "pixel_format": "Mono8", "width": 200, "height": 150}


def take(source: GenicamSource, count: int) -> list[Frame]:
    return [frame for frame, _ in zip(source, range(count), strict=False)]


@needs_producer
def test_pictures_come_through_a_producer() -> None:
    lost: list[tuple[str, int]] = []
    with open_source("gentl:1", **SMALL, rate_hz=100.0, features={"BouncingBallSize": 30}) as source:
        source.lose = lambda cause, frames: lost.append((cause, frames))
        frames = take(source, 8)
        got = source.got
    assert got is not None
    assert (got.height, got.width, got.rate_hz, got.pixel_format) == (150, 200, 100.0, "Mono8")
    assert got.settings["BouncingBallSize"] == 30
    assert (got.device, got.automatic) == ("Machine Vision Games Ltd. Viky, serial 1", ())
    ids = [frame.stamp.block_id for frame in frames if frame.stamp]
    assert ids == list(range(ids[0], ids[0] + 8))  # type: ignore[arg-type,operator]
    assert not lost
    assert frames[0].stamp is not None
    assert frames[0].stamp.time_ns is None  # it has no clock
    for frame in frames:
        assert frame.image.shape == (150, 200, 3)
        assert (frame.image[..., 0] == frame.image[..., 1]).all()
    assert np.ptp(frames[0].image) > 0
    assert any((one.image != frames[0].image).any() for one in frames[1:])  # the ball moves


@needs_producer
def test_two_cameras_share_a_producer_and_one_camera_has_one_owner() -> None:
    with open_source("gentl:0", **SMALL) as one, open_source("gentl:viKYTL_DEV_blue", **SMALL) as other:
        assert len(take(one, 2)) == len(take(other, 2)) == 2
        with pytest.raises(SourceError, match=r"serial 0 cannot be opened: .*already in use"):
            open_source("gentl:0", **SMALL).__enter__()
        assert take(one, 1)
    with open_source("gentl:0", **SMALL) as again:
        assert take(again, 1)


@needs_producer
@pytest.mark.parametrize(
    ("address", "asked", "error", "words"),
    [
        ("gentl:4711", {}, SourceError, r"serial number or model '4711' behind viky.cti: there are Machine .* serial 0; "),
        ("gentl:Viky", {}, SourceError, "3 cameras fit 'Viky': give the serial number"),
        ("gentl:1", {"pixel_format": None}, ConfigError, "sends RGBa8, which is not read here: choose Mono8; RGBa8 it has too"),
        ("gentl:1", {"pixel_format": "Mono12"}, ConfigError, "no pixel format Mono12 that is read here: choose Mono8"),
        ("gentl:1", {"exposure_us": 5.0}, ConfigError, r"no feature ExposureTime \(exposure_us\): it has .*BouncingBallSize"),
        ("gentl:1", {"features": {"BouncingBallSize": 99}}, ConfigError, "BouncingBallSize = 99 is outside .*: 1 to 40"),
        ("gentl:1", {"features": {"PayloadSize": 99}}, ConfigError, "PayloadSize"),
        ("gentl:1", {"trigger_mode": "software"}, ConfigError, "has no feature TriggerMode"),
        ("gentl:1", {"packet_size": 1500}, ConfigError, "packet_size belongs to GigE cameras"),
    ],
)  # fmt: skip
def test_what_the_camera_lacks_or_refuses_is_said(
    address: str, asked: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        open_source(address, **(SMALL | asked)).__enter__()
    with open_source("gentl:1", **SMALL) as source:  # it was let go of
        assert take(source, 1)


@needs_producer
def test_installed_producers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gentl.FOLDERS, f"/nowhere:{VIKY.parent}")
    found = gentl.find()
    assert [one.path for one in found] == ["gentl:0", "gentl:1", "gentl:2"]
    assert {one.formats for one in found} == {("RGBa8", "Mono8")}
    assert all(one.is_readable and one.model.endswith("Viky") for one in found)
    with open_source("gentl:2", pixel_format="Mono8") as source:
        assert take(source, 1)


@pytest.mark.skipif(FOUND is None, reason="needs harvesters: pip install 'nnet-edge[genicam]'")
def test_a_file_that_is_no_producer_is_said_to_be_none(tmp_path: Path) -> None:
    text = tmp_path / "text.cti"
    text.write_text("no library")
    with pytest.raises(ConfigError, match=r"text\.cti cannot be loaded: "):
        open_source("gentl:1", producer=text).__enter__()
    other = tmp_path / "libm.cti"
    loaded = Path("/proc/self/maps").read_text().split()
    other.write_bytes(Path(next(path for path in loaded if "/libm.so" in path or "/libm-" in path)).read_bytes())
    with pytest.raises(ConfigError, match=r"libm\.cti is no GenTL producer"):
        open_source("gentl:1", producer=other).__enter__()


@needs_producer
def test_harvesters_runs_no_git_in_the_folder_that_it_lies_in(tmp_path: Path) -> None:
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\n")
    git.chmod(0o755)
    code = "from pathlib import Path; from nnet_edge.runtime.sources.gentl import open_harvester; "
    code += f"assert open_harvester(Path({str(VIKY)!r})).files"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
    assert not (tmp_path / "was_run").exists()


def test_without_harvesters_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("harvesters", "harvesters.core"):
        monkeypatch.setitem(sys.modules, name, None)
    producer = tmp_path / "a.cti"
    producer.touch()
    with pytest.raises(MissingExtraError, match="harvesters"):
        open_source("gentl:1", producer=producer).__enter__()


def test_a_producer_that_is_absent_or_not_said_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"absent\.cti is no file: give the \.cti"):
        open_source("gentl:1", producer=tmp_path / "absent.cti").__enter__()
    monkeypatch.delenv(gentl.FOLDERS, raising=False)
    with pytest.raises(ConfigError, match="there is none in the folders of GENICAM_GENTL64_PATH: give producer"):
        open_source("gentl:1").__enter__()
    for name in ("a", "b"):
        (tmp_path / f"{name}.cti").touch()
    monkeypatch.setenv(gentl.FOLDERS, str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is several, .*a\.cti, .*b\.cti: give producer"):
        open_source("gentl:1").__enter__()
    assert gentl.find() == []
