"""GenICam cameras through their maker's GenTL producer, a .cti file, by harvesters: gentl:SERIAL or MODEL.

harvesters gives incomplete pictures back to the producer by itself: they are counted as lost, by the gap in their numbers.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import unquote

from nnet_edge.errors import ConfigError, SourceError, missing_library
from nnet_edge.runtime.genicam_device import Block, Value
from nnet_edge.runtime.sources.genicam import GenicamOptions, GenicamSource, automatic_now
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, FoundCamera, SourceKind
from nnet_edge.text import printable

SCHEME = "gentl:"
FOLDERS = "GENICAM_GENTL64_PATH"  # where makers' installers say that their producers are
EVENT_MS = 100  # of a wait in the producer; harvesters' own of 1 ms keeps a processor busy
PACKETS = "GevSCPSPacketSize"


@dataclass(frozen=True)
class GentlOptions(GenicamOptions):
    """What only cameras behind a producer have."""

    producer: Path | None = None  # the .cti file; None: the only one in the folders of GENICAM_GENTL64_PATH


def producers() -> list[Path]:
    """The producers that makers have installed here."""
    folders = [Path(folder) for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
    return sorted({path.resolve() for folder in folders for path in folder.glob("*.cti")})


def choose_producer(said: Path | None) -> Path:
    """The producer that is said, or the only one. Raises ConfigError."""
    if said is not None:
        if not said.is_file():
            raise ConfigError(f"the producer {said} is no file: give the .cti that the camera's maker installed")
        return said.resolve()
    found = producers()
    if len(found) == 1:
        return found[0]
    there = f"several, {', '.join(map(str, found))}" if found else f"none in the folders of {FOLDERS}"
    raise ConfigError(
        f"a gentl: camera needs its maker's GenTL producer, and there is {there}: give producer = FILE.cti"
    )


class Producer:
    """A producer, which a process may open once: every camera behind it shares it."""

    _opened: ClassVar[dict[Path, Producer]] = {}
    _lock = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._path, self._cameras = path, 0
        self._harvester = open_harvester(path)

    @classmethod
    @contextmanager
    def at(cls, path: Path) -> Iterator[Producer]:
        """The producer at the path, for one thread at a time. Raises SourceError, MissingExtraError."""
        with cls._lock:
            if path not in cls._opened:
                cls._opened[path] = cls(path)
            yield cls._opened[path]

    def cameras(self) -> list[Any]:
        """harvesters' facts of each camera. While one is open the list is that of before: a new search would close it."""
        if not self._cameras:
            self._harvester.update()
        return list(self._harvester.device_info_list)

    def open(self, info: Any) -> Any:
        """harvesters' image acquirer of a camera. Raises SourceError."""
        from harvesters.core import ParameterKey, ParameterSet

        wait = ParameterSet({ParameterKey.TIMEOUT_PERIOD_ON_UPDATE_EVENT_DATA_CALL: EVENT_MS})
        try:
            acquirer = self._harvester.create(info, config=wait)
        except Exception as error:  # whatever a maker's library raises
            raise SourceError(words_of(error)) from error
        self._cameras += 1
        return acquirer

    def close(self, acquirer: Any) -> None:
        """Let go of a camera."""
        self._cameras -= 1
        acquirer.destroy()


def open_harvester(path: Path) -> Any:
    """harvesters with this producer alone. Raises ConfigError for a file that is none, MissingExtraError."""
    # harvesters 1.4.3 asks git for its version where it is installed, which locks the index of a checkout around it
    sys.modules.setdefault("harvesters._version", SimpleNamespace(get_versions=lambda: {"version": ""}))  # type: ignore[arg-type]
    try:
        from harvesters.core import Harvester
    except ImportError as error:
        raise missing_library("harvesters", "genicam", error) from error
    logging.getLogger("harvesters").setLevel(logging.CRITICAL)  # what it says it raises as well
    logging.getLogger("harvesters.core").setLevel(logging.CRITICAL)
    try:  # harvesters only logs that a file is no producer
        is_producer = hasattr(ctypes.CDLL(str(path)), "GCInitLib")
    except OSError as error:
        raise ConfigError(f"the producer {path} cannot be loaded: {error}") from error
    if not is_producer:
        raise ConfigError(f"{path} is no GenTL producer: give the .cti that the camera's maker installed")
    harvester = Harvester()
    harvester.add_file(str(path))
    return harvester


