"""GigE Vision cameras by Aravis: its own fake camera on a network of the test's own, searched, set, streamed, killed, deaf.

They need Debian's aravis-tools and the right to a network namespace, and skip loudly without.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnet_edge.errors import ConfigError, MissingExtraError, SourceError
from nnet_edge.events import Event
from nnet_edge.frame import Frame
from nnet_edge.image_files import read_image
from nnet_edge.pixel_formats import find_format, to_image
from nnet_edge.runtime import aravis
from nnet_edge.runtime.sinks import CallbackSink
from nnet_edge.runtime.sources import gige
from nnet_edge.runtime.sources.genicam import BlockCount, GenicamOptions, GenicamSource
from nnet_edge.runtime.sources.open import open_source, open_source_of
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.running import run_line
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.stream import LineStream, TriggerSettings
from tests.private_network import private_network
from tests.runtime.sources.fake_camera import HEIGHT, WIDTH, ramp
from tests.test_pixel_formats import packed

FAKE = "arv-fake-gv-camera-0.8"
ROOT = Path(__file__).parents[3]
needs_aravis = pytest.mark.skipif(shutil.which(FAKE) is None, reason="needs Debian's aravis-tools")
SMALL: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "rate_hz": 100.0}
MOST_TIMES = 20  # that a camera is switched off and on
MakeRunner = Callable[..., Any]


@pytest.fixture(scope="module")
def own_network() -> Iterator[None]:
    with private_network("127.0.0.2", "127.0.0.3", mtu=1500):
        yield


class FakeCamera:
    """Aravis's fake camera, which can be killed and started again."""

    def __init__(self, address: str, serial: str, *options: str) -> None:
        self._command = [FAKE, "-i", address, "-s", serial, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def on(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end_s = time.monotonic() + 5
        while not is_listening(self._command[2]):
            assert time.monotonic() < end_s, "the fake camera does not start"
            time.sleep(0.01)

    def off(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)
            self._process = None


def is_listening(address: str) -> bool:
    """Whether somebody has the port of GigE Vision's control there."""
    place = "".join(f"{int(part):02X}" for part in reversed(address.split("."))) + ":0F74"
    return place in Path("/proc/thread-self/net/udp").read_text()


@pytest.fixture
def camera(own_network: None) -> Iterator[Callable[..., FakeCamera]]:
    """A function that switches a fake camera on; they are off when the test ends."""
    made: list[FakeCamera] = []

    def switch_on(address: str = "127.0.0.1", serial: str = "GV01", *options: str) -> FakeCamera:
        made.append(FakeCamera(address, serial, *options))
        made[-1].on()
        return made[-1]

    yield switch_on
    for one in made:
        one.off()


@pytest.fixture
def rich_camera(own_network: None) -> Iterator[str]:
    """The address of a fake camera with more pixel formats and features."""
    module = "tests.runtime.sources.fake_camera"
    command = [sys.executable, "-m", module, "127.0.0.1", "GV7"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield "gige://127.0.0.1"
        finally:
            process.kill()


def take(source: GenicamSource, count: int) -> list[Frame]:
    frames: list[Frame] = []
    for frame in source:
        frames.append(frame)
        if len(frames) == count:
            return frames
    raise AssertionError(f"it ended after {len(frames)} frames")


@needs_aravis
def test_a_camera_is_found_by_serial_number_address_and_model(camera: Callable[..., FakeCamera]) -> None:
    camera("127.0.0.2", "GV02")
    (found,) = gige.find()
    assert (found.path, found.name, found.serial, found.is_readable) == ("gige://GV02", "Aravis Fake", "GV02", True)
    assert {"Mono8", "BayerRG8", "RGB8"} <= set(found.formats)
    camera("127.0.0.3", "GV03")
    with open_source("gige://gv03/") as source:
        assert source.got.device == "Aravis Fake, serial GV03, at 127.0.0.3"  # type: ignore[union-attr]
    cameras = aravis.find_cameras()
    for address in ("gige://GV03", "genicam:GV03", "gige://127.0.0.3", "genicam:Aravis-Fake-GV03"):
        assert gige.choose(cameras, gige.wanted(address)).serial == "GV03"
    assert gige.choose(cameras[:1], "").serial == gige.choose(cameras[:1], "aravis fake").serial == "GV02"
    for address in ("gige://Fake", "gige://Aravis%20Fake", "gige://", "genicam:"):
        with pytest.raises(SourceError, match=r"2 cameras.* serial GV02, at 127.0.0.2; .* serial GV03, at 127.0.0.3"):
            gige.choose(cameras, gige.wanted(address))


@needs_aravis
def test_a_wrong_serial_number_is_answered_with_those_that_there_are(camera: Callable[..., FakeCamera]) -> None:
    camera()
    with pytest.raises(
        SourceError, match=r"no camera with the serial number or model '4711'; .*Aravis Fake, serial GV01"
    ):
        open_source("gige://4711").__enter__()


@needs_aravis
@pytest.mark.usefixtures("own_network")
def test_nobody_at_an_address_is_said() -> None:
    with pytest.raises(SourceError, match=r"the camera at 127.0.0.9 cannot be opened"):
        open_source("gige://127.0.0.9").__enter__()


@needs_aravis
def test_pictures_come_with_the_cameras_numbers_and_times(camera: Callable[..., FakeCamera]) -> None:
    camera()
    lost: list[tuple[str, int]] = []
    source = open_source("gige://GV01", width=200, height=100, offset_x=8, rate_hz=50.0)
    source.lose = lambda cause, frames: lost.append((cause, frames))
    with source:
        frames = take(source, 12)
        assert source.got is not None
        assert (source.got.height, source.got.width, source.got.rate_hz) == (100, 200, 50.0)
        assert source.got.settings["offset_x"] == 8
    for number, frame in enumerate(frames):
        assert frame.index == number
        assert frame.image.shape == (100, 200, 3)
        assert frame.image.dtype == np.uint8
        assert frame.stamp is not None
        row = frame.image[0, :, 0].astype(int)
        assert set(np.diff(row)) <= {1, -254}  # the fake camera's diagonal ramp
    ids = [frame.stamp.block_id for frame in frames]  # type: ignore[union-attr]
    times_ns = [frame.stamp.time_ns for frame in frames]  # type: ignore[union-attr]
    assert ids == list(range(ids[0], ids[0] + 12))  # type: ignore[arg-type,operator]
    assert times_ns == sorted(times_ns)  # type: ignore[type-var]
    assert not lost


@needs_aravis
@pytest.mark.parametrize(
    "name",
    ["Mono10", "Mono12", "Mono14", "Mono16", "Mono10p", "Mono12p", "Mono10Packed", "Mono12Packed", "BGR8", "RGB8",
     "BayerRG8", "BayerRG12", "BayerRG12p"],
)  # fmt: skip
def test_a_picture_of_each_format_is_the_one_that_was_sent(name: str, rich_camera: str) -> None:
    form = find_format(name)
    assert form is not None
    with open_source(rich_camera, pixel_format=name, **SMALL) as source:
        (frame,) = take(source, 1)
        assert source.got is not None
        assert source.got.pixel_format == name
    values = ramp(name, HEIGHT, WIDTH)
    sent = values.astype(np.uint8).tobytes() if form.bits == 8 else packed(values.tolist(), form)
    assert (frame.image == to_image(np.frombuffer(sent, np.uint8), form, HEIGHT, WIDTH)).all()
    assert frame.bits == (None if form.bits == 8 else form.bits)
    if name.startswith("Mono"):
        assert (frame.image[..., 0].reshape(-1) == values).all()


@needs_aravis
def test_features_are_set_and_what_the_camera_took_is_told(rich_camera: str, caplog: pytest.LogCaptureFixture) -> None:
    asked: dict[str, Any] = {
        "exposure_us": 1234.0, "gain": 3.0, "auto_exposure": False, "user_set": "UserSet1", "pixel_format": "Mono12",
        "packet_size": 1000, "features": {"BinningHorizontal": 1, "TestRegister": 7, "Stepped": 16, "GainAuto": "Continuous"},
    }  # fmt: skip
    with open_source(rich_camera, **SMALL, **asked) as source, caplog.at_level(logging.WARNING):
        assert source.got is not None
        got = source.got
        assert take(source, 1)
    assert got.settings | asked["features"] | {"exposure_us": 1234.0, "gain": 3, "packet_size": 1000} == got.settings
    assert (got.settings["user_set"], got.settings["auto_exposure"], got.settings["trigger_mode"]) == (
        "UserSet1",
        "Off",
        "free",
    )
    assert got.automatic == ("gain",)
    assert got.device == "Aravis Fake at 127.0.0.1"
    with open_source(rich_camera, auto_exposure=True, auto_gain=True, **SMALL) as source:
        assert source.got is not None
        assert source.got.automatic == ("exposure", "gain")
    assert "the camera sets exposure and gain by itself" in caplog.text
    assert "auto_exposure = false, auto_gain = false" in caplog.text


@needs_aravis
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"pixel_format": "BGR10p"}, r"no pixel format BGR10p.*choose .*Mono12p.*; YUV422_8 it has too"),
        ({"pixel_format": "YUV422_8"}, r"no pixel format YUV422_8.*: choose "),
        ({"exposure_us": 1e9}, r"exposure_us = 1000000000.0 is outside of what .* takes: 10 to 1e\+07"),
        ({"width": 4096, "height": 64}, r"width = 4096 is outside"),
        ({"features": {"Nope": 1}}, r"has no feature Nope: it has .*ExposureAuto.*Width"),
        ({"features": {"UserSetLoad": False}}, "UserSetLoad of .* is a command: give true"),
        ({"features": {"Stepped": 12}}, "Stepped = 12 is outside .*: 0 to 64 in steps of 8"),
        ({"features": {"TestRegister": "x"}}, "TestRegister = 'x' .* must be a whole number"),
        ({"features": {"ExposureAuto": "Twice"}}, "ExposureAuto = 'Twice' is not one .*: choose Off, Continuous"),
        ({"features": {"DeviceVendorName": "x"}}, "refuses DeviceVendorName = 'x': it can only be read"),
        ({"user_set": "UserSet9"}, "user_set = 'UserSet9' is not one .*: choose Default, UserSet1"),
        ({"auto_white_balance": True}, r"has no feature BalanceWhiteAuto \(auto_white_balance\): it has"),
        ({"trigger_mode": "line", "trigger_source": "Line9"}, "trigger_source = 'Line9' .*: choose Line0, Software"),
        ({"packet_size": 9000}, "packet_size = 9000 is too large for the network: lo passes 1500 bytes"),
    ],
)  # fmt: skip
def test_what_the_camera_lacks_or_refuses_is_an_error_that_lists_what_it_has(
    asked: dict[str, Any], words: str, rich_camera: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        open_source(rich_camera, **asked).__enter__()
    with open_source(rich_camera, **SMALL) as source:  # it was let go of
        assert take(source, 1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"trigger_mode": "hardware"}, "trigger_mode"),
        ({"trigger_source": "Line1"}, "belongs to trigger_mode"),
        ({"exposure_us": 5.0, "auto_exposure": True}, "contradict each other"),
        ({"exposure_us": 0.0}, "exposure_us"),
        ({"packet_size": 20}, "packet_size"),
        ({"offset_x": -1}, "offset_x"),
    ],
)
def test_settings_that_no_camera_has_are_refused_at_the_door(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CameraSettings.of("gige://1", **asked)


def test_a_line_file_sets_a_camera(tmp_path: Path) -> None:
    table = {
        "address": "gige://4711",
        "pixel_format": "Mono12p",
        "exposure_us": 500,
        "features": {"Gamma": 1.5, "On": True},
    }
    settings = CameraSettings.from_table(table, "[stream.camera]", tmp_path)
    assert settings.options["features"] == {"Gamma": 1.5, "On": True}
    assert CameraSettings.from_table(settings.to_table(), "again", tmp_path) == settings
    assert CameraSettings.schema()["properties"]["features"]["type"] == "object"
    for features in (3, {"a": [1]}):
        with pytest.raises(ConfigError, match=r"\[stream.camera\]: features"):
            CameraSettings.from_table(table | {"features": features}, "[stream.camera]", tmp_path)
    with pytest.raises(ConfigError, match="four letters"):
        CameraSettings("rtsp://camera/1", pixel_format="Mono12p")


@needs_aravis
def test_a_software_trigger_gives_one_picture(camera: Callable[..., FakeCamera]) -> None:
    camera()
    source = open_source("gige://127.0.0.1", width=WIDTH, height=HEIGHT, trigger_mode="software")
    with pytest.raises(SourceError, match="not open"):
        source.trigger()
    frames: list[Frame] = []
    came = threading.Event()

    def read() -> None:
        for frame in source:
            frames.append(frame)
            came.set()

    with source:
        assert source.got is not None
        assert (source.got.settings["trigger_mode"], source.may_be_silent) == ("software", True)
        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.5)
        assert not frames
        for number in range(5):
            came.clear()
            source.trigger()
            assert came.wait(3)
            assert len(frames) == number + 1
        source.interrupt()
        reader.join(3)
        assert not reader.is_alive()
    ids = [frame.stamp.block_id for frame in frames]  # type: ignore[union-attr]
    assert ids == list(range(ids[0], ids[0] + 5))  # type: ignore[arg-type,operator]
    with open_source("gige://127.0.0.1", **SMALL) as free:
        assert take(free, 1)  # no trigger is left over
        with pytest.raises(ConfigError, match='set trigger_mode = "software"'):
            free.trigger()


