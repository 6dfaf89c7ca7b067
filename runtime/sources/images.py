"""Frames from image files: a list of them once, or a folder that is watched for new ones."""

from __future__ import annotations

import logging
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.errors import ConfigError, DataError, SourceError
from nnet_edge.files import IMAGE_SUFFIXES
from nnet_edge.frame import Frame
from nnet_edge.jpeg import NEEDS
from nnet_edge.runtime.gpu_jpegs import JpegReader
from nnet_edge.runtime.sources.base import Source, file_mode
from nnet_edge.runtime.sources.decoding import DECODE_FLAG, DecodeOptions
from nnet_edge.runtime.sources.jpegs import START as JPEG
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, Flag, SourceKind
from nnet_edge.text import printable

if TYPE_CHECKING:  # what decodes is imported when it does
    from nnet_edge.image_files import Picture

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2  # between two looks at a watched folder
PATIENCE_S = 5.0  # a file that cannot be read for so long after its last change is skipped


class ImageFileSource(Source):
    """Image files, read exactly as in training; one frame a file."""

    def __init__(
        self, paths: Sequence[Path], what: str, stream: str, skip_bad: bool = False, gpu: int | None = None
    ) -> None:
        super().__init__(stream)
        self._jpegs = JpegReader(gpu, printable(what))
        self._paths, self._what, self._skip_bad = paths, printable(what), skip_bad

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            try:
                picture = read_bgr(path, self._jpegs)
            except DataError as error:
                if not self._skip_bad:
                    raise SourceError(f"{error}; or pass over such files with --skip-bad-images") from error
                self.skipped += 1
                log.warning("skipped: %s", error)
                continue
            yield Frame(picture.pixels, index, time.monotonic(), self.stream, path.name, bits=picture.bits)

    def describe(self) -> str:
        return f"{self._what}, {len(self._paths)} images"


class WatchedFolderSource(Source):
    """The images of a folder, then each new one, without end. A file is read when it has not changed between two looks.

    A file that is written again under its name is a new frame. One that stays unreadable is skipped and counted.
    """

    may_be_silent = True

    def __init__(self, folder: Path, stream: str, gpu: int | None = None) -> None:
        super().__init__(stream)
        self._folder, self._jpegs = folder, JpegReader(gpu, printable(str(folder)))
        self._taken: dict[str, tuple[int, int]] = {}  # name -> size and time of its last change, in nanoseconds
        self._is_gone = False

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        before: dict[str, tuple[int, int]] = {}
        while not self._interrupted.is_set():
            now = self._look()
            if now is None:  # a network drive that is away: no file is read twice when it comes back
                self._interrupted.wait(LOOK_EVERY_S)
                continue
            self._taken = {name: state for name, state in self._taken.items() if name in now}
            for name in sorted(now, key=lambda name: natural_order(Path(name))):
                if now[name] != before.get(name) or now[name] == self._taken.get(name):
                    continue
                picture = self._read(name, now[name])
                if picture is not None:
                    yield Frame(picture.pixels, index, time.monotonic(), self.stream, name, bits=picture.bits)
                    index += 1
                if self._interrupted.is_set():
                    return
            before = now
            self._interrupted.wait(LOOK_EVERY_S)

    def describe(self) -> str:
        return printable(f"watched folder {self._folder}")

    def _look(self) -> dict[str, tuple[int, int]] | None:
        """The image files that are there now; None while the folder itself is gone, which is logged once."""
        found = {}
        try:
            for path in self._folder.iterdir():
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                    try:
                        facts = path.stat()
                    except FileNotFoundError:  # taken away in this moment
                        continue
                    found[path.name] = (facts.st_size, facts.st_mtime_ns)
        except OSError as error:
            if not self._is_gone:
                log.warning("the %s cannot be read: %s", self.describe(), error.strerror)
            self._is_gone = True
            return None
        self._is_gone = False
        return found

    def _read(self, name: str, state: tuple[int, int]) -> Picture | None:
        """The picture; None when it cannot be read yet, or at all."""
        try:
            picture = read_bgr(self._folder / name, self._jpegs)
        except DataError as error:
            if time.time() - state[1] / 1e9 > PATIENCE_S:
                self._taken[name] = state
                self.skipped += 1
                log.warning("skipped: %s", error)
            return None
        self._taken[name] = state
        return picture


def read_bgr(path: Path, jpegs: JpegReader | None = None) -> Picture:
    """The picture as a camera would give it, BGR, in its own depth; a JPEG by `jpegs`. Raises DataError, also for damage."""
    import cv2

    from nnet_edge.image_files import Picture, cannot_read, read_bytes, read_picture

    if jpegs is not None and jpegs.is_on_gpu and (data := read_bytes(path)).startswith(JPEG):
        try:
            return Picture(jpegs.picture(data))
        except DataError as error:
            raise cannot_read("image", path, error) from error
    picture = read_picture(path)
    return Picture(cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2BGR), picture.bits)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts the numbers in a name by value: frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


@dataclass(frozen=True)
class ImageOptions(DecodeOptions):
    """What only image folders and files have."""

    skip_bad_images: bool = False  # pass over files that cannot be read, and count them
    watch: bool = False  # a folder: new files become frames


def is_image(address: str) -> bool:
    """Whether the path is a folder's or an image's."""
    mode = file_mode(address)
    return stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and Path(address).suffix.lower() in IMAGE_SUFFIXES)


def open_images(settings: CommonSettings, options: ImageOptions) -> ImageFileSource | WatchedFolderSource:
    """The image at the path, or those in the folder as `images_in` gives them. Raises SourceError as that does."""
    path = Path(settings.address)
    if not path.is_dir():
        if options.watch:
            raise ConfigError(f"{path} is not a folder: only a folder can be watched for new images")
        return ImageFileSource([path], f"image {path}", path.stem, options.skip_bad_images, options.gpu)
    if options.watch:
        return WatchedFolderSource(path, path.name, options.gpu)
    images = images_in(path)
    name = path.resolve().name or "folder"
    return ImageFileSource(images, f"folder {path}", name, options.skip_bad_images, options.gpu)


def images_in(folder: Path) -> list[Path]:
    """The images directly in the folder, in the natural order of their names (2 before 10).

    Raises SourceError for a folder that cannot be read or holds no image.
    """
    try:
        images = [item for item in folder.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and item.is_file()]
    except OSError as error:
        raise SourceError(f"the folder {folder} cannot be read: {error.strerror}") from error
    if not images:
        raise SourceError(f"the folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)}): name the one that does")
    return sorted(images, key=natural_order)


SKIP_HELP = "Pass over images that cannot be read, and count them."
SKIP_FLAG = Flag("--skip-bad-images", SKIP_HELP, lambda typed, asked: {"skip_bad_images": True}, type="switch")
SOURCES.register(
    SourceKind(
        "images",
        "an image folder or file",
        is_image,
        open_images,
        ImageOptions,
        flags=(SKIP_FLAG, DECODE_FLAG),
        is_path=True,
        order=10,
        suffixes=IMAGE_SUFFIXES,
        needs=NEEDS,
    )
)
