"""A history keeps every verdict once, within its bounds, whatever clock and disk do."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.runtime.history import database as database_module
from nnet_edge.runtime.history.database import ACCEPTED, Bounds, Entry, Happening, HistoryWriter, connect
from nnet_edge.runtime.history.labels import add_label
from nnet_edge.runtime.history.queries import History, Window

MakeHistory, MakeFields = Callable[..., Path], Callable[..., dict[str, Any]]
ALL = Window(0)
DAY_S = 86_400.0


def rows(path: Path, only: str = "") -> list[int]:
    """The frames of the history."""
    with History(path) as history:
        return [one.frame for one in history.verdicts(ALL, only)]


def writer_of(path: Path, **bounds: Any) -> HistoryWriter:
    writer = HistoryWriter(path, Bounds(**{"days": 90, "budget_bytes": 1 << 40, "good_pictures": 100} | bounds))
    writer.open()
    return writer


def test_every_fact_of_a_verdict_comes_back(make_history: MakeHistory, make_fields: MakeFields) -> None:
    crop = {"name": "lid", "x": 1, "y": 2, "width": 640, "height": 480}
    fields = make_fields(
        3, is_bad=True, id="left/S/3/lid", crop=crop, trigger=17, recipe="lids", name="a.png", new_fact=[1, 2]
    )
    path = make_history(fields)
    with History(path) as history:
        (one,) = history.verdicts(ALL)
    found = one.as_dict()
    assert {key: found[key] for key in fields if key in found and key != "crop"} == {
        key: value for key, value in fields.items() if key in found and key != "crop"
    }
    assert (found["crop"], found["session"], found["latency_ms"], one.size) == ("lid", "S", 12.5, (480, 640))
    assert found["new_fact"] == [1, 2]


def test_a_verdict_that_arrives_twice_counts_once(make_history: MakeHistory, make_fields: MakeFields) -> None:
    path = make_history(make_fields(1), make_fields(1), make_fields(2))
    assert rows(make_history(make_fields(2), make_fields(3))) == [1, 2, 3]
    with History(path) as history:
        assert history.shift(ALL)["verdicts"] == 3


def test_a_transaction_that_fails_leaves_nothing_and_the_next_one_all(tmp_path: Path, make_fields: MakeFields) -> None:
    writer = writer_of(tmp_path / "h.db")
    with pytest.raises(KeyError):
        writer.add(
            [Entry(make_fields(1)), Entry({key: value for key, value in make_fields(2).items() if key != "index"})]
        )
    writer.add([Entry(make_fields(3))])
    writer.close()
    assert rows(tmp_path / "h.db") == [3]


def test_a_full_database_keeps_whole_verdicts_and_takes_more_once_there_is_room(
    tmp_path: Path, make_fields: MakeFields
) -> None:
    writer = writer_of(tmp_path / "h.db")
    assert writer._database is not None
    pages = writer._database.execute("PRAGMA page_count").fetchone()[0]
    writer._database.execute(f"PRAGMA max_page_count = {pages + 4}")  # SQLite's own "database or disk is full"
    with pytest.raises(sqlite3.OperationalError, match="full"):
        writer.add([Entry(make_fields(n), {"original": bytes(4096)}) for n in range(8)])
    writer._database.execute("PRAGMA max_page_count = 100000")
    writer.add([Entry(make_fields(n), {"original": bytes(4096)}) for n in range(8)])
    writer.close()
    assert rows(tmp_path / "h.db") == list(range(8))


def test_days_take_old_verdicts_and_leave_those_that_have_a_label(tmp_path: Path, make_fields: MakeFields) -> None:
    path, now_s = tmp_path / "h.db", time.time()
    writer = writer_of(path, days=1.5)
    writer.add([Entry(make_fields(n, now_s - (5 - n) * DAY_S, is_bad=True), {"map": b"png"}) for n in range(6)])
    with History(path) as history:
        add_label(path, next(history.verdicts(ALL)).id, "Ann", "false_alarm")
    while writer.prune():
        pass
    writer.close()
    assert rows(path) == [0, 4, 5]
    with History(path) as history:
        assert history.shift(ALL)["verdicts"] == 2  # of what lies within the days
        assert [history.picture(one.id, "map") for one in history.verdicts(ALL)] == [b"png"] * 3


def test_bytes_take_the_oldest_pictures_first_and_labelled_ones_last(tmp_path: Path, make_fields: MakeFields) -> None:
    path = tmp_path / "h.db"
    writer = writer_of(path, budget_bytes=1 << 20)
    writer.add([Entry(make_fields(n, is_bad=True), {"original": bytes(20_000)}) for n in range(100)])
    with History(path) as history:
        add_label(path, next(history.verdicts(ALL)).id, "Ann", "true_defect", "scratch")
    while writer.prune():
        pass
    assert writer.used_bytes() <= 1 << 20
    writer.close()
    assert rows(path) == list(range(100))
    with History(path) as history:
        pictured = [one.frame for one in history.verdicts(ALL) if history.picture_kinds(one.id)]
    assert pictured[0] == 0  # labelled
    assert pictured[1:] == list(range(pictured[1], 100))
    assert len(pictured) > 20
    assert path.stat().st_size < 3 << 20


def test_verdicts_go_where_there_are_no_pictures_left(tmp_path: Path, make_fields: MakeFields) -> None:
    writer = writer_of(tmp_path / "h.db", budget_bytes=1 << 18)
    for begin in range(0, 9000, 500):
        writer.add([Entry(make_fields(n)) for n in range(begin, begin + 500)])
    while writer.prune():
        pass
    assert writer.used_bytes() <= 1 << 18
    writer.close()
    left = rows(tmp_path / "h.db")
    assert 0 < len(left) < 9000
    assert left == list(range(left[0], 9000))


def test_only_the_newest_accepted_parts_keep_their_picture(tmp_path: Path, make_fields: MakeFields) -> None:
    path = tmp_path / "h.db"
    writer = writer_of(path, good_pictures=10)
    writer.add([Entry(make_fields(n), {ACCEPTED: b"png"}) for n in range(30)])
    with History(path) as history:
        add_label(path, next(history.verdicts(ALL)).id, "Ann", "missed", "dent")
    writer.prune()
    writer.close()
    assert rows(path, "pictured") == [0, *range(20, 30)]


def test_a_clock_that_leaps_ahead_deletes_nothing(
    tmp_path: Path, make_fields: MakeFields, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "h.db", time.time
    writer = writer_of(path, days=2)
    writer.add([Entry(make_fields(1))])
    monkeypatch.setattr(database_module.time, "time", lambda: real() + 3650 * DAY_S)
    writer.add([Entry(make_fields(2, real() + 3650 * DAY_S))])
    assert not writer.prune()
    writer.close()
    writer = writer_of(path, days=2)  # and a start with the wrong clock neither
    writer.prune()
    writer.close()
    assert rows(path) == [1, 2]
    writer = writer_of(path, days=2)
    writer._held_until_s = 0.0  # it has run for a day
    writer.prune()
    writer.close()
    assert rows(path) == [2]


def test_a_clock_that_is_set_back_is_told_and_nothing_is_left_out(
    tmp_path: Path, make_fields: MakeFields, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "h.db", time.time
    writer = writer_of(path)
    writer.add([Entry(make_fields(1, real()))])
    monkeypatch.setattr(database_module.time, "time", lambda: real() - 7200)
    writer.add([Entry(make_fields(2, real() - 7200))])
    writer.close()
    with History(path) as history:
        now = round(1e3 * (real() - 7200))
        shift = history.shift(Window(now - 60_000))
        assert [one.frame for one in history.verdicts(Window(now - 60_000))] == [2, 1]  # the one of "later" too
    assert shift["verdicts"] == 2
    (event,) = [one for one in shift["events"] if one["event"] == "clock.set"]
    assert event["facts"]["by_s"] == pytest.approx(-7200, abs=1)


def test_a_clock_that_was_set_back_between_two_starts_is_told(tmp_path: Path, make_fields: MakeFields) -> None:
    path = tmp_path / "h.db"
    writer = writer_of(path)
    writer.add([Entry(make_fields(1, time.time() + 3600))])
    writer.close()
    writer_of(path).close()
    with History(path) as history:
        assert [one["event"] for one in history.shift(ALL)["events"]] == ["clock.set"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 30)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE other (id INTEGER)")
        other.commit()
    for name in ("text.db", "other.db"):
        with pytest.raises(sqlite3.DatabaseError):
            connect(tmp_path / name)
        with pytest.raises(DataError, match="cannot read the history"):
            History(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        History(tmp_path / "absent.db")
    assert not (tmp_path / "absent.db").exists()


def test_a_removed_history_is_begun_anew(tmp_path: Path, make_fields: MakeFields) -> None:
    path = tmp_path / "h.db"
    writer = writer_of(path)
    writer.add([Entry(make_fields(1))])
    for file in tmp_path.iterdir():
        file.unlink()
    assert not writer.look()
    writer.add([Entry(make_fields(2))])
    assert writer.look()
    writer.close()
    assert rows(path) == [2]


def test_two_people_label_one_part_and_the_last_one_holds(make_history: MakeHistory, make_fields: MakeFields) -> None:
    path = make_history(make_fields(1, is_bad=True), make_fields(2))
    with History(path) as history:
        reject, accepted = (one.id for one in history.verdicts(ALL))
    add_label(path, reject, "Ann", "false_alarm")
    add_label(path, reject, "  Bob  B. ", "true_defect", "scratch")
    with History(path) as history:
        one = history.verdict(reject)
        assert one is not None
        assert [(label.who, label.label, label.defect) for label in one.labels] == [
            ("Ann", "false_alarm", None), ("Bob B.", "true_defect", "scratch"),
        ]  # fmt: skip
        assert one.as_dict()["label"] == "true_defect"
        assert history.shift(ALL)["labels"] == {"held": {"true_defect": 1}, "defects": {"scratch": 1}}
        assert [one.id for one in history.verdicts(ALL, "labelled")] == [reject]
    wrong = [(reject, "Ann", "missed", None), (accepted, "Ann", "true_defect", None), (accepted, "", "missed", None),
             (accepted, "Ann", "good", "dent"), (accepted, "x" * 65, "missed", None), (99, "Ann", "good", None),
             (accepted, "A\x1bnn", "missed", None), (accepted, 5, "missed", None),
             (accepted, "Ann", ["missed"], None)]  # fmt: skip
    for given in wrong:
        with pytest.raises(ConfigError):
            add_label(path, *given)
    assert [one.label for one in (History(path).verdict(accepted) or pytest.fail("gone")).labels] == []


def test_events_are_kept_once(tmp_path: Path) -> None:
    fields = {"id": "event/source.lost/left/1", "event": "source.lost", "stream": "left", "facts": {"reason": "gone"},
              "time": "2026-11-29T06:00:00.000Z"}  # fmt: skip
    writer = writer_of(tmp_path / "h.db")
    writer.add([Happening(fields), Happening(fields)])
    writer.close()
    with History(tmp_path / "h.db") as history:
        assert [one["event"] for one in history.shift(ALL)["events"]] == ["source.lost"]
