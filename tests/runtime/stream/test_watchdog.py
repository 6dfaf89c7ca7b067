"""What systemd is told of a line, over a real socket of its kind."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnet_edge.runtime.stream import watchdog
from nnet_edge.runtime.stream.watchdog import Watchdog


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A socket as systemd listens on it, and the environment that it gives; told ten times a second."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield listening, {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}


def test_systemd_hears_of_start_and_end_and_that_the_line_works(
    systemd: tuple[socket.socket, dict[str, str]],
) -> None:
    listening, environment = systemd
    with Watchdog(lambda: None, environment):
        assert [listening.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
    told = b""
    while told != b"STOPPING=1":
        told = listening.recv(100)


def test_systemd_hears_nothing_while_the_runner_hangs(
    systemd: tuple[socket.socket, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "STALL_LIMIT_S", 1.0)
    listening, environment = systemd
    stalled = [0.5, 5.0, 5.0, 0.1]
    with Watchdog(lambda: stalled.pop(0) if len(stalled) > 1 else stalled[0], environment):
        assert [listening.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        assert len(stalled) == 1  # the two in between were passed over


@pytest.mark.parametrize(
    "environment", [{}, {"WATCHDOG_USEC": "1000000"}, {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "x"}]
)
def test_without_systemd_nothing_happens(environment: dict[str, str]) -> None:
    with Watchdog(lambda: None, environment):
        pass
