"""The one place where two threads meet: frames go in on the capture side and come out, in order, on the other."""

from __future__ import annotations

import threading
from collections import deque

from nnet_edge.config import WhenFull
from nnet_edge.errors import ConfigError
from nnet_edge.frame import Frame


class FrameBuffer:
    """A bounded queue of frames that drops by a named policy and counts what it drops."""

    def __init__(self, capacity: int, when_full: WhenFull) -> None:
        if capacity < 1:
            raise ConfigError(f"a buffer of {capacity} frames holds nothing: it needs at least 1")
        self._capacity = capacity
        self._when_full = when_full
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._dropped = 0

    def __len__(self) -> int:
        """Frames that can be taken at once."""
        with self._changed:
            return len(self._frames)

    @property
    def dropped(self) -> int:
        """Frames that were put in and will never be taken out."""
        with self._changed:
            return self._dropped

    def put(self, frame: Frame) -> bool:
        """Whether the buffer took `frame`; once closed it does not and counts it as dropped. WAIT waits."""
        with self._changed:
            if self._when_full is WhenFull.WAIT:
                self._changed.wait_for(lambda: self._closed or len(self._frames) < self._capacity)
            if self._closed:
                self._dropped += 1
                return False
            if len(self._frames) == self._capacity:
                self._frames.popleft()
                self._dropped += 1
            self._frames.append(frame)
            self._changed.notify_all()
            return True

    def take(self, limit: int, timeout_s: float | None = None) -> list[Frame] | None:
        """The oldest 1 to `limit` frames; an empty list at the end; None when `timeout_s` passed without a frame.

        After the end of the source it gives what is left, then raises the error that the source ended with, if any.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._closed, timeout_s)
            if self._frames:
                taken = [self._frames.popleft() for _ in range(min(limit, len(self._frames)))]
                self._changed.notify_all()
                return taken
            if not self._closed:
                return None
            if self._error is not None:
                raise self._error
            return []

    def close(self, error: BaseException | None = None) -> None:
        """End the flow: what lies in the buffer can still be taken, nothing more goes in. The first error stays."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """Close, and count what lies in the buffer as dropped: nobody will take it."""
        with self._changed:
            self._dropped += len(self._frames)
            self._frames.clear()
            self._closed = True
            self._changed.notify_all()
