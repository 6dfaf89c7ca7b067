"""Aravis (libaravis-0.8), the library of GigE Vision and USB3 Vision cameras, by ctypes: it then works in every environment.

The library is the system's (Debian and Ubuntu: libaravis-0.8-0). Every function is declared with its types, each GError is
a SourceError (the camera is gone, or another program's) or a ConfigError (it refuses), and what is owned is let go of once.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from nnet_edge.errors import ConfigError, MissingExtraError, SourceError
from nnet_edge.runtime.genicam_device import Block, Value

LIBRARY = "libaravis-0.8.so.0"
PACKAGE = "libaravis-0.8-0"  # of Debian and Ubuntu
# codes of ArvDeviceError: not connected, transfer error, timeout, not found, no stream channel, not in control, denied, busy
GONE = (2, 4, 5, 6, 9, 10, 17, 18)
PRIVILEGE, HAS_CONTROL = (
    0x0A00,
    0x3,
)  # GigE Vision's register of who controls the camera, and the bits that say somebody does
ON_FAILURE = 1  # of ArvGvPacketSizeAdjustment: packets that do not come through are made smaller
READ_ONLY = 0  # of ArvGcAccessMode
SUCCESS = 0  # of ArvBufferStatus
FAULTS = {-1: "unknown", 1: "cleared", 2: "time-out", 3: "missing packets", 4: "wrong packet", 5: "size mismatch",
          6: "filling", 7: "aborted"}  # fmt: skip
IMAGE_PAYLOADS = (0x1, 0x5, 0xA)  # of ArvBufferPayloadType: image, with chunks, several parts
KINDS = ("enumeration", "command", "boolean", "float", "integer", "string")  # of features; some are of two
PACKET_COUNTS = ("missing_packets", "resent_packets", "duplicated_packets", "error_packets", "ignored_packets")


class GError(ctypes.Structure):
    """GLib's error."""

    _fields_ = (("domain", c_uint32), ("code", c_int), ("message", c_char_p))


class GSList(ctypes.Structure):
    """GLib's list."""


class Opaque(ctypes.Structure):
    """An object of the library."""


