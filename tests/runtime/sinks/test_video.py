"""A video holds every frame, or is not there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import VideoSettings, VideoSink
from nnet_edge.runtime.sinks.queue import QueueSettings
from nnet_edge.runtime.sinks.queued import QueuedSink
from nnet_edge.runtime.sinks.video import UNKNOWN_RATE_HZ, fit
from nnet_edge.settings.registry import SINKS, Asked
from nnet_edge.settings.sink import SinkSettings

MakePrediction = Callable[..., Prediction]
FilesUpTo = Callable[[int], AbstractContextManager[None]]


def video_to(path: Path, by_stream: bool = False, **facts: Any) -> VideoSink:
    """A video that is one file of one stream, but for what is asked of it."""
    whole = {"piece_s": None, "piece_bytes": None, "budget_bytes": None}
    return VideoSink(VideoSettings(path=path, by_stream=by_stream, **whole | facts))


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_holds_every_frame_and_appears_when_it_is_whole(
    tmp_path: Path, make_prediction: MakePrediction, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"annotated{suffix}"
    with video_to(path, rate_hz=20) as sink:
        for index in range(7):
            sink.write(make_prediction(index, is_good=index != 3))
        assert not path.exists()
    assert os.listdir(tmp_path) == [path.name]
    capture = cv2.VideoCapture(str(path))
    pictures = [capture.read()[1] for _ in range(7)]
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(20)
    assert not capture.read()[0]
    assert pictures[0].shape == (288, 1080, 3)
    bars = [picture[4:28, -60:].mean(axis=(0, 1)) for picture in pictures]  # where no text stands
    assert [bar[2] > bar[1] for bar in bars] == [index == 3 for index in range(7)]  # the reject is red, the rest green
    assert capfd.readouterr().err == ""


def test_a_video_on_a_full_disk_is_told_and_taken_away(
    tmp_path: Path, make_prediction: MakePrediction, files_up_to: FilesUpTo
) -> None:
    random = np.random.default_rng(0)

    def record() -> None:
        with video_to(tmp_path / "annotated.avi") as sink:
            for index in range(20):
                prediction = make_prediction(index)
                prediction.frame.image[...] = random.integers(0, 256, prediction.frame.image.shape, np.uint8)
                sink.write(prediction)

    with (
        files_up_to(50_000),
        pytest.raises(SinkError, match=r"annotated\.avi holds \d+ of 20 frames: is the disk full"),
    ):
        record()
    assert os.listdir(tmp_path) == []


def frames_of(path: Path) -> int:
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    return count


def test_several_streams_become_pieces_of_their_own_that_are_whole_while_it_runs(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    (tmp_path / ".line.left.part.avi").write_bytes(b"what a kill left")
    (tmp_path / "line.left.000007.avi").write_bytes(b"a piece of an earlier run")
    with video_to(tmp_path / "line.avi", piece_s=0.5, by_stream=True) as sink:
        for index in range(6):
            for stream in ("left", "right"):
                sink.write(make_prediction(index, stream=stream))
        time.sleep(0.6)
        sink.tick()  # nothing comes any more: the piece is closed all the same
        assert sorted(path.name for path in tmp_path.glob("line*")) == [
            "line.left.000007.avi", "line.left.000008.avi", "line.right.000001.avi"]  # fmt: skip
        sink.write(make_prediction(6, stream="left"))
    assert sorted(os.listdir(tmp_path)) == ["line.left.000007.avi", "line.left.000008.avi", "line.left.000009.avi",
                                            "line.right.000001.avi"]  # fmt: skip
    assert [frames_of(tmp_path / f"line.{name}.avi") for name in ("left.000008", "right.000001", "left.000009")] == [
        6,
        6,
        1,
    ]


def test_pieces_are_cut_by_size_and_the_oldest_go_first(tmp_path: Path, make_prediction: MakePrediction) -> None:
    random = np.random.default_rng(0)
    prediction = make_prediction()
    prediction.frame.image[...] = random.integers(0, 256, prediction.frame.image.shape, np.uint8)
    (tmp_path / "line.of-somebody.avi").write_bytes(bytes(10**6))
    with video_to(tmp_path / "line.avi", piece_bytes=500_000, budget_bytes=1_500_000) as sink:
        for _ in range(60):
            sink.write(prediction)
    pieces = sorted(path for path in tmp_path.iterdir() if path.name != "line.of-somebody.avi")
    numbers = [int(path.name.split(".")[1]) for path in pieces]
    assert numbers[0] > 1
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert sum(path.stat().st_size for path in pieces) <= 1_500_000
    assert all(frames_of(path) for path in pieces)
    assert (tmp_path / "line.of-somebody.avi").exists()


def test_only_the_stream_that_was_asked_for_is_shown(tmp_path: Path, make_prediction: MakePrediction) -> None:
    with video_to(tmp_path / "line.avi", stream="left") as sink:
        assert sink.only_stream == "left"
        for stream in ("left", "right", "left"):
            sink.write(make_prediction(stream=stream))
    assert frames_of(tmp_path / "line.avi") == 2
    with video_to(tmp_path / "other.avi") as sink:
        sink.write(make_prediction(stream="left"))
        with pytest.raises(SinkError, match="shows left, not right: keep videos by_stream"):
            sink.write(make_prediction(stream="right"))


def test_the_rate_is_that_of_the_settings_or_of_the_stream(tmp_path: Path, make_prediction: MakePrediction) -> None:
    found = []
    for rate_hz, known_hz in ((None, None), (None, 25.0), (5.0, 25.0)):
        with video_to(tmp_path / "line.avi", rate_hz=rate_hz) as sink:
            sink.expect("test", known_hz)
            sink.expect("other", 50.0)
            sink.write(make_prediction())
        found.append(cv2.VideoCapture(str(sink.outputs[0])).get(cv2.CAP_PROP_FPS))
    assert found == [UNKNOWN_RATE_HZ, 25.0, 5.0]


@pytest.mark.parametrize(
    ("gaps_s", "rate_hz", "shown"),
    [
        ([0.5] * 11, 2, 12),  # a slow camera
        ([0.04] * 30 + [1.0] + [0.04] * 5, 25, 61),  # 24 of a second without frames are shown again
        ([0.1] * 9 + [0.02] * 50, 10, 20),  # faster than it was measured: left out
        ([0.034, 0.033, 0.033, 0.030, 0.036] * 6, 30, 31),  # a clock that is not quite even costs nothing
        ([0.5] * 3 + [1000.0], 2, 4 + 120),  # a pause of a quarter of an hour is a minute
        ([], UNKNOWN_RATE_HZ, 1),
    ],
)
def test_live_video_is_as_long_as_what_it_shows(
    tmp_path: Path, make_prediction: MakePrediction, gaps_s: list[float], rate_hz: float, shown: int
) -> None:
    path, time_s = tmp_path / "line.avi", 1000.0
    with video_to(path) as sink:
        sink.expect("test", None, is_live=True)
        for index, gap_s in enumerate([0.0, *gaps_s]):
            time_s += gap_s
            sink.write(make_prediction(index, captured_s=time_s))
        assert sink.unfinished == len(gaps_s) + 1
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(rate_hz)
    assert frames_of(path) == pytest.approx(shown, abs=1)


def test_a_file_is_shown_by_its_own_times_also_when_it_begins_again(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    path = tmp_path / "line.avi"
    with video_to(path) as sink:
        sink.expect("test", 10.0)
        for index, time_s in enumerate([0.0, 0.1, 0.2, 1.0, 1.1, 0.0, 0.1, 0.2]):
            sink.write(make_prediction(index, in_file_s=time_s))
    assert frames_of(path) == 12 + 3


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_large_picture_is_encoded_in_time(tmp_path: Path, make_prediction: MakePrediction, suffix: str) -> None:
    """A full-HD camera has 40 ms a frame; VP9 takes 1.3 s."""
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (108, 192, 3), np.uint8), (1920, 1080))
    with video_to(tmp_path / f"line{suffix}", rate_hz=25) as sink:
        began_s = time.process_time()
        for index in range(5):
            sink.write(make_prediction(index, image=picture))
    assert time.process_time() - began_s < 5 * 0.4  # ten times what it takes, for a machine that is busy
    assert frames_of(tmp_path / f"line{suffix}") == 5


def test_a_video_that_does_not_end_in_time_is_an_error_and_counted_as_lost(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch, note_fault: Callable[..., None]
) -> None:
    monkeypatch.setattr("nnet_edge.runtime.sinks.queued.END_LIMIT_S", 0.1)
    hold = threading.Event()

    class Slow(VideoSink):
        def __exit__(self, *about: object) -> None:
            hold.wait(10)
            super().__exit__(*about)

    sink = QueuedSink(Slow(VideoSettings(path=tmp_path / "line.avi", by_stream=False)), QueueSettings(flush_s=0.3))

    def record() -> None:
        with sink:
            for index in range(3):
                sink.write(make_prediction(index))
            assert sink.flush(5)

    with pytest.raises(SinkError, match=r"video did not end within 0\.4 s: 3 frames are lost"):
        record()
    counts = sink.counts()
    hold.set()
    assert counts.is_balanced
    assert (counts.delivered, counts.dropped) == (0, {"unfinished": 3})
    note_fault("video not finished in time", 3, counts.delivered, counts.dropped, "an error, exit code 1", "verdicts")
    for thread in threading.enumerate():
        if thread.name == "sink video":
            thread.join(5)


def test_a_second_start_replaces_no_video(tmp_path: Path, make_prediction: MakePrediction) -> None:
    written = []
    for frames in (3, 2, 1):
        with video_to(tmp_path / "line.avi") as sink:
            for index in range(frames):
                sink.write(make_prediction(index))
        written += sink.outputs
    assert [path.name for path in written] == ["line.avi", "line.000001.avi", "line.000002.avi"]
    assert [frames_of(path) for path in written] == [3, 2, 1]


def test_a_stream_without_frames_leaves_no_video(tmp_path: Path) -> None:
    with video_to(tmp_path / "annotated.mp4"):
        pass
    assert os.listdir(tmp_path) == []


def test_invalid_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"annotated\.gif has no suffix of a video that can be written: use \.mp4"):
        video_to(tmp_path / "annotated.gif")
    with pytest.raises(ConfigError, match=r"the rate -1 frames/s of a video is invalid"):
        video_to(tmp_path / "annotated.mp4", rate_hz=-1)


def test_pictures_of_other_sizes_are_fitted_without_distortion() -> None:
    white = np.full((100, 50, 3), 255, np.uint8)
    fitted = fit(white, 200, 400)
    assert fitted.shape == (200, 400, 3)
    assert fitted[:, :100].min() == 255
    assert fitted[:, 100:].max() == 0
    np.testing.assert_array_equal(fit(white, 100, 50), white)
    assert fit(white[:, :49], 100, 48).shape == (100, 48, 3)


def test_the_registry_builds_it_from_a_table_and_from_the_flag(tmp_path: Path) -> None:
    table = {"kind": "video", "path": "line.mp4", "stream": "left", "piece_s": 60}
    settings = SinkSettings.from_table(table, "[[sink]]", tmp_path)
    assert settings == VideoSettings(path=tmp_path / "line.mp4", stream="left", piece_s=60.0)
    assert settings.shown_stream == "left"
    kind = SINKS.find("video")
    assert isinstance(kind.make(settings), VideoSink)
    with pytest.raises(ConfigError, match="a video cannot be made to deliver later: leave must_deliver out"):
        SinkSettings.from_table({"kind": "video", "path": "line.mp4", "must_deliver": "spool"}, "[[sink]]", tmp_path)
    assert kind.flag is not None
    for asked, pieces in ((Asked(), (None, None)), (Asked(is_live=True), (600.0, 1 << 30))):
        typed = SinkSettings.from_table(
            {"kind": "video", **kind.flag.table(tmp_path / "a.mp4", asked)}, "--video", Path()
        )
        assert isinstance(typed, VideoSettings)
        assert (typed.piece_s, typed.piece_bytes) == pieces
        assert (typed.budget_bytes, typed.by_stream, typed.queue) == (None, False, 256 if asked.is_live else 0)
