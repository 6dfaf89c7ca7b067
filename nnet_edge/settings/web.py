"""Settings of the live page and of drift warnings."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nnet_edge.errors import ConfigError
from nnet_edge.settings.registry import SOURCES
from nnet_edge.settings.runner import require_between, require_choice, require_positive
from nnet_edge.settings.secrets import read_secret, require_secret_place

NEVER_ADDABLE = "pipeline"  # of sources that run programs, and of unknown ones: the page never adds them
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
SHORTEST_TOKEN = 16  # letters


@dataclass(frozen=True)
class WebSettings:
    """The live page and its server. Raises ConfigError for an invalid setting."""

    host: str = "127.0.0.1"  # an address that is not loopback needs a token
    port: int = 8080  # 0: one that is free
    token_from: str | None = None  # "env:NAME" or "file:PATH", which hold the token; never the token itself
    operator_token_from: str | None = None  # a second token, for operators: they see the line and label parts
    names: tuple[str, ...] = ()  # host names by which people reach the page, beside host and localhost
    public_url: str | None = None  # behind a proxy: what people type, "https://line.example/" or with port and path
    is_behind_tls: bool = False  # a proxy before the page speaks HTTPS: cookies go over nothing else
    picture_hz: float = 5.0  # pictures of a stream a second, at most
    picture_width: int = 480  # pixels of a picture on the page
    picture_quality: int = 75  # of JPEG
    picture_share: float = 0.012  # of one processor core, at most, for drawing and encoding
    viewers: int = 8  # pages with pictures at a time
    kept_scores: int = 500  # of each stream, for the chart and for trying out a threshold
    gallery_bytes: int = 64 * 2**20  # of rejects in memory; the oldest go first
    addable: tuple[str, ...] = ("camera", "rtsp", "http", "synthetic")  # kinds of sources that the page may add
    source_folder: Path | None = None  # where files may be that the page adds; needed for "file"
    teach_folder: Path | None = None  # where the page puts photographs and bundles when it teaches; None: it does not
    bundle_folder: Path | None = None  # bundles below it may be swapped in; None: those beside the line's bundle

    def __post_init__(self) -> None:
        require_between("web port", self.port, 0, 65_535)
        require_positive("pictures a second", self.picture_hz)
        if self.picture_hz > 30:
            raise ConfigError(f"pictures a second are {self.picture_hz:g}: the page shows 30 at most")
        require_between("picture width", self.picture_width, 64, 1920)
        require_between("picture quality", self.picture_quality, 20, 95)
        if not 0 < (share := self.picture_share) <= 1:
            raise ConfigError(f"the share of a core for pictures is {share}: it must be above 0, at most 1")
        require_between("viewers", self.viewers, 1, 64)
        require_between("kept scores", self.kept_scores, 10, 10_000)
        require_between("bytes of the gallery", self.gallery_bytes, 2**20, 2**34)
        for kind in self.addable:
            require_choice("source that the page may add", kind, addable_words())
        if "file" in self.addable and self.source_folder is None:
            raise ConfigError("the page may add files, and no source_folder says where they are: give one")
        for name in (self.host, *self.names):
            if HOST_NAME.fullmatch(name) is None and not is_address(name):
                raise ConfigError(f"{name!r} is no host name and no address: give it without scheme, port and path")
        if self.public_url is not None and origin_of(self.public_url) is None:
            raise ConfigError(f"public_url is {self.public_url!r}: give what people type, https://HOST[:PORT][/PATH/]")
        if self.token_from is None and not self.is_loopback:
            raise ConfigError(
                f"the page is to be served on {self.host}, where others reach it, without a token: "
                'set token_from = "env:NAME" or "file:PATH", or serve it on 127.0.0.1'
            )
        for key in ("token_from", "operator_token_from"):
            if (place := getattr(self, key)) is not None:
                require_secret_place(key, place)
        if self.operator_token_from is not None and self.token_from is None:
            raise ConfigError("operator_token_from without token_from: give engineers a token of their own")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the page."""
        return self.host == "localhost" or (is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)

    @property
    def has_secure_cookies(self) -> bool:
        """Whether people reach the page by HTTPS, so that its cookie goes over nothing else."""
        return self.is_behind_tls or (self.public_url or "").lower().startswith("https:")

    def token(self) -> str | None:
        """The engineers' token, read from its place. Raises ConfigError for one that is absent or short."""
        return self._token("token_from")

    def operator_token(self) -> str | None:
        """The operators' token. Raises ConfigError for one that is absent or short, or the engineers'."""
        token = self._token("operator_token_from")
        if token is not None and token == self.token():
            raise ConfigError("token_from and operator_token_from hold the same token: operators would be engineers")
        return token

    def _token(self, key: str) -> str | None:
        place: str | None = getattr(self, key)
        if place is None:
            return None
        token = read_secret(key, place)
        if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
            raise ConfigError(
                f"the token in {place} is of no use: it needs {SHORTEST_TOKEN} letters and digits or more; "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
            )
        return token


@dataclass(frozen=True)
class DriftSettings:
    """When good scores count as drifted. Raises ConfigError for an invalid setting."""

    window: int = 500  # newest good scores that are compared
    smallest: int = 100  # scores below which nothing is said
    psi: float = 0.25  # population stability index above which a stream is told to drift
    mean_shift: float = 1.0  # of the mean, in standard deviations of the reference

    def __post_init__(self) -> None:
        require_between("drift window", self.window, 20, 100_000)
        require_between("smallest number of scores for a drift", self.smallest, 20, self.window)
        require_positive("psi", self.psi)
        require_positive("mean_shift", self.mean_shift)


def addable_words() -> tuple[str, ...]:
    """The words of the kinds of source that a page may be allowed to add."""
    return tuple(sorted({kind.page for kind in SOURCES} - {NEVER_ADDABLE}))


def origin_of(url: str) -> str | None:
    """Scheme, host and port of an address by HTTP or HTTPS, in lower case and with the port named; None for others."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
        return None
    return f"{parts.scheme}://{parts.hostname}:{port}"


def is_address(text: str) -> bool:
    """Whether `text` is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