# ---- a line


def line_of(
    make_runner: MakeRunner, address: str, trigger: TriggerSettings | None = None, **asked: Any
) -> tuple[Line, list[Frame]]:
    """A line with one camera, and the frames that it judges."""
    seen: list[Frame] = []
    line = Line(Model("parts", None, make_runner(), 2.0), [CallbackSink(lambda one: seen.append(one.frame))])
    quick = {"first_retry_s": 0.05, "longest_retry_s": 0.1}
    settings = LineStream("a", CameraSettings.of(address, **(SMALL | quick | asked)), trigger=trigger)
    line.add(settings, open_source_of(settings.camera, "a"))
    return line, seen


def run_until(line: Line, is_enough: Callable[[], bool], limit_s: float) -> None:
    """Run the line until `is_enough`, and hold the counts against each other all the while."""
    stop = threading.Event()
    thread = threading.Thread(target=run_line, args=(line, stop))
    thread.start()
    try:
        end_s = time.monotonic() + limit_s
        while not is_enough():
            assert time.monotonic() < end_s, line.report().lines()
            assert line.buffer.total().is_balanced
            time.sleep(0.02)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert line.buffer.total().is_balanced


@needs_aravis
def test_twelve_bits_are_judged_as_those_of_a_photograph(
    rich_camera: str, make_runner: MakeRunner, tmp_path: Path
) -> None:
    line, seen = line_of(make_runner, rich_camera, pixel_format="Mono12p", exposure_us=700.0, auto_gain=True)
    run_until(line, lambda: len(seen) >= 3, 10)
    values = ramp("Mono12p", HEIGHT, WIDTH).reshape(HEIGHT, WIDTH)
    photograph = tmp_path / "photograph.png"
    assert cv2.imwrite(str(photograph), values.astype(np.uint16))
    assert (seen[0].image == read_image(photograph, 12)).all()  # grey: BGR and RGB are the same
    report = line.report().as_dict()["streams"]["a"]  # type: ignore[index]
    assert (report["asked"]["pixel_format"], report["got"]["pixel_format"]) == ("Mono12p", "Mono12p")
    assert (report["asked"]["settings"]["exposure_us"], report["got"]["settings"]["exposure_us"]) == (700.0, 700.0)
    assert report["got"]["automatic"] == ("gain",)
    assert "missing_packets" in report["source_counts"]
    assert any(text.startswith("note: the camera sets gain by itself") for text in line.report().lines())