class GentlDevice:
    """An opened camera: its features, and its pictures. One thread at a time may call its methods, beside `take`."""

    address = ""

    def __init__(self, producer: Path, which: str) -> None:
        """Open the camera that `which` names. Raises SourceError, ConfigError, MissingExtraError."""
        self._path, self._held = producer, None
        with Producer.at(producer) as shared:
            info = choose(shared.cameras(), which, producer)
            self.what = words(info)
            try:
                self._acquirer = shared.open(info)
            except SourceError as error:
                raise SourceError(f"{self.what} cannot be opened: {error}") from error
        self._map = self._acquirer.remote_device.node_map
        self.is_gige = fact(info, "tl_type") == "GEV"

    def close(self) -> None:
        """Let go of everything."""
        with Producer.at(self._path) as shared, suppress(Exception):
            shared.close(self._acquirer)

    # ---- features

    def kind_of(self, name: str) -> str | None:
        """The kind of feature; None when the camera has none of that name now."""
        node = self._node(name)
        return None if node is None else kinds().get(node.node.principal_interface_type)

    def _node(self, name: str) -> Any:
        from genicam.genapi import EAccessMode

        node = self._map.get_node(name) if self._map.has_node(name) else None
        return None if node is None or node.get_access_mode() in (EAccessMode.NI, EAccessMode.NA) else node

    def names(self) -> list[str]:
        """Every feature that the camera has now, sorted."""
        found: set[str] = set()

        def look(node: Any) -> None:
            for feature in node.features:
                if hasattr(feature, "features"):
                    look(feature)
                elif self.kind_of(feature.node.name):
                    found.add(feature.node.name)

        if self._map.has_node("Root"):
            look(self._map.get_node("Root"))
        return sorted(found)

    def get(self, name: str) -> Value:
        """The value of a feature, as the camera has it now. Raises ConfigError."""
        with refusals():
            node, kind = self._node(name), self.kind_of(name)
            value = node.value
            return bool(value) if kind == "boolean" else value

    def set(self, name: str, value: Value) -> None:
        """Give a feature a value of its kind. Raises ConfigError where the camera refuses it."""
        from genicam.genapi import EAccessMode

        node = self._node(name)
        if node.get_access_mode() == EAccessMode.RO:
            raise ConfigError("it can only be read")
        with refusals():
            node.value = value

    def choices(self, name: str) -> Sequence[str]:
        """The values that an enumeration can take now."""
        return tuple(self._node(name).symbolics)

    def bounds(self, name: str) -> tuple[float, float, float]:
        """The least and the largest value of a number, and its steps; 0: any between."""
        node = self._node(name)
        return node.min, node.max, node.inc if self.kind_of(name) == "integer" else 0

    def execute(self, name: str) -> None:
        """Run a command. Raises ConfigError."""
        with refusals():
            self._node(name).execute()

    # ---- the stream

    def packet_size(self) -> int | None:
        """Bytes of its packets with their headers; None of a camera without packets."""
        return int(self.get(PACKETS)) if self.kind_of(PACKETS) else None

    def set_packet_size(self, size: int) -> None:
        """Ask for packets of that size."""
        self.set(PACKETS, size)

    def start(self, buffers: int) -> None:
        """Begin to send, into so many buffers, or as many as the producer needs. Raises SourceError."""
        try:
            self._acquirer.num_buffers = max(buffers, self._acquirer.min_num_buffers)
            self._acquirer.start()
        except Exception as error:
            raise SourceError(words_of(error)) from error

    def stop(self) -> None:
        """Ask the camera to send no more. Raises SourceError."""
        self._give_back()
        try:
            self._acquirer.stop()
        except Exception as error:
            raise SourceError(words_of(error)) from error

    def take(self, wait_s: float) -> Block | None:
        """The next buffer, whose data are valid until the next call. Raises SourceError."""
        import numpy as np

        try:
            self._give_back()
            self._held = held = self._acquirer.try_fetch(timeout=wait_s)
            if held is None:
                return None
            module, parts = held.module, held.payload.components
            if not parts:
                return Block("no picture in it")
            part = parts[0]
            data = np.frombuffer(module.raw_buffer, np.uint8)[optional(module, "image_offset") or 0 :]
            return Block(
                "", optional(module, "frame_id"), optional(module, "timestamp_ns"), data, part.data_format, part.height,
                part.width, optional(module, "padding_x") or 0,
            )  # fmt: skip
        except Exception as error:
            raise SourceError(f"{self.what} is gone: {words_of(error)}") from error

    def _give_back(self) -> None:
        if self._held is not None:
            self._held.queue()
            self._held = None

    def counts(self) -> dict[str, int]:
        """harvesters counts no packets."""
        return {}

    def require_alive(self) -> None:
        """Raise SourceError unless the camera answers."""
        try:
            self._node("Width").get_value(False, True)  # not the one that is remembered
        except Exception as error:
            raise SourceError(words_of(error)) from error


