"""Industrial cameras by Aravis: gige:// those of GigE Vision, genicam: those of USB3 Vision too."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote

from nnet_edge.errors import ConfigError, MissingExtraError, SourceError
from nnet_edge.runtime.sources.genicam import GenicamOptions, GenicamSource, automatic_now
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, FoundCamera, SourceKind
from nnet_edge.text import printable

if TYPE_CHECKING:  # ctypes and Aravis are loaded where a camera is opened
    from nnet_edge.runtime.aravis import Found
    from nnet_edge.runtime.genicam_device import Device

GIGE, ANY = "gige://", "genicam:"
SYSTEM = {"libaravis-0.8.so.0": "apt-get install libaravis-0.8-0"}
IP_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}")


def wanted(address: str) -> str:
    """Which camera an address names: a serial number, an IP address, a MAC address, a model; "": the only one."""
    text = address[len(GIGE if is_gige(address) else ANY) :]
    return unquote(text).strip("/")


def is_gige(address: str) -> bool:
    return address.lower().startswith(GIGE)


def is_genicam(address: str) -> bool:
    return address.lower().startswith(ANY)


def choose(cameras: Sequence[Found], which: str) -> Found:
    """The camera that `which` names. Raises SourceError, which lists them, unless it is one."""
    names = [
        {one.id, one.serial, one.address, one.physical_id, one.model, f"{one.vendor} {one.model}"} for one in cameras
    ]
    found = [one for one, own in zip(cameras, names, strict=True) if not which or which.lower() in map(str.lower, own)]
    if len(found) == 1:
        return found[0]
    there = "; ".join(words(one) for one in cameras) or "none answers: is it powered, cabled, and of this network?"
    if found:
        several = f"{len(found)} cameras are {which!r}" if which else f"there are {len(found)} cameras"
        raise SourceError(f"{several}: give the serial number of one: {there}")
    raise SourceError(f"there is no camera with the serial number or model {which!r}; there are: {there}")


def words(camera: Found) -> str:
    """A camera for people: maker, model, serial number and address."""
    return printable(f"{camera.vendor} {camera.model}, serial {camera.serial}, at {camera.address}")


def open_device(address: str) -> tuple[Device, str]:
    """The opened camera, and what it is; one with an IP address is not searched. Raises SourceError, MissingExtraError."""
    from nnet_edge.runtime.aravis import AravisCamera, find_cameras

    which, is_any = wanted(address), not is_gige(address)
    if IP_ADDRESS.fullmatch(which):
        device_id, place, what = which, which, f"the camera at {which}"
    else:
        found = choose([one for one in find_cameras() if is_any or one.protocol == "GigEVision"], which)
        device_id, place, what = found.id, found.address, words(found)
    try:
        device = AravisCamera(device_id, place)
    except SourceError as error:
        raise SourceError(f"{what} cannot be opened: {error}") from error
    if device_id == which:
        own = [device.get(name) for name in ("DeviceVendorName", "DeviceModelName") if device.kind_of(name)]
        what = printable(f"{' '.join(map(str, own))} at {which}")
    return device, what


def open_camera(settings: CommonSettings, options: GenicamOptions) -> GenicamSource:
    name = printable(settings.address)
    stream = wanted(settings.address) or "camera"
    return GenicamSource(name, printable(stream), settings, options, lambda: open_device(settings.address))


def find() -> list[FoundCamera]:
    """Every camera that answers, with what it has."""
    from nnet_edge.runtime.aravis import TAKEN, AravisCamera, find_cameras

    try:
        cameras = find_cameras()
    except MissingExtraError:
        return []
    found = []
    for one in cameras:
        path = f"{GIGE if one.protocol == 'GigEVision' else ANY}{one.serial}"
        formats: tuple[str, ...] = ()
        automatic, problem = None, ""
        try:
            device = AravisCamera(one.id, one.address, is_only_asked=True)
            try:
                formats, automatic = tuple(device.choices("PixelFormat")), automatic_now(device)
                problem = TAKEN if device.is_taken else ""
            finally:
                device.close()
        except (SourceError, ConfigError) as error:
            problem = str(error)
        name = printable(f"{one.vendor} {one.model}")
        found.append(
            FoundCamera(
                path, name, not problem, printable(one.model), printable(one.serial), formats, automatic, problem
            )
        )
    return found


def kind(name: str, addresses: str, takes: Callable[[str], bool], order: int) -> SourceKind:
    return SourceKind(
        name, addresses, takes, open_camera, GenicamOptions, page="camera", order=order, needs={"cv2": ""}, system=SYSTEM,
        names_formats=True, find=find if name == "genicam" else None,
    )  # fmt: skip


SOURCES.register(kind("gige", "a gige:// address", is_gige, 45))
SOURCES.register(kind("genicam", "a genicam: address", is_genicam, 46))
