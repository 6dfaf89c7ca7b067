"""Connections that ask nothing, or ask and take too slowly, over real sockets: everybody else is answered as before."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from nnet_edge.runtime.web import connections as limits
from nnet_edge.runtime.web.connections import CONNECTIONS


@contextlib.contextmanager
def connections(port: int, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many sockets that are connected to the page and have sent no more than `first`."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            one.sendall(first)
            found.append(one)
        yield found


def is_closed(one: socket.socket) -> bool:
    """Whether the page has closed the connection."""
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nHost: localh"])
def test_silent_connections_make_nobody_else_wait(serve: Any, until: Any, first: bytes) -> None:
    with serve() as site, connections(site.server.port, CONNECTIONS + 22, first) as silent:
        start_s = time.monotonic()
        for _ in range(5):
            assert site.ask("/healthz")[0] == 200
        assert time.monotonic() - start_s < 5
        assert len(site.server.connections) <= CONNECTIONS
        until(lambda: sum(is_closed(one) for one in silent) >= 22)
        assert is_closed(silent[0])  # the oldest went first
        assert not is_closed(silent[-1])


def test_bodies_that_never_come_make_nobody_else_wait(serve: Any) -> None:
    head = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n"
    with serve() as site, connections(site.server.port, CONNECTIONS + 22, head):
        assert site.ask("/healthz")[0] == 200
        assert len(site.server.connections) <= CONNECTIONS


def test_a_page_with_pictures_stays_when_silent_connections_come(serve: Any) -> None:
    with serve() as site, connect(f"ws://127.0.0.1:{site.server.port}/live") as page:
        page.send(json.dumps({"views": [{"stream": "left", "overlay": False}]}))
        page.recv(5)
        with connections(site.server.port, CONNECTIONS + 22):
            assert site.ask("/healthz")[0] == 200
            for _ in range(3):
                page.recv(5)


def test_a_head_must_come_whole_within_its_time(serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_LIMIT_S", 0.5)
    with serve() as site, connections(site.server.port, 1) as (silent,), connections(site.server.port, 1) as (slow,):
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET ")  # one whole request, and a bit of another
        assert slow.recv(4096).startswith(b"HTTP/1.1 200")
        until(lambda: is_closed(silent) and is_closed(slow))
        assert len(site.server.connections) == 0


def test_an_answer_that_nobody_takes_is_given_up(serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER_LIMIT_S", 1.0)
    monkeypatch.setattr(limits, "HEAD_LIMIT_S", 0.2)
    with serve() as site, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.connect(("127.0.0.1", site.server.port))
        with contextlib.suppress(ConnectionError):
            for _ in range(500):  # far more answers than the buffers of both ends hold
                deaf.sendall(b"GET /static/page.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: len(site.server.connections) == 0)
        assert site.ask("/healthz")[0] == 200
