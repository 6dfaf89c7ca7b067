"""The inference server: listens from `with` to its end, and then answers what was asked before it goes."""

from __future__ import annotations

import asyncio
import logging
import time

from nnet_edge.errors import MissingExtraError
from nnet_edge.runtime.serve.models import Models
from nnet_edge.runtime.web.auth import Auth
from nnet_edge.runtime.web.connections import Connections
from nnet_edge.runtime.web.listening import Listening, listen
from nnet_edge.settings.serve import ServeSettings

log = logging.getLogger(__name__)

DRAIN_S = 30.0  # for requests under way when the server stops
ANNOUNCED_S = 0.2  # that it answers 503 before it stops to listen


class InferenceServer:
    """Serves the settings' bundles. Raises ConfigError for an address that is taken, MissingExtraError."""

    def __init__(self, settings: ServeSettings, models: Models | None = None) -> None:
        try:
            from nnet_edge.runtime.serve.app import Inference
            from nnet_edge.runtime.serve.metrics import Metrics
        except MissingExtraError:
            raise
        except ImportError as error:
            raise MissingExtraError(f"{error.name} is not installed: pip install 'nnet-edge[web]'") from error
        self.settings = settings
        metrics = Metrics()
        self.models = metrics.models = models or Models(settings, metrics)
        self.inference = Inference(settings, self.models, metrics, Auth(settings.web, settings.web.token()))

    @property
    def address(self) -> str:
        """Where it is, for people."""
        host = f"[{self.settings.web.host}]" if ":" in self.settings.web.host else self.settings.web.host
        return f"http://{host}:{self.port}"

    @property
    def is_alive(self) -> bool:
        """Whether it serves."""
        return self._listening.is_alive

    def __enter__(self) -> InferenceServer:
        web = self.settings.web
        if len(self.settings.bundles) == 1:  # there is nothing to choose: what is wrong with it is known at once
            asyncio.run(self.models.load_only())
        socket = listen(web.host, web.port, "the inference server")
        self.port: int = socket.getsockname()[1]
        self._listening = Listening("the inference server", self.inference.app(), socket, Connections(), DRAIN_S)
        try:
            self._listening.start()
        except BaseException:
            self._listening.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.inference.is_draining = True
        time.sleep(ANNOUNCED_S)
        self._listening.stop()
        asyncio.run(self.inference.close())
