"""Opening a source by its address: the registry says which kind takes it.

A source is a context manager and iterable once. It never makes a frame up: what cannot be read is a SourceError, or, for
files of a folder and only when the user says so, counted in `skipped`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnet_edge.errors import SourceError
from nnet_edge.runtime.sources.addresses import address_scheme, redact
from nnet_edge.runtime.sources.base import AbsentSource, Source
from nnet_edge.settings.camera import CameraSettings, is_path, kind_of, known_addresses
from nnet_edge.settings.registry import SOURCES


def open_source(text: str, **options: Any) -> Source:
    """The source at the address `text`, with settings of the camera by name: `skip_bad_images=True`.

    Raises SourceError for an address that is unknown, absent or empty, ConfigError for an invalid setting.
    """
    if not text:
        raise SourceError(no_such(text))
    return open_source_of(CameraSettings.of(text, **options))


def open_source_of(settings: CameraSettings, stream: str | None = None, may_be_absent: bool = False) -> Source:
    """The source that the settings of a camera ask for; its frames belong to `stream`.

    With `may_be_absent` a path that could be a camera's, and is not there, gives a source that says so when it is entered.
    Raises SourceError, ConfigError.
    """
    kind = kind_of(settings.address)
    source: Source
    if kind is not None:
        source = kind.make(settings, settings.options_for(kind))
    elif may_be_absent and may_be_camera(settings) and (reason := absence(settings)) is not None:
        source = AbsentSource(settings.address, reason)
    else:
        raise SourceError(absence(settings) or not_a_source(settings.address))
    if stream is not None:
        source.stream = stream
    return source


def absence(settings: CameraSettings) -> str | None:
    """Why nothing is at the path that the settings name; None when something is, or when they name no path."""
    text = settings.address
    try:
        if is_path(text):
            Path(text).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return no_such(text)
    except OSError as error:
        return f"the source {text!r} cannot be read: {error.strerror}"
    return None


def may_be_camera(settings: CameraSettings) -> bool:
    """Whether an absent path may become a device, a pipe or a folder; a name that ends like a file's is a file's."""
    suffixes = [suffix for kind in SOURCES for suffix in kind.suffixes]
    is_watched = bool(settings.options.get("watch"))  # a folder, whatever its name
    return is_path(settings.address) and (is_watched or Path(settings.address).suffix.lower() not in suffixes)


def no_such(text: str) -> str:
    """The message for a source that is absent."""
    return f"there is no source {text!r}: give {known_addresses()}"


def not_a_source(text: str) -> str:
    """The message for an address, or a file, that no kind takes."""
    scheme = address_scheme(text)
    if scheme is not None:
        return f"{redact(text)} has the unknown scheme {scheme}: give {known_addresses()}"
    files = [f"{kind.addresses} ({', '.join(kind.suffixes)})" for kind in SOURCES if kind.suffixes]
    return f"{text} is neither {' nor '.join(files)}"
