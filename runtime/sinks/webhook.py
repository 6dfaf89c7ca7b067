"""Verdicts posted to a web address: one JSON object a request, over one connection that is kept."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urlsplit

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.lazy import LazyModule
from nnet_edge.runtime.sinks.base import JsonSink, Message, RefusedError, flag_defaults
from nnet_edge.settings.registry import SINKS, Asked, Flag, SinkKind
from nnet_edge.settings.runner import require_seconds
from nnet_edge.settings.secrets import read_secret, require_secret_place
from nnet_edge.settings.sink import SinkSettings

if TYPE_CHECKING:
    import ssl
    from email import utils
    from http import client
else:  # a line without a webhook does without them
    ssl, utils, client = LazyModule("ssl"), LazyModule("email.utils"), LazyModule("http.client")

REFUSALS = {400, 409, 411, 413, 414, 415, 416, 422, 431}  # what says that this very message is wrong
WAITING = {401, 403, 407, 408, 421, 425, 429}  # of 4xx what concerns every message, and becomes better by waiting
ATTEMPTS = 3  # in a row with the same 4xx, before the next message is tried in its place
LONGEST_WAIT_S = 3600.0  # that a receiver may ask for
ANSWER_BYTES = 64 * 1024  # of an answer that are read; nobody looks at them, but a kept connection needs its end


@dataclass(frozen=True, kw_only=True)
class WebhookSettings(SinkSettings):
    """Verdicts posted as JSON."""

    kind = "webhook"

    url: str = field(repr=False)  # or "env:NAME" or "file:PATH", which hold it where its path or query is a secret
    token_from: str | None = None  # "env:NAME" or "file:PATH", sent as a bearer token
    ca_file: Path | None = None  # None: the system's authorities
    timeout_s: float = 5.0  # for a whole request, from connecting to the end of the answer
    only_rejects: bool = True  # no verdicts of good parts
    events: bool = False  # those of the line, too

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seconds("seconds that a webhook has to answer", self.timeout_s, above=0.0)
        if self.url.startswith(("env:", "file:")):
            require_secret_place("url", self.url)
        elif "?" in self.url or "@" in self.url:
            raise ConfigError(
                'a webhook\'s url holds no user and no query (a secret): use token_from, or url = "env:NAME" or "file:PATH"'
            )
        else:
            require_address(self.url, self.ca_file)
        if self.token_from is not None:
            require_secret_place("token_from", self.token_from)

    def address(self) -> SplitResult:
        """Where to post, read from where it lies. Raises ConfigError."""
        url = read_secret("url", self.url) if self.url.startswith(("env:", "file:")) else self.url
        return require_address(url, self.ca_file)

    def token(self) -> str | None:
        """The bearer token, read from where it lies. Raises ConfigError."""
        token = None if self.token_from is None else read_secret("token_from", self.token_from)
        if token is not None and not (token.isascii() and token.isprintable() and token):
            raise ConfigError("the webhook's token is empty, or holds letters that no header can: give a line of ASCII")
        return token


def require_address(url: str, ca_file: Path | None) -> SplitResult:
    """The parts of the address. Raise ConfigError, without its path and query, for an invalid one."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("the webhook's address is invalid: give http://host/path or https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"the webhook's address {where_of(parts)} holds a user: give a token instead")
    if ca_file is not None and parts.scheme != "https":
        raise ConfigError(f"there is a certificate for {where_of(parts)}, which is not https: leave one out")
    return parts


def where_of(address: SplitResult) -> str:
    """The address for people: scheme and host; path and query may hold a token."""
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}"


