"""Video through the FFmpeg of PyAV: on the processor with an eye for torn pictures, or on a GPU by NVDEC.

FFmpeg fills what a lost packet tore out of a picture from the one before, and those after it build on that. It says so of the
first alone, and OpenCV passes on not even that: of an H.264 film without 0.4 % of its packets a third of the pictures are
others than were sent. `Damage` tells them, and they are not given.

H.264, H.265, VP9 and AV1 leave a decoder no choice: the coded pictures are those of the processor to the last bit, where an
MPEG-2 or a Motion JPEG may be rounded otherwise. NVDEC hands them out as NV12, of which FFmpeg makes other colours at edges
than of the same numbers in planes, up to 124 grey levels away; so they go back to planes first, and come out as from OpenCV.
"""

from __future__ import annotations

import io
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, SourceError, missing_library
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.runtime.opencv_video import ffmpeg_options, for_ffmpeg, require_utf_8
from nnet_edge.settings.camera import CommonSettings

if TYPE_CHECKING:
    import numpy as np

FROM_NVDEC = {  # as it gives pictures -> the same numbers in planes
    "nv12": "yuv420p",
    "p010le": "yuv420p10le",
    "p012le": "yuv420p12le",
    "nv16": "yuv422p",
    "p210le": "yuv422p10le",
    "nv24": "yuv444p",
}
LETTERS = {"h264": "h264", "hevc": "hevc", "vp9": "VP90", "av1": "AV01"}  # as OpenCV calls them
QUARTER_TURNS = {90: 1, 180: 2, -180: 2, -90: 3, 270: 3}  # rotation of a film -> of np.rot90
EVEN = 8  # gaps between pictures; a camera of another rate from picture to picture has no lost ones to be seen by
TRIAL_SIDE = 256  # the smallest that every NVDEC takes lies below


class Damage:
    """Tells which pictures are whole: none that decoder or demuxer call torn, nor what builds on such a one or on a lost one.

    A picture that refers to no other ends the damage. One is taken for lost where the times of those before were evenly apart.
    """

    def __init__(self) -> None:
        self._torn_times: set[int] = set()  # of packets
        self._gaps: deque[int] = deque(maxlen=EVEN)
        self._last: int | None = None
        self._was_corrupt = False
        self._is_torn = True  # until the first that refers to no other

    def packet(self, packet: Any) -> None:
        """Take notice of a packet before it is decoded; one behind a torn one may lack its own beginning."""
        is_suspect = packet.is_corrupt or self._was_corrupt
        self._was_corrupt = packet.is_corrupt
        if is_suspect and packet.pts is not None:
            self._torn_times.add(packet.pts)
        elif is_suspect:
            self._is_torn = True

    def is_whole(self, frame: Any) -> bool:
        """Whether the next picture, in the order in which they are shown, is what the camera saw."""
        is_torn = frame.is_corrupt or frame.pts in self._torn_times
        if frame.pts is not None:  # some of those before gave no picture
            self._torn_times = {pts for pts in self._torn_times if pts > frame.pts}
        is_begun_anew = bool(frame.key_frame)
        is_behind_lost = self._is_behind_lost(frame.pts) and not is_begun_anew
        self._is_torn = is_torn or is_behind_lost or (self._is_torn and not is_begun_anew)
        return not self._is_torn

    def _is_behind_lost(self, pts: int | None) -> bool:
        if pts is None or self._last is None:
            self._last = pts
            return False
        gap, self._last = pts - self._last, pts
        is_even = len(self._gaps) == EVEN and max(self._gaps) <= 1.1 * min(self._gaps)
        self._gaps.append(gap)
        return is_even and gap > 1.5 * max(self._gaps[0], 1)


