"""GenICam cameras, whichever library opens them: what is asked of one, what it took, and its pictures."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, DataError, SourceError
from nnet_edge.frame import Frame, Stamp
from nnet_edge.pixel_formats import NAMES, PixelFormat, find_format, to_image
from nnet_edge.runtime.sources.base import Source, SourceFacts
from nnet_edge.runtime.sources.controls import ControlOptions, automatic_words
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.runner import require_between, require_choice

if TYPE_CHECKING:
    import numpy as np

    from nnet_edge.runtime.genicam_device import Block, Device, Value

log = logging.getLogger(__name__)

TRIGGER_MODES = ("free", "software", "line")
BUFFERS = 8  # that wait for the camera's next pictures
LOOK_S = 0.3  # without a picture; then the camera is asked whether it is there
COUNTED_S = 1.0  # how often counts of packets are read
FEATURES = {  # key -> the camera's names for it, newest first
    "exposure_us": ("ExposureTime", "ExposureTimeAbs", "ExposureTimeRaw"),
    "gain": ("Gain", "GainAbs", "GainRaw"),
    "rate_hz": ("AcquisitionFrameRate", "AcquisitionFrameRateAbs"),
    "auto_exposure": ("ExposureAuto",),
    "auto_gain": ("GainAuto",),
    "auto_white_balance": ("BalanceWhiteAuto",),
    "pixel_format": ("PixelFormat",),
    "width": ("Width",),
    "height": ("Height",),
    "offset_x": ("OffsetX",),
    "offset_y": ("OffsetY",),
    "trigger_source": ("TriggerSource",),
    "user_set": ("UserSetSelector",),
}
AUTOMATIC = {"exposure": "ExposureAuto", "gain": "GainAuto", "white balance": "BalanceWhiteAuto"}
RATE_SWITCHES = ("AcquisitionFrameRateEnable", "AcquisitionFrameRateEnabled")
TRIGGERS = ("FrameStart", "FrameBurstStart", "AcquisitionStart")  # what a trigger may start; the first that there is
JUMBO = "ask for less, or raise the MTU of this machine, of every switch and of the camera (jumbo frames)"
LONGEST_GAP = 1 << 12  # blocks; a longer one is another count, for a camera that is silent so long is opened again


@dataclass(frozen=True)
class GenicamOptions(ControlOptions):
    """What only GenICam cameras have; None: as the camera is set."""

    offset_x: int | None = None  # left edge of the region that it sends, whose size width and height say
    offset_y: int | None = None  # its top edge
    trigger_mode: str | None = None  # free, software or line; None: free, or as the user set says
    trigger_source: str | None = None  # of trigger_mode line, as Line1
    user_set: str | None = None  # settings kept in the camera that are loaded first, as UserSet1 or Default
    packet_size: int | None = None  # bytes of a GigE camera's packets with their headers; None: as they come through
    features: Mapping[str, Any] | None = None  # any other of its features by their own names, in this order

    def __post_init__(self) -> None:
        super().__post_init__()
        for what in ("offset_x", "offset_y"):
            if getattr(self, what) is not None:
                require_between(what, getattr(self, what), 0, 32_768)
        if self.packet_size is not None:
            require_between("packet_size", self.packet_size, 220, 16_384)
        if self.trigger_mode is not None:
            require_choice("trigger_mode", self.trigger_mode, TRIGGER_MODES)
        if self.trigger_source is not None and self.trigger_mode != "line":
            raise ConfigError(f'trigger_source = "{self.trigger_source}" belongs to trigger_mode = "line": give both')


class Setup:
    """Sets an opened camera, and keeps what it took. Raises ConfigError that says what the camera has, SourceError."""

    def __init__(self, device: Device, what: str) -> None:
        self._device, self._what = device, what
        self.taken: dict[str, object] = {}

    def configure(self, settings: CommonSettings, options: GenicamOptions) -> None:
        """Ask for everything in the order that cameras need."""
        if options.user_set is not None:
            self.ask("user_set", options.user_set)
            self.feature("UserSetLoad", True)
        if settings.pixel_format is not None:  # first: the steps of a region depend on it
            self.ask("pixel_format", self._own_name(settings.pixel_format))
        self._region(settings, options)
        if self._device.kind_of("AcquisitionMode") and "Continuous" in self._device.choices("AcquisitionMode"):
            self._put("AcquisitionMode", "Continuous")
        self._trigger(options)
        if settings.rate_hz is not None:
            for switch in RATE_SWITCHES:
                if self._device.kind_of(switch):
                    self._put(switch, True)
            self.ask("rate_hz", settings.rate_hz)
        self._controls(options)
        for name, value in (options.features or {}).items():
            self.feature(name, value)
        if options.packet_size is not None:
            self._packets(options.packet_size)

    def _packets(self, size: int) -> None:
        if self._device.packet_size() is None:
            raise ConfigError(f"packet_size belongs to GigE cameras, and {self._what} is none: leave it out")
        found = mtu_towards(self._device.address)
        if found is not None and size > found[1]:
            raise ConfigError(
                f"packet_size = {size} is too large for the network: {found[0]} passes {found[1]} bytes: {JUMBO}"
            )
        self._device.set_packet_size(size)

    def require_packets(self, size: int | None) -> None:
        """Keep the size of packets, once they flow. Raises ConfigError unless it is the one that was asked for."""
        found = self._device.packet_size()
        if found is not None:
            self.taken["packet_size"] = found
        if size is not None and found != size:
            raise ConfigError(
                f"packet_size = {size} is too large for the network to {self._what}, {found} comes through: {JUMBO}"
            )

    def _region(self, settings: CommonSettings, options: GenicamOptions) -> None:
        size = {"width": settings.width, "height": settings.height}
        place = {"offset_x": options.offset_x, "offset_y": options.offset_y}
        if all(value is None for value in (size | place).values()):
            return
        for key in place:  # a large region fits at the edge alone
            if self._device.kind_of(FEATURES[key][0]):
                self._put(FEATURES[key][0], int(self._device.bounds(FEATURES[key][0])[0]))
        for key, value in (size | place).items():
            if value is not None:
                self.ask(key, value)

    def _trigger(self, options: GenicamOptions) -> None:
        mode = options.trigger_mode or ("free" if options.user_set is None else None)
        device = self._device
        if mode is None or (mode == "free" and not device.kind_of("TriggerMode")):
            return
        selectors = list(device.choices("TriggerSelector")) if device.kind_of("TriggerSelector") else []
        for selector in selectors:
            self._put("TriggerSelector", selector)
            if device.kind_of("TriggerMode"):
                self._put("TriggerMode", "Off")
        if mode == "free":
            if not selectors:
                self._put("TriggerMode", "Off")
            return
        if selectors:
            self._put("TriggerSelector", next((name for name in TRIGGERS if name in selectors), selectors[0]))
        self.feature("TriggerMode", "On")
        source = "Software" if mode == "software" else options.trigger_source
        self.ask("trigger_source", source or self._first_line())

    def _first_line(self) -> str:
        """The first hardware line that the camera can be triggered by."""
        sources = self._device.choices("TriggerSource") if self._device.kind_of("TriggerSource") else []
        lines = sorted(source for source in sources if source.startswith("Line"))
        if not lines:
            raise ConfigError(
                f"{self._what} has no line to be triggered by: give trigger_source, one of {', '.join(sources)}"
            )
        return lines[0]

    def _controls(self, options: GenicamOptions) -> None:
        for value, automatic in (("exposure_us", "auto_exposure"), ("gain", "auto_gain")):
            number, switch = getattr(options, value), getattr(options, automatic)
            self._automatic(automatic, False if number is not None else switch)
            if number is not None:
                self.ask(value, number)
        self._automatic("auto_white_balance", options.auto_white_balance)

    def _automatic(self, key: str, is_on: bool | None) -> None:
        """Switch what the camera does by itself; one that does nothing by itself is off."""
        if is_on or (is_on is False and self._device.kind_of(FEATURES[key][0])):
            self.ask(key, "Continuous" if is_on else "Off")

    def _own_name(self, pixel_format: str) -> str:
        """The camera's name of the pixel format, which may be an older one."""
        names = self._device.choices("PixelFormat") if self._device.kind_of("PixelFormat") else []
        same = [name for name in names if NAMES.get(name, name) == NAMES.get(pixel_format, pixel_format)]
        if find_format(pixel_format) is None or not same:
            raise ConfigError(f"{self._what} gives no pixel format {pixel_format} that is read here: {readable(names)}")
        return same[0]

    def _put(self, name: str, value: Value) -> None:
        """Set a feature that the camera has, unless it has that value already: it may be one that cannot be changed."""
        if self._device.get(name) != value:
            try:
                self._device.set(name, value)
            except ConfigError as error:
                raise ConfigError(f"{self._what} refuses {name} = {value!r}: {error}") from error

    def ask(self, key: str, value: Value) -> None:
        """Set what a key of the settings stands for."""
        name = next((name for name in FEATURES[key] if self._device.kind_of(name)), None)
        if name is None:
            raise ConfigError(self._lacks(f"{FEATURES[key][0]} ({key})"))
        self.feature(name, value, key)

    def feature(self, name: str, value: Value, key: str = "") -> None:
        """Set a feature by its own name, and keep what the camera took under that name, or the key."""
        device, kind, shown = self._device, self._device.kind_of(name), key or name
        if kind is None:
            raise ConfigError(self._lacks(name))
        if kind == "command":
            if value is not True:
                raise ConfigError(f"{shown} of {self._what} is a command: give true, or leave it out")
            device.execute(name)
            return
        if kind == "enumeration" and value not in device.choices(name):
            raise ConfigError(
                f"{shown} = {value!r} is not one that {self._what} has: choose {', '.join(device.choices(name))}"
            )
        if kind in ("float", "integer"):
            self._require_number(name, shown, kind, value)
            value = int(value) if kind == "integer" else value
        elif not isinstance(value, bool if kind == "boolean" else str):
            raise ConfigError(
                f"{shown} = {value!r} of {self._what} must be {'true or false' if kind == 'boolean' else 'a text'}"
            )
        try:
            device.set(name, value)
            self.taken[shown] = device.get(name)
        except ConfigError as error:
            raise ConfigError(f"{self._what} refuses {shown} = {value!r}: {error}") from error
        if differs(value, self.taken[shown]):
            log.warning("%s was asked for %s = %s and took %s", self._what, shown, value, self.taken[shown])

    def _require_number(self, name: str, shown: str, kind: str, value: Value) -> None:
        if isinstance(value, bool | str) or (kind == "integer" and value != int(value)):
            raise ConfigError(
                f"{shown} = {value!r} of {self._what} must be a {'whole ' if kind == 'integer' else ''}number"
            )
        least, largest, step = self._device.bounds(name)
        if not least <= value <= largest or (step > 1 and (value - least) % step):
            steps = f" in steps of {step:g}" if step > 1 else ""
            raise ConfigError(
                f"{shown} = {value} is outside of what {self._what} takes: {least:g} to {largest:g}{steps}"
            )

    def _lacks(self, name: str) -> str:
        return f"{self._what} has no feature {name}: it has {', '.join(self._device.names())}"

    def read_back(self) -> None:
        """Add what the camera uses of what was not asked for."""
        for key, names in FEATURES.items():
            name = next((name for name in names if self._device.kind_of(name)), None)
            if name is not None and key not in self.taken and key not in ("user_set", "trigger_source"):
                with suppress(ConfigError):  # what it has and does not show now
                    self.taken[key] = self._device.get(name)
        mode = self._device.get("TriggerMode") if self._device.kind_of("TriggerMode") else "Off"
        source = self._device.get("TriggerSource") if mode == "On" and self._device.kind_of("TriggerSource") else None
        self.taken["trigger_mode"] = "free" if mode != "On" else "software" if source == "Software" else "line"
        if source is not None:
            self.taken["trigger_source"] = source


