"""Whole videos are whole whatever number of frames they promise, and one that was cut is told, in every container."""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.errors import SourceError
from nnet_edge.runtime.opencv_video import open_writer
from nnet_edge.runtime.sources.containers import has_stuffing, is_cut_off, picture_s
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.sources.video import VIDEO_SUFFIXES, is_http_video

FRAMES, RATE_HZ = 30, 25.0
MakeVideo = Callable[[str, str], Path]
KINDS = [("mp4v", ".mp4"), ("mp4v", ".mov"), ("mp4v", ".3gp"), ("mp4v", ".mkv"), ("VP80", ".webm"), ("MJPG", ".avi"),
         ("FLV1", ".flv"), ("WMV2", ".wmv"), ("mpg2", ".ts"), ("mp4v", ".ts"), ("mpg2", ".m2ts"), ("mpg2", ".mpg"),
         ("MJPG", ".mjpeg")]  # fmt: skip


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> MakeVideo:
    """A function that gives a video of noise of that codec and suffix, the same one each time."""

    def make(codec: str, suffix: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"video-{codec}{suffix}"
        path = folder / f"clip{suffix}"
        if not path.exists():
            folder.mkdir(exist_ok=True)
            writer = open_writer(str(path), codec, RATE_HZ, 48, 64)
            if not writer.isOpened():
                pytest.skip(f"this OpenCV writes no {codec} into {suffix}")
            for index in range(FRAMES):
                writer.write(np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8))
            writer.release()
        return path

    return make


def altered(path: Path, folder: Path, change: Callable[[bytes], bytes]) -> str:
    """The path of a copy in `folder` with other bytes."""
    copy = folder / path.name
    copy.write_bytes(change(path.read_bytes()))
    return str(copy)


