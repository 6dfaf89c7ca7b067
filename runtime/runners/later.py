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
    """What `open_it` gives, begun when it is asked for the `after`th time; None until then, and where it raises."""

    def __init__(self, what: str, open_it: Callable[[], Opened | None], after: int) -> None:
        self._what, self._open = what, open_it
        self._after: float = after
        self._asked = 0
        self._thread: threading.Thread | None = None
        self._found: Opened | None = None

    def get(self) -> Opened | None:
        """What was opened; counts as asking."""
        if self._thread is None:
            self._asked += 1
            if self._asked >= self._after:
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
