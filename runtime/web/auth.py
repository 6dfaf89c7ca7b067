"""Authentication of the page: host names, tokens, sessions, CSRF. Knows no web library.

A request must name a host that the page answers to, so that no foreign page reaches it through a name of its own (DNS
rebinding). With a token, it must carry it as a bearer token or belong to a session that was opened with it. A write by a
session must come from the page itself: it carries a header that only the page can know, and names no foreign origin.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from nnet_edge.settings.web import WebSettings

COOKIE = "nnet_edge_session"
CSRF_HEADER = "x-csrf-token"
MOST_SESSIONS = 256
SESSION_S = 12 * 3600.0  # a shift and a half: then the token is asked for again
FAILURES = 10  # wrong tokens within FAILURE_WINDOW_S; further wrong ones have to wait
FAILURE_WINDOW_S = 60.0


@dataclass(unsafe_hash=True)
class Refusal(Exception):
    """Why a request is refused: what a check gives back, and what a handler raises."""

    status: int
    reason: str


@dataclass(frozen=True)
class Caller:
    """A caller that may read: a session of a browser, or None for a program with a bearer token."""

    session: str | None


class Auth:
    """Checks requests; any thread may call any method. Header names are in lower case."""

    def __init__(self, settings: WebSettings, token: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._token_digest = None if token is None else digest(token)
        self._secret = secrets.token_bytes(32)
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, float] = OrderedDict()  # id -> until when
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._names = {name.lower() for name in (settings.host, *settings.names)}
        if settings.is_loopback:
            self._names |= {"localhost", "127.0.0.1", "::1"}

    @property
    def needs_token(self) -> bool:
        """Whether a session has to be opened with a token."""
        return self._token_digest is not None

    def host_refused(self, headers: Mapping[str, str]) -> Refusal | None:
        """Why the Host header is refused, None when it is not."""
        name = host_name(headers.get("host", ""))
        if name is not None and name in self._names:
            return None
        return Refusal(421, "the page does not answer to this host name: add it to names under [web]")

    def caller(self, headers: Mapping[str, str], cookie: str | None) -> Caller | Refusal:
        """The caller, or why it is refused: its token is missing or wrong."""
        given = headers.get("authorization", "")
        if given and self.needs_token:
            kind, _, token = given.partition(" ")
            if kind.lower() != "bearer":
                return Refusal(401, "send a bearer token")
            return self._token_refused(token.strip()) or Caller(None)
        if cookie is not None and self._is_open(cookie):
            return Caller(cookie)
        if self.needs_token:
            return Refusal(401, "the token is missing: log in on the page, or send it as Authorization: Bearer")
        return Caller(None)

    def log_in(self, token: str | None) -> str | Refusal:
        """The id of a new session, or why there is none."""
        if self.needs_token and (refusal := self._token_refused(token or "")) is not None:
            return refusal
        session = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[session] = self._clock() + SESSION_S
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return session

    def is_still(self, caller: Caller) -> bool:
        """Whether the caller may still read: its session has not ended."""
        return caller.session is None or self._is_open(caller.session)

    def log_out(self, session: str) -> None:
        """End the session."""
        with self._lock:
            self._sessions.pop(session, None)

    def csrf_token(self, session: str) -> str:
        """The token that the page of this session sends with every write."""
        return hmac.new(self._secret, session.encode(), hashlib.sha256).hexdigest()

    def write_refused(self, caller: Caller, headers: Mapping[str, str]) -> Refusal | None:
        """Why a write is refused, None when it is not.

        A program with a bearer token is no browser, which sends cookies by itself but never a token. Without a token
        every write needs a session.
        """
        refusal = self.origin_refused(headers)
        if refusal is not None:
            return refusal
        if caller.session is None:
            return None if self.needs_token else Refusal(403, "a write needs a session: open the page")
        given = headers.get(CSRF_HEADER, "")
        if hmac.compare_digest(given.encode(), self.csrf_token(caller.session).encode()):
            return None
        return Refusal(403, f"the header {CSRF_HEADER} is missing or wrong: load the page again")

    def origin_refused(self, headers: Mapping[str, str]) -> Refusal | None:
        """Why a request of another page's script is refused, None for the page's own and for programs."""
        origin = headers.get("origin")
        if origin is None:
            return None
        try:
            netloc = urlsplit(origin).netloc.lower()
        except ValueError:
            netloc = ""
        if netloc and netloc == headers.get("host", "").lower():
            return None
        return Refusal(403, "the request comes from a foreign page")

    def _token_refused(self, token: str) -> Refusal | None:
        """Why the token is refused; the right one never is, however many wrong ones others send."""
        assert self._token_digest is not None
        if hmac.compare_digest(digest(token), self._token_digest):
            return None
        with self._lock:
            now_s = self._clock()
            while self._failures and now_s - self._failures[0] > FAILURE_WINDOW_S:
                self._failures.popleft()
            if len(self._failures) >= FAILURES:
                return Refusal(429, f"{FAILURES} wrong tokens within a minute: wait one, or give the right one")
            self._failures.append(now_s)
        return Refusal(401, "the token is wrong")

    def _is_open(self, session: str) -> bool:
        with self._lock:
            until_s = self._sessions.get(session)
            if until_s is not None and until_s < self._clock():
                del self._sessions[session]
                return False
            return until_s is not None


def digest(token: str) -> bytes:
    """A hash of fixed length, so that comparing does not reveal the token's length."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def host_name(host: str) -> str | None:
    """The name in a Host header without port and brackets, in lower case; None for an invalid one."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  raises for an invalid port
    except ValueError:
        return None
    is_plain = host and not (parts.username or parts.password or parts.path or parts.query or parts.fragment)
    return parts.hostname.lower() if is_plain and parts.hostname else None
