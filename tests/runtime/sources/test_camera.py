"""Cameras that are cut, hang, stop or send rubbish: opened again for ever, told, and never a frame that was not taken.

RTSP is GStreamer's own server, killed and restarted; pipes, files and HTTP are real ones on this machine.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.errors import SourceError
from nnet_edge.events import Event
from nnet_edge.frame import Crop, Frame, Prediction
from nnet_edge.runtime.sinks import CallbackSink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.open import open_source, open_source_of
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.stream import LineStream, VerdictSettings

log = logging.getLogger(__name__)

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).with_name("rtsp_server.py")
NEEDS = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
MakeRunner = Callable[..., Any]
QUICK: dict[str, Any] = {"first_retry_s": 0.1, "longest_retry_s": 0.2, "stall_s": 1.5, "read_timeout_s": 1.5,
                         "open_timeout_s": 5.0}  # fmt: skip


def has_rtsp_server() -> bool:
    try:
        return subprocess.run([SYSTEM_PYTHON, "-c", NEEDS], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_rtsp = pytest.mark.skipif(
    not has_rtsp_server(), reason="needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-ugly"
)


class RtspCamera:
    """A camera that can be switched on and off; its power cord is pulled, it says no goodbye."""

    def __init__(self, port: int, *options: str) -> None:
        self.port, self._options = port, options
        self.address = f"rtsp://127.0.0.1:{self.port}/live"
        self._process: subprocess.Popen[str] | None = None

    def on(self) -> None:
        command = [SYSTEM_PYTHON, str(SERVER), str(self.port), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def off(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def rtsp_camera(free_port: Callable[[], int]) -> Iterator[Callable[..., RtspCamera]]:
    made: list[RtspCamera] = []

    def make(*options: str) -> RtspCamera:
        made.append(RtspCamera(free_port(), *options))
        made[-1].on()
        return made[-1]

    yield make
    for camera in made:
        camera.off()


class Watched:
    """A line that runs, what it saw and what it told."""

    def __init__(self, make_runner: MakeRunner, *streams: LineStream) -> None:
        self.seen: list[Prediction] = []
        self.events: list[Event] = []
        runner = make_runner()
        self.line = Line(Model("parts", None, runner, 0.5), [CallbackSink(self.seen.append)], keep_open=True)
        self.line.events.subscribe(self.events.append)
        for stream in streams:
            self.line.add(stream)
        self.stop = threading.Event()
        self._thread = threading.Thread(target=lambda: run_line(self.line, self.stop))

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self.stop.set()
        self._thread.join(5)
        assert not self._thread.is_alive()
        total = self.line.buffer.total()
        assert total.is_balanced
        assert total.queued == 0
        ids = [one.id for one in self.seen]
        assert len(set(ids)) == len(ids)
        assert total.judged == len(ids)
        for name in {one.frame.stream for one in self.seen}:  # no picture twice: every source here shows each one once
            shown = [one.frame.image for one in self.seen if one.frame.stream == name]
            assert not any(np.array_equal(before, after) for before, after in pairwise(shown))

    def state(self, name: str) -> str:
        return next(one.camera.state for one in self.line.streams() if one.name == name)

    def until(self, is_so: Callable[[], object], limit_s: float = 15.0) -> None:
        end_s = time.monotonic() + limit_s
        while not is_so():
            assert time.monotonic() < end_s, [(event.kind, event.facts) for event in self.events[-8:]]
            time.sleep(0.01)

    def kinds(self, name: str) -> Counter[str]:
        return Counter(event.kind for event in self.events if event.stream == name)


def stream(name: str, address: str, **settings: Any) -> LineStream:
    return LineStream(name, CameraSettings.of(address, **(QUICK | settings)))


@needs_rtsp
@pytest.mark.slow
def test_a_camera_that_is_cut_20_times_comes_back_20_times(
    make_runner: MakeRunner,
    rtsp_camera: Callable[..., RtspCamera],
    capfd: pytest.CaptureFixture[str],
    note_fault: Callable[..., None],
) -> None:
    camera = rtsp_camera()
    took_s = []
    with Watched(make_runner, stream("cut", camera.address), stream("other", "synthetic")) as watched:
        watched.until(lambda: watched.state("cut") == "live")
        for _ in range(20):
            camera.off()
            watched.until(lambda: watched.state("cut") != "live")
            other = watched.line.buffer.counts("other").judged
            camera.on()
            start_s = time.monotonic()
            watched.until(lambda: watched.state("cut") == "live")
            took_s.append(time.monotonic() - start_s)
            assert watched.line.buffer.counts("other").judged > other  # the other camera goes on
        (status,) = [one for one in watched.line.streams() if one.name == "cut"]
        assert status.camera.reconnects == 20
        assert status.camera.got is not None
        assert (status.camera.got.height, status.camera.got.width) == (120, 160)
    kinds = watched.kinds("cut")
    assert kinds["source.live"] == 21
    assert kinds["source.lost"] + kinds["source.stalled"] >= 20
    mine = [one.frame for one in watched.seen if one.frame.stream == "cut"]
    assert [one.index for one in mine] == sorted(one.index for one in mine)
    assert all(one.image.std() > 5 for one in mine)  # the ball is in each: none is black or grey
    took_s.sort()
    log.info("live again %.2f s (median of 20), %.2f s (longest) after the camera was on", took_s[10], took_s[-1])
    assert capfd.readouterr().err == ""
    total = watched.line.buffer.total()
    recovered = f"{took_s[10]:.2f} s median, {took_s[-1]:.2f} s longest, after the camera is on"
    note_fault("camera cut 20 times", total.captured, total.judged, total.dropped, recovered)


@needs_rtsp
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp_is_read_by_the_transport_that_was_asked_for(
    rtsp_camera: Callable[..., RtspCamera], transport: str
) -> None:
    camera = rtsp_camera(transport)
    with open_source_of(CameraSettings.of(camera.address, transport=transport)) as source:
        frames = [frame for frame, _ in zip(source, range(3), strict=False)]
    assert [frame.image.shape for frame in frames] == [(120, 160, 3)] * 3
    assert source.got is not None
    assert source.got.rate_hz == pytest.approx(25)
    other = {"tcp": "udp", "udp": "tcp"}[transport]
    wrong = open_source_of(CameraSettings.of(camera.address, transport=other, open_timeout_s=2))
    with pytest.raises(SourceError, match="cannot be opened"), wrong:
        pass


@needs_rtsp
def test_a_password_comes_from_a_file_or_the_environment_and_is_told_nobody(
    make_runner: MakeRunner, rtsp_camera: Callable[..., RtspCamera], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    camera = rtsp_camera("tcp", "me:geheim")
    (tmp_path / "password").write_text("me:geheim\n")
    monkeypatch.setenv("CAMERA_PASSWORD", "me:geheim")
    streams = [stream("file", camera.address, credentials=f"file:{tmp_path / 'password'}"),
               stream("env", camera.address, credentials="env:CAMERA_PASSWORD"),
               stream("none", camera.address)]  # fmt: skip
    with Watched(make_runner, *streams) as watched:
        watched.until(lambda: (watched.state("file"), watched.state("env")) == ("live", "live"))
        watched.until(lambda: watched.kinds("none")["source.lost"])
        told = repr(watched.events) + repr(watched.line.streams()) + repr(watched.line.report().as_dict())
    assert "geheim" not in told + caplog.text


NUMBERS = count()


def numbered(height: int, width: int) -> np.ndarray:
    """A dark picture with a number of its own in its first pixel, uint8 BGR (height, width, 3)."""
    picture = np.zeros((height, width, 3), np.uint8)
    number = next(NUMBERS)
    picture[0, 0] = number % 64, number // 64 % 64, number // 4096
    return picture


class Hanging(Source):
    """Gives two frames, then hangs in its driver, and gives a third when it is let go."""

    is_live = True

    def __init__(self, let_go: threading.Event) -> None:
        super().__init__("hanging")
        self._let_go = let_go

    def __iter__(self) -> Iterator[Frame]:
        for index in range(2):
            yield Frame(numbered(8, 8), index, time.monotonic())
        self._let_go.wait(20)
        yield Frame(np.full((8, 8, 3), 255, np.uint8), 2, time.monotonic())

    def describe(self) -> str:
        return "a driver that hangs"


def test_a_driver_that_hangs_is_left_behind_and_its_late_frame_is_not_taken(make_runner: MakeRunner) -> None:
    let_go = threading.Event()
    settings = LineStream("a", CameraSettings("hanging", **(QUICK | {"stall_s": 0.3})))
    with Watched(make_runner) as watched:
        watched.line.add_source(settings, Hanging(let_go), lambda: Hanging(let_go))
        watched.until(lambda: watched.kinds("a")["source.stalled"] >= 3)
        watched.until(lambda: "hang in their driver" in str([one.camera.reason for one in watched.line.streams()]))
        hanging = [one for one in threading.enumerate() if one.name == "capture of a driver that hangs"]
        assert len(hanging) <= 4  # it does not pile up threads for ever
        let_go.set()
        watched.until(lambda: not any(one.is_alive() for one in hanging))
        silent = [event.facts["silent_s"] for event in watched.events if event.kind == "source.stalled"]
    assert all(0.3 < float(str(one)) < 2 for one in silent)
    late = [one for one in watched.seen if one.is_anomalous]
    indices = [one.frame.index for one in watched.seen]
    assert indices == sorted(set(indices))
    assert len(late) <= watched.kinds("a")["source.live"] - 3  # only readers that nobody had left may give theirs


def test_waits_grow_to_the_limit_with_jitter(make_runner: MakeRunner, free_port: Callable[[], int]) -> None:
    address = f"rtsp://127.0.0.1:{free_port()}/nobody"
    settings = {"first_retry_s": 0.05, "longest_retry_s": 0.4, "jitter": 0.2}
    with Watched(make_runner, stream("a", address, **settings)) as watched:
        watched.until(lambda: watched.kinds("a")["source.lost"] >= 7)
        assert watched.state("a") in ("lost", "connecting")
    waits = [float(str(event.facts["retry_s"])) for event in watched.events if event.kind == "source.lost"][:7]
    for wait_s, expected_s in zip(waits, (0.05, 0.1, 0.2, 0.4, 0.4, 0.4, 0.4), strict=True):
        assert 0.79 * expected_s <= wait_s <= 1.21 * expected_s + 0.005
    assert len(set(waits[3:])) > 1


class OneByOne(Source):
    """A camera that gives one picture of each of the sizes, and is cut behind it; the last size for ever."""

    is_live = True

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__("one by one")
        self._sizes = sizes

    def __iter__(self) -> Iterator[Frame]:
        size = self._sizes.pop(0) if len(self._sizes) > 1 else self._sizes[0]
        yield Frame(numbered(*size), 0, time.monotonic())
        raise SourceError("the cable is out")

    def describe(self) -> str:
        return "a camera with a loose cable"


def test_a_camera_that_comes_back_with_other_pixels_is_waited_for(
    make_runner: MakeRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """Its crop fits the first and the last size, and none in between; settings that never fitted are an error at once."""
    crops = VerdictSettings(crops=(Crop("corner", 0, 0, 40, 40),))
    camera = CameraSettings("one", **QUICK)
    sizes = [(48, 64), (24, 32), (24, 32), (48, 64)]
    with Watched(make_runner) as watched:
        watched.line.add_source(LineStream("a", camera, verdict=crops), OneByOne(sizes), lambda: OneByOne(sizes))
        never = [(24, 32)]
        watched.line.add_source(LineStream("b", camera, verdict=crops), OneByOne(never), lambda: OneByOne(never))
        watched.until(lambda: len(watched.seen) >= 3)
        watched.until(lambda: watched.state("b") == "failed")
        lost = [str(event.facts["reason"]) for event in watched.events if event.kind == "source.lost"]
    assert {one.frame.stream for one in watched.seen} == {"a"}
    assert sum("reaches beyond the camera's 32x24 pixels" in reason for reason in lost) == 2
    assert "a is lost, and tried until it is back: the cable is out" in caplog.text
    assert "a gives frames again" in caplog.text
    assert watched.kinds("b")["stream.failed"] == 1


def test_credentials_that_cannot_be_read_for_a_moment_are_read_again(make_runner: MakeRunner, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("me:geheim\n")
    camera = Jpegs(lambda connection: [jpeg(100, connection)])
    with Watched(make_runner, stream("a", camera.address, credentials=f"file:{password}")) as watched:
        watched.until(lambda: watched.seen)
        password.unlink()
        watched.until(lambda: any("cannot be read" in str(event.facts.get("reason")) for event in watched.events))
        password.write_text("me:geheim\n")
        count = len(watched.seen)
        watched.until(lambda: len(watched.seen) > count)
    camera.close()


def test_what_is_absent_at_the_start_of_a_line_is_tried_while_others_run(
    make_runner: MakeRunner, tmp_path: Path
) -> None:
    hold = threading.Event()
    absent = {"pipe": tmp_path / "cam.mjpeg", "device": tmp_path / "video7", "watched": tmp_path / "photos",
              "folder": tmp_path / "parts"}  # fmt: skip
    with Watched(make_runner, stream("other", "synthetic")) as watched:
        for name, path in absent.items():
            settings = stream(name, str(path), watch=name == "watched")
            with pytest.raises(SourceError, match="there is no source"):
                watched.line.add(settings)
            watched.line.add(settings, open_source_of(settings.camera, name, may_be_absent=True))
        watched.until(lambda: all(watched.kinds(name)["source.lost"] >= 2 for name in absent))
        assert {watched.state(name) for name in absent} <= {"lost", "connecting"}
        judged = watched.line.buffer.counts("other").judged
        watched.until(lambda: watched.line.buffer.counts("other").judged > judged)
        os.mkfifo(absent["pipe"])
        writer = threading.Thread(target=write_jpegs, args=(absent["pipe"], [jpeg(60)], hold), daemon=True)
        writer.start()
        for name in ("watched", "folder"):
            (tmp_path / "new").mkdir()
            for number in range(20):
                assert cv2.imwrite(str(tmp_path / "new" / f"{number}.png"), np.full((8, 8, 3), number, np.uint8))
            (tmp_path / "new").rename(absent[name])
        counts = watched.line.buffer.counts
        watched.until(lambda: counts("pipe").judged and counts("watched").judged == counts("folder").judged == 20)
        assert watched.state("folder") == "ended"
        hold.set()
        writer.join(5)


def test_a_path_that_is_named_like_a_file_is_refused_when_it_is_absent(tmp_path: Path) -> None:
    for name in ("clip.mp4", "part.PNG"):
        with pytest.raises(SourceError, match="there is no source"):
            open_source_of(CameraSettings(str(tmp_path / name)), may_be_absent=True)


class Jpegs:
    """An HTTP camera of raw sockets: each connection is sent the parts that `parts` gives for its number, then cut."""

    def __init__(self, parts: Callable[[int], list[bytes]], with_length: bool = True) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._parts, self._with_length = parts, with_length
        self.connections = 0
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}/live"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.recv(4096)
                try:
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x\r\n\r\n"
                    )
                    for part in self._parts(self.connections):
                        length = b"Content-Length: %d\r\n" % len(part) if self._with_length else b""
                        connection.sendall(b"--x\r\nContent-Type: image/jpeg\r\n" + length + b"\r\n" + part + b"\r\n")
                except OSError:
                    continue

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(2)


def jpeg(value: int, seed: int = 0) -> bytes:
    """A noisy picture of this brightness; of another seed it is another picture."""
    random = np.random.default_rng((value, seed))
    picture = np.clip(value + random.integers(-20, 20, (48, 64, 3)), 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", picture)[1])


@pytest.mark.parametrize("with_length", [True, False])
def test_a_picture_that_came_in_half_or_damaged_is_counted_and_never_shown(
    make_runner: MakeRunner, with_length: bool, caplog: pytest.LogCaptureFixture, note_fault: Callable[..., None]
) -> None:
    whole = jpeg(100)
    damaged = whole[:800] + bytes(200) + whole[1000:]
    assert cv2.imdecode(np.frombuffer(damaged, np.uint8), 1) is not None  # OpenCV sees nothing

    def parts(connection: int) -> list[bytes]:
        first, second, third = (jpeg(100, 3 * connection + number) for number in range(3))
        return [first, whole[: len(whole) // 2], second, b"no picture", b"\xff\xd8\xff\xd9", damaged, third]

    camera = Jpegs(parts, with_length)
    with Watched(make_runner, stream("a", camera.address)) as watched:
        watched.until(lambda: watched.kinds("a")["source.live"] >= 5)
        (status,) = watched.line.streams()
    camera.close()
    assert status.camera.skipped >= 4 * 4
    assert all(abs(float(one.frame.image.mean()) - 100) < 3 for one in watched.seen)
    assert "its end is missing" in caplog.text
    assert "it is damaged" in caplog.text
    if with_length:
        total = watched.line.buffer.total()
        recovered = f"the next picture; {status.camera.skipped} damaged ones counted, none judged"
        note_fault("corrupt pictures in the stream", total.captured, total.judged, total.dropped, recovered)


def write_jpegs(path: Path, pictures: list[bytes], hold: threading.Event) -> None:
    """Write into a pipe, then hold it open; begin again when the reader went away in between, as a camera's program does."""
    is_written = False
    while not is_written:
        try:
            with open(path, "wb") as pipe:
                for picture in pictures:
                    pipe.write(picture)
                    pipe.flush()
                hold.wait(20)
            is_written = True
        except BrokenPipeError:
            continue


