"""Video without a colour tag is read by the matrix that is asked for, tagged video by its tag; frames at their own times."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.runtime.opencv_video import open_writer
from nnet_edge.runtime.sources.colour import choose_colours, coding, is_tagged, tag_of_h264, to_709, to_709_matrix
from nnet_edge.runtime.sources.open import open_source, open_source_of
from nnet_edge.settings.camera import CameraSettings

COLOURS = np.array([(60, 90, 200), (200, 120, 80), (90, 160, 100), (128, 128, 128)], np.uint8)  # BGR
# Sequence parameters of 64 x 64 pixels as x264 writes them into an MP4: annex E without a matrix, and with BT.709.
BARE = bytes.fromhex("0164000affe100186764000aacd94426c044000003000400000300c83c489658")
NAMED = bytes.fromhex("0164000affe1001b6764000aacd94426c05a810100a0000003002000000641e244b2c0")


def write_hd(path: Path) -> np.ndarray:
    """A video of 720 lines, without a tag, coded by BT.601, and what it shows."""
    picture = np.repeat(COLOURS[None], 720, axis=0).repeat(16, axis=1)
    writer = open_writer(str(path), "mp4v", 10.0, 720, 64)
    for _ in range(2):
        writer.write(picture)
    writer.release()
    return picture


def tagged(path: Path, matrix: int) -> Path:
    """A copy of the MP4 whose index names a colour matrix."""
    data = path.read_bytes()
    box = (19).to_bytes(4, "big") + b"colrnclx" + b"\0\1\0\1" + matrix.to_bytes(2, "big") + b"\0"
    place = data.index(b"esds") - 4
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mp4v"):  # those that hold it grow
        start = data.index(kind, data.index(b"moov")) - 4
        size = int.from_bytes(data[start : start + 4], "big") + len(box)
        data = data[:start] + size.to_bytes(4, "big") + data[start + 4 :]
    other = path.with_name(f"tagged_{matrix}.mp4")
    other.write_bytes(data[:place] + box + data[place:])  # the pictures lie before the index: their places stay
    return other


def first_frame(path: Path, **options: object) -> tuple[np.ndarray, str]:
    with open_source(str(path), **options) as source:
        image = next(iter(source)).image
        return image[360, 8::16].astype(int), source.describe()


def test_an_untagged_video_is_read_by_the_matrix_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "hd.mp4"
    shown = write_hd(path)[360, 8::16].astype(int)
    plain, words = first_frame(path)
    np.testing.assert_allclose(plain, shown, atol=8)  # MPEG-4's losses
    assert "names no colour matrix: without one it is read as BT.601 (--colour-matrix bt709)" in words
    for matrix in ("bt709", "auto"):
        converted, words = first_frame(path, colour_matrix=matrix)
        np.testing.assert_allclose(converted, np.clip(plain @ to_709_matrix().T, 0, 255), atol=1)
        assert np.abs(converted - plain).max() > 9
        assert words.endswith("colours read as BT.709")
    np.testing.assert_array_equal(first_frame(path, colour_matrix="bt601")[0], plain)


def test_a_tag_is_followed_and_nothing_is_converted_twice(tmp_path: Path) -> None:
    path = tmp_path / "hd.mp4"
    write_hd(path)
    plain, _ = first_frame(path)
    for matrix, is_709 in ((1, True), (6, False)):
        copy = tagged(path, matrix)
        found = [first_frame(copy, colour_matrix=asked)[0] for asked in ("bt601", "bt709", "auto")]
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])
        expected = np.clip(plain @ to_709_matrix().T, 0, 255) if is_709 else plain
        np.testing.assert_allclose(found[0], expected, atol=2)  # FFmpeg's own conversion, in whole numbers


def test_the_conversion_is_that_of_the_standards() -> None:
    rgb = np.random.default_rng(0).integers(60, 190, (500, 3))
    coded = rgb @ coding(0.2126, 0.0722).T  # luma and two differences of colour, by BT.709
    read = coded @ np.linalg.inv(coding(0.299, 0.114)).T  # as BT.601
    image = np.rint(read[:, None, ::-1]).astype(np.uint8)
    np.testing.assert_allclose(to_709(image)[:, 0, ::-1], rgb, atol=1.6)  # rounded twice
    grey = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    np.testing.assert_array_equal(to_709(grey), grey)


@pytest.mark.parametrize(
    ("matrix", "lines", "tag", "converts", "says"),
    [
        ("bt601", 480, False, False, ""), ("bt601", 1080, False, False, "names no"), ("bt601", 1080, None, False, "may name"),
        ("bt601", 1080, True, False, ""), ("bt709", 480, False, True, "BT.709"), ("bt709", 1080, None, True, "BT.709"),
        ("bt709", 1080, True, False, ""), ("auto", 480, False, False, ""), ("auto", 720, False, True, "BT.709"),
        ("auto", 720, None, False, "may name"), ("auto", 720, True, False, ""),
    ],
)  # fmt: skip
def test_what_is_done(matrix: str, lines: int, tag: bool | None, converts: bool, says: str) -> None:
    colours = choose_colours(matrix, lines, tag)
    assert colours.is_converted is converts
    assert (says in colours.words) is True
    assert bool(colours.words) is bool(says)


def with_annex_e(matrix: int) -> bytes:
    """Sequence parameters of the baseline profile that name that matrix."""
    bits = "01000010" + "0" * 16 + "1" + "1" + "1" + "1" + "010" + "0" + "00100" + "00100" + "1" + "1" + "0"
    bits += "1" + "0" + "0" + "1" + "101" + "0" + "1" + f"{1:08b}{1:08b}{matrix:08b}" + "1"  # annex E
    bits += "0" * (-len(bits) % 8)
    return b"\0\0\0\1\x67" + int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\0\0\0", b"\0\0\3\0")


def test_the_tag_of_h264_is_read_from_its_parameter_sets(tmp_path: Path) -> None:
    assert tag_of_h264(BARE) is None
    assert tag_of_h264(NAMED) == 1
    for matrix in (1, 2, 6):
        sets = with_annex_e(matrix)
        assert tag_of_h264(sets) == matrix
        kept = b"\1\x42\0\x0a\xff\xe1" + (len(sets) - 4).to_bytes(2, "big") + sets[4:]  # as MP4 keeps them
        assert tag_of_h264(kept) == matrix
        assert is_tagged(tmp_path / "a.ts", "h264", lambda sets=sets: sets) is (matrix != 2)
    for broken in (b"", b"\1", b"\0\0\1", b"\0\0\1\x67\x64", bytes(40)):
        assert is_tagged(tmp_path / "a.ts", "h264", lambda broken=broken: broken) is None
    assert is_tagged(tmp_path / "a.avi", "MJPG", lambda: b"") is True  # JFIF knows one matrix
    assert is_tagged(tmp_path / "a.mp4", "hev1", lambda: b"") is None


def test_an_unknown_matrix_is_refused() -> None:
    with pytest.raises(ConfigError, match="colour matrix 'bt2020' is unknown"):
        CameraSettings.of("clip.mp4", colour_matrix="bt2020")
    assert CameraSettings.of("rtsp://camera/1", colour_matrix="bt709").options == {"colour_matrix": "bt709"}


def test_frames_at_their_own_rate_come_at_their_own_times(write_video: Callable[..., Path]) -> None:
    path = write_video(6, "clip.mkv")
    data = bytearray(path.read_bytes())
    times_ms = (0, 50, 100, 400, 450, 500)  # the container still says 20 frames/s
    blocks = list(re.finditer(rb"\xa3(?:[\x81-\xfe]|[\x40-\x7f].)\x81(..)[\x00\x80]", bytes(data), re.DOTALL))
    blocks = [block for block in blocks if int.from_bytes(block[1], "big") in range(0, 300, 50)]
    for block, time_ms in zip(blocks, times_ms, strict=True):
        data[block.start(1) : block.end(1)] = time_ms.to_bytes(2, "big")
    path.write_bytes(data)
    with open_source_of(CameraSettings.of(str(path), at_own_rate=True), "clip") as source:
        captured_s = [frame.captured_s for frame in source]
    gaps_s = np.diff(captured_s)
    assert captured_s[-1] - captured_s[0] >= 0.49
    assert gaps_s[2] >= 0.25
    assert gaps_s[2] > 3 * max(gaps_s[0], gaps_s[1]) or gaps_s[2] >= 0.29
