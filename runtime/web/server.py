"""Server of a line's page, in a thread of its own; the only file that imports uvicorn."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, MissingExtraError, StreamError
from nnet_edge.runtime.web.auth import COOKIE, Auth
from nnet_edge.runtime.web.connections import Connections, counted
from nnet_edge.runtime.web.controls import Controls
from nnet_edge.runtime.web.gallery import Gallery
from nnet_edge.runtime.web.live import Broadcast
from nnet_edge.runtime.web.pictures import PictureMaker
from nnet_edge.runtime.web.shift import Shift
from nnet_edge.runtime.web.teach import Teach
from nnet_edge.settings.web import DriftSettings, WebSettings

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.kept import LineChanges
    from nnet_edge.runtime.stream.line import Line

log = logging.getLogger(__name__)

START_LIMIT_S, END_LIMIT_S = 10.0, 5.0
BACKLOG = 64  # connections that wait to be accepted, and that are accepted at once: never more descriptors than that
LARGEST_MESSAGE = 16 * 1024  # bytes from a page by WebSocket
LARGEST_HEAD = 16 * 1024  # bytes of a request's first line and headers


class WebServer:
    """The page of `line`, from `with` to its end. Raises ConfigError for an address that is taken, MissingExtraError."""

    def __init__(
        self, line: Line, settings: WebSettings, drift: DriftSettings | None = None, kept: LineChanges | None = None
    ) -> None:
        self._line, self.settings, self._kept = line, settings, kept
        self._tokens = settings.token(), settings.operator_token()
        self.gallery = Gallery(line, settings, drift or DriftSettings())
        self.maker = PictureMaker(line, settings)
        self.broadcast = Broadcast(self.maker, settings)
        self._ended = threading.Event()
        self._error: BaseException | None = None

    @property
    def address(self) -> str:
        """The page's address, for people."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.port}/"

    def line_ended(self) -> None:
        """Report it in /healthz and /readyz."""
        self._ended.set()

    def __enter__(self) -> WebServer:
        self.connections = Connections()
        self._server = self._make_server()
        self._thread = threading.Thread(target=self._serve, name="live page", daemon=True)
        self.gallery.__enter__()
        self.maker.__enter__()
        self._thread.start()
        limit_s = time.monotonic() + START_LIMIT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > limit_s:
                self.__exit__()
                why = self._error or "no reason given"
                raise StreamError(f"the page did not start within {START_LIMIT_S:g} s: {why}")
            time.sleep(0.01)
        log.info("the page is at %s", self.address)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(END_LIMIT_S)
        if self._thread.is_alive():
            log.warning("the page's server does not answer: it is left to end by itself")
        self.teach.close()
        self.maker.__exit__()
        self.gallery.__exit__()
        self._socket.close()

    def _make_server(self) -> Any:
        """A listening server of uvicorn that is not started yet. Raises ConfigError, MissingExtraError."""
        try:
            import uvicorn
            from uvicorn.protocols.http.h11_impl import H11Protocol
            from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

            from nnet_edge.runtime.web.metrics import make_exposition
        except ImportError as error:
            raise MissingExtraError(f"{error.name} is not installed: pip install 'nnet-edge[web]'") from error
        from nnet_edge.runtime.web.app import Page

        self._socket = listen(self.settings.host, self.settings.port)
        self.port: int = self._socket.getsockname()[1]
        controls = Controls(self._line, self.settings, self._kept)
        self.teach = Teach(self._line, self.settings.teach_folder, controls.swap_to)
        page = Page(
            self._line, self.gallery,
            Auth(self.settings, self._tokens[0], operator_token=self._tokens[1]),
            controls,
            self.broadcast, make_exposition(self._line, self.gallery), f"{COOKIE}_{self.port}",
            self.settings.has_secure_cookies, self._ended.is_set, Shift(self._line, self.gallery), self.teach,
        )  # fmt: skip
        config = uvicorn.Config(
            self.connections.timed(page.app()), loop="asyncio", http=counted(H11Protocol, self.connections),
            ws=counted(WebSocketsSansIOProtocol, self.connections), lifespan="off", log_config=None,
            log_level="warning", access_log=False, server_header=False, proxy_headers=False, backlog=BACKLOG,
            ws_max_size=LARGEST_MESSAGE, ws_max_queue=4, ws_per_message_deflate=False,
            h11_max_incomplete_event_size=LARGEST_HEAD, timeout_graceful_shutdown=1,
        )  # fmt: skip
        return uvicorn.Server(config)

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        except BaseException as error:
            self._error = error
            log.exception("the page's server ended")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. Raises ConfigError."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
    except OSError as error:
        raise ConfigError(f"the page cannot be served on {host}: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        fault = f"the page cannot be served on {host}:{port} ({error.strerror}): give another port"
        raise ConfigError(fault) from error
    return listening