def test_a_pipe_that_stops_is_stalled_and_opened_again(make_runner: MakeRunner, tmp_path: Path) -> None:
    path = tmp_path / "camera.mjpeg"
    os.mkfifo(path)
    hold = threading.Event()
    pictures = [jpeg(60 + index) for index in range(60)]
    pictures[30] = pictures[30][:700] + bytes(100) + pictures[30][800:]  # damaged on its way: passed over
    writer = threading.Thread(target=write_jpegs, args=(path, pictures, hold), daemon=True)
    writer.start()
    with Watched(make_runner, stream("a", str(path))) as watched:
        watched.until(lambda: watched.state("a") == "live")
        watched.until(lambda: watched.kinds("a")["source.stalled"] + watched.kinds("a")["source.lost"])
        judged = watched.line.buffer.counts("a").judged
        time.sleep(0.3)
        assert watched.line.buffer.counts("a").judged == judged  # no frame out of nothing
        hold.set()
        writer.join(5)
        again = threading.Thread(target=write_jpegs, args=(path, pictures, hold), daemon=True)
        again.start()
        watched.until(lambda: watched.kinds("a")["source.live"] >= 2)
        again.join(5)
    assert len(watched.seen) <= watched.kinds("a")["source.live"] * (len(pictures) - 1)
    sound = [one for number, one in enumerate(pictures) if number != 30]
    sent = {picture.tobytes() for picture in (cv2.imdecode(np.frombuffer(one, np.uint8), 1) for one in sound)}
    assert {one.frame.image.tobytes() for one in watched.seen} <= sent  # what was written, bit for bit, nothing else


