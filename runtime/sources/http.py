"""Frames from a camera's HTTP address: streams of JPEGs are checked picture by picture, other streams go through OpenCV."""

from __future__ import annotations

import logging
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import unquote, urlsplit

from nnet_edge.errors import DataError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.addresses import address_scheme, shown_and_opened
from nnet_edge.runtime.sources.base import Source, SourceFacts
from nnet_edge.runtime.sources.jpeg import LARGEST_PICTURE, NEEDS, whole_picture
from nnet_edge.runtime.sources.video import VideoSource, is_http_video
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, SourceKind

log = logging.getLogger(__name__)

LONGEST_LINE = 4096  # bytes of a header


class HttpSource(Source):
    """A camera behind http:// or https://. A picture that comes in half or damaged is counted in `skipped`, never shown.

    `address` may hold a password and is never shown, `what` is.
    """

    is_live = True

    def __init__(self, address: str, what: str, settings: CommonSettings) -> None:
        super().__init__(what)
        self._address, self._what, self._settings = address, what, settings
        self._response: HTTPResponse | None = None
        self._socket: socket.socket | None = None
        self._video: VideoSource | None = None  # for an answer that is not a stream of JPEGs

    def __enter__(self) -> HttpSource:
        try:
            response = self._request()
        except (OSError, HTTPException) as error:
            self._close()
            raise SourceError(f"{self._what} cannot be opened: {VideoSource.advice}") from error
        if response.status == 200 and response.headers.get_content_type() == "multipart/x-mixed-replace":
            self._response = response
            self.got = SourceFacts(pixel_format="MJPG")
            return self
        response.close()
        self._close()
        self._video = VideoSource(self._address, self._what, self.stream, self._settings)
        self._video.__enter__()
        self.got = self._video.got
        return self

    def __exit__(self, *error: object) -> None:
        if self._video is not None:
            self._video.__exit__(*error)
        if self._response is not None:
            self._response.close()
        self._close()

    def __iter__(self) -> Iterator[Frame]:
        if self._video is not None:
            yield from self._video
            return
        if self._response is None:
            raise SourceError(f"{self._what} is not open: use it in a `with` statement")
        index = 0
        try:
            for data in parts_of(self._response):
                if self._interrupted.is_set():
                    return
                try:
                    image = whole_picture(data)
                except DataError as error:
                    self.skipped += 1
                    log.warning("%s sent a picture of %d bytes, passed over: %s", self._what, len(data), error)
                    continue
                yield Frame(image, index, time.monotonic(), self.stream)
                index += 1
        except (OSError, HTTPException, ValueError) as error:
            if self._interrupted.is_set():
                return
            raise SourceError(f"{self._what} stopped after {index} frames: {reason(error)}") from error
        if not self._interrupted.is_set():
            raise SourceError(f"{self._what} stopped after {index} frames: is it switched on and connected?")

    def describe(self) -> str:
        return self._what

    def interrupt(self) -> None:
        super().interrupt()
        if self._video is not None:
            self._video.interrupt()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _request(self) -> HTTPResponse:
        """Ask for the stream, within the time limits."""
        parts = urlsplit(self._address)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        if parts.hostname is None:
            raise SourceError(f"{self._what} has no host")
        connection = kind(parts.hostname, parts.port, timeout=self._settings.open_timeout_s)
        connection.connect()
        self._socket = connection.sock
        headers = {"Accept": "multipart/x-mixed-replace, */*"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers)
        response = connection.getresponse()
        self._socket.settimeout(self._settings.read_timeout_s)
        return response

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def parts_of(response: HTTPResponse) -> Iterator[bytes]:
    """The bodies of a multipart answer, until it ends. Raises ValueError for another kind of answer."""
    marker = b"--" + (response.headers.get_boundary() or "").removeprefix("--").encode()
    line = response.readline(LONGEST_LINE)
    while line:
        if not line.strip():
            line = response.readline(LONGEST_LINE)
            continue
        if not line.startswith(marker):
            raise ValueError("the answer is not multipart")
        if line.strip() == marker + b"--":
            return
        length = length_of(response)
        if length is None:
            data, line = read_until(response, marker)
        else:
            data, line = response.read(length), response.readline(LONGEST_LINE)
        if line or length is not None:
            yield data


def length_of(response: HTTPResponse) -> int | None:
    """The length that a part's headers announce, None for none. Raises ValueError for one that no picture has."""
    length = None
    while (header := response.readline(LONGEST_LINE)).strip():
        name, _, value = header.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    if length is not None and not 0 < length <= LARGEST_PICTURE:
        raise ValueError(f"a picture of {length} bytes was announced")
    return length


def read_until(response: HTTPResponse, marker: bytes) -> tuple[bytes, bytes]:
    """The bytes before the next line that begins with `marker`, and that line; it is empty at the end of the answer."""
    data = bytearray()
    while len(data) <= LARGEST_PICTURE:
        line = response.readline(LONGEST_LINE)
        if not line or line.startswith(marker):
            return bytes(data.removesuffix(b"\r\n")), line
        data += line
    raise ValueError(f"a picture of more than {LARGEST_PICTURE} bytes came")


def reason(error: Exception) -> str:
    """Why a stream stopped, in words."""
    if isinstance(error, TimeoutError):
        return "it is silent"
    return str(error) if isinstance(error, ValueError) else "is it switched on and connected?"


def open_http(settings: CommonSettings, options: None) -> HttpSource:
    shown, address = shown_and_opened(settings)
    return HttpSource(address, shown, settings)


def is_http_camera(text: str) -> bool:
    """Whether a camera is behind the address; a video file is behind others."""
    return address_scheme(text) in ("http", "https") and not is_http_video(text)


SOURCES.register(
    SourceKind(
        "http",
        "an http:// address",
        is_http_camera,
        open_http,
        page="http",
        order=41,
        needs=NEEDS,
    )
)