def automatic_now(device: Device) -> tuple[str, ...]:
    """What the camera changes by itself."""
    return tuple(what for what, name in AUTOMATIC.items() if device.kind_of(name) and device.get(name) != "Off")


def readable(formats: Sequence[str]) -> str:
    """Which of a camera's pixel formats are read here, for people."""
    known = [name for name in formats if find_format(name) is not None]
    others = [name for name in formats if find_format(name) is None]
    beside = f"; {', '.join(others)} it has too, and they are not read" if others else ""
    return f"choose {', '.join(known)}{beside}" if known else f"it has {', '.join(others) or 'none'}"


def differs(asked: object, taken: object) -> bool:
    """Whether the camera took another value; a number may be rounded by a thousandth."""
    if isinstance(asked, int | float) and isinstance(taken, int | float):
        return abs(asked - taken) > 1e-3 * abs(asked)
    return asked != taken


class BlockCount:
    """Which pictures the camera sent and nobody received, by the numbers that it gives them.

    GigE Vision counts from 1 to 65535 and then from 1 again, others with 64 bits. A number that goes back, or leaps, begins
    another count; a camera that gives every picture the same number does not count.
    """

    def __init__(self, may_wrap: bool) -> None:
        self._may_wrap = may_wrap
        self._last: int | None = None
        self._broken = 0  # incomplete pictures since the last whole one; their numbers are not known

    def broken(self) -> None:
        """Take notice of an incomplete picture."""
        self._broken += 1

    def lost_before(self, block_id: int | None) -> int:
        """Pictures of which nothing arrived, between the last whole one and this."""
        last, broken, self._last, self._broken = self._last, self._broken, block_id, 0
        if last is None or block_id is None:
            return 0
        step = block_id - last
        if self._may_wrap and step < 0 and last < 1 << 16:
            step += (1 << 16) - 1
        return step - 1 - broken if 0 < step - broken <= LONGEST_GAP else 0