@needs_aravis
def test_lost_packets_are_counted_and_incomplete_pictures_never_judged(
    camera: Callable[..., FakeCamera], make_runner: MakeRunner, note_fault: Callable[..., None]
) -> None:
    camera("127.0.0.1", "GV01", "-r", "60")
    line, seen = line_of(make_runner, "gige://127.0.0.1", packet_size=600)
    run_until(line, lambda: sum(line.buffer.total().dropped.values()) >= 60 and len(seen) >= 60, 20)
    report = line.report()
    dropped, counts = dict(report.total.dropped), line.stream("a").camera.status().counts
    assert dropped["incomplete"] > 0
    assert counts["missing_packets"] > 0
    for frame in seen:
        assert set(np.diff(frame.image[0, :, 0].astype(int))) <= {1, -254}  # whole
    ids = [frame.stamp.block_id for frame in seen]  # type: ignore[union-attr]
    sent = (ids[-1] - ids[0]) % 65_535 + 1  # type: ignore[operator]
    between = seen[-1].index - seen[0].index + 1
    assert between == sent  # each that the camera sent has an index, received or not
    note_fault("GigE packets lost", report.total.captured, report.total.judged, dropped, "never gone")


@needs_aravis
def test_each_trigger_gets_its_own_picture_or_a_named_outcome(
    camera: Callable[..., FakeCamera], make_runner: MakeRunner
) -> None:
    camera("127.0.0.1", "GV01", "-r", "60")  # some pictures lack packets: their parts are answered without a verdict
    asked = TriggerSettings(by="any", frames="asked", window_ms=250, deadline_ms=500)
    line, seen = line_of(make_runner, "gige://127.0.0.1", asked, trigger_mode="software", rate_hz=None, packet_size=400)

    def trigger() -> None:
        wait_for(lambda: line.stream("a").camera.status().state == "live")  # before any picture
        for _ in range(16):
            line.trigger("a")
            wait_for(lambda: (counts := line.stream("a").status().triggers) is not None and not counts.open)

    switcher = threading.Thread(target=trigger)
    switcher.start()
    run_until(line, lambda: not switcher.is_alive(), 25)
    switcher.join()
    report = line.report().streams["a"]
    assert report.triggers is not None
    assert report.triggers.triggers == 16
    assert report.triggers.is_balanced
    assert report.triggers.verdicts == len(seen)
    assert 0 < len(seen) < 16
    assert report.counts.dropped.get("incomplete", 0) + report.counts.dropped.get("lost", 0) > 0
    assert [frame.trigger.number for frame in seen if frame.trigger] == sorted(
        {frame.trigger.number for frame in seen if frame.trigger}
    )