GSList._fields_ = (("data", c_char_p), ("next", POINTER(GSList)))
Failure = POINTER(POINTER(GError))
OBJECT = POINTER(Opaque)  # a number or a text is refused, which c_void_p would take for an address
DECLARED: dict[str, tuple[Any, Sequence[Any]]] = {  # function -> what it gives back, its arguments
    "g_object_unref": (None, [OBJECT]),
    "g_free": (None, [c_void_p]),
    "g_error_free": (None, [POINTER(GError)]),
    "g_type_check_instance_is_a": (c_int, [OBJECT, c_size_t]),
    "arv_device_error_quark": (c_uint32, []),
    "arv_gc_error_quark": (c_uint32, []),
    "arv_update_device_list": (None, []),
    "arv_get_n_devices": (c_uint, []),
    **{f"arv_get_device_{fact}": (c_char_p, [c_uint])
       for fact in ("id", "physical_id", "address", "vendor", "model", "serial_nbr", "protocol")},
    "arv_camera_new": (OBJECT, [c_char_p, Failure]),
    "arv_camera_get_device": (OBJECT, [OBJECT]),
    "arv_camera_is_gv_device": (c_int, [OBJECT]),
    "arv_gv_device_is_controller": (c_int, [OBJECT]),
    "arv_device_read_register": (c_int, [OBJECT, c_uint64, POINTER(c_uint32), Failure]),
    "arv_device_get_feature": (OBJECT, [OBJECT, c_char_p]),
    "arv_gc_feature_node_is_available": (c_int, [OBJECT, Failure]),
    "arv_gc_feature_node_get_actual_access_mode": (c_int, [OBJECT]),
    "arv_gc_category_get_features": (POINTER(GSList), [OBJECT]),
    "arv_gc_category_get_type": (c_size_t, []),
    **{f"arv_gc_{kind}_get_type": (c_size_t, []) for kind in KINDS},
    "arv_camera_execute_command": (None, [OBJECT, c_char_p, Failure]),
    "arv_camera_set_boolean": (None, [OBJECT, c_char_p, c_int, Failure]),
    "arv_camera_get_boolean": (c_int, [OBJECT, c_char_p, Failure]),
    "arv_camera_set_string": (None, [OBJECT, c_char_p, c_char_p, Failure]),
    "arv_camera_get_string": (c_char_p, [OBJECT, c_char_p, Failure]),
    "arv_camera_set_integer": (None, [OBJECT, c_char_p, c_int64, Failure]),
    "arv_camera_get_integer": (c_int64, [OBJECT, c_char_p, Failure]),
    "arv_camera_get_integer_bounds": (None, [OBJECT, c_char_p, POINTER(c_int64), POINTER(c_int64), Failure]),
    "arv_camera_get_integer_increment": (c_int64, [OBJECT, c_char_p, Failure]),
    "arv_camera_set_float": (None, [OBJECT, c_char_p, c_double, Failure]),
    "arv_camera_get_float": (c_double, [OBJECT, c_char_p, Failure]),
    "arv_camera_get_float_bounds": (None, [OBJECT, c_char_p, POINTER(c_double), POINTER(c_double), Failure]),
    "arv_camera_dup_available_enumerations_as_strings": (POINTER(c_char_p), [OBJECT, c_char_p, POINTER(c_uint), Failure]),
    "arv_camera_get_pixel_format": (c_uint32, [OBJECT, Failure]),
    "arv_camera_get_payload": (c_uint, [OBJECT, Failure]),
    "arv_camera_gv_set_packet_size": (None, [OBJECT, c_int, Failure]),
    "arv_camera_gv_get_packet_size": (c_uint, [OBJECT, Failure]),
    "arv_camera_gv_set_packet_size_adjustment": (None, [OBJECT, c_int]),
    "arv_camera_create_stream": (OBJECT, [OBJECT, c_void_p, c_void_p, Failure]),
    "arv_camera_start_acquisition": (None, [OBJECT, Failure]),
    "arv_camera_stop_acquisition": (None, [OBJECT, Failure]),
    "arv_stream_push_buffer": (None, [OBJECT, OBJECT]),
    "arv_stream_timeout_pop_buffer": (OBJECT, [OBJECT, c_uint64]),
    "arv_stream_get_info_uint64_by_name": (c_uint64, [OBJECT, c_char_p]),
    "arv_buffer_new_allocate": (OBJECT, [c_size_t]),
    "arv_buffer_get_status": (c_int, [OBJECT]),
    "arv_buffer_get_payload_type": (c_int, [OBJECT]),
    "arv_buffer_get_frame_id": (c_uint64, [OBJECT]),
    "arv_buffer_get_timestamp": (c_uint64, [OBJECT]),
    "arv_buffer_get_data": (c_void_p, [OBJECT, POINTER(c_size_t)]),
    "arv_buffer_get_image_pixel_format": (c_uint32, [OBJECT]),
    "arv_buffer_get_image_region": (None, [OBJECT, *[POINTER(c_int)] * 4]),
}  # fmt: skip
SINCE: dict[str, tuple[Any, Sequence[Any]]] = {  # of newer libraries, 0.8.25
    "arv_buffer_get_image_data": (c_void_p, [OBJECT, POINTER(c_size_t)]),
    "arv_buffer_get_image_padding": (None, [OBJECT, *[POINTER(c_int)] * 2]),
}
TAKEN = "another program controls it: close that one"
DISCOVERY = threading.Lock()  # the library keeps one list of cameras, whose texts the next search frees