def kinds() -> dict[int, str]:
    """GenApi's numbers of the kinds of feature."""
    from genicam.genapi import EInterfaceType as Type

    return {
        Type.intfIEnumeration: "enumeration", Type.intfICommand: "command", Type.intfIBoolean: "boolean",
        Type.intfIFloat: "float", Type.intfIInteger: "integer", Type.intfIString: "string",
    }  # fmt: skip


@contextmanager
def refusals() -> Iterator[None]:
    """Raise ConfigError for what a camera refuses."""
    try:
        yield
    except Exception as error:
        raise ConfigError(words_of(error)) from error


def words_of(error: Exception) -> str:
    """What a maker's library says, without where in its own text."""
    return printable(" ".join(str(error).partition(" : ")[0].split()) or type(error).__name__)


def optional(thing: Any, name: str) -> Any:
    """A fact of a buffer or a camera; None where the producer does not know it."""
    try:
        return getattr(thing, name)
    except Exception:  # NotAvailableException, NotImplementedException and makers' own
        return None


def fact(info: Any, name: str) -> str:
    """A fact of a camera as text, "" where the producer does not know it."""
    return printable(str(optional(info, name) or ""))


def words(info: Any) -> str:
    """A camera for people."""
    return f"{fact(info, 'vendor')} {fact(info, 'model')}, serial {fact(info, 'serial_number')}"


def choose(cameras: Sequence[Any], which: str, producer: Path) -> Any:
    """The camera that `which` names. Raises SourceError, which lists them, unless it is one."""
    own = ("serial_number", "model", "id_", "user_defined_name", "display_name")
    found = [one for one in cameras if not which or which.lower() in [fact(one, name).lower() for name in own]]
    if len(found) == 1:
        return found[0]
    there = "; ".join(words(one) for one in cameras) or "none"
    if found:
        raise SourceError(f"{len(found)} cameras fit {which!r}: give the serial number of one: {there}")
    raise SourceError(
        f"there is no camera with the serial number or model {which!r} behind {producer.name}: there are {there}"
    )


def wanted(address: str) -> str:
    """Which camera an address names; "": the only one."""
    return unquote(address[len(SCHEME) :]).strip("/")


def open_camera(settings: CommonSettings, options: GentlOptions) -> GenicamSource:
    def open_device() -> tuple[GentlDevice, str]:
        device = GentlDevice(choose_producer(options.producer), wanted(settings.address))
        return device, device.what

    stream = printable(wanted(settings.address) or "camera")
    return GenicamSource(printable(settings.address), stream, settings, options, open_device)


def find() -> list[FoundCamera]:
    """Every camera behind the producers that are installed."""
    found = []
    for path in producers():
        try:
            with Producer.at(path) as shared:
                serials = [fact(info, "serial_number") for info in shared.cameras()]
        except (ImportError, ConfigError, SourceError):  # no harvesters, or no producer
            continue
        found += [found_at(path, serial) for serial in serials]
    return found


def found_at(path: Path, serial: str) -> FoundCamera:
    """A camera with what it has, which is asked."""
    address = f"{SCHEME}{serial}"
    try:
        device = GentlDevice(path, serial)
    except (ConfigError, SourceError) as error:
        return FoundCamera(address, serial, False, serial=serial, problem=str(error))
    try:
        formats = tuple(device.choices("PixelFormat")) if device.kind_of("PixelFormat") else ()
        model = device.what.partition(", serial")[0]
        return FoundCamera(address, model, True, model, serial, formats, automatic_now(device))
    finally:
        device.close()


SOURCES.register(
    SourceKind(
        "gentl",
        "a gentl: address",
        lambda text: text.lower().startswith(SCHEME),
        open_camera,
        GentlOptions,
        page="camera",
        order=47,
        needs={"cv2": "", "harvesters": "genicam"},
        names_formats=True,
        find=find,
    )
)