class PyavVideo:
    """Reads as cv2.VideoCapture does, decoded on the GPU of that index; None: on the processor.

    A picture that is not whole is not given, and `lose` is told. Raises SourceError where none is whole for as long as a
    picture may take. Ask `require_decoder` of the GPU first.
    """

    def __init__(
        self, address: str, gpu: int | None, what: str, settings: CommonSettings, transport: str | None = None,
        ca_file: Path | None = None, lose: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        require_utf_8(address, SourceError)
        av = pyav()
        self._what, self._gpu, self._settings, self._lose = what, gpu, settings, lose
        self._time_ms = 0.0
        timeouts = (settings.open_timeout_s, settings.read_timeout_s)
        options = ffmpeg_options(transport, ca_file)
        options.pop("fflags", None)  # torn packets come through: their pictures are to be known
        self.is_on_gpu, self.codec = False, ""  # whether NVDEC knows this video, once it is open
        self._container: Any = None
        try:
            self._container = av.open(for_ffmpeg(address), options=options, timeout=timeouts, hwaccel=decoder_of(gpu))
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, IndexError, OSError):  # the address is in the message, and a password may be in it
            self.release()
            return
        self._stream.thread_type = "AUTO"
        converter = av.video.reformatter.VideoReformatter  # makes its tables anew for another conversion
        self._planes, self._colours = converter(), converter()
        self._frames = self._decoded()
        self._next: Any = None
        try:
            self._next = next(self._frames, None)  # tells size and decoder
        finally:
            if self._next is None:
                self.release()
        if self._next is None:
            return
        height, width = self._next.height, self._next.width
        self._size = (height, width) if QUARTER_TURNS.get(self._next.rotation, 0) % 2 == 0 else (width, height)
        self.is_on_gpu = self._next.format.name in FROM_NVDEC
        self.codec = str(self._stream.codec_context.name)

    def isOpened(self) -> bool:
        """Whether pictures can be read."""
        return self._container is not None

    def read(self) -> tuple[bool, np.ndarray | None]:
        """The next picture, upright, uint8 BGR (H, W, 3), or False at the end. Raises SourceError where the GPU fails."""
        frame, self._next = self._next or next(self._frames, None), None
        if frame is None:
            return False, None
        start = self._stream.start_time or 0
        if frame.pts is not None and frame.time_base is not None:
            self._time_ms = float(1e3 * (frame.pts - start) * frame.time_base)
        return True, upright(self._as_bgr(frame), frame.rotation)

    def get(self, number: int) -> float:
        """What OpenCV calls by that number, cv2.CAP_PROP_FPS for one; 0 where it is not known."""
        import cv2

        facts: dict[int, Callable[[], float | None]] = {
            cv2.CAP_PROP_FRAME_HEIGHT: lambda: self._size[0],
            cv2.CAP_PROP_FRAME_WIDTH: lambda: self._size[1],
            cv2.CAP_PROP_FPS: self._rate_hz,
            cv2.CAP_PROP_FOURCC: self._letters,
            cv2.CAP_PROP_FRAME_COUNT: self._promised,
            cv2.CAP_PROP_POS_MSEC: lambda: self._time_ms,
        }
        return float(facts.get(number, lambda: 0.0)() or 0.0)

    def release(self) -> None:
        """Close what is open."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _decoded(self) -> Iterator[Any]:
        """The frames in the order in which they are shown, to the end or to what cannot be decoded, as OpenCV gives them."""
        av = pyav()
        packets, damage = self._container.demux(self._stream), Damage()
        begun_s, limit_s, torn = time.monotonic(), self._settings.open_timeout_s, 0
        while True:
            if torn and time.monotonic() - begun_s > limit_s:
                raise SourceError(
                    f"{self._what}: none of {torn} pictures in {limit_s:g} s is whole: packets are lost, or the camera sends "
                    'no key frame (intra refresh). Set its interval of key frames, or decode = "cpu"'
                )
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):  # the end, or a camera that says nothing more
                return
            damage.packet(packet)
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                return
            except av.FFmpegError as error:
                where = "the processor" if self._gpu is None else f"GPU {self._gpu}"
                raise SourceError(f"{self._what} can no longer be decoded on {where}: {error.strerror}") from error
            for frame in frames:
                if damage.is_whole(frame):
                    yield frame
                    begun_s, limit_s, torn = time.monotonic(), self._settings.read_timeout_s, 0
                else:
                    self._lose()
                    torn += 1

    def _as_bgr(self, frame: Any) -> np.ndarray:
        planes = FROM_NVDEC.get(frame.format.name)
        whole = frame if planes is None else self._planes.reformat(frame, format=planes)
        return self._colours.reformat(whole, format="bgr24", interpolation="BICUBIC").to_ndarray()  # OpenCV's

    def _rate_hz(self) -> float:
        return float(self._stream.average_rate or self._stream.guessed_rate or 0)

    def _letters(self) -> float:
        """The four letters of the codec as a number, those of OpenCV where it has some, else the file's own."""
        codec = self._stream.codec_context
        return float(int.from_bytes(LETTERS.get(codec.name, codec.codec_tag).encode("ascii", "replace"), "little"))

    def _promised(self) -> float:
        """Pictures that the file says it holds, or that its length and rate come to."""
        if self._stream.frames:
            return float(self._stream.frames)
        if self._stream.duration is not None:
            length_s = float(self._stream.duration * self._stream.time_base)
        else:
            length_s = (self._container.duration or 0) / pyav().time_base
        return math.floor(length_s * self._rate_hz() + 0.5)


