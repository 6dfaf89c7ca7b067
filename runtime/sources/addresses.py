"""Network addresses of cameras: their schemes, the passwords that go into them, and how they are shown without."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, quote, urlsplit

from nnet_edge.errors import ConfigError
from nnet_edge.settings.camera import CommonSettings

SECRET_IN_PATH = re.compile(  # as in /user=admin&password=x&channel=1 or /user=admin_password=x_channel=1.sdp
    r"([a-z0-9_.-]*(?:pass|pwd|psw|token|key|secret|auth|user|usr|login|cred|sig)[a-z0-9_.-]*(?:=|%3d))[^/&;,]*",
    re.IGNORECASE,
)
NEED_A_HOST = ("rtsp", "rtsps", "http", "https", "rtmp")


def address_scheme(text: str) -> str | None:
    """The scheme of a network address in lower case, None for a text without one."""
    return text.split("://", 1)[0].lower() if "://" in text else None


def has_scheme(*schemes: str) -> Callable[[str], bool]:
    """A test whether an address has one of `schemes`."""
    return lambda text: address_scheme(text) in schemes


def shown_and_opened(settings: CommonSettings) -> tuple[str, str]:
    """The address for people, and with its credentials, never to be printed. Raises ConfigError."""
    return redact(settings.address), with_credentials(settings.address, settings.credentials)


def redact(address: str) -> str:
    """`address` for people: without user, password and query, and without passwords and keys in its path.

    Of an invalid address only the scheme is shown; nothing is raised.
    """
    scheme, _, rest = address.partition("://")
    try:
        parts = urlsplit(address)
    except ValueError:
        return f"{scheme}://***"
    if "@" not in parts.netloc and ":" in parts.netloc and "@" in rest:  # a password with a / ? or # in it
        return redact(f"{scheme}://***@{rest.rpartition('@')[2]}")
    secret = "***@" if "@" in parts.netloc else ""
    query = "?***" if parts.query else ""
    path = SECRET_IN_PATH.sub(r"\1***", parts.path)
    return f"{parts.scheme}://{secret}{parts.netloc.rpartition('@')[2]}{path}{query}"


def path_suffix(address: str) -> str:
    """The suffix of the path in the address, in lower case; "" for none, and for an invalid address."""
    try:
        return PurePosixPath(urlsplit(address).path).suffix.lower()
    except ValueError:
        return ""


def with_credentials(address: str, credentials: str | None) -> str:
    """`address` with the user and password that `credentials` (file:PATH or env:NAME) names, never to be printed.

    Raises ConfigError when they cannot be read, or the address is invalid; the message holds neither.
    """
    parts = parts_of(address)
    if credentials is None:
        return address
    user, password = read_credentials(credentials)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}").geturl()


def parts_of(address: str) -> SplitResult:
    """The parts of a network address. Raises ConfigError for an invalid one; the message holds no secret."""
    try:
        parts = urlsplit(address)
        is_usable = bool(parts.hostname) or parts.scheme not in NEED_A_HOST
        parts.port  # noqa: B018  raises for an invalid port
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ConfigError(f"{redact(address)} is not a valid address: look at its host, its port and its brackets")
    return parts


def read_credentials(credentials: str) -> tuple[str, str]:
    """User and password from "file:PATH" (its first line, user:password) or "env:NAME". Raises ConfigError."""
    kind, _, place = credentials.partition(":")
    if kind == "env":
        text = os.environ.get(place)
        if text is None:
            raise ConfigError(f"the environment has no {place}, which should hold user:password of a camera")
    else:
        try:
            text = Path(place).read_text(encoding="utf-8-sig").split("\n", 1)[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the credentials {place} cannot be read: {type(error).__name__}") from error
    user, colon, password = text.partition(":")
    if not (user and colon):
        raise ConfigError(f"{credentials} does not hold user:password")
    return user, password
