"""JPEGs one after the other, out of the bytes of an HTTP camera or a pipe, cut and checked one by one.

Cut as browsers and FFmpeg do: the markers of a JPEG are walked from its start to its end, so that a thumbnail in its header
ends nothing; a boundary ends a torn picture where there is one. Lengths that a camera announces are not needed.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nnet_edge.errors import DataError
from nnet_edge.frame import Frame
from nnet_edge.jpeg import LARGEST_PICTURE, STRAY, without_strays
from nnet_edge.runtime.gpu_jpegs import JpegReader
from nnet_edge.runtime.sources.base import Source, SourceFacts
from nnet_edge.text import printable

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

START = b"\xff\xd8\xff"  # a picture's start, and the first byte of the marker that follows every one
MARKER = re.compile(rb"\xff[^\x00\xff]")
PICTURE_START, PICTURE_END = 0xD8, 0xD9
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD8))  # TEM, and the restart markers inside coded data
MAY_HOLD_PICTURES = (*range(0xE0, 0xF0), 0xFE)  # APP0 to APP15 and the comment
MOST_BETWEEN = 16 << 20  # bytes without a JPEG; some drivers fill up to the size of their buffer
LONGEST_BOUNDARY_LINE = 256
LAST_PICTURES, HABIT = 12, 3  # so many of the last with stray bytes, and none damaged otherwise, are the camera's habit
JPEG_PART = re.compile(rb"content-type:[ \t]*image/p?jpe?g", re.IGNORECASE)


class JpegCutter:
    """Cuts bytes into JPEGs. With the `boundary` of a multipart answer a part gives one picture, its first."""

    def __init__(self, boundary: str | None = None) -> None:
        self._between = 0
        name = re.escape((boundary or "").strip().lstrip("-").encode(errors="replace"))
        # Cameras announce "cam" or "--cam", and write "--cam" or "----cam".
        self._delimiter = re.compile(rb"--" + name) if name else None
        self._torn_at = re.compile(rb"\n--+" + name + rb"(?:--)?[ \t]*\r?\n") if name else None
        self._buffer = bytearray()
        self._at = 0  # where the walk, or the search for a picture, goes on
        self._searched = 0  # up to where no delimiter lies inside the picture
        self._is_inside = self._uses_boundary = False
        self._is_wanted = True  # whether the next picture is the first of its part

    @property
    def between(self) -> int:
        """Bytes so far that belong to no picture."""
        return self._between + (0 if self._is_inside else len(self._buffer))

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pictures that end in `data`; for a part that should hold one and does not, b"". Raises DataError."""
        self._buffer += data
        while True:
            if not self._is_inside:
                at = self._buffer.find(START, self._at)
                if at < 0:
                    self._at = max(0, len(self._buffer) - len(START) + 1)
                    if len(self._buffer) > MOST_BETWEEN:
                        raise DataError(f"no JPEG came in {len(self._buffer)} bytes")
                    return
                yield from self._begin(at)
            end, is_torn = self._end()
            if end is None:
                if len(self._buffer) > LARGEST_PICTURE:
                    raise DataError(f"a picture of more than {LARGEST_PICTURE} bytes came")
                return
            picture = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._is_inside, self._at = False, 0
            if self._is_wanted:
                yield picture
            self._is_wanted = is_torn or not self._uses_boundary

    def rest(self) -> bytes:
        """The picture that began and did not end, b"" for none; asked for when nothing more comes."""
        return bytes(self._buffer) if self._is_inside and self._is_wanted else b""

    def _begin(self, at: int) -> Iterator[bytes]:
        """Take the bytes before the picture that starts at `at`; b"" for each part before it that lacks its picture."""
        head = bytes(self._buffer[:at])
        del self._buffer[:at]
        self._between += at
        self._is_inside, self._at, self._searched = True, 2, 0
        if self._delimiter is not None and self._delimiter.search(head):
            self._is_wanted = self._uses_boundary = True
        yield from [b""] * (len(JPEG_PART.findall(head)) - 1)

    def _end(self) -> tuple[int | None, bool]:
        """Where the picture at the buffer's start ends, None while it goes on, and whether it is torn."""
        end = self._walk()
        if self._torn_at is not None:
            limit = len(self._buffer) if end is None else end
            if torn := self._torn_at.search(self._buffer, self._searched, limit):
                return torn.start() - self._buffer.endswith(b"\r", 0, torn.start()), True
            self._searched = max(0, limit - LONGEST_BOUNDARY_LINE)
        return end, end is not None and self._buffer[end - 1] != PICTURE_END

    def _walk(self) -> int | None:
        """Where the end marker ends, or another picture begins; None while neither has come."""
        while found := MARKER.search(self._buffer, self._at):
            code, after = self._buffer[found.end() - 1], found.end()
            if code == PICTURE_START:
                return found.start()
            if code == PICTURE_END:
                return after
            if code in WITHOUT_LENGTH:
                self._at = after
                continue
            self._at, length = found.start(), int.from_bytes(self._buffer[after : after + 2], "big")
            if len(self._buffer) < after + max(2, length):
                return None
            if code not in MAY_HOLD_PICTURES:
                torn = self._buffer.find(START, after, after + length)
                if torn >= 0:
                    return torn
            self._at = after + max(2, length)
        self._at = max(self._at, len(self._buffer) - 1)  # the last byte may begin a marker
        return None


class JpegSource(Source):
    """A live source of JPEGs. A picture that came in half or damaged is counted in `skipped`, never shown.

    Stray bytes before a restart marker, or the end, are a sign of damage, and the habit of some encoders. They are passed over
    where pictures before had them too and no other fault, and the picture is whole without them.
    """

    is_live = True

    def __init__(self, stream: str, gpu: int | None = None) -> None:
        super().__init__(stream)
        self._reader = JpegReader(gpu, printable(stream))
        self._index = 0  # of the next frame
        self._last: deque[str] = deque(maxlen=LAST_PICTURES)  # of each picture: whole, stray or damaged
        self._has_habit = False
        self.got = SourceFacts(pixel_format="MJPG")

    @property
    def so_far(self) -> str:
        """In words, for errors: how many frames it gave, how many pictures it skipped and why."""
        skipped = f" (skipped {self.skipped}; the last: {self.last_fault})" if self.skipped else ""
        return f"{self.describe()} stopped after {self._index} frames{skipped}"

    def frames_of(self, pictures: Iterator[bytes]) -> Iterator[Frame]:
        """The frames of those of the pictures that are whole, until the source is interrupted."""
        for data in pictures:
            if self._interrupted.is_set():
                return
            try:
                image = self._whole(data)
            except DataError as error:
                self.skipped += 1
                self.last_fault = str(error)
                log.warning("%s gave a picture of %d bytes, passed over: %s", self.describe(), len(data), error)
                continue
            yield Frame(image, self._index, time.monotonic(), self.stream)
            self._index += 1

    def _whole(self, data: bytes) -> np.ndarray:
        """The picture in `data`. Raises DataError."""
        self._last.append("damaged")
        try:
            image = self._reader.picture(data)
            self._last[-1] = "whole"
        except DataError as error:
            if not STRAY.search(str(error)):
                raise
            image = self._reader.picture(without_strays(data))
            self._last[-1] = "stray"
            if "damaged" in self._last or self._last.count("stray") <= HABIT:
                raise
            if not self._has_habit:
                log.warning("%s leaves stray bytes in its pictures, and no other fault: passed over", self.describe())
            self._has_habit = True
        return image
