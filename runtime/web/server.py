"""Server of a line's page, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from nnet_edge.errors import MissingExtraError
from nnet_edge.runtime.web.auth import COOKIE, Auth
from nnet_edge.runtime.web.connections import Connections
from nnet_edge.runtime.web.controls import Controls
from nnet_edge.runtime.web.gallery import Gallery
from nnet_edge.runtime.web.listening import Listening, listen
from nnet_edge.runtime.web.live import Broadcast
from nnet_edge.runtime.web.pictures import PictureMaker
from nnet_edge.runtime.web.shift import Shift
from nnet_edge.runtime.web.teach import Teach
from nnet_edge.settings.web import DriftSettings, WebSettings

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.kept import LineChanges
    from nnet_edge.runtime.stream.line import Line

log = logging.getLogger(__name__)


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
        self._listening = self._make_server()
        self.gallery.__enter__()
        self.maker.__enter__()
        try:
            self._listening.start()
        except BaseException:
            self.__exit__()
            raise
        log.info("the page is at %s", self.address)
        return self

    def __exit__(self, *error: object) -> None:
        self._listening.stop()
        self.teach.close()
        self.maker.__exit__()
        self.gallery.__exit__()

    def _make_server(self) -> Listening:
        """A listening server that is not started yet. Raises ConfigError, MissingExtraError."""
        try:
            from nnet_edge.runtime.web.metrics import make_exposition
        except ImportError as error:
            raise MissingExtraError(f"{error.name} is not installed: pip install 'nnet-edge[web]'") from error
        from nnet_edge.runtime.web.app import Page

        socket = listen(self.settings.host, self.settings.port)
        self.port: int = socket.getsockname()[1]
        controls = Controls(self._line, self.settings, self._kept)
        self.teach = Teach(self._line, self.settings.teach_folder, controls.swap_to)
        page = Page(
            self._line, self.gallery,
            Auth(self.settings, self._tokens[0], operator_token=self._tokens[1]),
            controls,
            self.broadcast, make_exposition(self._line, self.gallery), f"{COOKIE}_{self.port}",
            self.settings.has_secure_cookies, self._ended.is_set, Shift(self._line, self.gallery), self.teach,
        )  # fmt: skip
        return Listening("the page", page.app(), socket, self.connections)
