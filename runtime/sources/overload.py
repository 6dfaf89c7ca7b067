"""How much of a source's silence is this machine's fault: the watchdog was late, or the reader waited for a processor."""

from __future__ import annotations

import time
from pathlib import Path

LATE_S = 0.05  # that a watchdog is late on a machine that has time


class Overload:
    """Asked by a watchdog each time it looks at the reader, which is the thread of this number."""

    def __init__(self, thread: int | None) -> None:
        self._thread = thread
        self.is_news = True  # until somebody was told of it in the present silence
        self._since_s: float | None = None  # when that began
        self._looked_s = time.monotonic()
        self._own_s = 0.0  # for which the watchdog was late
        self._waited_s = 0.0  # for a processor, by the reader until the silence began

    def excused_s(self, since_s: float | None, look_s: float) -> float:
        """Seconds of the silence since then that are this machine's; the watchdog looks every `look_s`, or meant to."""
        now_s, waited_s = time.monotonic(), waited_for_cpu_s(self._thread)
        late_s, self._looked_s = now_s - self._looked_s - look_s, now_s
        if since_s != self._since_s:
            self._since_s, self._own_s, self._waited_s, self.is_news = since_s, 0.0, waited_s, True
        if late_s > LATE_S and since_s is not None:
            self._own_s += min(late_s, now_s - since_s)
        return max(self._own_s, waited_s - self._waited_s)


def waited_for_cpu_s(thread: int | None) -> float:
    """Seconds for which a thread of this process was ready and had no processor; 0 where Linux does not say."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
