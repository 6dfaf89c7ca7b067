"""What people say of a part: kept with who and when; of two labels both are kept, and the last one holds."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.runtime.history.database import connect, writing
from nnet_edge.text import UNPRINTABLE, one_line

OF_REJECTS, OF_ACCEPTED = ("false_alarm", "true_defect"), ("missed", "good")
LONGEST = 64  # letters of a name, and of a kind of defect


def add_label(path: Path, row: int, who: object, label: object, defect: object = None) -> None:
    """Keep what `who` says of the verdict of that row; `defect` is the kind of a true or missed one.

    Raises ConfigError for what is invalid, SinkError where it could not be kept.
    """
    name = text_of(who, "the name of who labels")
    kind = None if defect in (None, "") else text_of(defect, "the kind of defect")
    try:
        with closing(connect(path)) as database, writing(database):
            found = database.execute("SELECT is_anomalous FROM verdict WHERE id = ?", (row,)).fetchone()
            if found is None:
                raise ConfigError(f"the history has no verdict {row} any more")
            known = OF_REJECTS if found[0] else OF_ACCEPTED
            if label not in known:
                what = "a reject" if found[0] else "an accepted part"
                raise ConfigError(f"{what} is {known[0]} or {known[1]}, not {one_line(str(label))[:LONGEST]!r}")
            if kind is not None and label not in ("true_defect", "missed"):
                raise ConfigError(f"a part that is {label} has no kind of defect: leave it out")
            database.execute(
                "INSERT INTO label (verdict, at, who, label, defect) VALUES (?, ?, ?, ?, ?)",
                (row, round(1e3 * time.time()), name, label, kind),
            )
    except (sqlite3.Error, OSError) as error:
        told = one_line(getattr(error, "strerror", None) or str(error))
        raise SinkError(f"the label was not kept, the history {path} takes nothing: {told}") from error


def text_of(given: object, what: str) -> str:
    """What a person typed, on one line. Raises ConfigError for nothing, too much, or what no one can type."""
    text = " ".join(given.split()) if isinstance(given, str) else ""
    if not text or len(text) > LONGEST or UNPRINTABLE.search(text):
        raise ConfigError(f"{what} must be text of 1 to {LONGEST} letters")
    return text
