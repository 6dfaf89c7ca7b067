"""Where frames come from: image folders, video files, cameras, network streams, pictures made in memory.

A source is a context manager and iterable once. It never makes a frame up: what cannot be read is a SourceError, or,
for files of a folder and only when the user says so, counted in `skipped`.
"""

from __future__ import annotations

import stat
from pathlib import Path
from urllib.parse import urlsplit

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.imaging import IMAGE_SUFFIXES
from nnet_edge.runtime.sources.addresses import URL_SCHEMES, address_scheme, redact, with_credentials
from nnet_edge.runtime.sources.base import AbsentSource, Source, SourceFacts
from nnet_edge.runtime.sources.http import HttpSource
from nnet_edge.runtime.sources.images import ImageFileSource, WatchedFolderSource, folder_source
from nnet_edge.runtime.sources.opencv_video import CaptureSettings
from nnet_edge.runtime.sources.pipe import PipeSource
from nnet_edge.runtime.sources.synthetic import SyntheticSource, synthetic_source
from nnet_edge.runtime.sources.video import VIDEO_SUFFIXES, VideoSource
from nnet_edge.settings.stream import CameraSettings

__all__ = [
    "ImageFileSource",
    "Source",
    "SourceFacts",
    "SyntheticSource",
    "VideoSource",
    "WatchedFolderSource",
    "open_source",
    "open_source_of",
    "redact",
]

PIPELINE = "gstreamer:"  # before a pipeline that ends in an appsink


def open_source(text: str, skip_bad: bool = False, seed: int = 0) -> Source:
    """The source that `text` names: a folder of images, an image, a video file, a camera's number, an address, or
    "synthetic" (drawn parts without end, 25 a second; "synthetic:100" for 100 of them as fast as they are taken).

    Raises SourceError for what is unknown, absent, empty or no video.
    """
    if not text:
        raise SourceError(no_such(text))
    return open_source_of(CameraSettings(text, skip_bad_images=skip_bad, seed=seed))


def open_source_of(settings: CameraSettings, stream: str | None = None, may_be_absent: bool = False) -> Source:
    """The source that the settings of a camera ask for; its frames belong to `stream`.

    The address may be a device (/dev/video0), a pipe, or gstreamer:PIPELINE as well. Raises SourceError, ConfigError. With
    `may_be_absent` a path that could be a camera's, and is not there, gives a source that says so when it is entered.
    """
    text = settings.address
    if text == "synthetic" or text.startswith("synthetic:"):
        source: Source = synthetic_source(text, settings.seed, settings.rate_hz)
    elif text.isdecimal():
        source = VideoSource(int(text), f"camera {text}", f"camera-{text}", True, asked(settings))
    elif text.startswith(PIPELINE):
        pipeline = text.removeprefix(PIPELINE)
        source = VideoSource(pipeline, "GStreamer pipeline", "gstreamer", True, asked(settings, "gstreamer"))
    elif address_scheme(text) is not None:
        source = network_source(settings)
    else:
        source = file_source(settings, may_be_absent)
    if stream is not None:
        source.stream = stream
    return source


def asked(settings: CameraSettings, backend: str = "auto") -> CaptureSettings:
    """What OpenCV is asked for."""
    is_rtsp = address_scheme(settings.address) in ("rtsp", "rtsps")
    return CaptureSettings(
        backend=backend,
        transport=settings.transport if is_rtsp else None,
        height=settings.height,
        width=settings.width,
        rate_hz=settings.rate_hz,
        pixel_format=settings.pixel_format,
        open_timeout_s=settings.open_timeout_s,
        read_timeout_s=settings.read_timeout_s,
    )


def network_source(settings: CameraSettings) -> Source:
    """The source behind an address. Raises SourceError for an unknown scheme, ConfigError for missing credentials."""
    text, scheme = settings.address, address_scheme(settings.address)
    shown = redact(text)
    if scheme not in URL_SCHEMES:
        raise SourceError(f"{shown} has the unknown scheme {scheme}: use one of {', '.join(URL_SCHEMES)}")
    address = with_credentials(text, settings.credentials)
    if scheme in ("http", "https"):
        if Path(urlsplit(text).path).suffix.lower() in VIDEO_SUFFIXES:
            return VideoSource(address, shown, shown, False, asked(settings), settings.at_own_rate)
        return HttpSource(address, shown, asked(settings))
    return VideoSource(address, shown, shown, True, asked(settings))


def file_source(settings: CameraSettings, may_be_absent: bool) -> Source:
    """The source of a path: folder, picture, video, device or pipe. Raises SourceError, ConfigError."""
    path = Path(settings.address)
    reason = absence(settings)
    if reason is not None:
        if may_be_absent and may_be_camera(settings):
            return AbsentSource(settings.address, reason)
        raise SourceError(reason)
    if settings.watch and not path.is_dir():
        raise ConfigError(f"{path} is no folder: only a folder can be watched for new images")
    if path.is_dir():
        return WatchedFolderSource(path, path.name) if settings.watch else folder_source(path, settings.skip_bad_images)
    mode = path.stat().st_mode
    if stat.S_ISCHR(mode):
        return VideoSource(str(path), f"camera {path}", path.name, True, asked(settings))
    if stat.S_ISFIFO(mode):
        return PipeSource(path, path.name, settings.read_timeout_s)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFileSource([path], f"image {path}", path.stem, settings.skip_bad_images)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoSource(str(path), f"video {path}", path.stem, False, asked(settings), settings.at_own_rate)
    raise SourceError(
        f"{path} is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video ({', '.join(VIDEO_SUFFIXES)})"
    )


def absence(settings: CameraSettings) -> str | None:
    """Why the path that the settings name is not there now; None when it is, or when they name no path."""
    text = settings.address
    is_path = not (text.isdecimal() or text.partition(":")[0] in ("synthetic", "gstreamer") or address_scheme(text))
    try:
        if is_path:
            Path(text).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return no_such(text)
    except OSError as error:
        return f"the source {text!r} cannot be read: {error.strerror}"
    return None


def may_be_camera(settings: CameraSettings) -> bool:
    """Whether an absent path may be that of a device, a pipe or a watched folder; what is named like a file is one."""
    return settings.watch or Path(settings.address).suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)


def no_such(text: str) -> str:
    """What to say of a source that is not there."""
    return (
        f"there is no source {text!r}: give an image folder, an image or video file, a camera's number, "
        "an rtsp:// or http:// address, or synthetic"
    )
