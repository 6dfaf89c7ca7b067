"""Video through PyAV: the pictures of OpenCV to the last bit, decoded here and as NVDEC hands them out; what is refused."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from nnet_edge.errors import ConfigError, MissingExtraError, SourceError
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime import pyav_video
from nnet_edge.runtime.opencv_video import codec_setup, open_capture, property_of
from nnet_edge.runtime.pyav_video import Damage, PyavVideo, first_planes, require_decoder, trial_film
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.settings.camera import CommonSettings

FRAMES = 24
FACTS = ("FRAME_HEIGHT", "FRAME_WIDTH", "FPS", "FOURCC", "FRAME_COUNT")
ONE, MINUS = 0x10000, -0x10000
TURNS = {90: (0, ONE, 0, MINUS, 0), 180: (MINUS, 0, 0, 0, MINUS), 270: (0, MINUS, 0, ONE, 0)}  # in an MP4's tkhd box
AS_NVDEC = {"yuv420p": "nv12", "yuvj420p": "nv12", "yuv420p10le": "p010le", "yuv444p": "nv24"}
needs_no_gpu = pytest.mark.skipif(isinstance(find_gpu(), GpuFacts), reason="there is a GPU, which decodes")
Film = Callable[..., Path]


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    """A function that gives a film of moving coloured blocks, the same one each time."""

    def make(
        name: str, codec: str = "libx264", pixels: str = "yuv420p", height: int = 96, width: int = 128,
        matrix: int | None = None, full_range: bool = False,
    ) -> Path:  # fmt: skip
        path = tmp_path_factory.getbasetemp() / f"{codec}-{pixels}-{height}-{matrix}-{full_range}-{name}"
        if path.exists():
            return path
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {"g": "8", "bf": "2"}
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = height, width, pixels
            if matrix is not None:
                stream.codec_context.colorspace = matrix
            if full_range:
                stream.codec_context.color_range = 2
            blocks = np.random.default_rng(0).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
            blocks = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
            for index in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(np.roll(blocks, 3 * index, 1), "bgr24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


def turned(path: Path, folder: Path, degrees: int) -> Path:
    """A copy of the MP4 that says how it is to be turned."""
    data = path.read_bytes()
    upright = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 0x40000000)
    assert data.count(upright, data.index(b"tkhd")) == 1
    head, tail = data[: data.index(b"tkhd")], data[data.index(b"tkhd") :]
    other = folder / f"turned_{degrees}.mp4"
    other.write_bytes(head + tail.replace(upright, struct.pack(">9i", *TURNS[degrees], 0, 0, 0, 0x40000000)))
    return other


def opened(path: Path, kind: type[PyavVideo] = PyavVideo, lose: Callable[[], None] = lambda: None) -> PyavVideo:
    return kind(str(path), None, "film", CommonSettings(str(path)), lose=lose)


class Downloaded(PyavVideo):
    """Decoded here, and then laid out as NVDEC's pictures come from the GPU."""

    def _as_bgr(self, frame: Any) -> np.ndarray:
        layout = AS_NVDEC[frame.format.name]
        return super()._as_bgr(VideoReformatter().reformat(frame, format=layout))


def assert_as_opencv(path: Path, kind: type[PyavVideo]) -> None:
    """Facts, pictures and times are OpenCV's."""
    theirs, ours = open_capture(str(path), CommonSettings(str(path))), opened(path, kind)
    assert theirs.isOpened()
    assert ours.isOpened()
    for name in FACTS:
        assert property_of(ours, name) == property_of(theirs, name), name
    for _ in range(FRAMES):
        (is_there, expected), (was_read, found) = theirs.read(), ours.read()
        assert is_there
        assert was_read
        assert found is not None
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)
        assert ours.get(cv2.CAP_PROP_POS_MSEC) == pytest.approx(theirs.get(cv2.CAP_PROP_POS_MSEC), abs=0.01)
    assert ours.read() == (False, None)
    assert theirs.read()[0] is False
    ours.release()
    assert not ours.isOpened()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.ts", {}),
        ("hd.mp4", {"matrix": 1}),
        ("full.mp4", {"full_range": True}),
        ("odd.mp4", {"height": 90, "width": 122}),
        ("444.mp4", {"pixels": "yuv444p"}),
        ("a.mp4", {"codec": "libx265"}),
        ("ten.mp4", {"codec": "libx265", "pixels": "yuv420p10le"}),
        ("a.webm", {"codec": "libvpx-vp9"}),
    ],
)
def test_pictures_are_those_of_opencv_as_decoded_and_as_nvdec_lays_them_out(
    film: Film, name: str, options: dict[str, Any]
) -> None:
    assert_as_opencv(film(name, **options), PyavVideo)
    assert_as_opencv(film(name, **options), Downloaded)


