"""Controls of a USB camera: the kernel's structures held against its own headers, and a camera that answers like a common one.

No kernel here has a camera: what is shown is that requests, structures and their order are right, not a driver.
"""

from __future__ import annotations

import errno
import logging
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.runtime import v4l2
from nnet_edge.runtime.sources.usb import UsbOptions, UsbSource, configure
from nnet_edge.runtime.v4l2 import V4l2Device
from nnet_edge.settings.camera import CameraSettings, CommonSettings

AUTO_MENU = {1: "Manual Mode", 3: "Aperture Priority Mode"}
LINE_MENU = {0: "Disabled", 1: "50 Hz", 2: "60 Hz"}
LOCKED_BY = {
    v4l2.EXPOSURE: v4l2.AUTO_EXPOSURE,
    v4l2.WHITE_BALANCE: v4l2.AUTO_WHITE_BALANCE,
    v4l2.FOCUS: v4l2.AUTO_FOCUS,
}


class Webcam:
    """Answers like the driver of a common USB camera: a control that something automatic has cannot be set."""

    def __init__(self) -> None:
        self.controls: dict[int, list[Any]] = {  # number -> name, type, least, largest, step, value
            v4l2.GAIN: ["Gain", 1, 0, 255, 1, 64],
            v4l2.AUTO_WHITE_BALANCE: ["White Balance, Automatic", 2, 0, 1, 1, 1],
            v4l2.WHITE_BALANCE: ["White Balance Temperature", 1, 2000, 6500, 1, 4000],
            v4l2.POWER_LINE: ["Power Line Frequency", 3, 0, 2, 1, 2],
            v4l2.AUTO_EXPOSURE: ["Auto Exposure", 3, 0, 3, 1, 3],
            v4l2.EXPOSURE: ["Exposure Time, Absolute", 1, 3, 2047, 1, 250],
            v4l2.AUTO_FOCUS: ["Focus, Automatic Continuous", 2, 0, 1, 1, 1],
            v4l2.FOCUS: ["Focus, Absolute", 1, 0, 250, 5, 0],
        }

    def value(self, number: int) -> int:
        return int(self.controls[number][5])

    def __call__(self, number: int, data: bytearray) -> None:
        layouts = {v4l2.QUERYCAP: v4l2.CAPABILITY, v4l2.ENUM_FMT: v4l2.FORMAT, v4l2.QUERYMENU: v4l2.MENU}
        layouts |= {v4l2.QUERYCTRL: v4l2.QUERY, v4l2.G_CTRL: v4l2.CONTROL, v4l2.S_CTRL: v4l2.CONTROL}
        asked = struct.unpack(layouts[number], data)
        data[:] = struct.pack(layouts[number], *self.answer(number, asked))

    def answer(self, number: int, asked: tuple[Any, ...]) -> tuple[Any, ...]:
        if number == v4l2.QUERYCAP:
            return (b"uvcvideo", b"HD Webcam\0rubbish", b"usb-0000:00:14.0-1", 0x060000, 0x84A00001, 0x04200001)
        if number == v4l2.ENUM_FMT:
            formats = [b"YUYV", b"MJPG"]
            if asked[1] != 1 or asked[0] >= len(formats):
                raise OSError(errno.EINVAL, "Invalid argument")
            return (asked[0], 1, 0, b"a format", struct.unpack("I", formats[asked[0]])[0], 0)
        if asked[0] not in self.controls:
            raise OSError(errno.EINVAL, "Invalid argument")
        name, kind, least, largest, step, value = self.controls[asked[0]]
        if number == v4l2.QUERYCTRL:
            return (asked[0], kind, name.encode(), least, largest, step, value, 0)
        if number == v4l2.QUERYMENU:
            menu = AUTO_MENU if asked[0] == v4l2.AUTO_EXPOSURE else LINE_MENU
            if asked[1] not in menu:
                raise OSError(errno.EINVAL, "Invalid argument")
            return (asked[0], asked[1], menu[asked[1]].encode(), 0)
        if number == v4l2.S_CTRL:
            lock = LOCKED_BY.get(asked[0])
            if lock is not None and self.value(lock) not in ((1,) if lock == v4l2.AUTO_EXPOSURE else (0,)):
                raise OSError(errno.EACCES, "Permission denied")
            self.controls[asked[0]][5] = asked[1]
        return (asked[0], self.value(asked[0]))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc and Linux's headers")
