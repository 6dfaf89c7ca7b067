"""Whole lines only, whatever happens; files that rotate; what is on the disk when."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import JudgedBy, Prediction, Triggered
from nnet_edge.runtime.sinks import (
    JsonLinesSettings,
    JsonLinesSink,
    RejectsSettings,
    RejectsSink,
    Sink,
    VideoSettings,
    VideoSink,
    to_fields,
    utc_text,
)
from nnet_edge.runtime.sinks.fields import to_json_line
from nnet_edge.runtime.sinks.rotation import rotated_files
from nnet_edge.settings.registry import SINKS, Asked
from nnet_edge.settings.sink import SinkSettings

FULL_DISK = Path("/dev/full")  # every write to it fails with "No space left on device"
MakePrediction = Callable[..., Prediction]
FilesUpTo = Callable[[int], AbstractContextManager[None]]


def log_to(path: Path, append: bool = False, fsync_every_s: float | None = None, **facts: Any) -> JsonLinesSink:
    """A log that does nothing but what is asked of it."""
    return JsonLinesSink(
        JsonLinesSettings(path=path, append=append, fsync_every_s=fsync_every_s, **{"events": False} | facts)
    )


def test_each_line_says_everything_about_one_frame(tmp_path: Path, make_prediction: MakePrediction) -> None:
    path = tmp_path / "new" / "verdicts.jsonl"
    with log_to(path) as sink:
        sink.write(make_prediction(0, is_good=True))
        assert len(path.read_text().splitlines()) == 1  # at once, not at the end
        sink.write(make_prediction(1, name="Löt.png"))
    good, bad = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert (good["verdict"], good["index"], good["regions"], good["name"]) == ("good", 0, [], None)
    assert abs(datetime.fromisoformat(bad.pop("time")).timestamp() - datetime.now().timestamp()) < 60
    assert bad == {
        "id": "test/1",
        "crop": None,
        "stream": "test",
        "index": 1,
        "name": "Löt.png",
        "score": 3.0,
        "relative_score": 1.5,
        "threshold": 2.0,
        "threshold_from": "bundle",
        "verdict": "anomalous",
        "regions": [{"x": 192, "y": 96, "width": 64, "height": 32, "area": 2048.0, "peak": 3.0}],
        "latencies_ms": {"infer": 12.346, "total": 20.0},
        "schema": 1,
        **dict.fromkeys(("bundle", "bundle_id", "precision", "runner", "time_in_file_s", "trigger", "recipe")),
    }


def test_a_triggered_part_is_one_verdict_over_its_crops(make_prediction: MakePrediction) -> None:
    frame = replace(make_prediction(0).frame, trigger=Triggered(7, 0.0, "plc"), recipe="m8")
    good_crop = replace(make_prediction(0, is_good=True), frame=frame, part_verdict=True)
    for fields in (to_fields(good_crop), json.loads(to_json_line(good_crop))):
        assert (fields["trigger"], fields["recipe"], fields["triggered_by"]) == (7, "m8", "plc")
        assert (fields["verdict"], fields["part"]) == ("good", "anomalous")


def test_the_moment_of_capture_is_iso_8601() -> None:
    assert utc_text(1_700_000_000_007) == "2023-11-14T22:13:20.007Z"


def test_without_a_path_lines_go_to_standard_output(
    make_prediction: MakePrediction, capfd: pytest.CaptureFixture[str]
) -> None:
    with log_to(Path("-")) as sink:
        sink.write(make_prediction(7))
    assert json.loads(capfd.readouterr().out)["index"] == 7


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told(make_prediction: MakePrediction) -> None:
    says = "cannot write verdicts to /dev/full: No space left on device"
    with log_to(FULL_DISK) as sink, pytest.raises(SinkError, match=says):
        sink.write(make_prediction())


def test_on_a_full_disk_the_file_ends_with_a_whole_line(
    tmp_path: Path, make_prediction: MakePrediction, files_up_to: FilesUpTo
) -> None:
    path = tmp_path / "verdicts.jsonl"
    with log_to(path) as sink:
        sink.write(make_prediction(0))
        small_disk = files_up_to(path.stat().st_size + 100)
        with small_disk, pytest.raises(SinkError, match="cannot write verdicts to"):
            sink.write(make_prediction(1))
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0]


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: log_to(folder / "file" / "verdicts.jsonl"),
        lambda folder: RejectsSink(RejectsSettings(folder=folder / "file" / "rejects")),
        lambda folder: VideoSink(VideoSettings(path=folder / "file" / "video.mp4")),
        lambda folder: log_to(folder),
    ],
)
def test_a_place_that_cannot_be_written_is_told_on_entering(tmp_path: Path, make: Callable[[Path], Sink]) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SinkError, match=f"cannot write .*{tmp_path}"), make(tmp_path):
        pass


def indices(*paths: Path) -> list[int]:
    """The frames whose lines the files hold, in their order; fails for a line that is not whole."""
    return [json.loads(line)["index"] for path in paths for line in path.read_bytes().decode().splitlines()]


def test_a_file_that_exists_is_appended_to_or_numbered_and_never_emptied(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    path, numbered = tmp_path / "verdicts.jsonl", tmp_path / "verdicts.000001.jsonl"
    for append, found in ((False, [0]), (True, [0, 1]), (False, [2])):
        with log_to(path, append) as sink:
            sink.write(make_prediction(found[-1]))
        assert indices(path) == found
    assert indices(numbered) == [0, 1]
    with log_to(path, append=False, keep_files=1):
        pass
    assert (indices(path), sorted(os.listdir(tmp_path))) == ([], ["verdicts.000002.jsonl", "verdicts.jsonl"])


@pytest.mark.parametrize("torn_bytes", [1, 40, 200_000])
def test_a_torn_last_line_is_cut_off_before_appending(
    tmp_path: Path, make_prediction: MakePrediction, torn_bytes: int
) -> None:
    path = tmp_path / "verdicts.jsonl"
    with log_to(path) as sink:
        sink.write(make_prediction(0))
    with path.open("ab") as file:
        file.write(b"{" * torn_bytes)
    with log_to(path, append=True) as sink:
        sink.write(make_prediction(1))
    assert indices(path) == [0, 1]


def test_files_rotate_by_size_and_the_oldest_go(tmp_path: Path, make_prediction: MakePrediction) -> None:
    path = tmp_path / "verdicts.jsonl"
    (tmp_path / "verdicts.old.jsonl").write_bytes(b"not ours")
    for start in (0, 20):  # the numbers go on after a restart
        with log_to(path, append=True, turn_bytes=2000, keep_files=3) as sink:
            for index in range(start, start + 20):
                sink.write(make_prediction(index))
    kept = sorted(tmp_path.glob("verdicts.0*.jsonl"))
    assert len(kept) == 3
    assert int(kept[-1].name.split(".")[1]) >= 5
    assert all(file.stat().st_size <= 2000 for file in [*kept, path])
    found = indices(*kept, path)
    assert found == list(range(found[0], 40))
    assert (tmp_path / "verdicts.old.jsonl").exists()


def test_files_rotate_by_age(tmp_path: Path, make_prediction: MakePrediction) -> None:
    path = tmp_path / "verdicts.jsonl"
    with log_to(path, turn_every_s=0.05) as sink:
        sink.write(make_prediction(0))
        time.sleep(0.06)
        sink.write(make_prediction(1))
        sink.write(make_prediction(2))
    assert indices(tmp_path / "verdicts.000001.jsonl") == [0]
    assert indices(path) == [1, 2]


def count_fsyncs(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch, every_s: float | None
) -> int:
    """How often the system was asked for an fsync while 5 lines were written within a second, until before closing."""
    asked: list[int] = []
    true_fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (asked.append(number), true_fsync(number)))
    with log_to(tmp_path / "verdicts.jsonl", fsync_every_s=every_s) as sink:
        for index in range(5):
            sink.write(make_prediction(index))
            sink.tick()
        return len(asked)


@pytest.mark.parametrize(("every_s", "fsyncs"), [(None, 0), (0.0, 5), (60.0, 0)])
def test_lines_reach_the_disk_when_the_policy_says(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch, every_s: float | None, fsyncs: int
) -> None:
    assert count_fsyncs(tmp_path, make_prediction, monkeypatch, every_s) == fsyncs


def test_an_idle_log_reaches_the_disk_in_time(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "fsync", asked.append)
    with log_to(tmp_path / "verdicts.jsonl", fsync_every_s=0.05) as sink:
        sink.write(make_prediction(0))
        sink.tick()
        assert not asked
        time.sleep(0.06)
        sink.tick()
        sink.tick()
        assert len(asked) == 1


def test_a_line_says_what_judged_it(tmp_path: Path, make_prediction: MakePrediction) -> None:
    path, shared = (
        tmp_path / "verdicts.jsonl",
        {"bundle": 'part "ü"', "bundle_id": "0123456789ab", "precision": "int8", "runner": "openvino"},
    )
    with log_to(path) as sink:
        sink.write(replace(make_prediction(0), judged_by=JudgedBy(**shared)))
        sink.write(make_prediction(1))
    known, unknown = (json.loads(line) for line in path.read_text().splitlines())
    assert {name: known[name] for name in shared} == shared
    assert {name: unknown[name] for name in shared} == dict.fromkeys(shared)
    assert known["schema"] == unknown["schema"] == 1
    for line, prediction in (
        (known, replace(make_prediction(0), judged_by=JudgedBy(**shared))),
        (unknown, make_prediction(1)),
    ):
        assert list(line) == list(to_fields(prediction))


def test_events_lie_in_a_file_of_their_own(tmp_path: Path, make_prediction: MakePrediction) -> None:
    path, beside, named = (tmp_path / name for name in ("verdicts.jsonl", "verdicts.events.jsonl", "what.jsonl"))
    event = Event("source.lost", "left", 1_700_000_000.0, {"reason": "no frame for 5 s"})
    for facts in ({"events": False}, {"events": True}, {"events": True, "events_path": named}):
        with log_to(path, append=True, **facts) as sink:
            sink.tell(event)
            sink.write(make_prediction(0))
    assert indices(path) == [0, 0, 0]
    assert named.read_text() == beside.read_text()
    assert json.loads(beside.read_text()) == {
        "id": "event/source.lost/left/1700000000000000",
        "event": "source.lost",
        "stream": "left",
        "time": "2023-11-14T22:13:20.000Z",
        "facts": {"reason": "no frame for 5 s"},
        "schema": 1,
    }
    for wrong in ({"events_path": path}, {"events_path": named, "events": False}):
        with pytest.raises(ConfigError, match="give another file than path"):
            JsonLinesSettings(path=path, **wrong)


def test_on_standard_output_events_stand_among_verdicts(
    make_prediction: MakePrediction, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with log_to(Path("-"), append=True, events=True) as sink:
        sink.tell(Event("source.lost", "left"))
        sink.write(make_prediction(0))
    assert [list(json.loads(line))[1] for line in capfdbinary.readouterr().out.splitlines()] == ["event", "stream"]


@pytest.mark.parametrize("is_removed", [True, False])
@pytest.mark.parametrize("has_folder", [True, False])
def test_a_log_that_is_removed_or_renamed_is_begun_anew_and_loses_no_line(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch, is_removed: bool, has_folder: bool
) -> None:
    monkeypatch.setattr("nnet_edge.runtime.sinks.json_lines.LOOK_EVERY_S", 0.0)
    path, moved = tmp_path / "logs" / "verdicts.jsonl", tmp_path / "moved"
    with log_to(path, append=True) as sink:
        sink.write(make_prediction(0))
        monkeypatch.setattr("nnet_edge.runtime.sinks.json_lines.LOOK_EVERY_S", 10.0)
        sink.write(make_prediction(1))  # since it was last seen
        path.parent.rename(moved)
        if has_folder:
            path.parent.mkdir()
        if is_removed:
            shutil.rmtree(moved)
        sink.write(make_prediction(2))
        monkeypatch.setattr("nnet_edge.runtime.sinks.json_lines.LOOK_EVERY_S", 0.0)
        sink.tick()
        sink.write(make_prediction(3))
    assert indices(path) == ([1, 2, 3] if is_removed else [3])
    assert is_removed or indices(moved / path.name) == [0, 1, 2]


def test_the_newest_lines_of_a_removed_log_wait_until_there_is_a_disk_again(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnet_edge.runtime.sinks.json_lines.LOOK_EVERY_S", 0.0)
    path = tmp_path / "logs" / "verdicts.jsonl"
    with log_to(path, append=True) as sink:
        monkeypatch.setattr("nnet_edge.runtime.sinks.json_lines.LOOK_EVERY_S", 10.0)
        sink.write(make_prediction(0))
        shutil.rmtree(path.parent)
        path.parent.write_text("in the way")
        monkeypatch.setattr("nnet_edge.runtime.sinks.json_lines.LOOK_EVERY_S", 0.0)
        with pytest.raises(SinkError, match="cannot write verdicts to"):
            sink.tick()
        with pytest.raises(SinkError, match="cannot write verdicts to"):
            sink.write(make_prediction(1))
        path.parent.unlink()
        sink.write(make_prediction(1))
    assert indices(path) == [0, 1]


def test_after_a_full_disk_the_log_goes_on(
    tmp_path: Path, make_prediction: MakePrediction, files_up_to: FilesUpTo
) -> None:
    path = tmp_path / "verdicts.jsonl"
    with log_to(path, append=True) as sink:
        sink.write(make_prediction(0))
        small_disk = files_up_to(path.stat().st_size + 100)
        with small_disk, pytest.raises(SinkError, match="File too large"):
            sink.write(make_prediction(1))
        sink.write(make_prediction(2))
    assert indices(path) == [0, 2]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"turn_bytes": 10}, "bytes of a log file is 10"),
        ({"turn_every_s": 0.0}, "until a log file rotates are 0.0"),
        ({"keep_files": -1}, "log files to keep is -1"),
        ({"fsync_every_s": float("nan")}, "between two fsyncs of the log are nan"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        JsonLinesSettings(path=Path("x"), **wrong)  # type: ignore[arg-type]


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from nnet_edge.frame import Frame, Prediction, Region
from nnet_edge.runtime.sinks import JsonLinesSettings, JsonLinesSink

regions = tuple(Region(1, 2, 3, 4, 5.0, 6.0) for _ in range(300))  # lines of 20 KB: a kill meets many of them half-way
frame = np.zeros((8, 8, 3), np.uint8)
with JsonLinesSink(JsonLinesSettings(path=Path(sys.argv[1]), turn_bytes=1_000_000, fsync_every_s=None)) as sink:
    for index in range(int(sys.argv[2]), 10**9):
        sink.write(Prediction(Frame(frame, index, time.monotonic(), "left"), 3.0, 2.0, None, regions))
"""


