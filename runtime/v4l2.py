"""Cameras of Linux's Video4Linux: what they are, their pixel formats, and the controls of their picture, by ioctl.

OpenCV sets some controls and cannot say which a camera has. The structures are those of linux/videodev2.h.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.settings.registry import FoundCamera
from nnet_edge.text import printable

CAPABILITY, FORMAT, CONTROL, QUERY, MENU = "16s32s32sIII12x", "III32sII12x", "Ii", "II32siiiiI8x", "=II32sI"


def request(is_written: bool, number: int, layout: str) -> int:
    """The number of an ioctl that reads a structure, or reads and writes it."""
    return (3 if is_written else 2) << 30 | struct.calcsize(layout) << 16 | ord("V") << 8 | number


QUERYCAP = request(False, 0, CAPABILITY)
ENUM_FMT = request(True, 2, FORMAT)
G_CTRL, S_CTRL = request(True, 27, CONTROL), request(True, 28, CONTROL)
QUERYCTRL, QUERYMENU = request(True, 36, QUERY), request(True, 37, MENU)
CAPTURES = {0x1: 1, 0x1000: 9}  # capability of a camera -> the type of its buffers: one plane, or several
HAS_DEVICE_CAPS = 0x80000000
DISABLED = 0x1  # flag of a control
MENUS = (3, 9)  # types of control that choose from a list: menu, and menu of numbers
USER, CAMERA = 0x00980900, 0x009A0900  # where the numbers of controls begin
AUTO_WHITE_BALANCE, AUTO_GAIN, GAIN = USER + 12, USER + 18, USER + 19
POWER_LINE, WHITE_BALANCE = USER + 24, USER + 26
AUTO_EXPOSURE, EXPOSURE, FOCUS, AUTO_FOCUS = CAMERA + 1, CAMERA + 2, CAMERA + 10, CAMERA + 12
MANUAL = 1  # of automatic exposure
BY_ITSELF = (3, 0, 2)  # of the same: aperture priority, as USB cameras have it, all automatic, shutter priority
EXPOSURE_UNIT_US = 100.0
POWER_LINES = {0: 0, 50: 1, 60: 2}  # Hz -> value
NAMES = {
    AUTO_EXPOSURE: "auto_exposure", EXPOSURE: "exposure_us", AUTO_GAIN: "auto_gain", GAIN: "gain",
    AUTO_WHITE_BALANCE: "auto_white_balance", WHITE_BALANCE: "white_balance_k", POWER_LINE: "power_line_hz",
    AUTO_FOCUS: "auto_focus", FOCUS: "focus",
}  # fmt: skip
AUTOMATIC = {"exposure": AUTO_EXPOSURE, "gain": AUTO_GAIN, "white balance": AUTO_WHITE_BALANCE, "focus": AUTO_FOCUS}
Ioctl = Callable[[int, bytearray], None]  # request and structure, which is changed; raises OSError


@dataclass(frozen=True)
class Control:
    """What a camera says of one control."""

    name: str  # the driver's own
    kind: int
    least: int
    largest: int
    step: int


class V4l2Device:
    """An opened camera, for its facts and controls; it may stream elsewhere meanwhile. Methods raise OSError."""

    def __init__(self, ioctl: Ioctl) -> None:
        self._ioctl = ioctl

    def _ask(self, number: int, layout: str, *values: object) -> tuple[Any, ...]:
        data = bytearray(struct.pack(layout, *values))
        self._ioctl(number, data)
        return struct.unpack(layout, data)

    def card(self) -> tuple[str, int]:
        """The camera's name, and what the device can do."""
        _, card, _, _, capabilities, own = self._ask(QUERYCAP, CAPABILITY, b"", b"", b"", 0, 0, 0)
        return text(card), own if capabilities & HAS_DEVICE_CAPS else capabilities

    def formats(self) -> list[str]:
        """The pixel formats of its pictures, four letters each."""
        _, can = self.card()
        found: list[str] = []
        for kind in [kind for capability, kind in CAPTURES.items() if can & capability]:
            while True:
                try:
                    answer = self._ask(ENUM_FMT, FORMAT, len(found), kind, 0, b"", 0, 0)
                except OSError:  # that was the last
                    break
                found.append(printable(struct.pack("I", answer[4]).decode("ascii", "replace").strip()))
        return found

    def control(self, number: int) -> Control | None:
        """What the camera says of a control; None when it has none of that number."""
        try:
            _, kind, name, least, largest, step, _, flags = self._ask(QUERYCTRL, QUERY, number, 0, b"", 0, 0, 0, 0, 0)
        except OSError:
            return None
        return None if flags & DISABLED else Control(text(name), kind, least, largest, step)

    def menu(self, number: int, control: Control) -> dict[int, str]:
        """The values that a control chooses from, with their names; some between may be absent."""
        found = {}
        for index in range(control.least, control.largest + 1):
            try:
                found[index] = text(self._ask(QUERYMENU, MENU, number, index, b"", 0)[2])
            except OSError:
                continue
        return found

    def get(self, number: int) -> int:
        """The value of a control."""
        return self._ask(G_CTRL, CONTROL, number, 0)[1]

    def set(self, number: int, value: int) -> int:
        """Give a control a value; the one that the camera took."""
        return self._ask(S_CTRL, CONTROL, number, value)[1]

    def automatic(self) -> tuple[str, ...]:
        """What the camera changes by itself now."""
        found = []
        for what, number in AUTOMATIC.items():
            if self.control(number) is not None:
                value = self.get(number)
                if value != MANUAL if number == AUTO_EXPOSURE else value:
                    found.append(what)
        return tuple(found)

    def settings(self) -> dict[str, object]:
        """The controls that our keys stand for, as they are now."""
        found: dict[str, object] = {}
        for number, key in NAMES.items():
            if self.control(number) is not None:
                value = self.get(number)
                if number == EXPOSURE:
                    found[key] = value * EXPOSURE_UNIT_US
                elif number == POWER_LINE:
                    found[key] = {1: 50, 2: 60, 3: "auto"}.get(value, 0)
                elif number in AUTOMATIC.values():
                    found[key] = value != MANUAL if number == AUTO_EXPOSURE else bool(value)
                else:
                    found[key] = value
        return found

    def names(self) -> str:
        """The keys that stand for a control of this camera."""
        return ", ".join(key for number, key in NAMES.items() if self.control(number) is not None) or "none of ours"