@needs_aravis
def test_a_camera_of_another_program_is_waited_for(
    camera: Callable[..., FakeCamera], make_runner: MakeRunner, note_fault: Callable[..., None]
) -> None:
    camera("127.0.0.2", "GV02")
    line, seen = line_of(make_runner, "gige://127.0.0.2")
    with ExitStack() as others:
        source = others.enter_context(open_source("gige://127.0.0.2"))
        reasons: list[object] = []

        def hear(event: Event) -> None:
            if event.kind == "source.lost":
                reasons.append(event.facts["reason"])
                assert take(source, 1)  # whose it was
                others.close()

        line.events.subscribe(hear)
        run_until(line, lambda: len(seen) >= 3, 20)
    (reason,) = reasons
    assert reason == "the camera at 127.0.0.2 cannot be opened: another program controls it: close that one"
    counts = line.buffer.total()
    note_fault("GigE camera of another program", counts.captured, counts.judged, counts.dropped, "once it is free")


@needs_aravis
def test_a_camera_that_is_not_there_yet_is_waited_for(
    camera: Callable[..., FakeCamera], make_runner: MakeRunner
) -> None:
    line, seen = line_of(make_runner, "gige://GV02")

    def switch_on() -> None:
        wait_for(lambda: line.stream("a").camera.status().reason is not None)
        camera("127.0.0.2", "GV02")

    switcher = threading.Thread(target=switch_on)
    switcher.start()
    run_until(line, lambda: len(seen) >= 3, 20)
    switcher.join()
    reasons = [event.facts["reason"] for event in line.events.newest() if event.kind == "source.lost"]
    assert str(reasons[0]).startswith(
        "there is no camera with the serial number or model 'GV02'; there are: none answers: "
    )


