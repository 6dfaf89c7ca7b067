"""Each kind of source gives its frames in order, and says in one line what is wrong with one that cannot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.errors import SourceError
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.sources.synthetic import DEFECT_EVERY, PART_RADIUS, SyntheticSource, draw_part

WriteVideo = Callable[..., Path]


def write_image(path: Path, brightness: int) -> None:
    image = np.full((20, 30, 3), brightness, np.uint8)
    image[..., 0] = 0  # no blue: BGR and RGB differ
    assert cv2.imwrite(str(path), image)


def test_a_folder_gives_its_images_in_natural_order_as_bgr(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_image(tmp_path / f"part_{number}.png", 20 * number)
    (tmp_path / "notes.txt").write_text("no image")
    with open_source(str(tmp_path)) as source:
        frames = list(source)
    assert [frame.name for frame in frames] == ["part_1.png", "part_2.png", "part_10.png"]
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert frames[1].image.shape == (20, 30, 3)
    assert frames[1].image[0, 0].tolist() == [0, 40, 40]
    assert {frame.stream for frame in frames} == {tmp_path.name}
    assert not source.is_live
    assert source.describe() == f"folder {tmp_path}, 3 images"


def test_a_single_image_is_a_source(tmp_path: Path) -> None:
    write_image(tmp_path / "one.jpg", 100)
    with open_source(str(tmp_path / "one.jpg")) as source:
        assert [frame.name for frame in source] == ["one.jpg"]


def test_a_corrupt_image_stops_the_folder_and_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 100)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with open_source(str(tmp_path)) as source:
        frames = iter(source)
        assert next(frames).name == "a.png"
        with pytest.raises(SourceError, match=r"b\.png.*--skip-bad-images"):
            next(frames)


def test_a_jpeg_with_damage_inside_is_named_though_decoders_show_it(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "b.jpg").write_bytes(data[:1500] + bytes(300) + data[1800:])
    assert cv2.imread(str(tmp_path / "b.jpg")) is not None
    with (
        open_source(str(tmp_path)) as source,
        pytest.raises(SourceError, match=r"b\.jpg: it is damaged"),
    ):
        list(source)
    with open_source(str(tmp_path), skip_bad_images=True) as source:
        assert [frame.name for frame in source] == ["a.jpg"]
    assert source.skipped == 1


def test_a_corrupt_image_is_passed_over_and_counted_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "c.png"):
        write_image(tmp_path / name, 100)
    (tmp_path / "b.png").write_bytes(b"")
    with open_source(str(tmp_path), skip_bad_images=True) as source:
        frames = list(source)
    assert [(frame.name, frame.index) for frame in frames] == [("a.png", 0), ("c.png", 2)]
    assert source.skipped == 1
    assert "b.png" in caplog.text


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "absent", "there is no source .*absent.*give .*an image folder"),
        (lambda folder: folder, r"holds no image \(\.png"),
        (lambda folder: folder / "notes.txt", r"notes\.txt is neither an image .* nor a video"),
        (
            lambda folder: folder / "broken.mp4",
            r"video .*broken\.mp4 cannot be opened: it is not a video that OpenCV reads",
        ),
        (lambda folder: "gopher://host/x", "gopher://host/x has the unknown scheme gopher: give .* an rtsp:// address"),
        (lambda folder: "synthetic:none", "'synthetic:none' has no number of pictures"),
    ],
)
def test_what_is_no_source_is_told_at_the_door(
    tmp_path: Path, make: Callable[[Path], object], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(SourceError, match=says) as caught:
        open_source(str(make(tmp_path)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # OpenCV and FFmpeg stay quiet


def test_a_video_gives_every_frame_in_order(write_video: WriteVideo) -> None:
    with open_source(str(write_video(12))) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert [round(float(frame.image.mean()) / 10) for frame in frames] == list(range(12))
    assert not source.is_live
    assert source.rate_hz == pytest.approx(20)


def test_a_video_that_is_cut_off_is_an_error_not_a_short_video(write_video: WriteVideo) -> None:
    whole = write_video(60, "whole.avi")
    data = whole.read_bytes()
    index = data.rindex(b"idx1")  # cut into the frames, keep the header that promises sixty
    whole.write_bytes(data[: index // 2])
    with open_source(str(whole)) as source, pytest.raises(SourceError, match=r"ended after \d+ of 60 frames"):
        list(source)


def test_a_camera_that_is_not_there_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    source = open_source("77")
    assert source.is_live
    with pytest.raises(SourceError, match="camera 77 cannot be opened: no such camera"), source:
        pass
    assert capfd.readouterr().err == ""


class ThreeFrames(BaseHTTPRequestHandler):
    """A camera that sends three JPEGs and dies."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for brightness in (50, 100, 150):
            image = np.full((48, 64, 3), brightness, np.uint8)
            data = cv2.imencode(".jpg", image)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            self.wfile.write(head.encode() + data + b"\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def dying_camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address, with a password, of a camera on this machine that dies after three frames."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), ThreeFrames)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}/live?key=secret"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_live_stream_that_dies_is_an_error_after_its_frames(
    dying_camera: str, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    with open_source(dying_camera) as source:
        assert source.is_live
        with pytest.raises(SourceError, match=r"http://\*\*\*@127.* stopped after 3 frames") as caught:
            seen.extend(frame.index for frame in source)
    assert seen == [0, 1, 2]
    assert "secret" not in str(caught.value) + source.describe() + source.stream
    assert capfd.readouterr().err == ""