def test_requests_and_structures_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    names = {
        "VIDIOC_QUERYCAP": v4l2.QUERYCAP, "VIDIOC_ENUM_FMT": v4l2.ENUM_FMT, "VIDIOC_G_CTRL": v4l2.G_CTRL,
        "VIDIOC_S_CTRL": v4l2.S_CTRL, "VIDIOC_QUERYCTRL": v4l2.QUERYCTRL, "VIDIOC_QUERYMENU": v4l2.QUERYMENU,
        "V4L2_CID_AUTO_WHITE_BALANCE": v4l2.AUTO_WHITE_BALANCE, "V4L2_CID_AUTOGAIN": v4l2.AUTO_GAIN,
        "V4L2_CID_GAIN": v4l2.GAIN, "V4L2_CID_POWER_LINE_FREQUENCY": v4l2.POWER_LINE,
        "V4L2_CID_WHITE_BALANCE_TEMPERATURE": v4l2.WHITE_BALANCE, "V4L2_CID_EXPOSURE_AUTO": v4l2.AUTO_EXPOSURE,
        "V4L2_CID_EXPOSURE_ABSOLUTE": v4l2.EXPOSURE, "V4L2_CID_FOCUS_ABSOLUTE": v4l2.FOCUS,
        "V4L2_CID_FOCUS_AUTO": v4l2.AUTO_FOCUS, "V4L2_EXPOSURE_MANUAL": v4l2.MANUAL,
        "V4L2_CTRL_FLAG_DISABLED": v4l2.DISABLED, "V4L2_CAP_DEVICE_CAPS": v4l2.HAS_DEVICE_CAPS,
        "V4L2_CAP_VIDEO_CAPTURE": 0x1, "V4L2_CAP_VIDEO_CAPTURE_MPLANE": 0x1000,
        "V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE": v4l2.CAPTURES[0x1000], "V4L2_CTRL_TYPE_MENU": v4l2.MENUS[0],
        "V4L2_CTRL_TYPE_INTEGER_MENU": v4l2.MENUS[1],
        "sizeof(struct v4l2_capability)": struct.calcsize(v4l2.CAPABILITY),
        "offsetof(struct v4l2_capability, device_caps)": 88, "offsetof(struct v4l2_fmtdesc, pixelformat)": 44,
        "offsetof(struct v4l2_queryctrl, minimum)": 40, "offsetof(struct v4l2_queryctrl, flags)": 56,
        "offsetof(struct v4l2_querymenu, name)": 8,
    }  # fmt: skip
    lines = "".join(f'printf("%llu\\n", (unsigned long long)(unsigned int)({name}));' for name in names)
    source = tmp_path / "numbers.c"
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n#include <linux/videodev2.h>\nint main(void) {{ {lines} return 0; }}\n"
    )
    program = tmp_path / "numbers"
    made = subprocess.run(["gcc", "-w", str(source), "-o", str(program)], capture_output=True, text=True, timeout=60)
    if "videodev2.h" in made.stderr:
        pytest.skip("needs Debian's linux-libc-dev")
    assert made.returncode == 0, made.stderr
    told = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=10).stdout.split()
    assert dict(zip(names, map(int, told), strict=True)) == names


def test_what_a_camera_is_and_has_is_read() -> None:
    device = V4l2Device(Webcam())
    assert device.card() == ("HD Webcam", 0x04200001)
    assert device.formats() == ["YUYV", "MJPG"]
    assert device.automatic() == ("exposure", "white balance", "focus")
    assert device.settings() == {
        "auto_exposure": True, "exposure_us": 25_000.0, "gain": 64, "auto_white_balance": True, "white_balance_k": 4000,
        "power_line_hz": 60, "auto_focus": True, "focus": 0,
    }  # fmt: skip


def test_each_value_switches_off_what_would_change_it() -> None:
    camera = Webcam()
    configure(
        V4l2Device(camera), "camera 0",
        UsbOptions(exposure_us=5_000, gain=12, white_balance_k=5_600, power_line_hz=50, focus=30),
    )  # fmt: skip
    assert {number: camera.value(number) for number in camera.controls} == {
        v4l2.GAIN: 12, v4l2.AUTO_WHITE_BALANCE: 0, v4l2.WHITE_BALANCE: 5_600, v4l2.POWER_LINE: 1, v4l2.AUTO_EXPOSURE: 1,
        v4l2.EXPOSURE: 50, v4l2.AUTO_FOCUS: 0, v4l2.FOCUS: 30,
    }  # fmt: skip
    assert V4l2Device(camera).automatic() == ()
    configure(V4l2Device(camera), "camera 0", UsbOptions(auto_exposure=True, auto_focus=True, auto_gain=False))
    assert V4l2Device(camera).automatic() == ("exposure", "focus")
    assert camera.value(v4l2.AUTO_EXPOSURE) == 3