@pytest.mark.parametrize("degrees", TURNS)
def test_a_film_is_turned_as_it_says(film: Film, tmp_path: Path, degrees: int) -> None:
    assert_as_opencv(turned(film("a.mp4"), tmp_path, degrees), PyavVideo)


def test_nv12_as_it_comes_has_other_colours_at_edges(film: Film) -> None:
    """Why `_as_bgr` goes by the planes: should FFmpeg change, that detour may go."""
    with av.open(str(film("a.mp4"))) as container:
        frame = next(container.decode(video=0))
    planes, mixed = VideoReformatter(), frame.reformat(format="nv12")
    expected = planes.reformat(frame, format="bgr24", interpolation="BICUBIC").to_ndarray()
    found = planes.reformat(mixed, format="bgr24", interpolation="BICUBIC").to_ndarray()

    assert np.abs(found.astype(int) - expected).max() > 30


def damaged(path: Path, folder: Path, seed: int) -> Path:
    """A copy with 200 other bytes somewhere in its coded pictures."""
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    first, last = data.index(b"mdat") + 1500, data.rindex(b"moov") - 500
    at = int(rng.integers(first, last))
    data[at : at + 200] = rng.bytes(200)
    other = folder / f"damaged_{seed}.mp4"
    other.write_bytes(data)
    return other


def test_torn_pictures_are_counted_and_not_given(film: Film, tmp_path: Path) -> None:
    lost, short = [], 0
    for seed in range(12):
        torn: list[int] = []
        video = opened(damaged(film("a.mp4"), tmp_path, seed), lose=lambda torn=torn: torn.append(1))  # type: ignore[misc]
        shown = 0
        while video.isOpened() and video.read()[0]:
            shown += 1
        lost.append(len(torn))
        short += shown + len(torn) < FRAMES
        assert shown + len(torn) <= FRAMES

    assert sum(lost) > 0  # OpenCV gives these pictures, and nobody hears of it
    assert short > 0  # what cannot be decoded ends the film, and its source says how many were promised


def without_packets(path: Path, folder: Path, seed: int) -> Path:
    """A copy of the MPEG-TS that lost one of a hundred packets of its video, as UDP loses some."""
    data, random = path.read_bytes(), np.random.default_rng(seed)
    packets = [data[start : start + 188] for start in range(0, len(data), 188)]
    is_video = [packet[1] & 0x1F == 1 and packet[2] == 0 for packet in packets]
    assert sum(is_video) > 100
    kept = random.random(len(packets)) >= 0.01
    other = folder / f"lossy_{seed}.ts"
    other.write_bytes(
        b"".join(packet for packet, video, keep in zip(packets, is_video, kept, strict=True) if keep or not video)
    )
    return other


def pictures_of(path: Path, decode: str) -> tuple[list[bytes], list[str]]:
    """The pictures of a film, and what was lost on the way; one that ends short has given all that it could."""
    lost: list[str] = []
    with open_source(str(path), decode=decode) as source:
        source.lose = lambda cause, frames: lost.extend([cause] * frames)
        found = []
        with contextlib.suppress(SourceError):
            for frame in source:
                found.append(frame.image.tobytes())
    return found, lost


def test_pictures_with_lost_packets_are_not_given_nor_those_that_build_on_them(film: Film, tmp_path: Path) -> None:
    sent = film("long.ts", height=240, width=320)
    true = set(pictures_of(sent, "cpu")[0])
    torn_by_opencv = given = counted = 0
    for seed in range(6):
        lossy = without_packets(sent, tmp_path, seed)
        torn_by_opencv += len(set(pictures_of(lossy, "cpu")[0]) - true)
        checked, lost = pictures_of(lossy, "checked")
        assert set(lost) <= {"incomplete"}
        assert set(checked) <= true
        counted += len(lost)
        given += len(checked)

    assert torn_by_opencv > 20  # it hands them on
    assert counted > 20
    assert given > 20


