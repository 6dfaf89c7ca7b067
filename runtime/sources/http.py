"""Frames from a camera's HTTP address: streams of JPEGs and single JPEGs, checked one by one; other video through OpenCV."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit

from nnet_edge.errors import DataError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.jpeg import NEEDS
from nnet_edge.lazy import LazyModule
from nnet_edge.runtime.sources.addresses import address_scheme, redact, shown_and_opened
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.decoding import DecodeOptions
from nnet_edge.runtime.sources.jpegs import START, JpegCutter, JpegSource
from nnet_edge.runtime.sources.video import VideoFileSource, VideoOptions, VideoSource, is_http_video
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, Flag, SourceKind

if TYPE_CHECKING:
    import ssl
    from http import client
else:  # a line without such a camera does without them
    ssl, client = LazyModule("ssl"), LazyModule("http.client")

READ_BYTES = 1 << 16
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
SNAPSHOTS_HZ = 1.0  # of a camera that gives single pictures, unless rate_hz says another
JPEGS = ("image/jpeg", "image/jpg", "image/pjpeg")
PAGES = ("text/html", "application/json", "text/xml", "application/xml")
IN_A_PATH = "%/:=&?~+!$,;'@()*[]"  # what stays as it is in a path or query


class HttpSource(JpegSource):
    """A camera behind http:// or https://; `address` may hold a password and is never shown, `what` is."""

    def __init__(
        self, address: str, what: str, settings: CommonSettings, ca_file: Path | None = None, gpu: int | None = None
    ) -> None:
        from nnet_edge.runtime.sources.sign_in import SignIn  # with urllib.request, which no other camera needs

        super().__init__(what, gpu)
        self._address, self._what, self._settings, self._ca_file = address, what, settings, ca_file
        self._sign_in = SignIn(address)
        self._response: client.HTTPResponse | None = None
        self._socket: socket.socket | None = None
        self._video: VideoSource | None = None  # for what are no JPEGs
        self._period_s: float | None = None  # of single pictures
        self._range = ""  # the bytes that are asked for, all of them when it is empty

    def __enter__(self) -> HttpSource:
        if not self.gives_jpegs():
            self._video = VideoSource(self._address, self._what, self.stream, self._settings)
            self._video.ca_file = self._ca_file
            self._video.__enter__()
            self.got = self._video.got
        return self

    def gives_jpegs(self) -> bool:
        """Ask the camera, and keep an answer that holds JPEGs. Raises SourceError for a refusal, and for what is no picture."""
        try:
            response = self._ask()
            kind = response.headers.get_content_type()
            is_multipart = kind.startswith("multipart/")
            start = b"" if is_multipart or kind in PAGES else response.peek(READ_BYTES).lstrip()
        except (OSError, client.HTTPException, SourceError) as error:
            why = self._why(error)
            self._close()
            raise SourceError(f"{self._what} cannot be opened: {why}") from error
        if is_multipart or start.startswith((START, b"--")):
            if start.startswith(START) and (response.length is not None or kind in JPEGS):
                self._period_s = 1 / (self._settings.rate_hz or SNAPSHOTS_HZ)
                self.may_be_silent = self._period_s > self._settings.stall_s
            return True
        self._close()
        if kind in PAGES or kind.startswith("image/"):
            advice = f"it answers with {kind}, not with JPEGs: look up the address of its pictures in its manual"
            raise SourceError(f"{self._what} cannot be opened: {advice}")
        return False

    def __exit__(self, *error: object) -> None:
        if self._video is not None:
            self._video.__exit__(*error)
        self._close()

    def __iter__(self) -> Iterator[Frame]:
        if self._video is not None:
            yield from self._video
            return
        if self._response is None:
            raise SourceError(f"{self._what} is not open: use it in a `with` statement")
        try:
            yield from self.frames_of(self._stream() if self._period_s is None else self._snapshots(self._period_s))
        except (OSError, client.HTTPException, ValueError, DataError, SourceError) as error:
            if self._interrupted.is_set():
                return
            raise SourceError(f"{self.so_far}: {self._why(error)}") from error
        if not self._interrupted.is_set():
            raise SourceError(f"{self.so_far}: is it switched on and connected?")

    def describe(self) -> str:
        return self._what

    def interrupt(self) -> None:
        super().interrupt()
        if self._video is not None:
            self._video.interrupt()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _stream(self) -> Iterator[bytes]:
        """The pictures of a stream, until it ends."""
        assert self._response is not None
        cutter = JpegCutter(self._response.headers.get_boundary())
        while data := self._response.read1(READ_BYTES):
            yield from cutter.feed(data)
        yield from filter(None, [cutter.rest()])

    def _snapshots(self, period_s: float) -> Iterator[bytes]:
        """One picture a period, each asked for anew, until the source is interrupted."""
        response, due_s = self._response, time.monotonic()
        while response is not None:
            cutter, picture = JpegCutter(), None
            while picture is None and (data := response.read1(READ_BYTES)):
                picture = next(cutter.feed(data), None)
            self._close()
            yield cutter.rest() if picture is None else picture
            due_s = max(due_s + period_s, time.monotonic())
            if self._interrupted.wait(due_s - time.monotonic()):
                return
            response = self._ask()

    def _ask(self) -> client.HTTPResponse:
        """The camera's answer with pictures, after sign-in and redirects. Raises SourceError for a refusal."""
        address, is_own = self._address, True
        for _ in range(MOST_REDIRECTS + 1):
            response = self._signed(address, is_own)
            if response.status == 200 or (response.status == 206 and self._range):
                return response
            self._close()
            if response.status == 401 and not is_own:
                raise SourceError(
                    f"it redirects to {redact(address)}, which asks for a password: give that address itself"
                )
            if response.status not in REDIRECTS or not (place := response.headers["Location"]):
                from nnet_edge.runtime.sources.sign_in import refusal

                raise SourceError(refusal(response.status, self._sign_in.has_user))
            address, is_own = followed(address, place, is_own)
        raise SourceError(f"it redirects more than {MOST_REDIRECTS} times: give the last address itself")

    def _signed(self, address: str, is_own: bool) -> client.HTTPResponse:
        """The answer to one address; user and password go to the camera's own host alone, and only when it asks."""
        response = self._get(address, is_own)
        if response.status == 401 and is_own and self._sign_in.has_user:
            self._close()
            if unknown := self._sign_in.take(response.headers.get_all("WWW-Authenticate") or []):
                raise SourceError(unknown)
            response = self._get(address, is_own)
        return response

    def _get(self, address: str, is_own: bool) -> client.HTTPResponse:
        """Ask once, within the time limits."""
        parts = urlsplit(address)
        if parts.hostname is None:
            raise SourceError("the address has no host")
        limit_s = self._settings.open_timeout_s
        connection = client.HTTPConnection(parts.hostname, parts.port, timeout=limit_s)
        if parts.scheme == "https":
            connection = client.HTTPSConnection(parts.hostname, parts.port, timeout=limit_s, context=self._context)
        connection.connect()
        self._socket = connection.sock
        target = quote(parts.path or "/", IN_A_PATH) + (f"?{quote(parts.query, IN_A_PATH)}" if parts.query else "")
        headers = {"Accept": "multipart/x-mixed-replace, image/jpeg, */*"}
        if is_own and (answer := self._sign_in.answer("GET", address, target)):
            headers["Authorization"] = answer
        if self._range:
            headers["Range"] = self._range
        connection.request("GET", target, headers=headers)
        self._response = response = connection.getresponse()
        self._socket.settimeout(self._settings.read_timeout_s)
        return response

    @cached_property
    def _context(self) -> ssl.SSLContext:
        from nnet_edge.runtime.sources.sign_in import tls_context

        return tls_context(self._ca_file)

    def part(self, start: int, length: int) -> tuple[bytes, int]:
        """So many bytes of what is behind the address from `start` on, and how many there are in all.

        Raises OSError when they cannot be had, and for a server that gives a whole file only.
        """
        self._range = f"bytes={start}-{start + length - 1}"
        try:
            response = self._ask()
            size = (response.headers["Content-Range"] or "").rpartition("/")[2]
            if response.status != 206 or not size.isdecimal():
                raise OSError("the server gives no parts of files")
            return response.read(length), int(size)
        except (client.HTTPException, SourceError) as error:
            raise OSError(str(error)) from error
        finally:
            self._range = ""
            self._close()

    def _why(self, error: Exception) -> str:
        """What went wrong, in words, and what to do."""
        if isinstance(error, DataError | SourceError):
            return str(error)
        if isinstance(error, ssl.SSLError) and self._socket is None:  # it is kept once it is encrypted
            from nnet_edge.runtime.sources.sign_in import distrust

            return distrust(error, self._ca_file)
        if isinstance(error, client.BadStatusLine) and not isinstance(error, OSError):
            return "its answer is no HTTP: is the port right?"
        if isinstance(error, TimeoutError) and self._response is not None:
            return "it is silent"
        return VideoSource.advice if self._response is None else "is it switched on and connected?"

    def _close(self) -> None:
        if self._response is not None:
            self._response.close()
        if self._socket is not None:
            self._socket.close()
        self._response = self._socket = None