class Library:
    """The functions of `DECLARED`, by name; newer ones are None where the library lacks them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, (result, arguments) in (DECLARED | SINCE).items():
            function = getattr(library, name, None)  # GLib's are found through the library's own dependencies
            if function is None and name in DECLARED:
                raise MissingExtraError(
                    f"{LIBRARY} has no {name}: it is too old, install Debian's {PACKAGE} 0.8.20 or newer"
                )
            if function is not None:
                function.restype, function.argtypes = result, list(arguments)
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # for type checkers: the functions are set above
        raise AttributeError(name)

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a function whose last argument is a GError. Raises SourceError, ConfigError with its words."""
        failure = POINTER(GError)()
        result = getattr(self, name)(*arguments, byref(failure))
        if failure:
            found, words = failure.contents, text(failure.contents.message)
            is_device, is_feature = (
                found.domain == quark() for quark in (self.arv_device_error_quark, self.arv_gc_error_quark)
            )
            is_refused = is_feature or (is_device and found.code not in GONE)  # other errors are the network's
            self.g_error_free(failure)
            raise (ConfigError if is_refused else SourceError)(words or f"{name} failed")
        return result


@functools.cache
def library() -> Library:
    """The library. Raises MissingExtraError that names the package."""
    try:
        return Library(ctypes.CDLL(LIBRARY))
    except OSError as error:
        raise MissingExtraError(
            f"GenICam cameras need Aravis, and {LIBRARY} cannot be loaded: apt-get install {PACKAGE}"
        ) from error


def text(value: bytes | None) -> str:
    """A text of the library, which may be absent."""
    return (value or b"").decode(errors="replace")


@dataclass(frozen=True)
class Found:
    """A camera that answered."""

    id: str
    vendor: str
    model: str
    serial: str
    address: str  # its IP address, or its place on the USB
    physical_id: str  # its MAC address, or its GUID
    protocol: str  # "GigEVision" or "USB3Vision"


def find_cameras() -> list[Found]:
    """Every camera on this machine's networks and USB; asks each network by one broadcast, and waits a second for answers."""
    arv = library()
    with DISCOVERY:
        arv.arv_update_device_list()
        facts = ("id", "vendor", "model", "serial_nbr", "address", "physical_id", "protocol")
        found = [
            Found(*(text(getattr(arv, f"arv_get_device_{fact}")(number)) for fact in facts))
            for number in range(arv.arv_get_n_devices())
        ]
    return sorted((one for one in found if one.protocol in ("GigEVision", "USB3Vision")), key=lambda one: one.id)


