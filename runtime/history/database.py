"""The database of a history: one SQLite file with a write-ahead log, bounded by days and bytes.

    verdict        a row each: when, which frame, score, verdict; what repeats stands once in camera, source and judge
    minute, cell   sums of each minute and camera, and where on the picture regions lay: a shift is read from these
    picture        of rejects, and of the newest accepted parts
    event, label   what happened to the line; what people said of a part

The line writes, pages and commands read beside it. A row is whole or not there. Methods raise sqlite3.Error.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

VERSION = 1  # of the tables: PRAGMA user_version
APPLICATION = 0x4E4E4831  # "NNH1": that the file is a history
BUSY_S = 5.0
GRID = 16  # cells of a picture's width and height, for where regions lie
CLOCK_S = 2.0  # by less a clock is corrected, by more it was set
LEAP_S = 86_400.0  # a clock that leapt further ahead deletes nothing by days until it has run for so long
ACCEPTED = "accepted"  # the kind of an accepted part's picture, a lossless PNG as a reject's original
NEW_GOOD = 8  # of these pictures come before the oldest go
PRUNED = 2000  # verdicts that are deleted at once, so that no other write waits for long
LOG_BYTES = 64 << 20  # of the write-ahead log, once it was written back
TABLES = """
CREATE TABLE camera (id INTEGER PRIMARY KEY, stream TEXT NOT NULL, crop TEXT, width INTEGER, height INTEGER, x INTEGER,
  y INTEGER);
CREATE TABLE source (id INTEGER PRIMARY KEY, camera INTEGER NOT NULL, session TEXT NOT NULL);
CREATE TABLE judge (id INTEGER PRIMARY KEY, bundle TEXT, bundle_id TEXT, precision TEXT, runner TEXT, recipe TEXT,
  threshold REAL NOT NULL, threshold_from TEXT);
CREATE TABLE verdict (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, source INTEGER NOT NULL, frame INTEGER NOT NULL,
  score REAL NOT NULL, is_anomalous INTEGER NOT NULL, judge INTEGER NOT NULL, latency_us INTEGER, trigger INTEGER,
  regions TEXT, more TEXT);
CREATE UNIQUE INDEX verdict_frame ON verdict (source, frame);
CREATE INDEX verdict_at ON verdict (at);
CREATE INDEX reject_at ON verdict (at) WHERE is_anomalous;
CREATE TABLE minute (minute INTEGER NOT NULL, camera INTEGER NOT NULL, judge INTEGER NOT NULL, verdicts INTEGER NOT NULL,
  rejects INTEGER NOT NULL, good_sum REAL NOT NULL, score_max REAL NOT NULL, latency_sum_us INTEGER NOT NULL,
  latency_max_us INTEGER NOT NULL, PRIMARY KEY (minute, camera, judge)) WITHOUT ROWID;
CREATE TABLE cell (minute INTEGER NOT NULL, camera INTEGER NOT NULL, cell INTEGER NOT NULL, regions INTEGER NOT NULL,
  PRIMARY KEY (minute, camera, cell)) WITHOUT ROWID;
CREATE TABLE picture (verdict INTEGER NOT NULL, kind TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (verdict, kind));
CREATE TABLE event (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
  stream TEXT, facts TEXT NOT NULL);
CREATE INDEX event_at ON event (at);
CREATE TABLE label (id INTEGER PRIMARY KEY AUTOINCREMENT, verdict INTEGER NOT NULL, at INTEGER NOT NULL, who TEXT NOT NULL,
  label TEXT NOT NULL, defect TEXT);
