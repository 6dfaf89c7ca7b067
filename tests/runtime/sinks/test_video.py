"""A video holds every frame, or is not there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import VideoSettings, VideoSink, fit

MakePrediction = Callable[..., Prediction]
FilesUpTo = Callable[[int], AbstractContextManager[None]]


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_holds_every_frame_and_appears_when_it_is_whole(
    tmp_path: Path, make_prediction: MakePrediction, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"annotated{suffix}"
    with VideoSink(path, rate_hz=20) as sink:
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
        with VideoSink(tmp_path / "annotated.avi") as sink:
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
    with VideoSink(tmp_path / "line.avi", settings=VideoSettings(piece_s=0.5, by_stream=True)) as sink:
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
    settings = VideoSettings(piece_bytes=500_000, budget_bytes=1_500_000)
    with VideoSink(tmp_path / "line.avi", settings=settings) as sink:
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
    with VideoSink(tmp_path / "line.avi", settings=VideoSettings(stream="left")) as sink:
        assert not sink.wants(make_prediction(stream="right"))
        for stream in ("left", "right", "left"):
            sink.write(make_prediction(stream=stream))
    assert frames_of(tmp_path / "line.avi") == 2
    with VideoSink(tmp_path / "other.avi") as sink:
        sink.write(make_prediction(stream="left"))
        with pytest.raises(SinkError, match="shows left, not right: keep videos by stream"):
            sink.write(make_prediction(stream="right"))


def test_a_stream_without_frames_leaves_no_video(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "annotated.mp4"):
        pass
    assert os.listdir(tmp_path) == []


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"annotated\.gif has no suffix of a video that can be written: use \.mp4"):
        VideoSink(tmp_path / "annotated.gif")
    with pytest.raises(ConfigError, match=r"a video of -1 frames/s cannot be"):
        VideoSink(tmp_path / "annotated.mp4", rate_hz=-1)


def test_pictures_of_other_sizes_are_fitted_without_distortion() -> None:
    white = np.full((100, 50, 3), 255, np.uint8)
    fitted = fit(white, 200, 400)
    assert fitted.shape == (200, 400, 3)
    assert fitted[:, :100].min() == 255
    assert fitted[:, 100:].max() == 0
    np.testing.assert_array_equal(fit(white, 100, 50), white)
    assert fit(white[:, :49], 100, 48).shape == (100, 48, 3)