@needs_aravis
@pytest.mark.parametrize("times", [2, pytest.param(MOST_TIMES, marks=pytest.mark.slow)])
def test_a_camera_that_is_switched_off_and_on_comes_back(
    times: int, camera: Callable[..., FakeCamera], make_runner: MakeRunner, note_fault: Callable[..., None]
) -> None:
    fake = camera("127.0.0.2", "GV02")
    line, seen = line_of(make_runner, "gige://127.0.0.2")
    kinds: list[str] = []
    line.events.subscribe(lambda event: kinds.append(event.kind))
    took_s: list[float] = []

    def switch() -> None:
        for _ in range(times):
            count = len(seen)
            wait_for(lambda count=count: len(seen) >= count + 5)  # type: ignore[misc]
            fake.off()
            fake.on()
            count, began_s = len(seen), time.monotonic()
            reconnects = line.stream("a").camera.status().reconnects
            wait_for(lambda reconnects=reconnects: line.stream("a").camera.status().reconnects > reconnects)  # type: ignore[misc]
            took_s.append(time.monotonic() - began_s)

    switcher = threading.Thread(target=switch)
    switcher.start()
    run_until(line, lambda: not switcher.is_alive(), 5 + 8 * times)
    switcher.join()
    assert len(took_s) == times
    assert kinds.count("source.lost") == kinds.count("source.live") - 1 == times
    indexes = [frame.index for frame in seen]
    assert indexes == sorted(set(indexes))
    counts, words = line.buffer.total(), f"{sorted(took_s)[times // 2]:.2f} s (median), {max(took_s):.2f} s (longest)"
    if times == MOST_TIMES:
        note_fault("GigE camera off and on 20 times", counts.captured, counts.judged, counts.dropped, words)