def upright(image: np.ndarray, degrees: int) -> np.ndarray:
    """The picture (H, W, 3) turned as its film says, by quarters; owned by the caller."""
    import numpy as np

    return np.ascontiguousarray(np.rot90(image, QUARTER_TURNS.get(degrees, 0)))


def pyav() -> Any:
    """PyAV. Raises MissingExtraError."""
    try:
        import av
        import av.video.reformatter
    except ImportError as error:
        raise missing_library("av", "decode", error) from error
    return av


def decoder_of(gpu: int | None) -> Any:
    """What PyAV is given to decode on that GPU: the processor takes over what NVDEC does not know. None: the processor."""
    if gpu is None:
        return None
    from av.codec.hwaccel import HWAccel

    return HWAccel("cuda", device=str(gpu), allow_software_fallback=True)


@cache
def require_decoder(gpu: int) -> None:
    """Raise ConfigError unless that GPU decodes a film as the processor does, MissingExtraError without PyAV."""
    if isinstance(found := find_gpu(gpu), NoGpu):
        raise ConfigError(found.reason)
    av, film = pyav(), trial_film()
    try:
        planes, expected = first_planes(film, gpu), first_planes(film, None)
    except av.FFmpegError as error:
        raise ConfigError(f"FFmpeg cannot use NVDEC of GPU {gpu}: {error.strerror}") from error
    if planes is None:
        raise ConfigError(f"NVDEC of GPU {gpu} decodes no H.264, or this PyAV was built without it")
    if expected is None or planes.shape != expected.shape or (planes != expected).any():
        raise ConfigError(f"NVDEC of GPU {gpu} gives another picture of a trial than the processor")


def trial_film() -> bytes:
    """A film of one picture in H.264. Raises ConfigError where this PyAV writes none."""
    import numpy as np

    av = pyav()
    ramp = np.linspace(40, 215, TRIAL_SIDE, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), axis=-1)
    film = io.BytesIO()
    try:
        with av.open(film, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = TRIAL_SIDE, TRIAL_SIDE, "yuv420p"
            for packet in (*stream.encode(av.VideoFrame.from_ndarray(pixels, "bgr24")), *stream.encode()):
                container.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        raise ConfigError(f"this PyAV cannot write H.264 for a trial of NVDEC: {error}") from error
    return film.getvalue()


def first_planes(film: bytes, gpu: int | None) -> np.ndarray | None:
    """The film's first picture, uint8 (1.5 H, W): luma, then both chromas. None where that GPU did not decode it.

    Raises av.FFmpegError where FFmpeg cannot.
    """
    with pyav().open(io.BytesIO(film), hwaccel=decoder_of(gpu)) as container:
        for frame in container.decode(video=0):
            if gpu is None or frame.format.name in FROM_NVDEC:
                return frame.reformat(format="yuv420p").to_ndarray()
    return None
