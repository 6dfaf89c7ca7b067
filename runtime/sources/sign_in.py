"""Answers to a camera that asks who is there (Basic, Digest), and in words what a camera, or its certificate, refuses."""

from __future__ import annotations

import hashlib
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import AbstractDigestAuthHandler, HTTPPasswordMgr, Request, parse_http_list

from nnet_edge.errors import ConfigError

HASHES = {"MD5": hashlib.md5, "SHA": hashlib.sha1, "SHA-256": hashlib.sha256}
CHALLENGE = re.compile(r"(?:^|,)\s*(?=[A-Za-z][\w-]*\s+[A-Za-z][\w-]*\s*=|(?:Basic|NTLM|Negotiate)\s*(?:,|$))")
NO_VIEWER_FREE = 453  # RTSP: not enough bandwidth
SENTENCES = {
    403: "it refuses this user (403): give one that may see live pictures, or allow it on the camera's own page",
    404: "it has nothing at this path (404): look up the path of its pictures in its manual",
    429: "it is asked too often (429): lower rate_hz, or close other viewers",
    NO_VIEWER_FREE: "it has no bandwidth left (453): close other viewers, or ask for its smaller stream",
    503: "it is busy (503): close other viewers, or restart it",
}
SENTENCES[410] = SENTENCES[404].replace("404", "410")


class OneUser(HTTPPasswordMgr):
    """User and password, whatever the realm: urllib asks for them here."""

    def __init__(self, user: str | None, password: str) -> None:
        super().__init__()
        self.user, self.password = user, password

    def find_user_password(self, realm: str, authuri: str) -> tuple[str | None, str | None]:
        return self.user, self.password


class SignIn(AbstractDigestAuthHandler):
    """The user and password in an address, as answers to what a camera asks; urllib's Digest, with SHA-256 and UTF-8."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._who = OneUser(None if parts.username is None else unquote(parts.username), unquote(parts.password or ""))
        super().__init__(self._who)
        self._challenge: dict[str, str] | None = None  # of Digest; {} for Basic

    @property
    def has_user(self) -> bool:
        return self._who.user is not None

    def get_algorithm_impls(self, algorithm: str) -> tuple[Callable[[str], str], Callable[[str, str], str]]:
        make = HASHES[algorithm.upper()]

        def digest(text: str) -> str:
            return make(text.encode()).hexdigest()

        return digest, lambda secret, data: digest(f"{secret}:{data}")

    def take(self, challenges: Sequence[str]) -> str | None:
        """Remember what a camera asked for, Digest before Basic. What cannot be answered is returned, in words."""
        offered = [one for text in challenges or ["Basic"] for one in CHALLENGE.split(text) if one.strip()]
        found = {one.split(None, 1)[0].rstrip(",").lower(): one for one in offered}
        for text in offered:
            scheme, _, rest = text.partition(" ")
            facts = facts_of(rest)
            is_known = facts.get("algorithm", "MD5").upper() in HASHES and {"realm", "nonce"} <= facts.keys()
            words = [word.strip() for word in facts.get("qop", "auth").split(",")]
            if scheme.lower() == "digest" and is_known and "auth" in words:
                self._challenge = facts | ({"qop": "auth"} if "qop" in facts else {})
                return None
        if "basic" in found:
            self._challenge = {}
            return None
        names = " and ".join(sorted(found))
        return f"it asks for a sign-in by {names}, of a kind that is not spoken here: switch it to Basic or Digest"

    def answer(self, method: str, address: str, target: str) -> str | None:
        """The Authorization header for a request, None while the camera has asked for nothing."""
        if not self.has_user or self._challenge is None:
            return None
        if not self._challenge:
            words = f"{self._who.user}:{self._who.password}"
            return f"Basic {b64encode(words.encode()).decode()}"
        request = Request(address, method=method)
        request.selector = target
        with suppress(URLError):  # what `take` lets through is answered
            return f"Digest {self.get_authorization(request, self._challenge)}"
        return None


def facts_of(text: str) -> dict[str, str]:
    """The names and values of a challenge; what is none is passed over."""
    pairs = (item.split("=", 1) for item in parse_http_list(text) if "=" in item)
    return {name.strip().lower(): value.strip().strip('"') for name, value in pairs}


def refusal(status: int, has_user: bool) -> str:
    """What a camera's status means, and what to do."""
    if status == HTTPStatus.UNAUTHORIZED:
        if has_user:
            return "it refuses the user or the password (401): correct them where credentials says that they are"
        return "it asks for a user and a password (401): give credentials = file:PATH or env:NAME, which hold user:password"
    return SENTENCES.get(status) or f"it answers with status {status}: look at the camera's own page, or restart it"


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """What certificates are trusted: those of the system, or the one in `ca_file`. Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ValueError) as error:
        reason = (
            "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else getattr(error, "strerror", error)
        )
        raise ConfigError(f"ca_file {ca_file} cannot be read: {reason}") from error


def distrust(error: ssl.SSLError, ca_file: Path | None) -> str:
    """Why no encrypted connection came about, and what to do."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return "it speaks no TLS at this port: use an address without the s, as http:// or rtsp://, or its TLS port"
    if error.verify_code == 10:  # X509_V_ERR_CERT_HAS_EXPIRED
        return "its certificate has expired: renew it on the camera, or set the clock of this machine"
    if error.verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        return "its certificate is for another name: give the address with the name that is in the certificate"
    which = "in ca_file" if ca_file is not None else "in ca_file = PATH (or --ca-file PATH)"
    return f"its certificate is not trusted ({error.verify_message}): give it, or that of who issued it, {which}"
