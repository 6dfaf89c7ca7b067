"""Verdicts posted to a web address: one JSON object a request, over one connection that is kept."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.runtime.sinks.base import JsonSink, Message, RefusedError, flag_defaults
from nnet_edge.settings.registry import SINKS, Asked, Flag, SinkKind
from nnet_edge.settings.runner import require_seconds
from nnet_edge.settings.secrets import read_secret, require_secret_place
from nnet_edge.settings.sink import SinkSettings

REFUSALS = {400, 413, 415, 422}  # what says that this message is wrong; other answers can become better by waiting
ANSWER_BYTES = 64 * 1024  # of an answer that are read; nobody looks at them, but a kept connection needs its end


@dataclass(frozen=True, kw_only=True)
class WebhookSettings(SinkSettings):
    """Verdicts posted as JSON."""

    kind = "webhook"

    url: str = field(repr=False)  # or "env:NAME" or "file:PATH", which hold it where its path or query is a secret
    token_from: str | None = None  # "env:NAME" or "file:PATH", sent as a bearer token
    ca_file: Path | None = None  # None: the system's authorities
    timeout_s: float = 5.0  # for a whole request, from connecting to the end of the answer
    only_rejects: bool = True
    events: bool = False

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

    Its id, percent-encoded, is the header `Idempotency-Key`. A receiver that answers 400, 413, 415 or 422 has refused
    this very message; whatever else it says, or does not, is worth another attempt.
    """

    name = "webhook"

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self._address, self._token = settings.address(), settings.token()
        self._where = where_of(self._address)
        self._connection: http.client.HTTPConnection | None = None
        self.wants_events = settings.events
        self.wants_good = not settings.only_rejects

    def __exit__(self, *about: object) -> None:
        self._close()

    def send(self, messages: Sequence[Message]) -> int:
        (message,) = messages
        was_kept = self._connection is not None
        try:
            status = self._post(message)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            if was_kept and not isinstance(error, TimeoutError):
                return self.send(messages)  # once more: a receiver may close a connection that was idle
            raise self._fault(str(error) or type(error).__name__) from error
        if status in REFUSALS:
            raise RefusedError(f"the webhook {self._where} refused {message.id}: it answered {status}")
        if not 200 <= status < 300:
            hint = ": give the address that it leads to" if 300 <= status < 400 else ""
            raise self._fault(f"it answered {status}{hint}")
        return 1

    def _post(self, message: Message) -> int:
        """The status of the answer. Raises OSError or HTTPException, TimeoutError after `timeout_s`."""
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
        return answer.status

    def _connect(self) -> http.client.HTTPConnection:
        address, timeout_s, ca_file = self._address, self._settings.timeout_s, self._settings.ca_file
        host = str(address.hostname)
        if address.scheme == "http":
            return http.client.HTTPConnection(host, address.port, timeout=timeout_s)
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        return http.client.HTTPSConnection(host, address.port, timeout=timeout_s, context=context)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fault(self, reason: str) -> SinkError:
        return SinkError(f"cannot post to the webhook {self._where}: {reason}")


@contextlib.contextmanager
def time_limit(connection: http.client.HTTPConnection, limit_s: float) -> Iterator[None]:
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
    except (OSError, http.client.HTTPException) as error:
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