def text(data: object) -> str:
    """A text of the kernel, which ends at a zero."""
    assert isinstance(data, bytes)
    return printable(data.split(b"\0", 1)[0].decode("utf-8", "replace"))


@contextmanager
def open_v4l2(path: str) -> Iterator[V4l2Device]:
    """The device at the path. Raises SourceError when it cannot be opened."""
    try:
        place = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        import fcntl

        yield V4l2Device(lambda number, data: none(fcntl.ioctl(place, number, data, True)))
    finally:
        os.close(place)


def none(_: object) -> None:
    """Nothing."""


def set_control(device: V4l2Device, what: str, key: str, number: int, value: int, shown: object) -> None:
    """Set a control that a key stands for. Raises ConfigError that says what the camera takes."""
    control = device.control(number)
    if control is None:
        raise ConfigError(f"{what} has no control for {key}: it has {device.names()}")
    if control.kind in MENUS and value not in (menu := device.menu(number, control)):
        raise ConfigError(
            f"{key} = {shown} is not one that {what} has: its {control.name} is {', '.join(menu.values())}"
        )
    if not control.least <= value <= control.largest:
        unit = EXPOSURE_UNIT_US if number == EXPOSURE else 1
        raise ConfigError(
            f"{key} = {shown} is outside of what {what} takes: {control.least * unit:g} to {control.largest * unit:g}"
        )
    try:
        device.set(number, value)
    except OSError as error:
        raise ConfigError(f"{what} refuses {key} = {shown}: {error.strerror}") from error


def find() -> list[FoundCamera]:
    """The kernel's video devices, in the order of their numbers."""
    return [
        found_at(path) for path in sorted(Path("/dev").glob("video*"), key=lambda path: (len(path.name), path.name))
    ]


def found_at(path: Path, system: Path = Path("/sys/class/video4linux")) -> FoundCamera:
    """What the kernel says of a video device, and the device itself where it may be opened."""
    name = first_line(system / path.name / "name") or "unnamed"
    serial = first_line(system / path.name / "device" / ".." / "serial")
    is_readable = os.access(path, os.R_OK | os.W_OK)
    if not is_readable:
        return FoundCamera(str(path), name, False, name, serial, problem="no permission (join the group of the device)")
    try:
        with open_v4l2(str(path)) as device:
            card, formats = device.card()[0], tuple(device.formats())
            problem = "" if formats else "no pictures come from it (the second device of a camera)"
            return FoundCamera(str(path), name, True, card, serial, formats, device.automatic(), problem)
    except (SourceError, OSError) as error:
        return FoundCamera(str(path), name, is_readable, name, serial, problem=f"it cannot be asked: {error}")


def first_line(path: Path) -> str:
    """The first line of a file of the kernel, "" where there is none."""
    try:
        return printable(path.read_text(encoding="utf-8").split("\n")[0].strip())
    except (OSError, UnicodeDecodeError):
        return ""
