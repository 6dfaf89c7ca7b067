"""A shift's sums, and the times that people type; a shift of a million verdicts is found at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.runtime.history.database import Bounds, Entry, Happening, HistoryWriter
from nnet_edge.runtime.history.queries import GRID, History, Window, moment, window_of
from nnet_edge.runtime.sinks.fields import utc_text

MakeHistory, MakeFields = Callable[..., Path], Callable[..., dict[str, Any]]
SIX = datetime(2026, 11, 29, 6).timestamp()  # of this machine's clock


def test_a_shift_has_its_counts_hours_scores_and_places(make_history: MakeHistory, make_fields: MakeFields) -> None:
    verdicts = [make_fields(n, SIX + 60 * n, is_bad=n % 30 == 0, stream=("left", "right")[n % 2]) for n in range(120)]
    path = make_history(*verdicts, make_fields(500, SIX - 3600, is_bad=True), make_fields(501, SIX + 7200))
    window = Window(round(1e3 * SIX), round(1e3 * (SIX + 7200)))
    with History(path) as history:
        shift = history.shift(window)
        assert len(list(history.verdicts(window))) == 120
        assert [one.frame for one in history.verdicts(window, "rejects")] == [0, 30, 60, 90]
        assert [one.frame for one in history.verdicts(window, "rejects", 1, newest_first=True)] == [90]
        right = history.shift(Window(window.since, window.until, "right"))
    assert (shift["verdicts"], shift["rejects"]) == (120, 4)
    assert shift["yield"] == pytest.approx(116 / 120)
    assert shift["latency"] == {"mean_ms": pytest.approx(12.5), "max_ms": 12.5}
    assert [(one["camera"], one["verdicts"], one["rejects"]) for one in shift["hours"]] == [
        ("left", 30, 2), ("right", 30, 0), ("left", 30, 2), ("right", 30, 0),
    ]  # fmt: skip
    assert {one["camera"]: one["rejects"] for one in shift["cameras"]} == {"left": 4, "right": 0}
    scores = [one for one in shift["scores"] if one["camera"] == "left"]
    assert max(one["max"] for one in scores) == pytest.approx(1.2)
    assert {round(one["mean"], 6) for one in scores if one["mean"] is not None} == {0.5}
    (place,) = shift["places"]
    cell = {"column": GRID // 2, "row": GRID // 2, "regions": 4, "x": 340, "y": 255}
    assert (place["camera"], place["width"], place["height"], place["cells"]) == ("left", 640, 480, [cell])
    assert (right["verdicts"], right["rejects"], right["places"]) == (60, 0, [])


def test_an_empty_shift_has_no_yield(make_history: MakeHistory) -> None:
    with History(make_history()) as history:
        shift = history.shift(Window(round(1e3 * SIX)))
    assert (shift["verdicts"], shift["yield"], shift["latency"], shift["hours"]) == (0, None, None, [])


def test_outages_are_paired_and_one_that_lasts_has_no_end(tmp_path: Path) -> None:
    def event(kind: str, stream: str, at_s: float, **facts: Any) -> Happening:
        fields = {"id": f"event/{kind}/{stream}/{at_s}", "event": kind, "stream": stream, "facts": facts}
        return Happening(fields | {"time": utc_text(round(1e3 * at_s))})

    writer = HistoryWriter(tmp_path / "h.db", Bounds(90, 1 << 40, 0))
    writer.open()
    writer.add([
        event("source.stalled", "left", SIX - 600), event("source.live", "left", SIX - 500),  # before
        event("source.lost", "right", SIX - 60, reason="cable"), event("source.live", "right", SIX + 30),
        event("source.stalled", "left", SIX + 100), event("source.lost", "left", SIX + 105),
        event("source.live", "left", SIX + 400),
        event("source.lost", "left", SIX + 3000), event("drift.warning", "left", SIX + 3001, psi=0.4),
        event("trigger.failed", "left", SIX + 5, outcome="missed"), event("trigger.failed", "left", SIX + 6, outcome="missed"),
        event("trigger.failed", "left", SIX + 7, outcome="no_answer"), event("trigger.failed", "left", SIX - 7, outcome="late"),
    ])  # fmt: skip
    writer.close()
    window = Window(round(1e3 * SIX), round(1e3 * (SIX + 3600)))
    with History(tmp_path / "h.db") as history:
        shift = history.shift(window)
    assert [(one["stream"], one["what"], one["took_s"], one["until"] is None) for one in shift["outages"]] == [
        ("left", "source.lost", 600, True), ("left", "source.stalled", 300, False), ("right", "source.lost", 30, False),
    ]  # fmt: skip
    assert shift["outages"][2]["reason"] == "cable"
    assert [one["facts"] for one in shift["drift"]] == [{"psi": 0.4}]
    assert shift["outcomes"] == {"missed": 2, "no_answer": 1}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8h", SIX + 3600 - 8 * 3600), ("30m", SIX + 1800), ("1.5d", SIX + 3600 - 129_600), ("06:00", SIX),
     ("06:30", SIX + 1800), ("07:01", SIX + 3660 - 86_400), ("2026-11-29T06:00", SIX), ("9" * 400 + "h", 0),
     (" 2026-11-29 06:00 ", SIX)],
)  # fmt: skip
def test_times_are_read_as_people_type_them(text: str, seconds: float) -> None:
    assert moment(text, "--since", SIX + 3600) == round(1e3 * seconds)


@pytest.mark.parametrize(
    ("since", "until", "begin", "end"),
    [("06:00", "14:00", 0, 8), ("06:00", "06:30", 0, 0.5), ("22:00", "06:00", -8, 0), ("14:00", "22:00", -16, -8),
     ("06:00", "06:00", 0, 24), ("3h", "06:00", -2, 0), ("2026-11-29T02:00", "06:00", -4, 0)],
)  # fmt: skip
def test_of_two_times_of_day_the_second_lies_behind_the_first(since: str, until: str, begin: float, end: float) -> None:
    found = window_of(since, until, "left", ("--since", "--until"), SIX + 3600)  # at 07:00, in the middle of a shift

    assert found == Window(round(1e3 * (SIX + 3600 * begin)), round(1e3 * (SIX + 3600 * end)), "left")


@pytest.mark.parametrize(("since", "until"), [("30m", "06:00"), ("06:00", "2026-11-29T05:00"), ("1h", "1h")])
def test_an_end_that_does_not_lie_behind_the_start_is_refused(since: str, until: str) -> None:
    with pytest.raises(ConfigError, match=f"--until {until} does not lie behind --since"):
        window_of(since, until, None, ("--since", "--until"), SIX + 3600)


def test_a_shift_that_began_goes_on_to_the_next_such_time() -> None:
    assert window_of(round(1e3 * SIX), "02:00", None, ("since", "until"), SIX + 3600).until == round(
        1e3 * (SIX + 20 * 3600)
    )
    assert window_of("06:00", None, None, ("since", "until"), SIX + 3600) == Window(round(1e3 * SIX))


@pytest.mark.parametrize("text", ["", "yesterday", "8", "25:00", "2026-13-01", "-8h", "0001-01-01"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--since"):
        moment(text, "--since")


@pytest.mark.slow
def test_a_shift_of_a_million_verdicts_is_found_in_a_fifth_of_a_second(
    tmp_path: Path, make_fields: MakeFields, record_testsuite_property: Callable[[str, object], None]
) -> None:
    count, days, now_s = int(os.environ.get("VERDICTS", "1000000")), 4, time.time()
    writer = HistoryWriter(tmp_path / "h.db", Bounds(90, 1 << 40, 100))
    writer.open()
    step_s = days * 86_400 / count
    for begin in range(0, count, 1000):
        numbers = range(begin, min(begin + 1000, count))
        streams = ((n, f"camera-{n % 4}") for n in numbers)
        writer.add([
            Entry(make_fields(n, now_s - step_s * (count - n), n % 50 == 0, stream=stream)) for n, stream in streams
        ])  # fmt: skip
    writer.close()
    size = (tmp_path / "h.db").stat().st_size
    took = []
    with History(tmp_path / "h.db") as history:
        for _ in range(3):
            began_s = time.perf_counter()
            shift = history.shift(Window(moment("8h", "")))
            took.append(time.perf_counter() - began_s)
        began_s = time.perf_counter()
        rejects = sum(1 for _ in history.verdicts(Window(moment("8h", "")), "rejects"))
        listed_s = time.perf_counter() - began_s
    record_testsuite_property("bytes each", size / count)
    record_testsuite_property("shift, ms", 1e3 * min(took))
    record_testsuite_property("its rejects, ms", 1e3 * listed_s)
    assert shift["verdicts"] == pytest.approx(count / 12, rel=0.02)
    assert min(took) < 0.2
    assert size / count < 150
    assert rejects == pytest.approx(shift["rejects"], abs=5)
    assert listed_s < 0.5
