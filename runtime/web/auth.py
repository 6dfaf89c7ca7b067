"""Authentication of the page: host names, tokens, sessions, CSRF. Knows no web library.

A request must name a host that the page answers to, so that no foreign page reaches it through a name of its own (DNS
rebinding). With a token, it must carry it as a bearer token or belong to a session that was opened with it. A write by a
session must come from the page itself: it carries a header that only the page can know, and names no foreign origin.

A session's id carries its end and a signature, so nothing is stored for those who only visit. Wrong tokens are counted
for each address: after FAILURES of them its tokens are not even compared for a minute, and others notice nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from nnet_edge.settings.web import WebSettings, is_address, origin_of

COOKIE = "nnet_edge_session"
CSRF_HEADER = "x-csrf-token"
SESSION_S = 12 * 3600.0  # a shift and a half: then the token is asked for again
MOST_ENDED = 4096  # sessions that were logged out of before their end; each was opened with the token
FAILURES = 10  # wrong tokens of an address within FAILURE_WINDOW_S; then its tokens are not compared
FAILURE_WINDOW_S = 60.0
ENGINEER, OPERATOR = "engineer", "operator"  # who changes the line, and who sees it and labels parts
MOST_PEERS = 4096  # addresses whose wrong tokens are counted; the oldest go first


@dataclass(unsafe_hash=True)
class Refusal(Exception):
    """Why a request is refused: what a check gives back, and what a handler raises."""

    status: int
    reason: str


@dataclass(frozen=True)
class Caller:
    """A caller that may read: a session of a browser, or None for a program with a bearer token."""

    session: str | None
    role: str = ENGINEER


class Auth:
    """Checks requests; any thread may call any method. Header names are in lower case."""

    def __init__(
        self,
        settings: WebSettings,
        token: str | None,
        clock: Callable[[], float] = time.monotonic,
        operator_token: str | None = None,
    ) -> None:
        self._settings = settings
        tokens = {ENGINEER: token, OPERATOR: operator_token}
        self._digests = {role: digest(text) for role, text in tokens.items() if text is not None}
        self._secret = secrets.token_bytes(32)
        self._clock = clock
        self._lock = threading.Lock()
        self._ended: OrderedDict[str, None] = OrderedDict()  # sessions that were logged out of
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()  # address -> when it gave wrong tokens
        self._public_origin = None if settings.public_url is None else origin_of(settings.public_url)
        public = [] if settings.public_url is None else [urlsplit(settings.public_url).hostname or ""]
        self._names = {name.lower() for name in (settings.host, *settings.names, *public)}
        if settings.is_loopback:
            self._names |= {"localhost", "127.0.0.1", "::1"}

    @property
    def needs_token(self) -> bool:
        """Whether a session has to be opened with a token."""
        return bool(self._digests)

    def host_refused(self, headers: Mapping[str, str]) -> Refusal | None:
        """Why the Host header is refused, None when it is not."""
        name = host_name(headers.get("host", ""))
        if name is not None and name in self._names:
            return None
        return Refusal(421, "the page does not answer to this host name: add it to names under [web]")

    def caller(self, headers: Mapping[str, str], cookie: str | None, peer: str = "") -> Caller | Refusal:
        """The caller at the address `peer`, or why it is refused: its token is missing or wrong."""
        given = headers.get("authorization", "")
        if given and self.needs_token:
            kind, _, token = given.partition(" ")
            if kind.lower() != "bearer":
                return Refusal(401, "send a bearer token")
            role = self._role_of(token.strip(), self._address(headers, peer))
            return role if isinstance(role, Refusal) else Caller(None, role)
        if cookie is not None and self._is_open(cookie):
            return Caller(cookie, cookie.partition(".")[0])
        if self.needs_token:
            return Refusal(401, "the token is missing: log in on the page, or send it as Authorization: Bearer")
        return Caller(None)

    def log_in(self, token: str | None, headers: Mapping[str, str] | None = None, peer: str = "") -> str | Refusal:
        """The id of a new session, or why there is none."""
        role: str | Refusal = ENGINEER
        if self.needs_token:
            role = self._role_of(token or "", self._address(headers or {}, peer))
            if isinstance(role, Refusal):
                return role
        facts = f"{role}.{secrets.token_urlsafe(24)}.{self._clock() + SESSION_S:.0f}"
        return f"{facts}.{self._sign('session', facts)}"

    def is_still(self, caller: Caller) -> bool:
        """Whether the caller may still read: its session has not ended."""
        return caller.session is None or self._is_open(caller.session)

    def log_out(self, session: str) -> None:
        """End the session; an unknown one is ignored."""
        if not self._is_open(session):
            return
        with self._lock:
            self._ended[session] = None
            while len(self._ended) > MOST_ENDED:
                self._ended.popitem(last=False)

    def csrf_token(self, session: str) -> str:
        """The token that the page of this session sends with every write."""
        return self._sign("csrf", session)

    def write_refused(self, caller: Caller, headers: Mapping[str, str], role: str = ENGINEER) -> Refusal | None:
        """Why a write is refused, None when it is not; what `role` is OPERATOR for, both may write.

        A program with a bearer token is no browser, which sends cookies by itself but never a token. Without a token
        every write needs a session.
        """
        refusal = self.origin_refused(headers)
        if refusal is not None:
            return refusal
        if role == ENGINEER and caller.role != ENGINEER:
            return Refusal(403, "operators see the line and label parts: log in with the engineers' token to change it")
        if caller.session is None:
            return None if self.needs_token else Refusal(403, "a write needs a session: open the page")
        given = headers.get(CSRF_HEADER, "")
        if hmac.compare_digest(to_bytes(given), to_bytes(self.csrf_token(caller.session))):
            return None
        return Refusal(403, f"the header {CSRF_HEADER} is missing or wrong: load the page again")

    def origin_refused(self, headers: Mapping[str, str]) -> Refusal | None:
        """Why a request of another page's script is refused, None for the page's own and for programs."""
        origin = headers.get("origin")
        if origin is None:
            return None
        own = headers.get("host", "")
        known = {self._public_origin, *(origin_of(f"{scheme}://{own}") for scheme in ("http", "https"))} - {None}
        if origin_of(origin) in known:
            return None
        return Refusal(403, "the request comes from a foreign page; behind a proxy, set public_url under [web]")

    def _address(self, headers: Mapping[str, str], peer: str) -> str:
        """The address whose wrong tokens are counted together: behind a proxy on this machine, the one that it tells."""
        told = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
        if self._public_origin is not None and is_address(told) and (not peer or is_loopback(peer)):
            peer = told
        if not is_address(peer):
            return peer
        address = ipaddress.ip_address(peer)
        return str(address if address.version == 4 else ipaddress.ip_network((int(address), 64), strict=False))

    def _role_of(self, token: str, address: str) -> str | Refusal:
        """Whose token it is, or why it is refused.

        After FAILURES wrong ones of an address, no token of it is compared for a while.
        """
        with self._lock:
            now_s = self._clock()
            failures = self._failures.get(address, deque())
            while failures and now_s - failures[0] > FAILURE_WINDOW_S:
                failures.popleft()
            if len(failures) >= FAILURES:
                return Refusal(429, f"{FAILURES} wrong tokens within a minute from this address: wait one minute")
            roles = [role for role, known in self._digests.items() if hmac.compare_digest(digest(token), known)]
            if roles:
                return roles[0]
            failures.append(now_s)
            self._failures[address] = failures
            while len(self._failures) > MOST_PEERS:
                self._failures.popitem(last=False)
        return Refusal(401, "the token is wrong")

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, to_bytes(f"{purpose} {text}"), hashlib.sha256).hexdigest()

    def _is_open(self, session: str) -> bool:
        facts, _, signature = session.rpartition(".")
        if not hmac.compare_digest(to_bytes(signature), to_bytes(self._sign("session", facts))):
            return False
        with self._lock:
            return session not in self._ended and float(facts.rpartition(".")[2]) > self._clock()


def to_bytes(text: str) -> bytes:
    """UTF-8 of any text: JSON and headers may hold lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def is_loopback(address: str) -> bool:
    """Whether it is an address of this machine alone."""
    return is_address(address) and ipaddress.ip_address(address).is_loopback


def digest(token: str) -> bytes:
    """A hash of fixed length, so that comparing does not reveal the token's length."""
    return hashlib.sha256(to_bytes(token)).digest()


def host_name(host: str) -> str | None:
    """The name in a Host header without port and brackets, in lower case; None for an invalid one."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  raises for an invalid port
    except ValueError:
        return None
    is_plain = host and not (parts.username or parts.password or parts.path or parts.query or parts.fragment)
    return parts.hostname.lower() if is_plain and parts.hostname else None
