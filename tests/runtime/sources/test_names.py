"""Names of the outside world: whatever bytes they hold, everything behind the frame can print and keep them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnet_edge.cli.main import run as run_command
from nnet_edge.errors import DataError, SinkError, SourceError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.opencv_video import open_writer
from nnet_edge.runtime.sinks import CallbackSink, RejectsSettings, RejectsSink, to_fields
from nnet_edge.runtime.sinks.fields import to_json
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.stream.running import run
from nnet_edge.settings.stream import VerdictSettings
from nnet_edge.text import one_line, printable

LATIN_1 = os.fsdecode(b"teil_\xe4.png")  # as old Windows shares and zip files leave it
HOSTILE = (LATIN_1, "a\x1b[31mred.png", "two\nlines.png", "tfel\u202egnp.png", "\x9b1mbold.png")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Teil ä 部品\u3000é\u200d.png", "Teil ä 部品\u3000é\u200d.png"),  # what a person may write stays
        (LATIN_1, r"teil_\xe4.png"),
        ("a\x1b[31m\x00\x7f\x9b", r"a\x1b[31m\x00\x7f\x9b"),
        ("\u202e\u2066\u2028\ud800", r"\u202e\u2066\u2028\ud800"),
        ("two\nlines", r"two\x0alines"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(), max_size=40))
def test_any_text_becomes_utf_8_on_one_line(text: str) -> None:
    for shown in (printable(text), one_line(text), str(DataError(text))):
        shown.encode()
        assert len(shown.splitlines()) <= 1
        assert not any(ord(letter) < 32 for letter in shown)
        assert printable(shown) == shown


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    """A folder of pictures whose names are no plain text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    data = cv2.imencode(".png", np.full((20, 20, 3), 200, np.uint8))[1].tobytes()
    for name in HOSTILE:
        (folder / name).write_bytes(data)
    return folder


def test_a_stream_of_such_names_is_judged_and_every_sink_keeps_them(
    hostile_folder: Path, tmp_path: Path, make_prediction: Callable[..., Prediction]
) -> None:
    with open_source(str(hostile_folder)) as source:
        frames = list(source)
    assert sorted(frame.name or "" for frame in frames) == sorted(map(printable, HOSTILE))
    with RejectsSink(RejectsSettings(folder=tmp_path / "rejects", pictures=("overlay",), by_stream=False)) as sink:
        for frame in frames:
            prediction = make_prediction(frame.index, name=frame.name)
            assert json.loads(to_json(to_fields(prediction)))["name"] == frame.name
            sink.write(prediction)
    (session,) = (tmp_path / "rejects").iterdir()
    assert len(os.listdir(os.fsencode(session))) == len(HOSTILE)
    for name in os.listdir(session):
        assert printable(name) == name
        assert "\\" not in name  # Windows' shares refuse it


def test_a_watched_folder_survives_such_a_name(
    hostile_folder: Path, make_runner: Callable[..., Any], note_fault: Callable[..., None]
) -> None:
    seen: list[str | None] = []
    source = open_source(str(hostile_folder), watch=True)

    def take(prediction: Prediction) -> None:
        seen.append(prediction.frame.name)
        if len(seen) == len(HOSTILE):
            source.interrupt()

    timer = threading.Timer(5, source.interrupt)  # a name that is lost fails the test, and does not hang it
    timer.start()
    counts = run(source, make_runner(), [CallbackSink(take)], VerdictSettings(threshold=0.5)).counts
    timer.cancel()
    assert sorted(name or "" for name in seen) == sorted(map(printable, HOSTILE))
    note_fault("file names that are no plain text", counts.captured, counts.judged, counts.dropped, "none was lost")


def test_a_frame_that_anybody_makes_has_a_printable_name() -> None:
    frame = Frame(np.zeros((2, 2, 3), np.uint8), 0, time.monotonic(), name=LATIN_1)
    assert frame.name == r"teil_\xe4.png"


def test_an_error_that_names_such_a_file_cannot_write_to_the_terminal(
    hostile_folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in HOSTILE:
        (hostile_folder / name).write_bytes(b"no picture")
    with open_source(str(hostile_folder), skip_bad_images=True) as source:
        assert list(source) == []
    assert run_command(["train", str(hostile_folder), "--out", str(hostile_folder / "out")]) == 1
    for text in (caplog.text, capsys.readouterr().err):
        assert text.isascii()
        assert not any(ord(letter) < 32 and letter != "\n" for letter in text)


def test_a_video_of_such_a_name_is_refused_before_opencv_sees_it(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    path = tmp_path / LATIN_1.replace(".png", ".mp4")
    write_video(2).rename(path)
    with pytest.raises(SourceError, match=r"teil_\\xe4\.mp4 cannot be opened: its name is not UTF-8"):
        open_source(str(path))
    with pytest.raises(SinkError, match="rename it"):
        open_writer(str(path), "mp4v", 10.0, 48, 64)
