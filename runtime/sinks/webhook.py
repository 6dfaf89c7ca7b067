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
from types import TracebackType
from urllib.parse import quote, urlsplit

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks.base import Message, MessageSink, RefusedError
from nnet_edge.runtime.sinks.fields import event_fields, event_id, to_fields, to_json
from nnet_edge.settings.runner import require_seconds

REFUSALS = {400, 413, 415, 422}  # what says that this message is wrong; other answers can become better by waiting
ANSWER_BYTES = 64 * 1024  # of an answer that are read; nobody looks at them, but a kept connection needs its end


@dataclass(frozen=True)
class WebhookSettings:
    """Where verdicts are posted. Raises ConfigError for a setting that cannot be meant."""

    url: str = field(repr=False)  # may hold a token in its path or query
    token: str | None = field(default=None, repr=False)  # sent as `Authorization: Bearer`
    ca_file: Path | None = None  # None: the system's authorities
    timeout_s: float = 5.0  # for a whole request, from connecting to the end of the answer
    only_rejects: bool = False
    has_events: bool = False

    def __post_init__(self) -> None:
        require_seconds("seconds that a webhook has to answer", self.timeout_s, above=0.0)
        try:
            parts = urlsplit(self.url)
            is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            parts, is_usable = None, False
        if parts is None or not is_usable or not self.url.isascii() or not self.url.isprintable() or " " in self.url:
            raise ConfigError("the webhook's address is none: give http://host/path or https://host/path")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(f"the webhook's address {self.where} holds a user: give a token instead")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise ConfigError("the webhook's token holds letters that a header cannot: give it without line ends")
        if self.ca_file is not None and parts.scheme != "https":
            raise ConfigError(f"there is a certificate for {self.where}, which is not https: leave one out")

    @property
    def where(self) -> str:
        """The address for people: scheme and host; path and query may hold a token."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


class WebhookSink(MessageSink):
    """Posts each prediction as JSON; any 2xx answer means that it arrived.

    Its id, percent-encoded, is the header `Idempotency-Key`. A receiver that answers 400, 413, 415 or 422 has refused
    this very message; whatever else it says, or does not, is worth another try.
    """

    name = "webhook"
    wants_maps = False
    wants_pixels = False

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self._connection: http.client.HTTPConnection | None = None
        self.wants_events = settings.has_events

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def wants(self, prediction: Prediction) -> bool:
        return prediction.is_anomalous or not self._settings.only_rejects

    def to_message(self, prediction: Prediction) -> Message:
        return Message(prediction.frame.id, (("", to_json(to_fields(prediction))),))

    def event_message(self, event: Event) -> Message:
        return Message(event_id(event), (("", to_json(event_fields(event))),))

    def send(self, messages: Sequence[Message]) -> int:
        (message,) = messages
        was_kept = self._connection is not None
        try:
            status = self._post(message)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            if not was_kept or isinstance(error, TimeoutError):
                raise self._fault(reason_of(error)) from error
            try:
                status = self._post(message)  # a receiver may close a connection that was idle
            except (OSError, http.client.HTTPException) as again:
                self._close()
                raise self._fault(reason_of(again)) from again
        if status in REFUSALS:
            raise RefusedError(f"the webhook {self._settings.where} refused {message.id}: it answered {status}")
        if not 200 <= status < 300:
            hint = ": give the address that it leads to" if 300 <= status < 400 else ""
            raise self._fault(f"it answered {status}{hint}")
        return 1

    def _post(self, message: Message) -> int:
        """The status of the answer. Raises OSError or HTTPException, TimeoutError after `timeout_s`."""
        if self._connection is None:
            self._connection = self._connect()
        connection, parts = self._connection, urlsplit(self._settings.url)
        headers = {"Content-Type": "application/json", "Idempotency-Key": quote(message.id, safe="/")}
        if self._settings.token is not None:
            headers["Authorization"] = f"Bearer {self._settings.token}"
        with time_limit(connection, self._settings.timeout_s):
            connection.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                               message.parts[0][1], headers)  # fmt: skip
            answer = connection.getresponse()
            answer.read(ANSWER_BYTES)
            if not answer.isclosed():
                self._close()
        return answer.status

    def _connect(self) -> http.client.HTTPConnection:
        parts, settings = urlsplit(self._settings.url), self._settings
        host = str(parts.hostname)
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port, timeout=settings.timeout_s)
        context = ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
        return http.client.HTTPSConnection(host, parts.port, timeout=settings.timeout_s, context=context)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fault(self, reason: str) -> SinkError:
        return SinkError(f"cannot post to the webhook {self._settings.where}: {reason}")


@contextlib.contextmanager
def time_limit(connection: http.client.HTTPConnection, limit_s: float) -> Iterator[None]:
    """Cut the connection when the block takes longer. Raises TimeoutError then.

    A socket's own limit is for each read: a receiver that sends a byte now and then would hold a sink for ever.
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


def reason_of(error: Exception) -> str:
    """What an error of a connection says, or its name when it says nothing."""
    return str(error) or type(error).__name__
