"""A network of a test's own, which nothing outside sees: cameras of several workers have one port, and ask by broadcast."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NEW_NETWORK = 0x40000000  # CLONE_NEWNET
SET_FLAGS, SET_ADDRESS, SET_MASK, SET_MTU = 0x8914, 0x8916, 0x891C, 0x8922  # ioctl's SIOCSIF...
UP = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def private_network(*addresses: str, mtu: int = 65_536, is_needed: bool = True) -> Iterator[None]:
    """This thread, and what it starts, alone with a loopback of 127.0.0.1 and `addresses`.

    Without the right to it the test is skipped, or runs in the machine's network where it `is_needed` not.
    """
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if LIBC.unshare(NEW_NETWORK) != 0:
            if not is_needed:
                yield
                return
            pytest.skip(f"needs the right to a network of its own ({os.strerror(ctypes.get_errno())}): run as root")
        try:
            set_up(addresses, mtu)
            yield
        finally:
            assert LIBC.setns(before, NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(before)


def set_up(addresses: tuple[str, ...], mtu: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def change(what: int, name: str, value: bytes) -> None:
            fcntl.ioctl(control, what, struct.pack("16s24s", name.encode(), value))

        def address(text: str) -> bytes:
            return struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(text))

        change(SET_FLAGS, "lo", struct.pack("H", UP))
        change(SET_MTU, "lo", struct.pack("i", mtu))
        for number, text in enumerate(addresses):
            change(SET_ADDRESS, f"lo:{number}", address(text))
            change(SET_MASK, f"lo:{number}", address("255.0.0.0"))


def test_nothing_outside_is_reached() -> None:
    with private_network("127.0.0.2", mtu=1500), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.2", 0))
        with pytest.raises(OSError, match="unreachable"):
            socket.create_connection(("192.0.2.1", 9), 1)
        assert Path("/proc/net/dev").read_text().count(":") >= 1
