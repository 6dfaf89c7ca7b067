"""What a history says: verdicts of a time, and the sums, outages, drift and labels of a shift.

Times are milliseconds since 1970; a time reaches from `since` on and ends before `until`, None: it has no end, so that
verdicts of a clock that was set back later are not left out.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.runtime.history.database import GRID, ms_of, read_only, session_of
from nnet_edge.text import one_line

ENDLESS = 1 << 62
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
CLOCK = re.compile(r"\d{1,2}:\d{2}")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
BUCKETS = 96  # points of the score over time, at most
PLACES = 5  # cells where most regions lay
LOST, BACK = ("source.lost", "source.stalled", "source.frozen", "stream.failed"), ("source.live", "source.moving")
ROWS = """SELECT v.id, v.at, c.stream, c.crop, s.session, v.frame, v.score, v.is_anomalous, v.latency_us, v.trigger, v.regions,
v.more, j.threshold, j.threshold_from, j.bundle, j.bundle_id, j.precision, j.runner, j.recipe, c.height, c.width,
c.x, c.y
FROM verdict v JOIN source s ON s.id = v.source JOIN camera c ON c.id = s.camera JOIN judge j ON j.id = v.judge"""


@dataclass(frozen=True)
class Window:
    """A time, and the one stream that it is asked for; None: all of them."""

    since: int
    until: int | None = None
    stream: str | None = None

    @property
    def end(self) -> int:
        """Its end, for comparisons."""
        return ENDLESS if self.until is None else self.until


@dataclass(frozen=True)
class Label:
    """What somebody said of a part."""

    who: str
    at: int
    label: str
    defect: str | None


@dataclass(frozen=True)
class Kept:
    """A verdict of the history."""

    id: int
    at: int
    stream: str
    crop: str | None
    session: str
    frame: int
    score: float
    is_anomalous: bool
    latency_us: int | None
    trigger: int | None
    regions: tuple[tuple[float, ...], ...]  # x, y, width, height, area, peak, pixels of the picture
    more: Mapping[str, Any]
    threshold: float
    threshold_from: str | None
    bundle: str | None
    bundle_id: str | None
    precision: str | None
    runner: str | None
    recipe: str | None
    size: tuple[int, int] | None  # height and width of its camera's picture, or crop
    corner: tuple[int, int]  # x and y of the crop in the camera's picture
    labels: tuple[Label, ...] = ()  # oldest first: the last one holds

    @property
    def time(self) -> str:
        """When it was captured, ISO 8601, UTC."""
        return utc(self.at)

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        regions = [dict(zip(("x", "y", "width", "height", "area", "peak"), one, strict=True)) for one in self.regions]
        held = self.labels[-1] if self.labels else None
        return {
            "row": self.id, "time": self.time, "stream": self.stream, "crop": self.crop, "session": self.session,
            "index": self.frame, "score": self.score, "threshold": self.threshold,
            "relative_score": self.score / self.threshold, "verdict": "anomalous" if self.is_anomalous else "good",
            "regions": regions, "latency_ms": None if self.latency_us is None else self.latency_us / 1e3,
            "bundle": self.bundle, "bundle_id": self.bundle_id, "precision": self.precision, "runner": self.runner,
            "threshold_from": self.threshold_from, "recipe": self.recipe, "trigger": self.trigger,
            "label": None if held is None else held.label, "defect": None if held is None else held.defect,
            "labels": [asdict(label) | {"at": utc(label.at)} for label in self.labels], **self.more,
        }  # fmt: skip


class History:
    """Reads the history at `path`; a context manager. Any thread may call it. Raises DataError where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._database = read_only(path)
        except (sqlite3.Error, OSError) as error:
            raise self._fault(error) from error

    def __enter__(self) -> History:
        return self

    def __exit__(self, *about: object) -> None:
        self._database.close()

    def _fault(self, error: Exception) -> DataError:
        return DataError(
            f"cannot read the history {self.path}: {one_line(getattr(error, 'strerror', None) or str(error))}"
        )

    def _all(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def require_stream(self, window: Window) -> None:
        """Raise ConfigError for a stream that the history has nothing of, while it has something of others."""
        names = [name for (name,) in self._all("SELECT DISTINCT stream FROM camera ORDER BY stream")]
        if window.stream is not None and names and window.stream not in names:
            raise ConfigError(
                f"the history has nothing of a stream {one_line(window.stream)!r}: choose {', '.join(names)}"
            )

    # ---- single verdicts

    def verdicts(self, window: Window, only: str = "", limit: int = -1, newest_first: bool = False) -> Iterator[Kept]:
        """Those of the time in the order of their capture; `only` "rejects", "accepted", "pictured" (accepted ones with
        a picture) or "labelled"."""
        places = {
            "": "", "rejects": " AND v.is_anomalous", "accepted": " AND NOT v.is_anomalous",
            "labelled": " AND v.id IN (SELECT verdict FROM label)",
            "pictured": " AND NOT v.is_anomalous AND v.id IN (SELECT verdict FROM picture)",
        }  # fmt: skip
        stream = "" if window.stream is None else " AND c.stream = ?"
        order = " ORDER BY v.at DESC, v.id DESC" if newest_first else " ORDER BY v.at, v.id"
        values = (window.since, window.end, *(() if window.stream is None else (window.stream,)), limit)
        labels = self._labels()
        for row in self._all(f"{ROWS} WHERE v.at >= ? AND v.at < ?{places[only]}{stream}{order} LIMIT ?", values):
            yield kept(row, labels)

    def unlabelled_scores(self, window: Window, bundle_id: str | None) -> tuple[list[float], int]:
        """The scores of accepted parts of that bundle that nobody labelled, ascending, and how many rejects nobody did."""
        where = "" if window.stream is None else " AND c.stream = ?"
        rows = self._all(
            "SELECT v.score, v.is_anomalous FROM verdict v JOIN source s ON s.id = v.source JOIN camera c ON c.id = s.camera"
            " JOIN judge j ON j.id = v.judge WHERE v.at >= ? AND v.at < ? AND j.bundle_id IS ? AND v.id NOT IN (SELECT verdict"
            f" FROM label){where} ORDER BY v.score",
            (window.since, window.end, bundle_id, *(() if window.stream is None else (window.stream,))),
        )  # fmt: skip
        return [score for score, is_bad in rows if not is_bad], sum(is_bad for _, is_bad in rows)

    def verdict(self, row: int) -> Kept | None:
        """The verdict of that row; None where it is gone."""
        found = self._all(f"{ROWS} WHERE v.id = ?", (row,))
        return kept(found[0], self._labels(row)) if found else None

    def find(self, fields: Mapping[str, Any]) -> int | None:
        """The row of a verdict as the sinks' JSON has it; None where it is not there yet, or gone."""
        crop = fields["crop"]["name"] if fields.get("crop") else None
        found = self._all(
            "SELECT v.id FROM verdict v JOIN source s ON s.id = v.source JOIN camera c ON c.id = s.camera "
            "WHERE c.stream = ? AND c.crop IS ? AND s.session = ? AND v.frame = ?",
            (fields["stream"], crop, session_of(fields), fields["index"]),
        )  # fmt: skip
        return found[0][0] if found else None

    def picture(self, row: int, kind: str) -> bytes | None:
        """The picture of that kind of the verdict; None where there is none."""
        found = self._all("SELECT data FROM picture WHERE verdict = ? AND kind = ?", (row, kind))
        return found[0][0] if found else None

    def picture_kinds(self, row: int) -> tuple[str, ...]:
        """The kinds of pictures that the verdict has."""
        return tuple(kind for (kind,) in self._all("SELECT kind FROM picture WHERE verdict = ?", (row,)))

    def _labels(self, row: int | None = None) -> dict[int, tuple[Label, ...]]:
        found: dict[int, tuple[Label, ...]] = {}
        where, values = ("", ()) if row is None else (" WHERE verdict = ?", (row,))
        for verdict, *facts in self._all(
            f"SELECT verdict, who, at, label, defect FROM label{where} ORDER BY id", values
        ):
            found[verdict] = (*found.get(verdict, ()), Label(*facts))
        return found

    # ---- a shift

    def shift(self, window: Window) -> dict[str, Any]:
        """The sums of the time, ready for JSON: counts, hours, score over time, places, outages, drift, labels."""
        minutes = self._minutes(window)
        end = window.until or max(
            [window.since + 1, round(1e3 * time.time()), *(1 + 60_000 * (one[0] + 1) for one in minutes)]
        )
        totals = total(minutes)
        return {
            "since": utc(window.since), "until": utc(end), "stream": window.stream, **totals,
            "cameras": [
                {"camera": name, **total([one for one in minutes if one[1] == name])}
                for name in sorted({one[1] for one in minutes})
            ],
            "hours": hours(minutes), "scores": scores(minutes, window.since, end), "places": self._places(window),
            "outages": self._outages(window, end), "drift": self._events(window, "drift.warning"),
            "events": self._events(window, None), "labels": self._label_counts(window),
            "outcomes": self._outcomes(window),
        }  # fmt: skip

    def _minutes(self, window: Window) -> list[tuple[Any, ...]]:
        """Minute, camera, threshold, bundle, verdicts, rejects, sum of accepted scores, largest score, latencies."""
        where = "" if window.stream is None else " AND c.stream = ?"
        return self._all(
            "SELECT m.minute, c.stream || coalesce('/' || c.crop, ''), j.threshold, j.bundle, m.verdicts, m.rejects,"
            " m.good_sum, m.score_max, m.latency_sum_us, m.latency_max_us FROM minute m JOIN camera c ON c.id = m.camera"
            f" JOIN judge j ON j.id = m.judge WHERE m.minute >= ? AND m.minute < ?{where} ORDER BY m.minute",
            (window.since // 60_000, -(-window.end // 60_000), *(() if window.stream is None else (window.stream,))),
        )  # fmt: skip

    def _places(self, window: Window) -> list[dict[str, object]]:
        """Of each camera where regions lay: cells of a grid with their counts, and those with most in words."""
        where = "" if window.stream is None else " AND c.stream = ?"
        rows = self._all(
            "SELECT c.stream || coalesce('/' || c.crop, ''), c.width, c.height, p.cell, sum(p.regions) FROM cell p JOIN"
            f" camera c ON c.id = p.camera WHERE p.minute >= ? AND p.minute < ?{where} GROUP BY p.camera, p.cell"
            " ORDER BY c.stream, sum(p.regions) DESC",
            (window.since // 60_000, -(-window.end // 60_000), *(() if window.stream is None else (window.stream,))),
        )  # fmt: skip
        found: dict[str, dict[str, Any]] = {}
        for camera, width, height, cell, regions in rows:
            place = {
                "column": cell % GRID, "row": cell // GRID, "regions": regions,
                "x": round((cell % GRID + 0.5) / GRID * (width or 0)), "y": round((cell // GRID + 0.5) / GRID * (height or 0)),
            }  # fmt: skip
            found.setdefault(camera, {"camera": camera, "grid": GRID, "width": width, "height": height, "cells": []})[
                "cells"
            ].append(place)
        return list(found.values())

    def _events(self, window: Window, kind: str | None) -> list[dict[str, object]]:
        """Those of the kind, None: all but drift, newest first."""
        where = " AND kind = ?" if kind else " AND kind NOT IN ('drift.warning', 'trigger.failed')"
        rows = self._all(
            f"SELECT at, kind, stream, facts FROM event WHERE at >= ? AND at < ?{where} ORDER BY at DESC, id DESC LIMIT 200",
            (window.since, window.end, *((kind,) if kind else ())),
        )
        return [
            {"time": utc(at), "event": name, "stream": stream, "facts": json.loads(facts)}
            for at, name, stream, facts in rows
            if window.stream in (None, stream) or stream is None
        ]

    def _outages(self, window: Window, end: int) -> list[dict[str, object]]:
        """When a camera gave no new picture, longest first; one that lasts has no `until`."""
        marks = ", ".join("?" * len(LOST + BACK))
        rows = self._all(
            f"SELECT at, kind, stream, facts FROM event WHERE kind IN ({marks}) AND at < ? AND at >= ? ORDER BY at, id",
            (*LOST, *BACK, window.end, window.since - 86_400_000),
        )
        open_ones: dict[str, tuple[int, str, Any]] = {}
        found = []

        def close(stream: str, until: int | None) -> None:
            began, kind, reason = open_ones.pop(stream)
            if (until or end) > window.since and window.stream in (None, stream):
                took_s = max(0, (until or end) - max(began, window.since)) / 1e3
                ends = None if until is None else utc(until)
                found.append({"stream": stream, "what": kind, "since": utc(began), "until": ends, "took_s": took_s,
                              "reason": reason})  # fmt: skip

        for at, kind, stream, facts in rows:
            if kind in LOST and stream not in open_ones:
                open_ones[stream] = (at, kind, json.loads(facts).get("reason"))
            elif kind in BACK and stream in open_ones:
                close(stream, at)
        for stream in list(open_ones):
            close(stream, None)
        return sorted(found, key=lambda one: -float(str(one["took_s"])))

    def _outcomes(self, window: Window) -> dict[str, int]:
        """Triggers of a triggered line that got no verdict, by what became of them."""
        rows = self._all(
            "SELECT stream, facts FROM event WHERE kind = 'trigger.failed' AND at >= ? AND at < ?",
            (window.since, window.end),
        )
        found = Counter(json.loads(facts).get("outcome") for stream, facts in rows if window.stream in (None, stream))
        return {str(outcome): count for outcome, count in found.most_common()}

    def _label_counts(self, window: Window) -> dict[str, Any]:
        """How many parts of the time somebody labelled, by the label that holds, and the kinds of true defects."""
        rows = self._all(
            "SELECT l.label, l.defect, count(*) FROM label l JOIN verdict v ON v.id = l.verdict WHERE l.id IN (SELECT max(id)"
            " FROM label GROUP BY verdict) AND v.at >= ? AND v.at < ? GROUP BY l.label, l.defect", (window.since, window.end),
        )  # fmt: skip
        labels: dict[str, int] = {}
        for label, _, count in rows:
            labels[label] = labels.get(label, 0) + count
        return {"held": labels, "defects": {defect: count for _, defect, count in rows if defect}}


def kept(row: tuple[Any, ...], labels: Mapping[int, tuple[Label, ...]]) -> Kept:
    """The verdict in a row of ROWS."""
    *facts, height, width, x, y = row
    facts[7] = bool(facts[7])
    facts[10] = tuple(map(tuple, json.loads(facts[10]))) if facts[10] else ()
    facts[11] = json.loads(facts[11]) if facts[11] else {}
    return Kept(*[*facts, (height, width) if width else None, (x or 0, y or 0), labels.get(row[0], ())])


def total(minutes: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Verdicts, rejects, yield and latency of the minutes."""
    verdicts, rejects = sum(one[4] for one in minutes), sum(one[5] for one in minutes)
    latency = {
        "mean_ms": sum(one[8] for one in minutes) / verdicts / 1e3,
        "max_ms": max(one[9] for one in minutes) / 1e3,
    } if verdicts else None  # fmt: skip
    share = (verdicts - rejects) / verdicts if verdicts else None
    return {"verdicts": verdicts, "rejects": rejects, "yield": share, "latency": latency}


def hours(minutes: list[tuple[Any, ...]]) -> list[dict[str, object]]:
    """Verdicts and rejects of each hour of this machine's clock and camera, oldest first."""
    found: dict[tuple[int, str], list[int]] = {}
    begins: dict[int, int] = {}  # of a quarter of an hour; zones differ by no less
    for minute, camera, _, _, verdicts, rejects, *_ in minutes:
        if (begin := begins.get(minute // 15)) is None:
            begin = begins[minute // 15] = round(datetime.fromtimestamp(60 * minute).replace(minute=0).timestamp())
        one = found.setdefault((begin, camera), [0, 0])
        one[0] += verdicts
        one[1] += rejects
    return [
        {"time": utc(1000 * begin), "camera": camera, "verdicts": verdicts, "rejects": rejects}
        for (begin, camera), (verdicts, rejects) in sorted(found.items())
    ]


def scores(minutes: list[tuple[Any, ...]], since: int, until: int) -> list[dict[str, object]]:
    """Of each camera mean accepted and largest score by time, divided by the threshold, which stands beside."""
    step = max(1, -(-(until - since) // 60_000 // BUCKETS))
    found: dict[tuple[str, int], list[float]] = {}
    for minute, camera, threshold, _, verdicts, rejects, good_sum, score_max, *_ in minutes:
        one = found.setdefault((camera, minute // step * step), [0, 0.0, 0.0, threshold])
        one[0] += verdicts - rejects
        one[1] += good_sum / threshold
        one[2] = max(one[2], score_max / threshold)
        one[3] = threshold
    return [
        {"time": utc(60_000 * minute), "camera": camera, "mean": good_sum / goods if goods else None, "max": top,
         "threshold": threshold} for (camera, minute), (goods, good_sum, top, threshold) in sorted(found.items())
    ]  # fmt: skip


def utc(at: int) -> str:
    """The moment as ISO 8601, UTC, to the millisecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at // 1000))}.{at % 1000:03d}Z"


def ms_between(first: str, last: str) -> int:
    """Milliseconds from one moment, as `utc` writes it, to another."""
    return ms_of(last) - ms_of(first)


def shift_begin(shifts: Sequence[str], now_s: float | None = None) -> int:
    """When the shift of `now_s` (None: now) began, of shifts that begin at these times of day; without any, the day."""
    now = datetime.fromtimestamp(time.time() if now_s is None else now_s)
    begins = []
    for text in shifts or ("00:00",):
        hour, minute = map(int, text.split(":"))
        begin = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        begins.append(begin if begin <= now else begin - timedelta(days=1))
    return round(1e3 * max(begins).timestamp())


def window_of(
    since: int | str, until: str | None, stream: str | None, names: tuple[str, str], now_s: float | None = None
) -> Window:
    """The time that a person means by two moments, `since` as one or in milliseconds since 1970; `names` are their options'.

    Of two times of day the second is the next one behind the first: at 10:00, 06:00 and 14:00 are this day's, 22:00 and 06:00
    the last night's. Raises ConfigError where the end does not lie behind the start.
    """
    begin = since if isinstance(since, int) else moment(since, names[0], now_s)
    if until is None:
        return Window(begin, None, stream)
    end = moment(until, names[1], now_s)
    if end <= begin and CLOCK.fullmatch(until.strip()) and (isinstance(since, int) or CLOCK.fullmatch(since.strip())):
        end = round(1e3 * (datetime.fromtimestamp(end / 1e3) + timedelta(days=1)).timestamp())
    if end <= begin:
        first = names[0] if isinstance(since, int) else f"{names[0]} {one_line(since)}"
        raise ConfigError(f"{names[1]} {one_line(until)} does not lie behind {first}")
    return Window(begin, end, stream)


def moment(text: str, option: str, now_s: float | None = None) -> int:
    """The moment that a person means: "8h" ago, "06:00" (the last one), or ISO 8601, of this machine's clock unless it
    names a zone. Raises ConfigError that begins with `option`."""
    now_s = time.time() if now_s is None else now_s
    text = text.strip()
    try:
        if (ago := DURATION.fullmatch(text)) is not None:
            return round(1e3 * (now_s - min(float(ago[1]) * SECONDS[ago[2]], now_s)))
        if CLOCK.fullmatch(text):
            now = datetime.fromtimestamp(now_s)
            hour, minute = map(int, text.split(":"))
            found = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            found -= timedelta(days=found > now)
        else:
            found = datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00"))
        return round(1e3 * found.timestamp())
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(f"{option} {one_line(text)!r} is no time: give 8h, 30m, 06:00 or 2026-11-29T06:00") from error
