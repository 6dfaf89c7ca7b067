"""Tells systemd that the line is ready, and again and again that it works: a line whose runner hangs is started anew.

The unit has Type=notify and WatchdogSec=; elsewhere, or without them, nothing is sent. See sd_notify(3).
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

STALL_LIMIT_S = 30.0  # without a finished batch while frames wait: the slowest batch takes less
JOIN_LIMIT_S = 2.0


class Watchdog:
    """Notifies systemd from `with` to its end; `stalled_s` is Line.stalled_s, `environment` that of the process."""

    def __init__(self, stalled_s: Callable[[], float | None], environment: Mapping[str, str]) -> None:
        self._stalled_s = stalled_s
        self._place = environment.get("NOTIFY_SOCKET", "")
        asked = environment.get("WATCHDOG_USEC", "")
        self._every_s = int(asked) / 2e6 if asked.isascii() and asked.isdecimal() else 0.0  # twice as often as asked
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._tell("READY=1")
        if self._place and self._every_s > 0:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_LIMIT_S)
        self._tell("STOPPING=1")

    def _work(self) -> None:
        while not self._stop.is_set():
            stalled_s = self._stalled_s()
            if stalled_s is None or stalled_s <= STALL_LIMIT_S:
                self._tell("WATCHDOG=1")
            else:
                log.error("no batch was finished for %.0f s while frames wait: systemd is not told to wait", stalled_s)
            self._stop.wait(self._every_s)

    def _tell(self, text: str) -> None:
        if not self._place:
            return
        place = "\0" + self._place[1:] if self._place.startswith("@") else self._place  # an abstract socket of Linux
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
                notifying.sendto(text.encode(), place)
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", text, error.strerror)
