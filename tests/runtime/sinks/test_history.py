"""The history as a sink: verdicts, pictures and events arrive through its queue, and its faults are one sentence."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import JudgedBy, Prediction
from nnet_edge.runtime.history.queries import History, Kept, Window
from nnet_edge.runtime.sinks.history import HistorySettings, HistorySink
from nnet_edge.runtime.sinks.queued import QueuedSink, serve

MakePrediction = Callable[..., Prediction]
ALL = Window(0)


def kept(path: Path) -> list[Kept]:
    with History(path) as history:
        return list(history.verdicts(ALL))


def served(path: Path, **settings: Any) -> QueuedSink:
    sink = serve(HistorySettings(path=path, **settings))
    assert isinstance(sink, QueuedSink)
    return sink


def test_verdicts_pictures_and_events_are_kept(tmp_path: Path, make_prediction: MakePrediction) -> None:
    path = tmp_path / "of the line" / "h.db"
    with served(path, good_every_s=1000.0) as sink:
        for index in range(5):
            sink.write(make_prediction(index, is_good=index != 2, session="S"))
        sink.tell(Event("source.lost", "camera-0", facts={"reason": "cable"}))
        assert sink.flush(10)
        assert sink.counts().is_balanced
    verdicts = kept(path)
    assert [(one.frame, one.is_anomalous, one.session) for one in verdicts] == [(n, n == 2, "S") for n in range(5)]
    assert verdicts[2].regions == ((192.0, 96.0, 64.0, 32.0, 2048.0, 3.0),)
    assert verdicts[2].size == (256, 512)
    with History(path) as history:
        assert set(history.picture_kinds(verdicts[2].id)) == {"original", "overlay", "map"}
        picture = cv2.imdecode(np.frombuffer(history.picture(verdicts[2].id, "original") or b"", np.uint8), 1)
        assert (picture == make_prediction(2).frame.image).all()
        assert [history.picture_kinds(one.id) for one in verdicts if not one.is_anomalous] == [
            ("accepted",),
            (),
            (),
            (),
        ]
        assert [event["event"] for event in history.shift(ALL)["events"]] == ["source.lost"]


def test_accepted_frames_wait_without_their_pixels(tmp_path: Path, make_prediction: MakePrediction) -> None:
    sink = HistorySink(HistorySettings(path=tmp_path / "h.db", good_pictures=0))
    assert not sink.keeps_pixels(make_prediction(0, is_good=True))
    assert sink.keeps_pixels(make_prediction(1))


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="only root mounts a small disk")
@pytest.mark.parametrize("spooled", [False, True])
def test_a_full_disk_is_told_and_nothing_is_half_written(
    tmp_path: Path, make_prediction: MakePrediction, spooled: bool
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this container mounts nothing")
    try:
        filler = disk / "filler"
        more = {"must_deliver": tmp_path / "spool"} if spooled else {}
        with served(disk / "h.db", pictures=("original",), **more) as sink:
            sink.write(make_prediction(0))
            assert sink.flush(10)
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):  # until there is no room: the database may take some meanwhile
                    pass
            for index in range(1, 9):
                sink.write(make_prediction(index))
            end_s = time.monotonic() + 10
            while (reason := sink.counts().reason) is None and time.monotonic() < end_s:
                time.sleep(0.02)
            assert f"cannot write the history {disk / 'h.db'}: " in (reason or "")
            assert "disk is full" in (reason or "") or "disk I/O error" in (reason or "")
            filler.unlink()
            while sink.counts().delivered < 9 and time.monotonic() < end_s + 10:
                time.sleep(0.02)
            assert sink.counts().dropped == {}
        assert [one.frame for one in kept(disk / "h.db")] == list(range(9))
    finally:
        subprocess.run(["umount", disk], check=False)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="only root mounts a small disk")
def test_a_read_only_disk_is_told_and_still_read(tmp_path: Path, make_prediction: MakePrediction) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this container mounts nothing")
    try:
        with served(disk / "h.db") as sink:
            sink.write(make_prediction(0))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(SinkError, match="cannot write the history"):
            HistorySink(HistorySettings(path=disk / "h.db")).__enter__()
        assert [one.frame for one in kept(disk / "h.db")] == [0]
    finally:
        subprocess.run(["umount", disk], check=False)


def test_a_verdict_that_cannot_be_held_stops_no_other(tmp_path: Path, make_prediction: MakePrediction) -> None:
    with served(tmp_path / "h.db") as sink:
        sink.write(make_prediction(1))
        sink.write(replace(make_prediction(2), frame=replace(make_prediction(2).frame, index=1 << 80)))
        sink.write(make_prediction(3))
        assert sink.flush(10)
        assert sink.counts().dropped == {"refused": 1}
    assert [one.frame for one in kept(tmp_path / "h.db")] == [1, 3]


def test_with_must_deliver_a_history_that_cannot_be_opened_again_loses_nothing(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    settings = HistorySettings(path=tmp_path / "h.db", must_deliver=tmp_path / "spool")
    sink = serve(settings)
    with sink:
        for index in range(20):
            sink.write(make_prediction(index, is_good=index % 2 == 0))
    with serve(settings):
        pass
    assert [one.frame for one in kept(tmp_path / "h.db")] == list(range(20))


def test_a_file_that_is_no_history_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "h.db").write_text("something else" * 100)
    with pytest.raises(SinkError, match="not a database; move it away"):
        HistorySink(HistorySettings(path=tmp_path / "h.db")).__enter__()
    assert (tmp_path / "h.db").read_text().startswith("something else")


@pytest.mark.parametrize(
    "wrong",
    [{"days": 0}, {"days": 1e9}, {"budget_bytes": 5}, {"pictures": ("map", "map")}, {"pictures": ("jpeg",)},
     {"good_pictures": -1}, {"good_every_s": -1.0}, {"days": float("nan")}],
)  # fmt: skip
def test_invalid_settings_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        HistorySettings(path=tmp_path / "h.db", **wrong)


def test_a_report_of_the_shift_that_ended_is_written_once(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnet_edge.runtime.history import queries

    monkeypatch.setattr(
        queries, "shift_begin", lambda shifts, now_s=None: 0 if now_s is not None else 2_000_000_000_000
    )
    reports = tmp_path / "reports"
    settings = HistorySettings(path=tmp_path / "h.db", report_folder=reports, report_language="de")
    for _ in range(2):
        with HistorySink(settings) as sink:
            sink.send([sink.to_message(make_prediction(1))])
            sink._looked_s = 0.0
            sink.tick()
    (report,) = reports.iterdir()
    assert report.name == "shift-1970-01-01T0000Z.html"
    assert "Schichtbericht" in report.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_stops_no_verdict(tmp_path: Path, make_prediction: MakePrediction) -> None:
    (tmp_path / "reports").write_text("a file")
    with served(tmp_path / "h.db", report_folder=tmp_path / "reports") as sink:
        sink.write(make_prediction(1))
        assert sink.flush(10)
        assert sink.counts().dropped == {}
    assert [one.frame for one in kept(tmp_path / "h.db")] == [1]


def test_a_second_start_of_frames_without_a_session_is_no_repetition(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    for _ in range(2):
        with served(tmp_path / "h.db") as sink:
            sink.write(make_prediction(0, session=""))
            assert sink.flush(10)
    assert [one.frame for one in kept(tmp_path / "h.db")] == [0, 0]


def test_an_untaught_line_leaves_facts_and_no_pictures(tmp_path: Path, make_prediction: MakePrediction) -> None:
    untaught = replace(make_prediction(0), judged_by=JudgedBy("untaught", None, "none", "untaught"))
    with served(tmp_path / "h.db") as sink:
        sink.write(untaught)
        assert sink.flush(10)
    (one,) = kept(tmp_path / "h.db")
    assert (one.is_anomalous, one.runner) == (True, "untaught")
    with History(tmp_path / "h.db") as history:
        assert history.picture_kinds(one.id) == ()
