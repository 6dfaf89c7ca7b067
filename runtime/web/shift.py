"""The shift on the page: sums, parts and pictures of the line's history, and what people say of one. Knows no web library."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, DataError, NnetEdgeError
from nnet_edge.runtime.history.labels import add_label
from nnet_edge.runtime.history.queries import History, Window, shift_begin, window_of
from nnet_edge.runtime.history.report import shift_report, thumbnail
from nnet_edge.runtime.texts import LANGUAGES
from nnet_edge.settings.runner import require_choice

if TYPE_CHECKING:
    from nnet_edge.runtime.sinks.history import HistorySettings
    from nnet_edge.runtime.stream.line import Line
    from nnet_edge.runtime.web.gallery import Gallery

KEPT_S = 4.0  # sums that several pages ask for
SHOWN_PARTS, MOST_PARTS = 24, 400
KEPT_THUMBNAILS = 500
ONLY = {"rejects": "rejects", "accepted": "pictured", "labelled": "labelled", "all": ""}
PICTURES = {"original": "png", "overlay": "jpg", "map": "png", "accepted": "png", "thumbnail": "jpg"}


def history_settings(line: Line) -> HistorySettings | None:
    """The settings of the line's first history; None where it keeps none."""
    for sink in line.sinks:
        settings: Any = getattr(getattr(sink, "sink", sink), "settings", None)
        if getattr(settings, "kind", "") == "history":
            found: HistorySettings = settings
            return found
    return None


class Shift:
    """Answers from the history of `line`; any thread may call any method. Raises NnetEdgeError where there is none."""

    def __init__(self, line: Line, gallery: Gallery) -> None:
        self._line, self._gallery = line, gallery
        self._settings = history_settings(line)
        self._lock = threading.Lock()
        self._thumbnails: dict[tuple[int, int], bytes] = {}  # file and row -> JPEG, the oldest first
        self._sums: dict[Window, tuple[float, dict[str, Any]]] = {}

    @property
    def is_kept(self) -> bool:
        """Whether the line keeps a history."""
        return self._settings is not None

    def begin(self) -> int | None:
        """When this shift began, milliseconds since 1970; None without a history."""
        return None if self._settings is None else shift_begin(self._settings.shifts)

    def _open(self) -> History:
        if self._settings is None:
            raise ConfigError('the line keeps no history: give it a sink of the kind "history", or --history FILE')
        return History(self._settings.path)

    def window(self, asked: Mapping[str, str]) -> Window:
        """The time that a query asks for: since (default: this shift), until, stream."""
        since, until = asked.get("since") or "shift", asked.get("until")
        begin = (self.begin() or 0) if since == "shift" else since
        window = window_of(begin, until or None, asked.get("stream") or None, ("since", "until"))
        if window.stream is not None and window.stream not in [status.name for status in self._line.streams()]:
            with self._open() as history:
                history.require_stream(window)
        return window

    def sums(self, window: Window) -> dict[str, Any]:
        """The sums of the time; pages that ask for the same share them for KEPT_S."""
        key = Window(window.since // 60_000, window.until and window.until // 60_000, window.stream)
        with self._lock:
            known = self._sums.get(key)
            if known is not None and 0 <= time.monotonic() - known[0] < KEPT_S:
                return known[1]
            with self._open() as history:
                found = history.shift(window)
            others = [(other, kept) for other, kept in self._sums.items() if other != key]
            self._sums = {key: (time.monotonic(), found), **dict(others[:15])}
            return found

    def counts(self) -> dict[str, Any] | None:
        """Verdicts, rejects and yield of this shift, for the board; None without a history, or while it cannot be read."""
        if self._settings is None:
            return None
        try:
            found = self.sums(self.window({}))
        except NnetEdgeError as error:
            return {"fault": str(error)}
        shown = ("since", "verdicts", "rejects", "yield", "labels")
        return {name: found[name] for name in shown}

    def parts(self, window: Window, only: str, limit: int = SHOWN_PARTS) -> list[dict[str, object]]:
        """The newest verdicts of the time with their labels and kinds of pictures."""
        if only not in ONLY:
            raise ConfigError(f"only is {only[:40]!r}: choose {', '.join(ONLY)}")
        with self._open() as history:
            found = history.verdicts(window, ONLY[only], min(limit or SHOWN_PARTS, MOST_PARTS), newest_first=True)
            return [one.as_dict() | {"pictures": history.picture_kinds(one.id)} for one in found]

    def part(self, row: int) -> dict[str, object]:
        """One verdict."""
        with self._open() as history:
            found = history.verdict(row)
            if found is None:
                raise DataError(f"the history has no verdict {row} any more")
            return found.as_dict() | {"pictures": history.picture_kinds(row)}

    def picture(self, row: int, kind: str) -> bytes | None:
        """A picture of the verdict; its thumbnail is made of what there is."""
        with self._open() as history:
            key = (history.path.stat().st_ino, row)
            if kind == "thumbnail" and (known := self._thumbnails.get(key)) is not None:
                return known
            if kind != "thumbnail":
                return history.picture(row, kind)
            kinds = history.picture_kinds(row)
            best = next((kind for kind in ("overlay", "accepted", "original") if kind in kinds), None)
            data = None if best is None else history.picture(row, best)
        small = None if data is None else thumbnail(data)
        if small is not None:
            with self._lock:
                self._thumbnails[key] = small
                while len(self._thumbnails) > KEPT_THUMBNAILS:
                    del self._thumbnails[next(iter(self._thumbnails))]
        return small

    def report(self, window: Window, language: str) -> str:
        """The report of the time as HTML."""
        require_choice("language", language, LANGUAGES)
        with self._open() as history:
            return shift_report(history, window, language)

    def row_of(self, key: str) -> int:
        """The row of a reject of the gallery. Raises DataError while the history has none."""
        reject = self._gallery.reject(key)
        if reject is None:
            raise DataError("the reject has left the gallery: look for it in the history")
        with self._open() as history:
            row = history.find(reject.fields)
        if row is None:
            raise DataError("the history does not have this reject yet: try again in a moment")
        return row

    def label(self, row: int, given: Mapping[str, Any]) -> dict[str, object]:
        """Keep what somebody says of the part; gives the part with all its labels."""
        if self._settings is None:
            self._open()
        assert self._settings is not None
        add_label(self._settings.path, row, given.get("who"), given.get("label"), given.get("defect"))
        with self._lock:
            self._sums.clear()
        return self.part(row)