class WebhookSink(JsonSink):
    """Posts each prediction as JSON; any 2xx answer means that it arrived.

    Its id, percent-encoded, is the header `Idempotency-Key`. An answer of REFUSALS has refused this very message. Other
    4xx (404, 405, 410) may concern it alone or all: after ATTEMPTS of them the message behind it is posted, and when that
    one arrives the first is refused, else both wait. Whatever else is answered, or is not, is worth another attempt; how
    long to wait says `Retry-After`.
    """

    name = "webhook"
    largest_batch = 2  # the one to post, and the one behind it

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self._address, self._token = settings.address(), settings.token()
        self._where = where_of(self._address)
        self._connection: client.HTTPConnection | None = None
        self._refused: tuple[str, int, int] | None = None  # the first message's id, a 4xx, how often in a row
        self._ahead: str | None = None  # the id of a message that has arrived before its turn
        self.wants_events = settings.events
        self.wants_good = not settings.only_rejects

    def __exit__(self, *about: object) -> None:
        self._close()

    def send(self, messages: Sequence[Message]) -> int:
        first, *behind = messages
        if first.id == self._ahead:
            self._ahead = None
            return 1
        status, wait_s = self._answer(first)
        if 200 <= status < 300:
            self._refused = None
            return 1
        fault = f"the webhook {self._where} refused {first.id}: it answered {status}"
        if status in REFUSALS:
            raise RefusedError(fault)
        if 400 <= status < 500 and status not in WAITING:
            _, before, count = self._refused or ("", 0, 0)
            is_again = self._refused is not None and self._refused[0] == first.id and before == status
            self._refused = (first.id, status, count + 1 if is_again else 1)
            if behind and self._refused[2] >= ATTEMPTS and 200 <= self._answer(behind[0])[0] < 300:
                self._refused, self._ahead = None, behind[0].id
                raise RefusedError(f"{fault} {ATTEMPTS} times, and took the next one")
        hint = ": give the address that it leads to" if 300 <= status < 400 else ""
        raise self._fault(f"it answered {status}{hint}", wait_s)

    def _answer(self, message: Message) -> tuple[int, float]:
        """Status of the answer, and the seconds that it asks to wait. Raises SinkError when there is none."""
        was_kept = self._connection is not None
        try:
            return self._post(message)
        except (OSError, client.HTTPException) as error:
            self._close()
            if was_kept and not isinstance(error, TimeoutError):
                return self._answer(message)  # once more: a receiver may close a connection that was idle
            raise self._fault(str(error) or type(error).__name__) from error

    def _post(self, message: Message) -> tuple[int, float]:
        """Status, and the seconds to wait. Raises OSError or HTTPException, TimeoutError after `timeout_s`."""
        if self._connection is None:
            self._connection = self._connect()
        connection, address = self._connection, self._address
        headers = {"Content-Type": "application/json", "Idempotency-Key": quote(message.id, safe="/")}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        target = (address.path or "/") + (f"?{address.query}" if address.query else "")
        with time_limit(connection, self._settings.timeout_s):
            connection.request("POST", target, message.parts[0][1], headers)
            answer = connection.getresponse()
            answer.read(ANSWER_BYTES)
            if not answer.isclosed():
                self._close()
        return answer.status, wait_of(answer.getheader("Retry-After"))

    def _connect(self) -> client.HTTPConnection:
        address, timeout_s, ca_file = self._address, self._settings.timeout_s, self._settings.ca_file
        host = str(address.hostname)
        if address.scheme == "http":
            return client.HTTPConnection(host, address.port, timeout=timeout_s)
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        return client.HTTPSConnection(host, address.port, timeout=timeout_s, context=context)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fault(self, reason: str, wait_s: float = 0.0) -> SinkError:
        return SinkError(f"cannot post to the webhook {self._where}: {reason}", wait_s=wait_s)


def wait_of(text: str | None) -> float:
    """The seconds in a Retry-After header, given as a number or as a date (RFC 9110); 0 for none and for nonsense."""
    try:
        wait_s = float(int(text or 0))
    except ValueError:
        try:
            wait_s = utils.parsedate_to_datetime(text or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(wait_s, 0.0), LONGEST_WAIT_S)


@contextlib.contextmanager
def time_limit(connection: client.HTTPConnection, limit_s: float) -> Iterator[None]:
    """Cut the connection when the block takes longer. Raises TimeoutError then.

    A socket's own limit is for each read: a receiver that sends a byte now and then would never let go of a sink.
    """
    expired = threading.Event()

    def cut() -> None:
        expired.set()
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, client.HTTPException) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise TimeoutError(f"no answer within {limit_s:g} s") from error
        raise
    finally:
        timer.cancel()


def table_of(url: str, asked: Asked) -> dict[str, Any]:
    """What --webhook asks for: a post for each reject."""
    return {"url": url} | flag_defaults(asked, needs_queue=True)


FLAG = Flag("--webhook", "Post each reject as JSON to this address.", table_of, "text", "URL|env:NAME|file:PATH")
SINKS.register(SinkKind("webhook", WebhookSettings, WebhookSink, FLAG))
