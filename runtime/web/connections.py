"""Who may keep a connection of the page, and for how long: a silent or slow peer costs others nothing. Knows no web library.

At most `CONNECTIONS` are open. One more closes another: the one that has been silent longest, else the oldest that is
being answered, else the oldest page with pictures. Whoever asks nothing, or asks too slowly, is closed after a while.
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
    """What a connection is at; the lower, the sooner it is closed for a new one."""

    SILENT = 0
    ANSWERED = 1
    PAGE = 2  # with pictures, for as long as somebody looks


@dataclass
class Visit:
    """One connection."""

    transport: asyncio.Transport
    peer: Peer | None
    stage: Stage = Stage.SILENT
    since_s: float = field(default_factory=time.monotonic)
    requests: int = 0  # under way
    timer: asyncio.TimerHandle | None = None


class Door:
    """Counts the connections of a server and closes what is in others' way; belongs to one event loop."""

    def __init__(self) -> None:
        self._visits: dict[asyncio.Transport, Visit] = {}
        self._by_peer: dict[Peer, Visit] = {}

    def __len__(self) -> int:
        return len(self._visits)

    def enter(self, transport: asyncio.Transport) -> None:
        """Take note of a connection, and close another where there are too many; one that is known already may stay."""
        if transport in self._visits:
            return
        while len(self._visits) >= CONNECTIONS:
            oldest = min(self._visits.values(), key=lambda visit: (visit.stage, visit.since_s))
            self._close(oldest, "a newer one came, and there are too many")
        visit = self._visits[transport] = Visit(transport, peer_of(transport))
        if visit.peer is not None:
            self._by_peer[visit.peer] = visit
        self._arm(visit, HEAD_LIMIT_S)

    def leave(self, transport: asyncio.Transport) -> None:
        """Forget a connection that has ended; one that is unknown is no error."""
        visit = self._visits.pop(transport, None)
        if visit is None:
            return
        if visit.timer is not None:
            visit.timer.cancel()
        if visit.peer is not None and self._by_peer.get(visit.peer) is visit:
            del self._by_peer[visit.peer]

    def watching(self, app: App) -> App:
        """The ASGI application, with its requests watched."""

        async def watched(scope: Message, receive: Any, send: Any) -> None:
            visit = self._by_peer.get(tuple(scope.get("client") or ()))
            if visit is None:
                await app(scope, receive, send)
                return
            visit.requests += 1
            is_page = scope["type"] == "websocket"
            self._turn(visit, Stage.PAGE if is_page else Stage.ANSWERED, None if is_page else ANSWER_LIMIT_S)
            try:
                await app(scope, receive, send)
            finally:
                visit.requests -= 1
                if visit.requests == 0:
                    self._turn(visit, Stage.SILENT, HEAD_LIMIT_S)

        return watched

    def _turn(self, visit: Visit, stage: Stage, limit_s: float | None) -> None:
        visit.stage, visit.since_s = stage, time.monotonic()
        self._arm(visit, limit_s)

    def _arm(self, visit: Visit, limit_s: float | None) -> None:
        if visit.timer is not None:
            visit.timer.cancel()
            visit.timer = None
        if limit_s is not None and visit.transport in self._visits:
            visit.timer = asyncio.get_running_loop().call_later(limit_s, self._expire, visit)

    def _expire(self, visit: Visit) -> None:
        """Close what has had its time; the end of an answer may still be on its way through a slow network."""
        left_s = visit.since_s + ANSWER_LIMIT_S - time.monotonic()
        if visit.stage is Stage.SILENT and visit.transport.get_write_buffer_size() and left_s > 0:
            self._arm(visit, min(left_s, HEAD_LIMIT_S))
            return
        self._close(visit, "it asked nothing, or too slowly")

    def _close(self, visit: Visit, why: str) -> None:
        log.debug("the connection from %s is closed: %s", visit.peer, why)
        self.leave(visit.transport)
        visit.transport.abort()


def guarded(kind: type[Any], door: Door) -> type[Any]:
    """The asyncio protocol `kind`, whose connections go through the door."""

    class Guarded(kind):
        def connection_made(self, transport: asyncio.Transport) -> None:
            self._guarded_transport = transport
            door.enter(transport)
            super().connection_made(transport)

        def connection_lost(self, error: Exception | None) -> None:
            door.leave(self._guarded_transport)
            super().connection_lost(error)

    return Guarded


def peer_of(transport: asyncio.Transport) -> Peer | None:
    """Address and port of the other end; None when it has gone already."""
    found = transport.get_extra_info("peername")
    return (str(found[0]), int(found[1])) if isinstance(found, (tuple, list)) and len(found) >= 2 else None
