"""Limits on the page's connections, so that a silent or slow peer costs others nothing. Knows no web library.

At most `CONNECTIONS` are open. One more closes another: the one that has been silent longest, else the oldest that is
being answered, else the oldest page with pictures. One that sends no request, or sends it too slowly, is closed too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

log = logging.getLogger(__name__)

CONNECTIONS = 128  # at a time, pages with pictures among them
HEAD_LIMIT_S = 10.0  # for a whole request head, from the connection's begin or from the answer before
ANSWER_LIMIT_S = 60.0  # for a body, an answer and its way through a slow network

Peer = tuple[str, int]
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Stage(IntEnum):
    """The stage of a connection; the lower, the sooner it is closed for a new one."""

    SILENT = 0
    ANSWERED = 1
    PAGE = 2  # with pictures, for as long as somebody looks


@dataclass
class Connection:
    transport: asyncio.Transport
    peer: Peer | None
    stage: Stage = Stage.SILENT
    since_s: float = field(default_factory=time.monotonic)
    requests: int = 0  # under way
    timer: asyncio.TimerHandle | None = None


class Connections:
    """Counts the connections of a server and closes what is in others' way; belongs to one event loop."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Transport, Connection] = {}
        self._by_peer: dict[Peer, Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, transport: asyncio.Transport) -> None:
        """Count a connection, and close another when there are too many; one that is known already is left as it is."""
        if transport in self._open:
            return
        while len(self._open) >= CONNECTIONS:
            oldest = min(self._open.values(), key=lambda connection: (connection.stage, connection.since_s))
            self._close(oldest, "a newer one came, and there are too many")
        connection = self._open[transport] = Connection(transport, peer_of(transport))
        if connection.peer is not None:
            self._by_peer[connection.peer] = connection
        self._arm(connection, HEAD_LIMIT_S)

    def leave(self, transport: asyncio.Transport) -> None:
        """Forget a connection that has ended; an unknown one is ignored."""
        connection = self._open.pop(transport, None)
        if connection is None:
            return
        if connection.timer is not None:
            connection.timer.cancel()
        if connection.peer is not None and self._by_peer.get(connection.peer) is connection:
            del self._by_peer[connection.peer]

    def timed(self, app: App) -> App:
        """The ASGI application, with time limits on its requests."""

        async def timed_app(scope: Message, receive: Any, send: Any) -> None:
            connection = self._by_peer.get(tuple(scope.get("client") or ()))
            if connection is None:
                await app(scope, receive, send)
                return
            connection.requests += 1
            is_page = scope["type"] == "websocket"
            self._turn(connection, Stage.PAGE if is_page else Stage.ANSWERED, None if is_page else ANSWER_LIMIT_S)
            try:
                await app(scope, receive, send)
            finally:
                connection.requests -= 1
                if connection.requests == 0:
                    self._turn(connection, Stage.SILENT, HEAD_LIMIT_S)

        return timed_app

    def _turn(self, connection: Connection, stage: Stage, limit_s: float | None) -> None:
        connection.stage, connection.since_s = stage, time.monotonic()
        self._arm(connection, limit_s)

    def _arm(self, connection: Connection, limit_s: float | None) -> None:
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None
        if limit_s is not None and connection.transport in self._open:
            connection.timer = asyncio.get_running_loop().call_later(limit_s, self._expire, connection)

    def _expire(self, connection: Connection) -> None:
        """Close a connection whose time is up, unless the end of an answer is still on its way through a slow network."""
        left_s = connection.since_s + ANSWER_LIMIT_S - time.monotonic()
        if connection.stage is Stage.SILENT and connection.transport.get_write_buffer_size() and left_s > 0:
            self._arm(connection, min(left_s, HEAD_LIMIT_S))
            return
        self._close(connection, "no request came, or it came too slowly")

    def _close(self, connection: Connection, why: str) -> None:
        log.debug("the connection from %s is closed: %s", connection.peer, why)
        self.leave(connection.transport)
        connection.transport.abort()


def counted(kind: type[Any], connections: Connections) -> type[Any]:
    """The asyncio protocol `kind`, whose connections are counted."""

    class Counted(kind):
        def connection_made(self, transport: asyncio.Transport) -> None:
            self._counted_transport = transport
            connections.enter(transport)
            super().connection_made(transport)

        def connection_lost(self, error: Exception | None) -> None:
            connections.leave(self._counted_transport)
            super().connection_lost(error)

    return Counted


def peer_of(transport: asyncio.Transport) -> Peer | None:
    """Address and port of the other end; None when it is gone already."""
    found = transport.get_extra_info("peername")
    return (str(found[0]), int(found[1])) if isinstance(found, (tuple, list)) and len(found) >= 2 else None
