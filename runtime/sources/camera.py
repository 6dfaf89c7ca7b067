"""Camera of a line: a reader thread for its source, and a watchdog thread that opens a lost source again.

    connecting -> live -> stalled (no frame for too long) or lost (it ended, broke, or cannot be opened) -> connecting ...

A live source is tried until it is back, each wait longer than the last up to a limit. A file ends, or fails, once; one that
gives no frame is stalled, and waited for. A camera whose settings do not fit its first frame fails once, too; later it may
come back with another picture size, and is waited for. What an overloaded machine delays counts against no source.
Whatever happens to a source, no frame is made up, repeated or sent twice.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nnet_edge.errors import ConfigError, MissingExtraError, SourceError
from nnet_edge.frame import Frame, new_session
from nnet_edge.runtime.sources.base import Source, SourceFacts
from nnet_edge.runtime.sources.overload import Overload
from nnet_edge.runtime.sources.still import StillPicture
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.reader import to_plain

log = logging.getLogger(__name__)

STATES = ("connecting", "live", "stalled", "lost", "ended", "failed")
JOIN_LIMIT_S = 0.5  # a reader that hangs in its driver for longer is left behind; it ends by itself
MOST_LEFT_BEHIND = 3  # readers that hang in a driver; with more, the camera waits until one returns
LOOK_S = 0.25  # how often the watchdog checks the reader


@dataclass(frozen=True)
class CameraStatus:
    """State of a camera: a snapshot."""

    state: str  # of STATES
    since_s: float  # seconds in this state
    asked: SourceFacts  # None where nothing was asked for
    got: SourceFacts | None  # when it was last live
    reconnects: int  # times that it came back
    skipped: int  # pictures that could not be read
    reason: str | None  # why it is stalled, lost or failed
    frozen_s: float | None = None  # for how long its picture has not changed, once that is a fault
    counts: Mapping[str, int] = field(default_factory=dict)  # of the source's own, since the start


class Camera:
    """Reads a source and hands its frames to `put`, which returns whether it wants more; see the top of this file.

    `source` is opened first, and `reopen` makes each later one; with None the source is opened once, and fails for good.
    `tell(kind, **facts)` receives events, and `ended(error)` the end, None for a good one; both in the camera's threads.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        settings: CameraSettings,
        put: Callable[[Frame], bool],
        tell: Callable[..., object],
        ended: Callable[[BaseException | None], None],
        reopen: Callable[[], Source] | None = None,
        captured: Callable[[float], None] = lambda took_ms: None,
        lost: Callable[[str, int], None] = lambda cause, frames: None,
    ) -> None:
        self.name, self.settings, self.session = name, settings, new_session()
        self._source, self._reopen = source, reopen
        self._put, self._tell, self._ended, self._captured, self._lost = put, tell, ended, captured, lost
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.wake = threading.Event()  # of the watchdog: its reader has ended
        self._state, self._since_s = "connecting", time.monotonic()
        self._reason: str | None = None
        self._got: SourceFacts | None = None
        self._times_live = self._skipped = 0
        self._counts: Counter[str] = Counter()  # of readers that have ended
        self.next_index = 0  # after the newest frame's
        self._was_live_s = 0.0  # for how long the last reader gave frames
        self._has_given = False  # whether a frame was accepted: the settings fit the source
        self._is_out = False  # whether a warning said that it is lost
        self._still = StillPicture()
        self._frozen_since_s: float | None = None  # None: its picture changes
        self._reader: Reader | None = None
        self._left_behind: list[Reader] = []
        self._thread = threading.Thread(target=self._supervise, name=f"camera {name}", daemon=True)

    def start(self) -> None:
        """Begin to read; return at once."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Ask both threads to end soon."""
        self._stop.set()
        self.wake.set()
        with self._lock:
            reader = self._reader
        if reader is not None:
            reader.leave()

    def join(self) -> None:
        """Wait at most a second until both have ended; a reader that hangs in a driver ends by itself."""
        self._thread.join(2 * JOIN_LIMIT_S)
        if self._thread.is_alive():
            log.warning("the watchdog of %s does not answer: it is left behind, and ends by itself", self.name)

    def status(self) -> CameraStatus:
        wish = self.settings
        asked = SourceFacts(
            wish.height, wish.width, wish.rate_hz, wish.pixel_format,
            {name: to_plain(value) for name, value in wish.options.items() if value is not None},
        )  # fmt: skip
        with self._lock:
            reader = self._reader
            skipped = self._skipped + (reader.source.skipped if reader is not None else 0)
            counts = self._counts.copy()
            counts.update({} if reader is None else reader.source.counts)  # adds, and keeps what is 0
            since_s, reconnects = time.monotonic() - self._since_s, max(0, self._times_live - 1)
            frozen_s = None if self._frozen_since_s is None else time.monotonic() - self._frozen_since_s
            return CameraStatus(
                self._state, since_s, asked, self._got, reconnects, skipped, self._reason, frozen_s, dict(counts)
            )

    def trigger(self) -> None:
        """Ask its source for one picture. Raises ConfigError where it takes no trigger, SourceError while it is lost."""
        with self._lock:
            reader = self._reader
        if reader is None or not reader.is_open:
            raise SourceError(f"{self.name} is not open, so nothing can be triggered: {self._reason or 'it connects'}")
        reader.source.trigger()

    def _supervise(self) -> None:
        error: BaseException | None = None
        try:
            self._keep_reading()
        except BaseException as caught:
            error = caught
            self._to("failed", str(caught) or type(caught).__name__)
        else:
            self._to("ended")
        self._ended(error)

    def _keep_reading(self) -> None:
        """Read until the source ends; open a live one again each time. Raise what a retry cannot mend."""
        failures = 0
        source: Source | None = self._source
        outcome: BaseException | None = None
        while not self._stop.is_set():
            if source is not None:
                self._to("connecting")
                self._tell("source.connecting", attempt=failures + 1)
                outcome = self._read(source)
                is_final = self._reopen is None or not source.is_live
                if self._stop.is_set() or (outcome is None and is_final):
                    return
                if outcome is not None and (is_final or not self._may_be_mended(outcome)):
                    raise outcome
            else:
                self._was_live_s = 0.0
            failures = 1 if self._was_live_s > self._retry_s(failures) else failures + 1
            retry_s = self._retry_s(failures) * (1 + self.settings.jitter * random.uniform(-1, 1))
            reason = str(outcome or "the source ended")
            if self._state != "stalled" or source is None:
                self._to("lost", reason)
                self._tell("source.lost", reason=reason, retry_s=round(retry_s, 2))
            if not self._is_out:  # once for each outage
                self._is_out = True
                log.warning("%s is lost, and tried until it is back: %s", self.name, reason)
            if self._stop.wait(retry_s):
                return
            source, outcome = self._make_again()

    def _make_again(self) -> tuple[Source | None, BaseException | None]:
        """A new source, or the error that prevents it now."""
        assert self._reopen is not None
        self._left_behind = [reader for reader in self._left_behind if reader.is_alive()]
        if len(self._left_behind) >= MOST_LEFT_BEHIND:
            return None, SourceError(f"{len(self._left_behind)} readers of it hang in their driver: is it plugged in?")
        try:
            return self._reopen(), None
        except Exception as error:
            if not self._may_be_mended(error):
                raise
            return None, error

    def _may_be_mended(self, error: BaseException) -> bool:
        """Whether a retry may succeed; a setting that never fitted stays wrong."""
        is_setting = isinstance(error, (ConfigError, MissingExtraError))
        return isinstance(error, Exception) and (self._has_given or not is_setting)

    def _retry_s(self, failures: int) -> float:
        doubled = self.settings.first_retry_s * 2.0 ** min(max(failures - 1, 0), 30)
        return min(doubled, self.settings.longest_retry_s)

    def _read(self, source: Source) -> BaseException | None:
        """Read `source` until it ends (None), breaks (its error) or stalls (a SourceError)."""
        reader = Reader(self, source)
        with self._lock:
            self._reader = reader
        self.wake.clear()
        reader.start()
        try:
            return self._watch(reader)
        finally:
            reader.leave()
            reader.join(JOIN_LIMIT_S)
            self._was_live_s = reader.live_s()
            with self._lock:
                self._reader = None
                self._skipped += source.skipped
                self._counts.update(source.counts)
            if reader.is_alive():
                self._left_behind.append(reader)
                log.warning("%s does not answer: its reader is left behind, and ends by itself", source.describe())

    def _watch(self, reader: Reader) -> BaseException | None:
        """Wait until the reader ends (its error or None) or a live one is silent for too long (a SourceError)."""
        overload = Overload(reader.native_id)
        while not self.wake.wait(LOOK_S):
            silent_s = reader.silent_s()
            excused_s = overload.excused_s(reader.waits_since_s, LOOK_S)
            limit_s = self.settings.stall_s if reader.first_s is not None else self.settings.open_timeout_s
            if silent_s <= limit_s or reader.is_late or (reader.is_open and reader.source.may_be_silent):
                continue
            if silent_s - excused_s <= limit_s:
                if overload.is_news:
                    overload.is_news = False
                    reason = (
                        f"this machine is overloaded: {excused_s:.1f} of {silent_s:.1f} s without a frame are its own"
                    )
                    log.warning("%s: %s", self.name, reason)
                    self._tell("machine.overloaded", late_s=round(excused_s, 2), reason=reason)
                continue
            reason = f"{reader.source.describe()} has given no frame for {silent_s:.1f} s"
            if reader.source.last_fault is not None:
                reason += f"; its last picture was passed over: {reader.source.last_fault}"
            self._to("stalled", reason)
            self._tell("source.stalled", silent_s=round(silent_s, 2), reason=reason)
            if reader.source.is_live:
                return SourceError(reason)
            reader.is_late = True  # nothing else gives the file's next frame
            log.warning("%s is waited for: %s", self.name, reason)
        return reader.error

    def _to(self, state: str, reason: str | None = None) -> None:
        with self._lock:
            self._state, self._since_s, self._reason = state, time.monotonic(), reason

    def take_in(self, reader: Reader, frame: Frame, took_ms: float) -> bool:
        """Pass a frame of `reader` to `put`; False ends the reader. Frames of a reader that was left behind are refused."""
        with self._lock:
            if reader is not self._reader or reader.is_left or self._stop.is_set():
                return False
            index = reader.first_index + frame.index
            self.next_index = index + 1
        if reader.first_s is None:
            self._go_live(reader, *frame.image.shape[:2])
        elif reader.is_late:
            self._to("live")
            log.warning("%s gives frames again", self.name)
        reader.is_late = False
        self._look_for_change(reader.source, frame)
        self._captured(took_ms)
        goes_on = self._put(replace(frame, index=index, stream=self.name, session=self.session))
        self._has_given = True
        if self._is_out:
            self._is_out = False
            log.warning("%s gives frames again", self.name)
        return goes_on

    def lose(self, reader: Reader, cause: str, frames: int) -> None:
        """Count frames of `reader` that the camera sent and that did not arrive whole."""
        with self._lock:
            is_current = reader is self._reader and not reader.is_left
        if is_current:
            self._lost(cause, frames)

    def _look_for_change(self, source: Source, frame: Frame) -> None:
        """Tell when the camera's picture is frozen, and when it moves again."""
        if not self.settings.frozen_s or not source.is_live or source.may_be_silent:
            return
        still_s = self._still.seconds(frame.image, frame.captured_s)
        if self._frozen_since_s is not None and still_s == 0:
            frozen_s = time.monotonic() - self._frozen_since_s
            self._frozen_since_s = None
            self._tell("source.moving", frozen_s=round(frozen_s, 2))
            log.warning("%s: its picture changes again", self.name)
        elif self._frozen_since_s is None and still_s >= self.settings.frozen_s:
            self._frozen_since_s = time.monotonic() - still_s
            reason = f"its picture has not changed by one pixel for {still_s:.1f} s: does the camera hang?"
            self._tell("source.frozen", still_s=round(still_s, 2), reason=reason)
            log.warning("%s: %s", self.name, reason)

    def opened(self, reader: Reader) -> None:
        """Take notice that the source of `reader` is open: one that may be silent for hours is live, pictures or not."""
        source, got = reader.source, reader.source.got
        with self._lock:
            is_current = reader is self._reader and not reader.is_left
        if is_current and got is not None and source.is_live and source.may_be_silent:
            self._go_live(reader, got.height, got.width)

    def _go_live(self, reader: Reader, height: int | None, width: int | None) -> None:
        reader.first_s = time.monotonic()
        got = replace(reader.source.got or SourceFacts(), height=height, width=width)
        with self._lock:
            took_s = time.monotonic() - self._since_s
            self._got, self._times_live = got, self._times_live + 1
            self._still, self._frozen_since_s = StillPicture(), None
        self._to("live")
        self._tell("source.live", took_s=round(took_s, 3), got=got.as_dict())


