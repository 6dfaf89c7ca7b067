"""What sinks write can be read back; what they cannot write is an error, and nothing half-written stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Frame, Prediction, Region
from nnet_edge.runtime.sinks import CallbackSink, JsonLinesSink, RejectPicturesSink, Sink, VideoSink, fit, utc_text

FULL_DISK = Path("/dev/full")  # every write to it fails with "No space left on device"
MakePrediction = Callable[..., Prediction]


@pytest.fixture
def make_prediction(make_frame: Callable[..., Frame]) -> MakePrediction:
    """A function that gives a prediction of a frame with one region, or of a good frame."""

    def make(index: int = 0, is_good: bool = False, name: str | None = None) -> Prediction:
        frame = make_frame(index, is_good, name)
        anomaly_map = np.zeros((256, 256), np.float32)
        regions: tuple[Region, ...] = ()
        if not is_good:
            anomaly_map[96:128, 96:128] = 3.0
            regions = (Region(192, 96, 64, 32, 2048.0, 3.0),)
        return Prediction(frame, float(anomaly_map.max()), 2.0, anomaly_map, regions, {"infer": 12.3456, "total": 20.0})

    return make


@contextmanager
def files_up_to(limit_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: a small disk.

    Lifted again inside the test: pytest writes its own output, which may be a long file, before fixtures are torn down.
    """
    resource = pytest.importorskip("resource", reason="no file size limit on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_each_line_says_everything_about_one_frame(tmp_path: Path, make_prediction: MakePrediction) -> None:
    path = tmp_path / "new" / "verdicts.jsonl"
    with JsonLinesSink(path) as sink:
        sink.write(make_prediction(0, is_good=True))
        assert len(path.read_text().splitlines()) == 1  # at once, not at the end
        sink.write(make_prediction(1, name="Löt.png"))
    good, bad = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    assert (good["verdict"], good["index"], good["regions"], good["name"]) == ("good", 0, [], None)
    assert abs(datetime.fromisoformat(bad.pop("time")).timestamp() - datetime.now().timestamp()) < 60
    assert bad == {
        "stream": "test",
        "index": 1,
        "name": "Löt.png",
        "score": 3.0,
        "relative_score": 1.5,
        "threshold": 2.0,
        "verdict": "anomalous",
        "regions": [{"x": 192, "y": 96, "width": 64, "height": 32, "area": 2048.0, "peak": 3.0}],
        "latencies_ms": {"infer": 12.346, "total": 20.0},
    }


def test_the_moment_of_capture_is_iso_8601() -> None:
    assert utc_text(1_700_000_000_007) == "2023-11-14T22:13:20.007Z"


def test_without_a_path_lines_go_to_standard_output(
    make_prediction: MakePrediction, capfd: pytest.CaptureFixture[str]
) -> None:
    with JsonLinesSink(None) as sink:
        sink.write(make_prediction(7))
    assert json.loads(capfd.readouterr().out)["index"] == 7


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told(make_prediction: MakePrediction) -> None:
    says = "cannot write verdicts to /dev/full: No space left on device"
    with JsonLinesSink(FULL_DISK) as sink, pytest.raises(SinkError, match=says):
        sink.write(make_prediction())


def test_on_a_full_disk_the_file_ends_with_a_whole_line(tmp_path: Path, make_prediction: MakePrediction) -> None:
    path = tmp_path / "verdicts.jsonl"
    with JsonLinesSink(path) as sink:
        sink.write(make_prediction(0))
        small_disk = files_up_to(path.stat().st_size + 100)
        with small_disk, pytest.raises(SinkError, match="cannot write verdicts to"):
            sink.write(make_prediction(1))
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0]


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: JsonLinesSink(folder / "file" / "verdicts.jsonl"),
        lambda folder: RejectPicturesSink(folder / "file" / "rejects"),
        lambda folder: VideoSink(folder / "file" / "video.mp4"),
        lambda folder: JsonLinesSink(folder),
    ],
)
def test_a_place_that_cannot_be_written_is_told_on_entering(tmp_path: Path, make: Callable[[Path], Sink]) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SinkError, match=f"cannot write .*{tmp_path}"), make(tmp_path):
        pass


def test_rejects_leave_a_picture_and_good_frames_none(tmp_path: Path, make_prediction: MakePrediction) -> None:
    with RejectPicturesSink(tmp_path / "rejects") as sink:
        sink.write(make_prediction(0, is_good=True))
        sink.write(make_prediction(12, name="part 12.png"))
        sink.write(make_prediction(13))
    assert sorted(os.listdir(tmp_path / "rejects")) == ["000012_part 12.jpg", "000013.jpg"]
    assert cv2.imread(str(tmp_path / "rejects" / "000013.jpg")).shape == (32 + 256, 2 * 512 + 56, 3)


def test_a_picture_that_does_not_fit_leaves_no_part(tmp_path: Path, make_prediction: MakePrediction) -> None:
    says = "cannot write pictures of rejects to"
    with RejectPicturesSink(tmp_path) as sink, files_up_to(1000), pytest.raises(SinkError, match=says):
        sink.write(make_prediction())
    assert os.listdir(tmp_path) == []


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


def test_a_video_on_a_full_disk_is_told_and_taken_away(tmp_path: Path, make_prediction: MakePrediction) -> None:
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


def test_a_callback_that_fails_is_a_sink_that_fails(make_prediction: MakePrediction) -> None:
    seen: list[Prediction] = []
    with CallbackSink(seen.append) as sink:
        sink.write(make_prediction(5))
    assert [prediction.frame.index for prediction in seen] == [5]

    def alarm(prediction: Prediction) -> None:
        raise ConnectionError("no PLC")

    with CallbackSink(alarm) as sink, pytest.raises(SinkError, match=r"callback alarm failed at frame 5: .*no PLC"):
        sink.write(make_prediction(5))