def test_a_picture_that_refers_to_no_other_ends_the_damage() -> None:
    def is_whole(pts: int, torn: bool = False, key: bool = False) -> bool:
        return damage.is_whole(SimpleNamespace(pts=pts, is_corrupt=torn, key_frame=key))

    damage = Damage()
    assert not is_whole(-4)  # it refers to what came before the stream was opened
    assert is_whole(0, key=True)
    assert all(is_whole(4 * index) for index in range(1, 20))
    assert not is_whole(84)  # that of 80 never came
    assert not is_whole(88)
    assert is_whole(92, key=True)
    assert not is_whole(96, torn=True)
    assert not is_whole(100)
    assert not is_whole(104, torn=True, key=True)
    assert not is_whole(108)
    assert is_whole(112, key=True)
    damage.packet(SimpleNamespace(pts=120, is_corrupt=True))
    damage.packet(SimpleNamespace(pts=124, is_corrupt=False))
    damage.packet(SimpleNamespace(pts=128, is_corrupt=False))
    assert is_whole(116)  # it was decoded before the torn packet came
    assert not is_whole(120)
    assert not is_whole(124, key=True)  # its beginning may have gone with the end of the one before
    assert is_whole(128, key=True)
    assert damage._torn_times == set()


def test_a_camera_of_no_even_rate_loses_nothing_to_its_gaps() -> None:
    damage, times = Damage(), np.cumsum(np.tile([3, 4, 9, 2], 20))
    assert damage.is_whole(SimpleNamespace(pts=0, is_corrupt=False, key_frame=True))
    assert all(damage.is_whole(SimpleNamespace(pts=int(pts), is_corrupt=False, key_frame=False)) for pts in times)


@pytest.mark.parametrize("whole", [0, 1])
def test_a_camera_that_sends_no_whole_picture_for_too_long_is_told(
    film: Film, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    ticks, seen = itertools.count(), itertools.count()
    monkeypatch.setattr(pyav_video, "time", SimpleNamespace(monotonic=lambda: 4.0 * next(ticks)))
    monkeypatch.setattr(Damage, "is_whole", lambda damage, frame: next(seen) < whole)
    torn: list[int] = []

    def read_on() -> None:
        video = opened(film("a.mp4"), lose=lambda: torn.append(1))
        while video.read()[0]:
            pass

    with pytest.raises(SourceError, match=r"none of \d+ pictures in \d+ s is whole: .* no key frame"):
        read_on()
    assert 0 < len(torn) < FRAMES - 1


def test_checked_without_pyav_is_refused(film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"nnet-edge\[decode\]"):
        open_source(str(film("a.mp4")), decode="checked")


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every GPU decodes: on the processor, with pictures laid out as NVDEC's. Gives those that were asked."""
    asked: list[int] = []
    monkeypatch.setattr(pyav_video, "require_decoder", asked.append)
    monkeypatch.setattr(pyav_video, "decoder_of", lambda gpu: None)
    decoded = PyavVideo._decoded

    def laid_out(video: PyavVideo) -> Iterator[Any]:
        for frame in decoded(video):
            yield VideoReformatter().reformat(frame, format=AS_NVDEC[frame.format.name])

    monkeypatch.setattr(PyavVideo, "_decoded", laid_out)
    return asked


def test_a_source_decodes_on_the_gpu_that_it_is_given(film: Film, as_on_gpu: list[int]) -> None:
    with open_source(str(film("a.mp4")), decode="gpu:1") as source:
        frames = [frame.image for frame in source]
    with open_source(str(film("a.mp4"))) as source:
        expected = [frame.image for frame in source]

    assert set(as_on_gpu) == {1}
    assert len(frames) == FRAMES
    np.testing.assert_array_equal(frames, expected)


def test_what_nvdec_does_not_know_the_processor_decodes_and_it_is_told_once(
    film: Film, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pyav_video, "require_decoder", lambda gpu: None)
    monkeypatch.setattr(pyav_video, "decoder_of", lambda gpu: None)  # so that it comes as from the processor
    path = film("444.mp4", pixels="yuv444p")
    with open_source(str(path), decode="gpu") as source:
        frames = list(source)

    assert len(frames) == FRAMES
    assert [record.message for record in caplog.records] == [
        f"video {path}: decoded on the processor, not on GPU 0: NVDEC knows no such h264"
    ]


@pytest.mark.usefixtures("as_on_gpu")
def test_a_network_camera_decodes_on_the_gpu_that_it_is_given(film: Film) -> None:
    data = film("a.ts").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = threading.Thread(target=lambda: send(server, data), daemon=True)
        sender.start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with open_source(address, decode="gpu", read_timeout_s=5.0) as source:
            assert source.is_live
            assert source.got is not None
            assert (source.got.height, source.got.width) == (96, 128)
            with pytest.raises(SourceError, match=f"stopped after {FRAMES} frames"):
                list(source)
        sender.join()


def send(server: socket.socket, data: bytes) -> None:
    """Give what a camera sends to whoever connects, and hang up."""
    connection, _ = server.accept()
    with connection:
        connection.sendall(data)


@needs_no_gpu
def test_without_a_gpu_the_processor_decodes_and_the_log_says_so(film: Film, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), open_source(str(film("a.mp4")), decode="gpu") as source:
        frames = list(source)

    assert len(frames) == FRAMES
    said = [record.message for record in caplog.records if "processor" in record.message]
    assert len(said) == 1
    assert "decoded on the processor, not on GPU 0: " in said[0]


@needs_no_gpu
def test_a_gpu_that_ffmpeg_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyav_video, "find_gpu", lambda gpu: None)  # as if NVML knew one

    with pytest.raises(ConfigError, match="FFmpeg cannot use NVDEC of GPU 0: "):
        require_decoder(0)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda film, gpu: None if gpu is not None else np.zeros((3, 2), np.uint8), "decodes no H.264"),
        (lambda film, gpu: np.full((3, 2), 7 if gpu is None else 8, np.uint8), "another picture of a trial"),
        (lambda film, gpu: np.zeros((3, 2 if gpu is None else 4), np.uint8), "another picture of a trial"),
    ],
)
def test_a_gpu_that_fails_its_trial_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: Callable[..., np.ndarray | None], message: str
) -> None:
    monkeypatch.setattr(pyav_video, "find_gpu", lambda gpu: None)
    monkeypatch.setattr(pyav_video, "first_planes", found)

    with pytest.raises(ConfigError, match=message):
        require_decoder.__wrapped__(0)