def wait_for(is_so: Callable[[], bool], limit_s: float = 8) -> None:
    end_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.01)


# ---- without a camera


@given(st.data())
def test_numbers_of_pictures_tell_how_many_were_lost(data: st.DataObject) -> None:
    """Whatever is lost or torn of a camera's run of pictures, the count is right, over the end of 16 bits too."""
    bits16 = data.draw(st.booleans())
    first = data.draw(st.integers(1, 65_535) if bits16 else st.integers(0, 1 << 63))
    fates = data.draw(st.lists(st.sampled_from(["whole", "whole", "torn", "lost"]), max_size=200))
    count, lost, seen = BlockCount(bits16), 0, False
    waiting = expected = 0
    for number, fate in enumerate(fates):
        block_id = (first + number - 1) % 65_535 + 1 if bits16 else first + number
        if fate == "torn":
            count.broken()
        elif fate == "lost":
            waiting += 1
        else:
            lost += count.lost_before(block_id)
            expected += waiting if seen else 0
            waiting, seen = 0, True
    assert lost == expected


@pytest.mark.parametrize("ids", [[7, 7, 7], [0, 0], [None, 5], [5, None], [5_000, 1], [1, 90_000]])
def test_a_count_that_begins_anew_or_none_loses_nothing(ids: list[int | None]) -> None:
    count = BlockCount(may_wrap=False)
    assert [count.lost_before(block_id) for block_id in ids] == [0] * len(ids)


def test_without_the_library_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aravis, "LIBRARY", "libaravis-of-nobody.so")
    aravis.library.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"apt-get install libaravis-0\.8-0"):
            open_source("gige://1").__enter__()
        assert gige.find() == []
    finally:
        aravis.library.cache_clear()


@needs_aravis
def test_an_argument_of_another_type_is_an_error_and_no_crash() -> None:
    library = aravis.library()
    for arguments in (("text",), (1.5,), ()):
        with pytest.raises((TypeError, aravis.ctypes.ArgumentError)):  # type: ignore[attr-defined]
            library.arv_camera_get_device(*arguments)


def test_options_of_a_camera_have_the_names_of_every_kind() -> None:
    assert GenicamOptions(exposure_us=5.0).exposure_us == 5.0
