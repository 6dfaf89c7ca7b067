"""Cameras of this machine: by their number, or by the path of their device."""

from __future__ import annotations

import stat
from pathlib import Path

from nnet_edge.runtime.sources.base import file_mode
from nnet_edge.runtime.sources.video import VideoSource
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, SourceKind


class UsbSource(VideoSource):
    """A camera behind a driver of the operating system."""

    advice = "no such camera, or another program uses it, or you may not; `nnet-edge doctor` lists what there is"


def open_number(settings: CommonSettings, options: None) -> UsbSource:
    return UsbSource(int(settings.address), f"camera {settings.address}", f"camera-{settings.address}", settings)


def open_device(settings: CommonSettings, options: None) -> UsbSource:
    path = Path(settings.address)
    return UsbSource(str(path), f"camera {path}", path.name, settings)


SOURCES.register(SourceKind("camera", "a camera's number", str.isdecimal, open_number, page="camera", order=30))
SOURCES.register(
    SourceKind("device", "a camera's device", lambda text: stat.S_ISCHR(file_mode(text)), open_device, is_path=True)
)