def size_of(path: Path) -> int:
    """Its bytes; 0 while there is none, between two files too."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_after_kill_9_every_line_before_the_last_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    next_index = 0
    for pause_s in (0.02, 0.05, 0.08):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), str(next_index)])
        while size_of(path) < 100_000:
            time.sleep(0.005)
            assert process.poll() is None
        time.sleep(pause_s)
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        *whole, last = b"".join(file.read_bytes() for file in [*rotated_files(path), path]).split(b"\n")
        found = [json.loads(line)["index"] for line in whole]
        assert found == sorted(set(found))
        assert len(found) > 3
        if last:
            with pytest.raises(ValueError, match="line 1"):
                json.loads(last)
        next_index = found[-1] + 1
    with log_to(path, append=True):
        pass
    assert path.read_bytes().endswith(b"}\n")


def test_the_registry_builds_it_from_a_table_and_from_the_flag(tmp_path: Path) -> None:
    table = {"kind": "json-lines", "path": "log.jsonl", "turn_bytes": 5000, "must_deliver": "spool"}
    settings = SinkSettings.from_table(table, "[[sink]]", tmp_path)
    assert settings == JsonLinesSettings(path=tmp_path / "log.jsonl", turn_bytes=5000, must_deliver=tmp_path / "spool")
    kind = SINKS.find("json-lines")
    sink = kind.make(settings)
    assert isinstance(sink, JsonLinesSink)
    assert sink.outputs == (tmp_path / "log.jsonl", tmp_path / "log.events.jsonl")

    def typed(path: str, asked: Asked) -> JsonLinesSettings:
        assert kind.flag is not None
        found = SinkSettings.from_table({"kind": "json-lines", **kind.flag.table(Path(path), asked)}, "--json", Path())
        assert isinstance(found, JsonLinesSettings)
        assert found.fsync_every_s is None
        assert found.events is (found.queue > 0 and path != "-")
        return found

    file = typed("/x.jsonl", Asked())
    assert (file.append, file.queue, file.every_frame, file.is_strict) == (True, 0, True, False)
    live = typed("-", Asked(is_live=True))
    assert (live.append, live.queue, live.every_frame) == (True, 256, False)
    assert (live.path, live.is_strict, kind.make(live).outputs) == (Path("-"), True, ())
    assert typed("/x.jsonl", Asked(is_live=True, every_frame=True)).every_frame
    assert typed("/x.jsonl", Asked(streams=2)).queue == 256
