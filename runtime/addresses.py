"""Network addresses of cameras: their schemes, the passwords that go into them, and how they are shown without."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlsplit

from nnet_edge.errors import ConfigError

URL_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "udp", "tcp")


def address_scheme(text: str) -> str | None:
    """The scheme of a network address in lower case, None for a text that is no address."""
    return text.split("://", 1)[0].lower() if "://" in text else None


def redact(address: str) -> str:
    """`address` without user, password and query, which may hold a key."""
    parts = urlsplit(address)
    secret = "***@" if "@" in parts.netloc else ""
    query = "?***" if parts.query else ""
    return f"{parts.scheme}://{secret}{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def with_credentials(address: str, credentials: str | None) -> str:
    """`address` with the user and password that `credentials` (file:PATH or env:NAME) names, never to be printed.

    Raises ConfigError when they cannot be read; the message holds neither.
    """
    if credentials is None:
        return address
    user, password = read_credentials(credentials)
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{host}").geturl()


def read_credentials(credentials: str) -> tuple[str, str]:
    """User and password from "file:PATH" (its first line, user:password) or "env:NAME". Raises ConfigError."""
    kind, _, place = credentials.partition(":")
    if kind == "env":
        text = os.environ.get(place)
        if text is None:
            raise ConfigError(f"the environment has no {place}, which should hold user:password of a camera")
    else:
        try:
            text = Path(place).read_text(encoding="utf-8").split("\n", 1)[0].strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the credentials {place} cannot be read: {type(error).__name__}") from error
    user, colon, password = text.partition(":")
    if not (user and colon):
        raise ConfigError(f"{credentials} does not hold user:password")
    return user, password