def test_nothing_is_set_that_was_not_asked_for() -> None:
    camera = Webcam()
    before = {number: list(control) for number, control in camera.controls.items()}
    configure(V4l2Device(camera), "camera 0", UsbOptions())
    assert camera.controls == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (UsbOptions(exposure_us=1e7), "exposure_us = 10000000.0 is outside of what camera 0 takes: 300 to 204700"),
        (UsbOptions(gain=300), "gain = 300 is outside of what camera 0 takes: 0 to 255"),
        (UsbOptions(auto_gain=True), "camera 0 has no control for auto_gain: it has auto_exposure, exposure_us, gain"),
        (UsbOptions(focus=251), "focus = 251 is outside of what camera 0 takes: 0 to 250"),
    ],
)
def test_what_a_camera_lacks_or_refuses_is_said(options: UsbOptions, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configure(V4l2Device(Webcam()), "camera 0", options)


def test_a_menu_without_the_value_is_said() -> None:
    camera = Webcam()
    camera.controls[v4l2.POWER_LINE][0] = "Flicker"
    device = V4l2Device(camera)
    with pytest.raises(ConfigError, match=r"power_line_hz = 70 is not one .*: its Flicker is Disabled, 50 Hz, 60 Hz"):
        v4l2.set_control(device, "camera 0", "power_line_hz", v4l2.POWER_LINE, 9, 70)
    with pytest.raises(ConfigError, match="camera 0 refuses exposure_us = 5000: Permission denied"):
        v4l2.set_control(device, "camera 0", "exposure_us", v4l2.EXPOSURE, 50, 5000)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"power_line_hz": 55}, "choose 50, 60 or 0"),
        ({"white_balance_k": 5}, "white_balance_k"),
        ({"focus": 1, "auto_focus": True}, "contradict each other"),
        (
            {"trigger_mode": "free"},
            "trigger_mode belongs to a genicam: address or a gentl: address or a gige:// address",
        ),
    ],
)
def test_settings_that_no_camera_has_are_refused_at_the_door(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CameraSettings.of("0", **asked)


class Recorded(UsbSource):
    """A camera whose pictures come from a file."""

    film = ""

    def _open(self) -> cv2.VideoCapture:
        return cv2.VideoCapture(self.film)


@pytest.fixture
def film(tmp_path: Path) -> str:
    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for shade in range(3):
        writer.write(np.full((48, 64, 3), 40 * shade, np.uint8))
    writer.release()
    return path


def test_an_opened_camera_is_set_and_says_what_is_automatic(
    film: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    camera, asked = Webcam(), []

    @contextmanager
    def opened(path: str) -> Iterator[V4l2Device]:
        asked.append(path)
        yield V4l2Device(camera)

    monkeypatch.setattr(v4l2, "open_v4l2", opened)
    source = Recorded(3, "camera 3", "camera-3", CommonSettings("3"))
    source.film, source.options = film, UsbOptions(exposure_us=10_000, focus=20)
    with source, caplog.at_level(logging.WARNING):
        assert source.got is not None
        assert next(iter(source)).image.shape == (48, 64, 3)
    assert asked == ["/dev/video3"]
    assert (source.got.width, source.got.device, source.got.automatic) == (64, "HD Webcam", ("white balance",))
    assert source.got.settings["exposure_us"] == 10_000
    assert "camera 3: the camera sets white balance by itself" in caplog.text
    assert "auto_white_balance = false" in caplog.text


def test_a_device_without_controls_gives_pictures_and_refuses_settings(film: str) -> None:
    source = Recorded("/dev/null", "camera /dev/null", "null", CommonSettings("/dev/null"))
    source.film = film
    with source:
        assert source.got is not None
        assert source.got.automatic is None
    source.options = UsbOptions(gain=1)
    with pytest.raises(ConfigError, match="camera /dev/null has no control for gain: it has none of ours"):
        source.__enter__()


def test_a_device_that_is_absent_or_no_camera_is_found_to_be(tmp_path: Path) -> None:
    with (
        pytest.raises(SourceError, match="/dev/video99 cannot be opened: No such file"),
        v4l2.open_v4l2("/dev/video99"),
    ):
        raise AssertionError
    (tmp_path / "video7").mkdir()
    (tmp_path / "video7" / "name").write_text("Some Camera: HD\n")
    fake = tmp_path / "dev" / "video7"
    fake.parent.mkdir()
    fake.symlink_to("/dev/null")
    found = v4l2.found_at(fake, tmp_path)
    assert (found.name, found.is_readable, found.formats) == ("Some Camera: HD", True, ())
    assert found.problem.startswith("it cannot be asked: ")