def test_a_camera_whose_pictures_are_all_refused_says_why(make_runner: MakeRunner, tmp_path: Path) -> None:
    path = tmp_path / "camera.mjpeg"
    os.mkfifo(path)
    hold = threading.Event()
    writer = threading.Thread(target=write_jpegs, args=(path, [jpeg(60)[:700]] * 3, hold), daemon=True)
    writer.start()
    with Watched(make_runner, stream("a", str(path), stall_s=0.5, open_timeout_s=0.5, read_timeout_s=9.0)) as watched:
        watched.until(lambda: watched.kinds("a")["source.stalled"])
        told = repr(watched.events)
        hold.set()
    writer.join(5)
    assert "its last picture was passed over: its end is missing" in told
    assert not watched.seen


def test_a_video_that_is_replaced_under_the_reader_is_told(write_video: Callable[..., Path], tmp_path: Path) -> None:
    path = write_video(40, "clip.avi")
    other = write_video(40, "other.avi")

    def read_and_replace(source: Source) -> None:
        for frame in source:
            if frame.index == 5:
                other.replace(path)

    with open_source(str(path)) as source, pytest.raises(SourceError, match="replaced or altered while it was read"):
        read_and_replace(source)


def test_a_video_at_its_own_rate_takes_its_time(write_video: Callable[..., Path]) -> None:
    settings = CameraSettings.of(str(write_video(6, rate_hz=20.0)), at_own_rate=True)
    with open_source_of(settings, "clip") as source:
        frames = list(source)
    assert len(frames) == 6
    assert frames[-1].captured_s - frames[0].captured_s >= 5 / 20 - 0.01
    assert {frame.stream for frame in frames} == {"clip"}


