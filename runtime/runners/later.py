"""Something that takes seconds to open, opened in a thread of its own once it was asked for often."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Opened = TypeVar("Opened")


class Later(Generic[Opened]):
    """What `open_it` gives, begun when it was wanted `after` times more than not; None until then, and where it raises."""

    def __init__(self, what: str, open_it: Callable[[], Opened | None], after: int) -> None:
        self._what, self._open = what, open_it
        self._after: float = after
        self._wanted = 0
        self._thread: threading.Thread | None = None
        self._found: Opened | None = None

    def get(self, is_wanted: bool = True) -> Opened | None:
        """What was opened. Counts as wanting it, or as doing well without; what is there is given either way."""
        if self._thread is None:
            self._wanted = max(0, self._wanted + (1 if is_wanted else -1))
            if self._wanted >= self._after:
                self._thread = threading.Thread(target=self._run, name=f"opening {self._what}", daemon=True)
                self._thread.start()
        return self._found

    def close(self) -> Opened | None:
        """Wait until nothing is being opened; what was opened is the caller's, and nothing is opened any more."""
        self._after = math.inf
        if self._thread is not None:
            self._thread.join()
        found, self._found = self._found, None
        return found

    def _run(self) -> None:
        try:
            self._found = self._open()
        except Exception as error:  # what works without it goes on
            log.warning("%s could not be opened, and the line goes on without: %s", self._what, error)