def test_a_stream_nobody_serves_is_told_without_its_password(capfd: pytest.CaptureFixture[str]) -> None:
    source = open_source("rtsp://user:secret@127.0.0.1:1/live")
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@127\.0\.0\.1:1/live cannot be opened: is it"), source:
        pass
    assert capfd.readouterr().err == ""


def test_a_synthetic_camera_keeps_its_rate() -> None:
    images = [np.zeros((4, 4, 3), np.uint8)] * 5
    source = SyntheticSource(images, rate_hz=50)
    assert source.is_live
    times_s = [frame.captured_s for frame in source]
    gaps_s = [time_s - times_s[0] - index / 50 for index, time_s in enumerate(times_s)]
    assert min(gaps_s) > -0.002  # never early; late it may be on a busy machine


def test_a_slow_synthetic_camera_can_be_interrupted() -> None:
    source = SyntheticSource([np.zeros((4, 4, 3), np.uint8)] * 2, rate_hz=0.01)
    frames = iter(source)
    next(frames)
    threading.Timer(0.05, source.interrupt).start()
    start_s = time.monotonic()
    assert next(frames, None) is None
    assert time.monotonic() - start_s < 1


def test_an_impossible_rate_is_refused() -> None:
    with pytest.raises(SourceError, match=r"a synthetic camera of 0 frames/s is impossible"):
        SyntheticSource([], rate_hz=0)


def test_the_drawn_line_is_the_same_every_time_and_its_defects_are_known() -> None:
    with open_source(f"synthetic:{2 * DEFECT_EVERY}") as source:
        frames = list(source)
    assert not source.is_live
    assert len(frames) == 2 * DEFECT_EVERY
    for frame in frames:
        picture, mask = draw_part(frame.index)
        np.testing.assert_array_equal(frame.image, picture)
        assert mask.any() == (frame.index % DEFECT_EVERY == DEFECT_EVERY - 1)
        assert not mask.any() or picture[mask].mean() > 200
    assert open_source("synthetic").is_live


def test_every_disc_of_the_drawn_line_is_whole() -> None:
    ring = np.pi * PART_RADIUS**2 * (1 - 1 / 4**2)  # pixels; the bore is a quarter as wide
    for index in range(DEFECT_EVERY - 1):
        for seed in range(5):
            picture, _ = draw_part(index, seed)
            assert np.count_nonzero(picture[:, :, 0] > 110) == pytest.approx(ring, rel=0.01)