class GenicamSource(Source):
    """A GenICam camera; `open_device` opens it, and says what it is."""

    is_live = True

    def __init__(
        self, what: str, stream: str, settings: CommonSettings, options: GenicamOptions,
        open_device: Callable[[], tuple[Device, str]],
    ) -> None:  # fmt: skip
        super().__init__(stream)
        self._what, self._settings, self._options, self._open_device = what, settings, options, open_device
        self._device: Device | None = None
        self._lock = threading.Lock()  # of the device's features: a trigger may come from another thread
        self._is_dead = False
        self.may_be_silent = options.trigger_mode in ("software", "line")

    def describe(self) -> str:
        return self._what

    def __enter__(self) -> GenicamSource:
        self._device, found = self._open_device()
        try:
            setup = Setup(self._device, found)
            setup.configure(self._settings, self._options)
            setup.read_back()
            self._form = readable_format(self._device, found)
            self._device.start(BUFFERS)
            setup.require_packets(self._options.packet_size)
            automatic = automatic_now(self._device)
        except BaseException:
            self.__exit__()
            raise
        taken = setup.taken
        self.may_be_silent = taken["trigger_mode"] != "free"
        height, width, rate = (taken.get(key) for key in ("height", "width", "rate_hz"))
        self.got = SourceFacts(
            height if isinstance(height, int) else None, width if isinstance(width, int) else None,
            rate if isinstance(rate, float) else None, self._form.name,
            {name: value for name, value in taken.items() if name not in ("height", "width", "pixel_format")},
            automatic, found,
        )  # fmt: skip
        if automatic:
            log.warning("%s: %s", found, automatic_words(automatic))
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            device, self._device = self._device, None
            if device is None:
                return
            if self._is_dead:  # it would wait for answers that do not come
                threading.Thread(target=device.close, name=f"close {self._what}", daemon=True).start()
                return
            with suppress(SourceError, ConfigError):
                device.stop()
            device.close()

    def __iter__(self) -> Iterator[Frame]:
        device = self._device
        if device is None:
            raise SourceError(f"{self._what} is not open: use it in a `with` statement")
        count, index, counted_s = BlockCount(device.is_gige), 0, 0.0
        while not self._interrupted.is_set():
            block = device.take(LOOK_S)
            if time.monotonic() - counted_s > COUNTED_S:
                counted_s, self.counts = time.monotonic(), device.counts()
            if block is None:
                self._require_alive(device)
                continue
            try:
                image = self._image(block)
            except DataError as error:
                count.broken()
                self.last_fault = str(error)
                self.lose("incomplete", 1)
            else:
                if lost := count.lost_before(block.block_id):
                    self.lose("lost", lost)
                    index += lost
                bits = None if self._form.bits == 8 else self._form.bits
                stamp = Stamp(block.block_id, block.time_ns)
                yield Frame(image, index, time.monotonic(), self.stream, bits=bits, stamp=stamp)
            index += 1

    def _image(self, block: Block) -> np.ndarray:
        """The picture in a block. Raises DataError for an incomplete one, SourceError for another pixel format."""
        if block.fault or block.data is None:
            raise DataError(
                f"a picture came incomplete ({block.fault or 'empty'}): look at cable, switch and packet_size"
            )
        if block.pixel_format != self._form.name:
            raise SourceError(f"{self._what} sends {block.pixel_format} in place of {self._form.name}: who has set it?")
        return to_image(block.data, self._form, block.height, block.width, block.padding)

    def _require_alive(self, device: Device) -> None:
        try:
            with self._lock:
                device.require_alive()
        except (SourceError, ConfigError) as error:
            self._is_dead = True
            raise SourceError(f"{self._what} is gone: {error}") from error

    def trigger(self) -> None:
        with self._lock:
            if self._device is None or self.got is None:
                raise SourceError(f"{self._what} is not open, so nothing can be triggered")
            mode = self.got.settings["trigger_mode"]
            if mode != "software":
                raise ConfigError(f'{self._what} is in trigger_mode {mode}: set trigger_mode = "software"')
            self._device.execute("TriggerSoftware")


def readable_format(device: Device, what: str) -> PixelFormat:
    """The pixel format that the camera sends. Raises ConfigError where it is not read here."""
    name = str(device.get("PixelFormat"))
    form = find_format(name)
    if form is None:
        raise ConfigError(f"{what} sends {name}, which is not read here: {readable(device.choices('PixelFormat'))}")
    return form


def mtu_towards(address: str) -> tuple[str, int] | None:
    """The interface of this machine towards an IP address, and the largest packet that it passes; None: not known."""
    import psutil

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
            probe.connect((address, 9))
            own = probe.getsockname()[0]
    except OSError:
        return None
    names = [name for name, found in psutil.net_if_addrs().items() if any(one.address == own for one in found)]
    mtu = psutil.net_if_stats()[names[0]].mtu if names else 0
    return (names[0], mtu) if mtu else None
