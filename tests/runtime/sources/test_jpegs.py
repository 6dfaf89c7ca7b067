"""JPEGs out of bytes: where each begins and ends, what lies between them, and pipes that carry more than pictures."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.errors import DataError, SourceError
from nnet_edge.runtime.sources import jpegs
from nnet_edge.runtime.sources.jpegs import JpegCutter
from nnet_edge.runtime.sources.open import open_source


def jpeg(value: int, side: int = 48) -> bytes:
    """A picture of noise around this brightness."""
    noise = np.random.default_rng(value).integers(-20, 20, (side, side, 3))
    return bytes(cv2.imencode(".jpg", np.clip(value + noise, 0, 255).astype(np.uint8))[1])


def with_thumbnail(picture: bytes) -> bytes:
    """The picture with a smaller one in its EXIF segment, which has a start and an end of its own."""
    body = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + jpeg(10, 16)
    return picture[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + picture[2:]


def cut(data: bytes, step: int, boundary: str | None = None) -> list[bytes]:
    """The pictures in the data, fed `step` bytes at a time."""
    cutter = JpegCutter(boundary)
    return [one for at in range(0, len(data), step) for one in cutter.feed(data[at : at + step])]


A, B, C = jpeg(50), jpeg(90), jpeg(130)
TORN_HEADER = with_thumbnail(A)[:100]  # the segment that it is torn in would reach into the next picture


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
@pytest.mark.parametrize(
    ("data", "boundary", "pictures"),
    [
        (A + B + C, None, [A, B, C]),
        (b"\n\n" + A + bytes(3) + B + bytes(5000) + C + b"\n", None, [A, B, C]),
        (with_thumbnail(A) + B, None, [with_thumbnail(A), B]),
        (A + B[:300] + C + A[:100], None, [A, B[:300], C]),
        (A[:-2] + b"\xff\xff\xff\xd9" + B, None, [A[:-2] + b"\xff\xff\xff\xd9", B]),
        (b"--x\r\n\r\n" + A + b"\r\n--x\r\n\r\n" + TORN_HEADER + b"\r\n--x\r\n\r\n" + C, "x", [A, TORN_HEADER, C]),
        (b"--x\n\n" + A + C + b"\n--x\n\n" + B, "x", [A, B]),  # one picture a part: the second is a preview
        (b"--x\nContent-Type: image/jpeg\n\nnone\n--x\nContent-Type: image/jpeg\n\n" + A, "x", [b"", A]),
        (b"--x\nContent-Type: text/plain\n\nnone\n--x\nContent-Type: image/jpeg\n\n" + A, "x", [A]),
    ],
    ids=["glued", "padded", "thumbnail", "torn", "fill", "torn-header", "preview", "empty-part", "text-part"],
)  # fmt: skip
def test_pictures_are_cut_by_their_markers_and_boundaries(
    data: bytes, boundary: str | None, pictures: list[bytes], step: int
) -> None:
    assert cut(data, step, boundary) == pictures


def test_bytes_that_hold_no_picture_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpegs, "MOST_BETWEEN", 1000)
    monkeypatch.setattr(jpegs, "LARGEST_PICTURE", 10_000)
    with pytest.raises(DataError, match="no JPEG came in 1050 bytes"):
        cut(b"x" * 2000, 50)
    with pytest.raises(DataError, match="a picture of more than 10000 bytes came"):
        cut(A[:100] + b"x" * 20_000, 500)


def test_a_pipe_may_carry_bytes_between_its_pictures_and_counts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "camera"
    os.mkfifo(path)
    sent = [A + bytes(3), with_thumbnail(B) + b"\n", C + bytes(512), A[:-300], B]
    writer = threading.Thread(target=lambda: path.write_bytes(b"".join(sent)))
    with open_source(str(path)) as source:
        writer.start()
        frames = []
        with pytest.raises(SourceError, match=r"\(skipped 1; the last: its end is missing\), 516 bytes"):
            frames.extend(source)
    writer.join(2)
    wanted = [cv2.imdecode(np.frombuffer(one, np.uint8), 1) for one in (A, B, C, B)]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert all(np.array_equal(frame.image, one) for frame, one in zip(frames, wanted, strict=True))
    assert (source.skipped, source.last_fault) == (1, "its end is missing")
    assert caplog.text.count("carries bytes between its pictures") == 1