class RemoteFile(RawIOBase):
    """A file behind an address, read in parts. Raises OSError where the server gives none."""

    def __init__(self, source: HttpSource) -> None:
        self._source, self._place = source, 0
        _, self._size = source.part(0, 1)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._place))
        data = self._source.part(self._place, length)[0] if length else b""
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def readall(self) -> bytes:
        return self.read(max(0, self._size - self._place)) or b""


class HttpVideoSource(VideoFileSource):
    """A video file behind http://; whether it is whole is looked up in the file itself where the server gives parts of it."""

    signed_in: HttpSource | None = None

    def _bytes(self) -> AbstractContextManager[BinaryIO | None]:
        assert self.signed_in is not None
        try:
            return BufferedReader(RemoteFile(self.signed_in), READ_BYTES)
        except OSError:  # then the number of frames that it promises counts
            return nullcontext()


def followed(address: str, place: str, is_own: bool) -> tuple[str, bool]:
    """Where a redirect leads, and whether user and password may go there. Raises SourceError for one that is not followed.

    It is followed on the same host or by the same scheme, never from https:// to http://. Only the host of the address
    itself, at its port or by https://, is sent user and password.
    """
    try:
        target = urljoin(address, place)
        old, new = urlsplit(address), urlsplit(target)
        is_same_port, is_same_host = old.port == new.port, old.hostname == new.hostname
    except ValueError as error:
        raise SourceError("it redirects to an invalid address: give the right one itself") from error
    is_safer = (old.scheme, new.scheme) == ("http", "https")
    if not new.hostname or not (new.scheme == old.scheme or (is_safer and is_same_host)):
        raise SourceError(f"it redirects to {redact(target)}: give that address itself, if it is right")
    return target, is_own and is_same_host and (is_same_port or is_safer)