CREATE INDEX label_verdict ON label (verdict);
CREATE TABLE note (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""
KNOWN = frozenset((  # fields of a verdict that have a column, or follow from others
    "id", "stream", "session", "index", "crop", "time", "score", "relative_score", "threshold", "threshold_from", "verdict",
    "regions", "size", "latencies_ms", "bundle", "bundle_id", "precision", "runner", "recipe", "trigger", "schema",
))  # fmt: skip
ADD_MINUTE = """INSERT INTO minute VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (minute, camera, judge) DO UPDATE SET
verdicts = verdicts + excluded.verdicts, rejects = rejects + excluded.rejects, good_sum = good_sum + excluded.good_sum,
score_max = max(score_max, excluded.score_max), latency_sum_us = latency_sum_us + excluded.latency_sum_us,
latency_max_us = max(latency_max_us, excluded.latency_max_us)"""
ADD_CELL = """INSERT INTO cell VALUES (?, ?, ?, ?) ON CONFLICT (minute, camera, cell) DO UPDATE SET
regions = regions + excluded.regions"""
HELD = "SELECT max(value) FROM note WHERE name = 'held_until'"
LABELLED = "(SELECT verdict FROM label)"


@dataclass(frozen=True, slots=True)
class Entry:
    """A verdict as the sinks' JSON has it, with the `size` (height, width) of the picture, and its pictures by kind."""

    fields: Mapping[str, Any]
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Happening:
    """An event as the sinks' JSON has it."""

    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Bounds:
    """What a history may keep."""

    days: float
    budget_bytes: int
    good_pictures: int  # newest accepted parts that keep their picture; labelled ones always do


def ms_of(text: str) -> int:
    """Milliseconds since 1970 of a time as `utc_text` writes it."""
    return round(1e3 * datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())


def session_of(fields: Mapping[str, Any]) -> str:
    """The session in the id of a frame, stream/session/index[/crop]; where it has none, that of the history's start."""
    text = str(fields["id"]).removeprefix(f"{fields['stream']}/")
    if fields.get("crop"):
        text = text.removesuffix(f"/{fields['crop']['name']}")
    session, slash, _ = text.rpartition("/")
    return session if slash else str(fields.get("session") or "")


def connect(path: Path, is_new: bool = False) -> sqlite3.Connection:
    """A connection that writes; without `is_new` the file must be there. Raises sqlite3.Error, FileNotFoundError."""
    if not is_new and not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        prepare(database)
    except BaseException:
        database.close()
        raise
    return database


def prepare(database: sqlite3.Connection) -> None:
    """Make the tables where there are none. Raises sqlite3.DatabaseError for a file of something else."""
    if ask(database, "PRAGMA page_count") == 0:
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(
        "PRAGMA synchronous = NORMAL"
    )  # what was written outlives a kill; a power cut costs the last moments
    database.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
    require_history(database)
    if ask(database, "PRAGMA user_version") == 0:
        with writing(database):
            if ask(database, "PRAGMA user_version") == 0:  # another writer did not come first
                for statement in filter(str.strip, TABLES.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {APPLICATION}")
                database.execute(f"PRAGMA user_version = {VERSION}")


def require_history(database: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError for a database of something else, or of a later version."""
    is_empty = ask(database, "SELECT count(*) FROM sqlite_master") == 0
    if not is_empty and ask(database, "PRAGMA application_id") != APPLICATION:
        raise sqlite3.DatabaseError("it is a database, but no history of a line")
    if (version := ask(database, "PRAGMA user_version")) > VERSION:
        raise sqlite3.DatabaseError(f"it is a history of version {version}, and this nnet-edge knows {VERSION}")


def ask(database: sqlite3.Connection, statement: str, values: Sequence[object] = ()) -> Any:
    """The only value of the only row."""
    return database.execute(statement, values).fetchone()[0]


@contextmanager
def writing(database: sqlite3.Connection) -> Iterator[None]:
    """A transaction: everything in the block is kept, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if database.in_transaction:  # a full disk has rolled it back already
            database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


class HistoryWriter:
    """Writes the history at `path`, one thread at a time."""

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.path, self.bounds = path, bounds
        self._database: sqlite3.Connection | None = None
        self._ids: dict[tuple[object, ...], int] = {}  # of rows that repeat
        self._pictured: dict[int, tuple[int, ...]] = {}  # camera -> height, width and corner of its pictures
        self._offset_s: float | None = None  # time.time() less time.monotonic()
        self._new_good = 0  # pictures of accepted parts since the oldest were deleted
        self._held_until_s = 0.0  # time.monotonic() until which nothing goes by its age

    def open(self) -> None:
        """Open the file, or make it."""
        self._database = connect(self.path, is_new=True)
        self._forget()
        newest, held = ask(self._database, "SELECT max(at) FROM verdict"), ask(self._database, HELD)
        if newest is not None:
            self._hear_clock(time.time() - newest / 1e3, is_start=True)
        left_s = (held or 0) / 1e3 - time.time()  # of a leap of an earlier run
        self._held_until_s = max(self._held_until_s, time.monotonic() + min(left_s, LEAP_S))

    def close(self) -> None:
        """Write the log back into the file, and close it."""
        if self._database is not None:
            self._database.close()
            self._database = None
            self._forget()

    def look(self) -> bool:
        """Whether the file still lies where it was opened; else it is begun anew."""
        if self._database is not None:
            (name,) = [row[2] for row in self._database.execute("PRAGMA database_list") if row[1] == "main"]
            if os.path.exists(name):
                return True
            self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.open()
        return False

    def add(self, items: Sequence[Entry | Happening]) -> None:
        """Write them in order, all or none; one that is there already is passed over."""
        if self._database is None:
            self.look()
        assert self._database is not None
        self._see_clock()
        try:
            with writing(self._database):
                self._add(self._database, items)
        except BaseException:
            self._forget()  # rows that were undone have no ids
            raise

    def _forget(self) -> None:
        self._ids.clear()
        self._pictured.clear()

    def _add(self, database: sqlite3.Connection, items: Sequence[Entry | Happening]) -> None:
        sums: dict[tuple[int, int, int], list[float]] = defaultdict(lambda: [0, 0, 0.0, 0.0, 0, 0])
        cells: dict[tuple[int, int, int], int] = defaultdict(int)
        for item in items:
            fields = item.fields
            if isinstance(item, Happening):
                add_event(
                    database, ms_of(fields["time"]), fields["id"], fields["event"], fields["stream"], fields["facts"]
                )
                continue
            camera, source, judge = self._places(database, fields)
            at, is_bad = ms_of(fields["time"]), fields["verdict"] == "anomalous"
            total_ms = fields.get("latencies_ms", {}).get("total")
            latency_us = None if total_ms is None else round(1e3 * total_ms)
            found = database.execute(
                "INSERT OR IGNORE INTO verdict (at, source, frame, score, is_anomalous, judge, latency_us, trigger, regions,"
                " more) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (at, source, fields["index"], fields["score"], int(is_bad), judge, latency_us, fields.get("trigger"),
                 packed_regions(fields), packed_rest(fields)),
            )  # fmt: skip
            if found.rowcount == 0:
                continue
            database.executemany(
                "INSERT INTO picture VALUES (?, ?, ?)",
                [(found.lastrowid, kind, data) for kind, data in item.pictures.items()],
            )
            self._new_good += ACCEPTED in item.pictures
            one = sums[at // 60_000, camera, judge]
            one[0] += 1
            one[1] += is_bad
            one[2] += 0.0 if is_bad else fields["score"]
            one[3] = max(one[3], fields["score"])
            one[4] += latency_us or 0
            one[5] = max(one[5], latency_us or 0)
            for cell in cells_of(fields):
                cells[at // 60_000, camera, cell] += 1
        database.executemany(ADD_MINUTE, [(*key, *values) for key, values in sums.items()])
        database.executemany(ADD_CELL, [(*key, count) for key, count in cells.items()])

    def _places(self, database: sqlite3.Connection, fields: Mapping[str, Any]) -> tuple[int, int, int]:
        """The rows of the verdict's camera, source and judge."""
        crop = fields["crop"]["name"] if fields.get("crop") else None
        camera = self._row(database, "camera", stream=fields["stream"], crop=crop)
        if fields.get("size"):
            x, y = (fields["crop"]["x"], fields["crop"]["y"]) if fields.get("crop") else (0, 0)
            place = (*fields["size"], x, y)
            if self._pictured.get(camera) != place:
                database.execute("UPDATE camera SET height = ?, width = ?, x = ?, y = ? WHERE id = ?", (*place, camera))
                self._pictured[camera] = place
        source = self._row(database, "source", camera=camera, session=session_of(fields))
        names = ("bundle", "bundle_id", "precision", "runner", "recipe", "threshold", "threshold_from")
        return camera, source, self._row(database, "judge", **{name: fields.get(name) for name in names})

    def _row(self, database: sqlite3.Connection, table: str, **values: object) -> int:
        """The id of the row with these values, which is made where there is none."""
        key = (table, *values.values())
        if key not in self._ids:
            where = " AND ".join(f"{name} IS ?" for name in values)
            found = database.execute(f"SELECT id FROM {table} WHERE {where}", list(values.values())).fetchone()
            if found is None:
                names, marks = ", ".join(values), ", ".join("?" * len(values))
                made = database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))
                found = (made.lastrowid,)
            self._ids[key] = found[0]
        return self._ids[key]

    # ---- the clock

    def _see_clock(self) -> None:
        """Take notice of a clock that was set while the line runs."""
        offset_s, before_s = time.time() - time.monotonic(), self._offset_s
        self._offset_s = offset_s
        if before_s is not None and abs(offset_s - before_s) > CLOCK_S:
            self._hear_clock(offset_s - before_s)

    def _hear_clock(self, by_s: float, is_start: bool = False) -> None:
        """Keep what a clock that was set by `by_s` would cost: the event says so, and a leap ahead deletes nothing."""
        assert self._database is not None
        if by_s > LEAP_S:
            self._held_until_s = time.monotonic() + LEAP_S
            until = round(1e3 * (time.time() + LEAP_S))
            self._database.execute("INSERT OR REPLACE INTO note VALUES ('held_until', ?)", (until,))
        if by_s < -CLOCK_S or (abs(by_s) > CLOCK_S and not is_start):  # between two starts it may have stood for days
            at = round(1e3 * time.time())
            add_event(self._database, at, f"event/clock.set/line/{at}", "clock.set", None, {"by_s": round(by_s, 1)})

    # ---- bounds

    def used_bytes(self) -> int:
        """Bytes that hold something."""
        assert self._database is not None
        return used_bytes(self._database)

    def prune(self) -> bool:
        """Delete a little of what lies beyond the bounds; whether there is more of it."""
        if self._database is None:
            return False
        database, is_more = self._database, False
        if time.monotonic() >= self._held_until_s:
            oldest = round(1e3 * (time.time() - 86_400 * self.bounds.days))
            with writing(database):
                old = f"SELECT id FROM verdict WHERE at < {oldest} AND id NOT IN {LABELLED} LIMIT {PRUNED}"
                is_more = self._delete(old) == PRUNED
                for table in ("minute", "cell"):
                    database.execute(f"DELETE FROM {table} WHERE minute < ?", (oldest // 60_000,))
                database.execute("DELETE FROM event WHERE at < ?", (oldest,))
        if self._new_good >= min(NEW_GOOD, self.bounds.good_pictures):
            self._new_good = 0
            with writing(database):
                database.execute(
                    f"DELETE FROM picture WHERE kind = '{ACCEPTED}' AND verdict IN (SELECT verdict FROM picture WHERE kind ="
                    f" '{ACCEPTED}' AND verdict NOT IN {LABELLED} ORDER BY verdict DESC LIMIT -1 OFFSET ?)",
                    (self.bounds.good_pictures,),
                )  # fmt: skip
        if used_bytes(database) > self.bounds.budget_bytes:
            is_more = self._make_room(database) or is_more
        if ask(database, "PRAGMA page_count") * ask(database, "PRAGMA page_size") > self.bounds.budget_bytes:
            database.execute("PRAGMA incremental_vacuum(2000)").fetchall()
        return is_more

    def _make_room(self, database: sqlite3.Connection) -> bool:
        """Delete the oldest pictures, then the oldest verdicts, those that have a label last; whether there was something."""
        for where in (f"WHERE verdict NOT IN {LABELLED}", ""):
            with writing(database):
                oldest = f"SELECT DISTINCT verdict FROM picture {where} ORDER BY verdict LIMIT 16"
                if database.execute(f"DELETE FROM picture WHERE verdict IN ({oldest})").rowcount:
                    return True
        with writing(database):
            return self._delete(f"SELECT id FROM verdict ORDER BY id LIMIT {PRUNED}") > 0

    def _delete(self, which: str) -> int:
        """Delete these verdicts with everything of theirs; gives how many."""
        assert self._database is not None
        database = self._database
        ids = [(row[0],) for row in database.execute(which)]
        for table, column in (("picture", "verdict"), ("label", "verdict"), ("verdict", "id")):
            database.executemany(f"DELETE FROM {table} WHERE {column} = ?", ids)
        return len(ids)


def add_event(database: sqlite3.Connection, at: int, name: str, kind: str, stream: str | None, facts: object) -> None:
    """Keep an event, once."""
    text = json.dumps(facts, separators=(",", ":"), default=str)
    values = (at, name, kind, stream, text)
    database.execute("INSERT OR IGNORE INTO event (at, name, kind, stream, facts) VALUES (?, ?, ?, ?, ?)", values)


def used_bytes(database: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something."""
    pages = ask(database, "PRAGMA page_count") - ask(database, "PRAGMA freelist_count")
    return int(pages * ask(database, "PRAGMA page_size"))


def packed_regions(fields: Mapping[str, Any]) -> str | None:
    """The regions as [x, y, width, height, area, peak] each; None where there are none."""
    regions = fields.get("regions")
    if not regions:
        return None
    rows = [[one[key] for key in ("x", "y", "width", "height", "area", "peak")] for one in regions]
    return json.dumps(rows, separators=(",", ":"))


def packed_rest(fields: Mapping[str, Any]) -> str | None:
    """What has no column of its own, as JSON; None where there is nothing."""
    rest = {key: value for key, value in fields.items() if key not in KNOWN and value is not None}
    return json.dumps(rest, separators=(",", ":"), default=str) if rest else None


def cells_of(fields: Mapping[str, Any]) -> Iterator[int]:
    """The cell of each region's middle on a grid over the picture, row by row."""
    if fields.get("regions") and fields.get("size"):
        height, width = fields["size"]
        for one in fields["regions"]:
            row = GRID * (one["y"] + one["height"] / 2) / height
            column = GRID * (one["x"] + one["width"] / 2) / width
            yield GRID * min(int(row), GRID - 1) + min(int(column), GRID - 1)


def read_only(path: Path) -> sqlite3.Connection:
    """A connection that reads what a line may be writing. Raises sqlite3.Error, FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    address = path.resolve().as_uri()
    database = sqlite3.connect(f"{address}?mode=ro", timeout=BUSY_S, uri=True, check_same_thread=False)
    try:
        ask(database, "SELECT count(*) FROM sqlite_master")
    except (
        sqlite3.OperationalError
    ):  # a folder in which nothing can be made: the log is read in place where it is empty
        database.close()
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise
        database = sqlite3.connect(f"{address}?immutable=1", uri=True, check_same_thread=False)
    with closing_on_error(database):
        require_history(database)
    return database


@contextmanager
def closing_on_error(database: sqlite3.Connection) -> Iterator[None]:
    """Close the connection when the block fails."""
    try:
        yield
    except BaseException:
        with closing(database):
            raise