def test_the_trial_is_a_film_of_one_picture() -> None:
    planes = first_planes(trial_film(), None)

    assert planes is not None
    assert planes.shape == (384, 256)
    assert planes[:256].min() < 90
    assert planes[:256].max() > 160


def test_no_gpu_and_no_pyav_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyav_video, "find_gpu", lambda gpu: NoGpu("there is no GPU 7"))
    with pytest.raises(ConfigError, match="there is no GPU 7"):
        require_decoder.__wrapped__(7)

    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"nnet-edge\[decode\]"):
        pyav_video.pyav()


def test_a_name_with_a_colon_is_no_protocol(film: Film, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("line:2.mkv").write_bytes(film("a.mkv").read_bytes())

    assert len(codec_setup("line:2.mkv")) > 10
    for decode in ("cpu", "checked"):
        with open_source("line:2.mkv", decode=decode) as source:
            assert len(list(source)) == FRAMES


@pytest.mark.parametrize("content", [b"", b"no film at all", bytes(4000)])
def test_what_is_no_film_is_not_opened(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)

    assert not opened(path).isOpened()


def test_a_decoder_that_fails_on_the_way_ends_the_source(film: Film, monkeypatch: pytest.MonkeyPatch) -> None:
    video = opened(film("a.mp4"))
    lost = av.ExternalError(1, "the GPU is lost")
    monkeypatch.setattr(video, "_frames", failing(lost, video))

    assert video.read()[0]  # which was decoded when it was opened
    with pytest.raises(SourceError, match="film can no longer be decoded on the processor"):
        video.read()


def failing(error: Exception, video: PyavVideo) -> Any:
    """The frames of a film whose second packet the decoder fails on."""

    class Packet:
        is_corrupt = False

        def decode(self) -> list[Any]:
            raise error

    class Container:
        def demux(self, stream: Any) -> Any:
            return iter([Packet()])

        def close(self) -> None: ...

    video._container.close()
    video._container = Container()
    return video._decoded()


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_here")
def test_nvdec_gives_the_pictures_of_opencv(film: Film) -> None:
    require_decoder(0)
    path = film("large.mp4", height=480, width=640)
    theirs, ours = (
        open_capture(str(path), CommonSettings(str(path))),
        PyavVideo(str(path), 0, "film", CommonSettings("film")),
    )

    for _ in range(FRAMES):
        np.testing.assert_array_equal(ours.read()[1], theirs.read()[1])
    assert ours.read() == (False, None)