def is_cut(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return is_cut_off(file)


def times_s(address: str) -> list[float]:
    with open_source(address) as source:
        return [frame.in_file_s or 0.0 for frame in source]


@pytest.mark.parametrize(("codec", "suffix"), KINDS)
def test_a_whole_video_is_whole_and_a_cut_one_is_not(
    make_video: MakeVideo, tmp_path: Path, codec: str, suffix: str
) -> None:
    path = make_video(codec, suffix)
    assert times_s(str(path)) == pytest.approx([index / RATE_HZ for index in range(FRAMES)], abs=0.002)
    assert not is_cut(path)
    for share in (0.6, 0.95):
        bytes_left = int(share * path.stat().st_size) | 1  # inside a packet
        assert is_cut(altered(path, tmp_path, lambda data: data[:bytes_left]))  # noqa: B023
    address = altered(path, tmp_path, lambda data: data[:-100])
    if suffix not in (".mp4", ".mov", ".3gp"):  # their index stands at the end
        with pytest.raises(SourceError, match=r"ended after \d+.* frames: the file is cut off"):
            times_s(address)


def test_a_video_without_sound_at_its_end_is_whole(make_video: MakeVideo, tmp_path: Path) -> None:
    """The duration of a file is that of its longest track: here 9 s of 1.2 s of pictures."""

    def lengthen(data: bytes) -> bytes:
        place = data.index(b"\x44\x89\x88") + 3
        return data[:place] + struct.pack(">d", 9000.0) + data[place + 8 :]

    address = altered(make_video("mp4v", ".mkv"), tmp_path, lengthen)
    assert len(times_s(address)) == FRAMES
    with pytest.raises(SourceError, match=r"ended after 1?[0-9] of 225 frames: the file is cut off"):
        times_s(altered(Path(address), tmp_path, lambda data: data[: len(data) // 2]))


def trimmed(data: bytes) -> bytes:
    """An MP4 file of which an edit list shows the last ten frames."""
    scale = int.from_bytes(data[data.index(b"mvhd") + 16 :][:4], "big")
    media_scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    shown = round(10 / RATE_HZ * scale).to_bytes(4, "big")
    skipped = round((FRAMES - 10) / RATE_HZ * media_scale).to_bytes(4, "big")
    for name, offset, value in (("elst", 12, shown), ("elst", 16, skipped), ("tkhd", 24, shown), ("mvhd", 20, shown)):
        place = data.index(name.encode()) + offset
        data = data[:place] + value + data[place + 4 :]
    return data


def test_a_video_that_an_edit_list_trims_is_whole(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video("mp4v", ".mp4")
    address = altered(path, tmp_path, trimmed)
    for file, frames in ((path, FRAMES), (Path(address), 10)):
        with file.open("rb") as content:
            assert picture_s(content) == pytest.approx(frames / RATE_HZ)
    assert times_s(address) == pytest.approx([index / RATE_HZ for index in range(10)], abs=0.002)


class Files(BaseHTTPRequestHandler):
    """Gives `content`, and parts of it unless the address says /whole/."""

    content = b""

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        size, part = len(self.content), self.content
        if asked is None or self.path.startswith("/whole/"):
            self.send_response(200)
        else:
            start, end = int(asked[1]), min(size, int(asked[2] or size) + 1)
            part = self.content[start:end]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Type", "video/x-any")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        with suppress(OSError):  # whoever asks may have enough
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def give() -> Iterator[Callable[[bytes], str]]:
    """A function that puts a file on a server and gives the server's address."""
    handler = type("Handler", (Files,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def put(content: bytes) -> str:
            handler.content = content  # type: ignore[attr-defined]
            return f"http://127.0.0.1:{server.server_port}"

        yield put
        server.shutdown()
        thread.join()


def test_a_video_behind_an_address_is_held_to_the_rule_of_files(
    make_video: MakeVideo, give: Callable[[bytes], str]
) -> None:
    data = make_video("mp4v", ".mp4").read_bytes()
    site = give(trimmed(data))
    assert len(times_s(f"{site}/clip.mp4")) == 10  # of 30 frames that the file promises
    with pytest.raises(SourceError, match="ended after 10 of 30 frames: the file is cut off or damaged"):
        times_s(f"{site}/whole/clip.mp4")  # a server that gives no parts: nothing else can be known
    transport = make_video("mpg2", ".ts").read_bytes()
    assert len(times_s(f"{give(transport)}/clip.ts")) == FRAMES
    for suffix, content in ((".ts", transport), (".mkv", make_video("mp4v", ".mkv").read_bytes())):
        with pytest.raises(SourceError, match=r"ended after \d+.* frames: the file is cut off"):
            times_s(f"{give(content[: 6 * len(content) // 10 | 1])}/clip{suffix}")


def test_a_transport_stream_that_was_cut_between_two_packets_is_told(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video("mpg2", ".ts")
    packets = path.stat().st_size // 188
    found = []
    for left in range(packets // 2, packets // 2 + 20):
        found.append(is_cut(altered(path, tmp_path, lambda data: data[: 188 * left])))  # noqa: B023
    assert sum(found) >= 15  # but for those at the end of a picture, where nothing shows that more is to come


def test_a_transport_stream_that_ends_behind_the_clock_of_a_picture_is_told(
    make_video: MakeVideo, tmp_path: Path
) -> None:
    """The first packet of a picture has an adaptation field too, with a clock instead of padding."""
    path = make_video("mpg2", ".ts")
    data = path.read_bytes()
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    clocks = [n for n, packet in enumerate(packets) if packet[1] & 0x40 and packet[3] & 0x20 and packet[5] & 0x10]
    assert len(clocks) > 2
    for left in clocks[1:-1]:
        assert is_cut(altered(path, tmp_path, lambda data: data[: 188 * (left + 1)]))  # noqa: B023


@pytest.mark.parametrize(
    ("field", "is_stuffed"),
    [("00", True), ("0100", True), ("0200ff", True), ("0140", False), ("0710" + "00" * 6, False),
     ("0810" + "00" * 6 + "ff", True), ("04020201ff", False), ("050202010203", True), ("0501020000ff", True),
     ("040102ff00", False), ("020400", False)],
)  # fmt: skip
def test_padding_is_what_a_field_does_not_say(field: str, is_stuffed: bool) -> None:
    assert has_stuffing(bytes.fromhex(field)) == is_stuffed


def test_pictures_that_are_lost_inside_are_told(make_video: MakeVideo, tmp_path: Path) -> None:
    """As after a power cut: the file has its length and its index, and zeros where pictures were."""

    def blank(data: bytes) -> bytes:
        start, end = data.index(b"mdat"), data.rindex(b"moov") - 4
        start += (end - start) // 2
        return data[:start] + bytes(end - start) + data[end:]

    with pytest.raises(SourceError, match=r"ended after \d+ of 30 frames: the file is cut off or damaged"):
        times_s(altered(make_video("mp4v", ".mp4"), tmp_path, blank))


def test_raw_video_is_read_and_has_times_by_its_rate(make_video: MakeVideo) -> None:
    found = times_s(str(make_video("mpg2", ".m2v")))
    assert len(found) == FRAMES
    assert np.diff(found) == pytest.approx([1 / RATE_HZ] * (FRAMES - 1), abs=0.002)
    assert {".mts", ".m2ts", ".h264", ".hevc", ".flv", ".3gp", ".wmv", ".vob"} < set(VIDEO_SUFFIXES)
    assert not is_http_video("http://camera/live.mjpg")  # which is a camera


def test_a_video_in_a_loop_begins_again(make_video: MakeVideo, tmp_path: Path) -> None:
    with open_source(str(make_video("MJPG", ".avi")), loop=True) as source:
        assert source.never_ends
        frames = list(islice(source, 2 * FRAMES + 5))
    assert [frame.index for frame in frames] == list(range(2 * FRAMES + 5))
    assert [frame.in_file_s for frame in frames[-5:]] == [frame.in_file_s for frame in frames[:5]]
    cut = altered(make_video("MJPG", ".avi"), tmp_path, lambda data: data[: len(data) // 2])
    with open_source(cut, loop=True) as source, pytest.raises(SourceError, match="the file is cut off"):
        list(source)