def test_new_files_of_a_watched_folder_become_frames_once_each(make_runner: MakeRunner, tmp_path: Path) -> None:
    def drop(name: str, value: int) -> None:
        data = bytes(cv2.imencode(".png", np.full((20, 20, 3), value, np.uint8))[1])
        path = tmp_path / name
        path.write_bytes(data[: len(data) // 2])  # it is being copied
        time.sleep(0.05)
        path.write_bytes(data)

    drop("part_2.png", 10)
    drop("part_10.png", 20)
    with Watched(make_runner, stream("folder", str(tmp_path), watch=True, stall_s=0.3)) as watched:
        watched.until(lambda: len(watched.seen) == 2)
        for number in range(11, 16):
            drop(f"part_{number}.png", 10 * number)
        watched.until(lambda: len(watched.seen) == 7)
        time.sleep(0.7)
        drop("part_2.png", 250)  # under its old name
        watched.until(lambda: len(watched.seen) == 8)
        assert watched.kinds("folder")["source.stalled"] == 0
    assert [one.frame.name for one in watched.seen] == [
        *(f"part_{number}.png" for number in (2, 10, 11, 12, 13, 14, 15)), "part_2.png"]  # fmt: skip
    assert watched.seen[-1].is_anomalous


def test_gstreamer_is_asked_for_by_name_and_told_where_it_is_absent() -> None:
    source = open_source("gstreamer:videotestsrc ! videoconvert ! appsink")
    if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        with source:
            assert next(iter(source)).image.ndim == 3
    else:
        with pytest.raises(ImportError, match="this OpenCV was built without GStreamer"), source:
            pass
