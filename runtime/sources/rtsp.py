"""Network cameras by RTSP, and other network video: RTMP, UDP, TCP."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.lazy import LazyModule
from nnet_edge.runtime.sources.addresses import address_scheme, has_scheme, shown_and_opened
from nnet_edge.runtime.sources.colour import CodedOptions
from nnet_edge.runtime.sources.video import VideoSource
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, SourceKind
from nnet_edge.settings.runner import require_choice

if TYPE_CHECKING:
    import ssl
    from http import client

    from nnet_edge.runtime.sources.sign_in import SignIn
else:  # a line without such a camera does without them
    ssl, client = LazyModule("ssl"), LazyModule("http.client")

log = logging.getLogger(__name__)

TRANSPORTS = ("tcp", "udp")
PORTS = {"rtsp": 554, "rtsps": 322}
LOSSY = (
    '%s: UDP loses packets, and the pictures that are torn by it are judged: add --decode checked (decode = "checked")'
)
LONGEST_QUESTION_S = 2.0  # why a camera does not open, after FFmpeg gave up


@dataclass(frozen=True)
class RtspOptions(CodedOptions):
    """What only RTSP cameras have."""

    transport: str = field(default="tcp", metadata={"page": True})  # tcp, or udp, which loses packets
    ca_file: Path | None = None  # PEM: whom the certificate of rtsps:// may come from; None: it is not looked at

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("transport", self.transport, TRANSPORTS)
        if self.ca_file is not None and {"|", ";"} & {*str(self.ca_file)}:
            raise ConfigError(f"ca_file {self.ca_file} holds a | or ; which FFmpeg takes for its own: rename it")


class RtspSource(VideoSource):
    """An RTSP camera. FFmpeg does not tell why one does not open, so it is asked once more, for the reason alone."""

    def __enter__(self) -> RtspSource:
        try:
            super().__enter__()
        except SourceError as error:
            limit_s = min(LONGEST_QUESTION_S, self._settings.open_timeout_s)
            reason = why_refused(str(self._address), self.ca_file, limit_s)
            if reason is None:
                raise
            raise SourceError(f"{self._what} cannot be opened: {reason}") from error
        return self


def why_refused(address: str, ca_file: Path | None, limit_s: float) -> str | None:
    """Why a camera refuses its stream, in words; None when it does not answer, or does not refuse.

    User and password are sent to nobody whose certificate was not looked at.
    """
    from nnet_edge.runtime.sources.sign_in import SignIn, distrust, refusal  # with urllib.request

    sign_in = SignIn(address)
    try:
        status, challenges = describe(address, ca_file, limit_s)
        if status == 401 and sign_in.has_user and (ca_file is not None or urlsplit(address).scheme == "rtsp"):
            if unknown := sign_in.take(challenges):
                return unknown
            status, _ = describe(address, ca_file, limit_s, sign_in)
    except ssl.SSLError as error:
        return distrust(error, ca_file)
    except (OSError, client.HTTPException, ValueError):
        return None
    return refusal(status, sign_in.has_user) if status >= 400 else None


def describe(
    address: str, ca_file: Path | None, limit_s: float, sign_in: SignIn | None = None
) -> tuple[int, list[str]]:
    """Status and challenges of a camera that is asked to describe its stream. Raises OSError, HTTPException, ValueError."""
    parts = urlsplit(address)
    target = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    answer = None if sign_in is None else sign_in.answer("DESCRIBE", address, target)
    lines = [f"DESCRIBE {target} RTSP/1.0", "CSeq: 1", "Accept: application/sdp"]
    lines += [] if answer is None else [f"Authorization: {answer}"]
    plain = socket.create_connection((parts.hostname or "", parts.port or PORTS[parts.scheme]), limit_s)
    with plain, encrypted(plain, parts.hostname, ca_file) if parts.scheme == "rtsps" else plain as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        with connection.makefile("rb") as reply:
            status = int(reply.readline(1000).partition(b" ")[2][:3])
            return status, client.parse_headers(reply).get_all("WWW-Authenticate") or []


def encrypted(plain: socket.socket, host: str | None, ca_file: Path | None) -> ssl.SSLSocket:
    """The connection by TLS; as FFmpeg does it, a certificate is looked at where `ca_file` says whom it may come from."""
    from nnet_edge.runtime.sources.sign_in import tls_context

    context = tls_context(ca_file)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE if ca_file is None else ssl.CERT_REQUIRED
    return context.wrap_socket(plain, server_hostname=host)


def open_rtsp(settings: CommonSettings, options: RtspOptions) -> RtspSource:
    shown, address = shown_and_opened(settings)
    source = RtspSource(address, shown, shown, settings, options, options.transport)
    source.ca_file = options.ca_file
    if options.transport == "udp" and options.decode == "cpu":
        log.warning(LOSSY, shown)
    if options.ca_file is not None:
        from nnet_edge.runtime.sources.sign_in import tls_context

        tls_context(options.ca_file)  # an error at the door when it cannot be read
    return source


def open_network(settings: CommonSettings, options: CodedOptions) -> VideoSource:
    shown, address = shown_and_opened(settings)
    if address_scheme(address) == "udp" and options.decode == "cpu":
        log.warning(LOSSY, shown)
    return VideoSource(address, shown, shown, settings, options)


SOURCES.register(
    SourceKind("rtsp", "an rtsp:// address", has_scheme("rtsp", "rtsps"), open_rtsp, RtspOptions, page="rtsp", order=40)
)
OTHERS = "an rtmp://, udp:// or tcp:// address"
SOURCES.register(
    SourceKind("network", OTHERS, has_scheme("rtmp", "udp", "tcp"), open_network, CodedOptions, page="pipeline")
)