class AravisCamera:
    """An opened camera: its features, and its pictures. One thread at a time may call its methods."""

    def __init__(self, device_id: str, address: str = "", is_only_asked: bool = False) -> None:
        """Open the camera, or ask it alone. Raises SourceError when it does not answer, or another program has it."""
        self._arv = arv = library()
        self.address = address
        self._stream: Any = None
        self._held: Any = None  # the buffer that was taken last
        self._formats: dict[int, str] = {}  # number of the pixel format that it sends -> its name
        with DISCOVERY:
            self._camera: Any = arv.call("arv_camera_new", device_id.encode())
        if not self._camera:
            raise SourceError("it does not answer")
        self._device = arv.arv_camera_get_device(self._camera)  # belongs to the camera
        self.is_gige = bool(arv.arv_camera_is_gv_device(self._camera))
        self.is_taken = self.is_gige and not arv.arv_gv_device_is_controller(self._device)
        if self.is_taken and not is_only_asked:
            self.close()
            raise SourceError(TAKEN)

    def close(self) -> None:
        """Let go of everything; waits for a camera that does not answer, some seconds."""
        for owned in (self._held, self._stream, self._camera):
            if owned:
                self._arv.g_object_unref(owned)
        self._held = self._stream = self._camera = None

    # ---- features

    def kind_of(self, name: str) -> str | None:
        """The kind of feature, of KINDS; None when the camera has none of that name now."""
        node = self._arv.arv_device_get_feature(self._device, name.encode())
        if not node or not self._is_available(node):
            return None
        return next((kind for kind in KINDS if self._is_a(node, kind)), None)

    def names(self) -> list[str]:
        """Every feature that the camera has now, sorted."""
        return sorted({name for name in self._below("Root") if self.kind_of(name) is not None})

    def _below(self, category: str) -> Iterator[str]:
        node = self._arv.arv_device_get_feature(self._device, category.encode())
        if not node or not self._is_a(node, "category"):
            return
        place = self._arv.arv_gc_category_get_features(node)
        while place:
            name = text(place.contents.data)
            yield name
            yield from self._below(name)
            place = place.contents.next

    def _is_a(self, node: Any, kind: str) -> bool:
        return bool(self._arv.g_type_check_instance_is_a(node, getattr(self._arv, f"arv_gc_{kind}_get_type")()))

    def _is_available(self, node: Any) -> bool:
        try:
            return bool(self._arv.call("arv_gc_feature_node_is_available", node))
        except ConfigError:  # its description is broken
            return False

    def get(self, name: str) -> Value:
        """The value of a feature. Raises SourceError, ConfigError."""
        kind = self.kind_of(name)
        call, asked = self._arv.call, (self._camera, name.encode())
        if kind == "boolean":
            return bool(call("arv_camera_get_boolean", *asked))
        if kind == "float":
            return float(call("arv_camera_get_float", *asked))
        if kind == "integer":
            return int(call("arv_camera_get_integer", *asked))
        return text(call("arv_camera_get_string", *asked))

    def set(self, name: str, value: Value) -> None:
        """Give a feature a value of its kind. Raises ConfigError where the camera refuses it, SourceError."""
        kind, asked = self.kind_of(name), (self._camera, name.encode())
        node = self._arv.arv_device_get_feature(self._device, name.encode())
        if node and self._arv.arv_gc_feature_node_get_actual_access_mode(node) == READ_ONLY:  # the library would write
            raise ConfigError("it can only be read")
        if kind == "boolean":
            self._arv.call("arv_camera_set_boolean", *asked, int(value))
        elif kind == "float":
            self._arv.call("arv_camera_set_float", *asked, float(value))
        elif kind == "integer":
            self._arv.call("arv_camera_set_integer", *asked, int(value))
        else:
            self._arv.call("arv_camera_set_string", *asked, str(value).encode())

    def choices(self, name: str) -> list[str]:
        """The values that an enumeration can take now."""
        count = c_uint()
        entries = self._arv.call(
            "arv_camera_dup_available_enumerations_as_strings", self._camera, name.encode(), byref(count)
        )
        try:
            return [text(entries[number]) for number in range(count.value)] if entries else []
        finally:
            self._arv.g_free(entries)  # the list alone; its texts are the camera's

    def bounds(self, name: str) -> tuple[float, float, float]:
        """The least and the largest value of a number, and its steps; 0: any between."""
        kind = "float" if self.kind_of(name) == "float" else "integer"
        least, largest = (c_double(), c_double()) if kind == "float" else (c_int64(), c_int64())
        self._arv.call(f"arv_camera_get_{kind}_bounds", self._camera, name.encode(), byref(least), byref(largest))
        step = (
            self._arv.call("arv_camera_get_integer_increment", self._camera, name.encode()) if kind == "integer" else 0
        )
        return least.value, largest.value, step

    def execute(self, name: str) -> None:
        """Run a command. Raises SourceError, ConfigError."""
        self._arv.call("arv_camera_execute_command", self._camera, name.encode())

    # ---- the stream

    def packet_size(self) -> int | None:
        """Bytes of its packets, headers of IP and UDP included; None of a camera without packets."""
        return int(self._arv.call("arv_camera_gv_get_packet_size", self._camera)) if self.is_gige else None

    def set_packet_size(self, size: int) -> None:
        """Ask for packets of that size. Raises ConfigError, SourceError."""
        self._arv.call("arv_camera_gv_set_packet_size", self._camera, size)

    def start(self, buffers: int) -> None:
        """Begin to send, into so many buffers; packets that do not come through are made smaller where the camera tests it."""
        arv = self._arv
        if self.is_gige:
            arv.arv_camera_gv_set_packet_size_adjustment(self._camera, ON_FAILURE)
        self._stream = arv.call("arv_camera_create_stream", self._camera, None, None)
        if not self._stream:
            raise SourceError("its stream cannot be opened")
        payload = arv.call("arv_camera_get_payload", self._camera)
        self._formats = {arv.call("arv_camera_get_pixel_format", self._camera): str(self.get("PixelFormat"))}
        for _ in range(buffers):
            arv.arv_stream_push_buffer(self._stream, arv.arv_buffer_new_allocate(payload))  # the stream owns it
        arv.call("arv_camera_start_acquisition", self._camera)

    def stop(self) -> None:
        """Ask the camera to send no more. Raises SourceError, ConfigError."""
        self._arv.call("arv_camera_stop_acquisition", self._camera)

    def take(self, wait_s: float) -> Block | None:
        """The next buffer; None when none came within the wait. Its data are valid until the next call, or `close`."""
        self._give_back()
        self._held = self._arv.arv_stream_timeout_pop_buffer(self._stream, round(1e6 * wait_s))
        return self._block(self._held) if self._held else None

    def _give_back(self) -> None:
        """Let the stream fill the buffer again that was taken last."""
        if self._held:
            self._arv.arv_stream_push_buffer(self._stream, self._held)
            self._held = None

    def _block(self, buffer: Any) -> Block:
        import numpy as np

        arv, status = self._arv, self._arv.arv_buffer_get_status(buffer)
        block_id, time_ns = arv.arv_buffer_get_frame_id(buffer), arv.arv_buffer_get_timestamp(buffer)
        if status != SUCCESS:  # its number may be that of the picture before: it comes with the first packet
            return Block(FAULTS.get(status, f"status {status}"))
        payload = arv.arv_buffer_get_payload_type(buffer)
        if payload not in IMAGE_PAYLOADS:
            return Block(f"no picture but a payload of the type {payload:#x}", block_id, time_ns)
        size, x, y, width, height, padding, below = c_size_t(), *(c_int() for _ in range(6))
        data = (arv.arv_buffer_get_image_data or arv.arv_buffer_get_data)(buffer, byref(size))
        arv.arv_buffer_get_image_region(buffer, byref(x), byref(y), byref(width), byref(height))
        if arv.arv_buffer_get_image_padding is not None:
            arv.arv_buffer_get_image_padding(buffer, byref(padding), byref(below))
        if not data:
            return Block("empty", block_id, time_ns)
        array = np.ctypeslib.as_array(ctypes.cast(data, POINTER(ctypes.c_uint8)), (size.value,))
        form = arv.arv_buffer_get_image_pixel_format(buffer)
        name = self._formats.get(form, f"{form:#010x}")
        return Block("", block_id, time_ns or None, array, name, height.value, width.value, padding.value)

    def counts(self) -> dict[str, int]:
        """What the stream counts of packets, since it was opened; empty of a camera without."""
        if not (self.is_gige and self._stream):
            return {}
        return {
            name: int(self._arv.arv_stream_get_info_uint64_by_name(self._stream, f"n_{name}".encode()))
            for name in PACKET_COUNTS
        }

    def require_alive(self) -> None:
        """Raise SourceError unless the camera answers, and obeys this program."""
        value = c_uint32()
        if not self.is_gige:
            self.get("Width")
            return
        self._arv.call("arv_device_read_register", self._device, PRIVILEGE, byref(value))
        if not value.value & HAS_CONTROL:
            raise SourceError("it obeys this program no more: it was switched off and on, or missed our heartbeat")
