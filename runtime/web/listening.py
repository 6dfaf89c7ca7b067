"""Listening: a socket and the server on it, with bounds, in a thread of its own; the only file that imports uvicorn."""

from __future__ import annotations

import logging
import socket
import threading
import time

from nnet_edge.errors import ConfigError, MissingExtraError, StreamError
from nnet_edge.runtime.web.connections import App, Connections, counted

log = logging.getLogger(__name__)

START_LIMIT_S, END_LIMIT_S = 10.0, 5.0
BACKLOG = 64  # connections that wait to be accepted, and that are accepted at once: never more descriptors than that
LARGEST_MESSAGE = 16 * 1024  # bytes from a page by WebSocket
LARGEST_HEAD = 16 * 1024  # bytes of a request's first line and headers


class Listening:
    """The server of an application on a socket that it owns; requests under way have `drain_s` to end.

    Raises MissingExtraError.
    """

    def __init__(
        self, what: str, app: App, listening: socket.socket, connections: Connections, drain_s: float = 1.0
    ) -> None:
        try:
            import uvicorn
            from uvicorn.protocols.http.h11_impl import H11Protocol
            from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
        except ImportError as error:
            listening.close()
            raise MissingExtraError(f"{error.name} is not installed: pip install 'nnet-edge[web]'") from error
        self._what, self._socket, self._drain_s = what, listening, drain_s
        self._error: BaseException | None = None
        config = uvicorn.Config(
            connections.timed(app), loop="asyncio", http=counted(H11Protocol, connections),
            ws=counted(WebSocketsSansIOProtocol, connections), lifespan="off", log_config=None,
            log_level="warning", access_log=False, server_header=False, proxy_headers=False, backlog=BACKLOG,
            ws_max_size=LARGEST_MESSAGE, ws_max_queue=4, ws_per_message_deflate=False,
            h11_max_incomplete_event_size=LARGEST_HEAD, timeout_graceful_shutdown=round(drain_s),
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name=what.removeprefix("the "), daemon=True)

    def start(self) -> None:
        """Serve from now on. Raises StreamError when it does not."""
        self._thread.start()
        limit_s = time.monotonic() + START_LIMIT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > limit_s:
                why = self._error or "no reason given"
                raise StreamError(f"{self._what} did not start within {START_LIMIT_S:g} s: {why}")
            time.sleep(0.01)

    @property
    def is_alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Accept nothing any more, and let what is under way end."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(END_LIMIT_S + self._drain_s)
        if self._thread.is_alive():
            log.warning("%s does not answer: its server is left to end by itself", self._what)
        self._socket.close()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as error:
            self._error = error
            log.exception("the server of %s ended", self._what)


def listen(host: str, port: int, what: str = "the page") -> socket.socket:
    """A socket that listens there; port 0 takes a free one. Raises ConfigError."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
    except OSError as error:
        raise ConfigError(f"{what} cannot be served on {host}: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        fault = f"{what} cannot be served on {host}:{port} ({error.strerror}): give another port"
        raise ConfigError(fault) from error
    return listening
