"""Cameras of this machine: by their number, or by the path of their device."""

from __future__ import annotations

import logging
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.runtime.sources.base import file_mode
from nnet_edge.runtime.sources.controls import ControlOptions, automatic_words
from nnet_edge.runtime.sources.video import VideoSource
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, FoundCamera, SourceKind
from nnet_edge.settings.runner import require_between

if TYPE_CHECKING:
    from nnet_edge.runtime.v4l2 import V4l2Device

log = logging.getLogger(__name__)

POWER_LINES_HZ = (0, 50, 60)
PAIRS = {  # a value -> what changes it by itself
    "exposure_us": "auto_exposure",
    "gain": "auto_gain",
    "white_balance_k": "auto_white_balance",
    "focus": "auto_focus",
}


@dataclass(frozen=True)
class UsbOptions(ControlOptions):
    """What only cameras of this machine have; None: as the camera is set."""

    white_balance_k: int | None = None  # kelvin; switches automatic white balance off
    power_line_hz: int | None = None  # of the lamps, whose flicker it takes out: 50, 60, or 0 for none
    focus: int | None = None  # in the camera's own unit; switches automatic focus off
    auto_focus: bool | None = None  # by itself: it changes the picture, and with it scores

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.white_balance_k is not None:
            require_between("white_balance_k", self.white_balance_k, 1_000, 20_000)
        if self.power_line_hz not in (None, *POWER_LINES_HZ):
            raise ConfigError(f"power_line_hz is {self.power_line_hz}: choose 50, 60 or 0")
        for value, automatic in (("white_balance_k", "auto_white_balance"), ("focus", "auto_focus")):
            if getattr(self, value) is not None and getattr(self, automatic):
                raise ConfigError(f"{value} and {automatic} = true contradict each other: give one")


class UsbSource(VideoSource):
    """A camera behind a driver of the operating system."""

    advice = "no such camera, or another program uses it, or you may not; `nnet-edge cameras` lists what there is"
    options = UsbOptions()

    def __enter__(self) -> UsbSource:
        super().__enter__()
        try:
            self._set_controls()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _set_controls(self) -> None:
        """Set what was asked for, and tell what the camera changes by itself. Raises ConfigError, SourceError."""
        from nnet_edge.runtime.v4l2 import open_v4l2

        path = f"/dev/video{self._address}" if isinstance(self._address, int) else self._address
        try:
            with open_v4l2(path) as device:
                configure(device, self._what, self.options)
                card, settings, automatic = device.card()[0], device.settings(), device.automatic()
        except (SourceError, OSError) as error:  # a driver of another kind
            if self.options != UsbOptions():
                raise SourceError(f"the controls of {self._what} cannot be set: {error}") from error
            return
        assert self.got is not None
        self.got = replace(self.got, settings=settings, automatic=automatic, device=card)
        if automatic:
            log.warning("%s: %s", self._what, automatic_words(automatic))


def configure(device: V4l2Device, what: str, options: UsbOptions) -> None:
    """Set the camera's controls: what works by itself first, for it locks the others. Raises ConfigError."""
    from nnet_edge.runtime import v4l2

    def set_control(number: int, value: int, shown: object) -> None:
        v4l2.set_control(device, what, v4l2.NAMES[number], number, value, shown)

    numbers = {key: number for number, key in v4l2.NAMES.items()}
    for key, automatic in PAIRS.items():
        number = numbers[automatic]
        is_on = False if getattr(options, key) is not None else getattr(options, automatic)
        control = device.control(number)
        if is_on is None or (not is_on and control is None):  # what a camera lacks does nothing by itself
            continue
        wanted = int(is_on)
        if number == v4l2.AUTO_EXPOSURE:
            menu = {} if control is None else device.menu(number, control)
            wanted = next((one for one in v4l2.BY_ITSELF if one in menu), v4l2.BY_ITSELF[0]) if is_on else v4l2.MANUAL
        set_control(number, wanted, str(is_on).lower())
    for key in PAIRS:
        if (value := getattr(options, key)) is not None:
            unit = v4l2.EXPOSURE_UNIT_US if key == "exposure_us" else 1
            set_control(numbers[key], round(value / unit), value)
    if options.power_line_hz is not None:
        set_control(v4l2.POWER_LINE, v4l2.POWER_LINES[options.power_line_hz], options.power_line_hz)


def open_number(settings: CommonSettings, options: UsbOptions) -> UsbSource:
    source = UsbSource(int(settings.address), f"camera {settings.address}", f"camera-{settings.address}", settings)
    source.options = options
    return source


def open_device(settings: CommonSettings, options: UsbOptions) -> UsbSource:
    path = Path(settings.address)
    source = UsbSource(str(path), f"camera {path}", path.name, settings)
    source.options = options
    return source


def find() -> Sequence[FoundCamera]:
    """The video devices of this machine."""
    from nnet_edge.runtime.v4l2 import find

    return find()


SOURCES.register(
    SourceKind("camera", "a camera's number", str.isdecimal, open_number, UsbOptions, page="camera", order=30)
)
SOURCES.register(
    SourceKind(
        "device",
        "a camera's device",
        lambda text: stat.S_ISCHR(file_mode(text)),
        open_device,
        UsbOptions,
        is_path=True,
        find=find,
    )
)