@dataclass(frozen=True)
class HttpOptions(DecodeOptions):
    """What only cameras behind http:// have."""

    ca_file: Path | None = None  # PEM: the camera's certificate, or that of who issued it; None: what the system trusts


@dataclass(frozen=True)
class HttpVideoOptions(VideoOptions):
    """What only video files behind http:// have."""

    ca_file: Path | None = None  # PEM: the camera's certificate, or that of who issued it; None: what the system trusts


def open_http(settings: CommonSettings, options: HttpOptions) -> HttpSource:
    shown, address = shown_and_opened(settings)
    if options.ca_file is not None:
        from nnet_edge.runtime.sources.sign_in import tls_context

        tls_context(options.ca_file)  # an error at the door when it cannot be read
    return HttpSource(address, shown, settings, options.ca_file, options.gpu)


def open_http_video(settings: CommonSettings, options: HttpVideoOptions) -> Source:
    """The video file; a camera whose JPEGs have an address like a file's is read as every camera."""
    of_camera = HttpOptions(decode=options.decode, ca_file=options.ca_file)
    camera = open_http(settings, of_camera)
    try:
        if camera.gives_jpegs():
            return open_http(settings, of_camera)
    finally:
        camera.__exit__()
    shown, address = shown_and_opened(settings)
    source = HttpVideoSource(address, shown, shown, settings, options, options.ca_file)
    source.signed_in = camera
    return source


def is_http_camera(text: str) -> bool:
    """Whether a camera is behind the address; a video file is behind others."""
    return address_scheme(text) in ("http", "https") and not is_http_video(text)


CA_FLAG = Flag(
    "--ca-file", "PEM certificate of an https:// or rtsps:// camera.", lambda typed, asked: {"ca_file": typed}
)
SOURCES.register(
    SourceKind(
        "http",
        "an http:// address",
        is_http_camera,
        open_http,
        HttpOptions,
        "http",
        (CA_FLAG,),
        order=41,
        needs=NEEDS,
    )
)
SOURCES.register(SourceKind("http-video", "an http:// video", is_http_video, open_http_video, HttpVideoOptions, "http"))