class Reader(threading.Thread):
    """Opens a source, hands its frames to the camera and closes it."""

    def __init__(self, camera: Camera, source: Source) -> None:
        super().__init__(name=f"capture of {source.describe()}", daemon=True)
        self.source = source
        source.lose = lambda cause, frames: camera.lose(self, cause, frames)
        self.error: BaseException | None = None
        self.first_s: float | None = None  # when the first frame came, or was awaited
        self.first_index = camera.next_index
        self.is_left = self.is_open = False
        self.is_late = False  # a file that is waited for
        self._camera = camera
        self.waits_since_s: float | None = time.monotonic()  # None while the camera handles a frame
        self._ended_s: float | None = None

    def run(self) -> None:
        """Read until the source ends or breaks, or the camera wants no more."""
        try:
            with self.source as source:
                self.is_open = True
                self._camera.opened(self)
                self.waits_since_s = asked_s = time.monotonic()
                for frame in source:
                    self.waits_since_s = None
                    took_ms = 1e3 * (time.monotonic() - asked_s)
                    if not self._camera.take_in(self, frame, took_ms):
                        break
                    self.waits_since_s = asked_s = time.monotonic()
        except BaseException as caught:
            self.error = caught
        finally:
            self._ended_s = time.monotonic()
            self._camera.wake.set()

    def leave(self) -> None:
        """Ask it to end; its frames are refused from now on."""
        self.is_left = True
        self.source.interrupt()

    def silent_s(self) -> float:
        """Seconds for which it has waited for the source."""
        since_s = self.waits_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def live_s(self) -> float:
        """Seconds from the first frame to the end, 0 without one."""
        return 0.0 if self.first_s is None else (self._ended_s or time.monotonic()) - self.first_s
