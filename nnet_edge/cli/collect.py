"""`nnet-edge collect`: photographs of good parts from a camera, looked at as they come, until they are enough."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nnet_edge.cli.flags import SOURCE_FLAGS
from nnet_edge.cli.options import FOLDER, bits_option, shown_option
from nnet_edge.cli.stream import StreamCommand, camera_table, credentials_place, read_camera
from nnet_edge.cli.view import say, warn
from nnet_edge.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import numpy as np

    from nnet_edge.frame import Frame
    from nnet_edge.runtime.sources.base import Source

SETTLED = 5  # pictures of a camera that are passed over: the first ones are dark where exposure works by itself
COMPARED = 5  # kept pictures from which on a new one is compared with them
ALIKE = 3  # of them, those that look most like it
SHARP_SHARE = 0.4  # of their sharpness, below which a picture is blurred
NEW_SHARE = 0.1  # of the usual novelty, below which a picture shows the part of another
DARK = 0.25  # of the range: a picture whose brightest pixels stay below is under-exposed
WHITE, WHITE_SHARE = 254, 0.7  # of 8 bits, and the share of pixels from which on a picture is over-exposed
SEEN_WHITE = 0.05  # share of white pixels that is said: the background may be meant to be so
BRIGHTEST = 99.9  # percentile that is called the brightest: a few hot pixels are none


class Collection:
    """The pictures of a folder, 000001.png and so on, and what the next one is compared with."""

    def __init__(self, folder: Path, bits: int | None = None) -> None:
        self.folder, self.bits = folder, bits
        self.novelty: list[float] = []
        self.sharpness: list[float] = []
        self.refused: Counter[str] = Counter()
        self.kept: list[Path] = []  # in this run
        self.white: list[float] = []  # shares of white pixels of these
        self._described: list[np.ndarray] = []
        self._names: list[str] = []
        self._last = 0

    def read(self) -> int:
        """Look at what earlier runs left; gives how many pictures that are. Raises DataError for one that cannot be read."""
        from nnet_edge.data.folders import find_images
        from nnet_edge.image_files import read_picture

        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--out {self.folder} is a file: give a folder for the photographs")
        self.folder.mkdir(parents=True, exist_ok=True)
        found = find_images(self.folder)
        for path in found:
            if path.parent == self.folder and path.stem.isdecimal():
                self._last = max(self._last, int(path.stem))
            picture = read_picture(path)
            self._remember(path.name, eight_bits(picture.pixels[..., ::-1], picture.bits))
        return len(found)

    def fault(self, image: np.ndarray) -> str:
        """Why the picture, uint8 BGR (H, W, 3), is not kept; "" where nothing is wrong with it."""
        import numpy as np

        from nnet_edge.runtime.web.teach import SAME

        if float(np.percentile(image, BRIGHTEST)) < 255 * DARK:
            return "under-exposed"
        if white_share(image) > WHITE_SHARE:
            return "over-exposed"
        distances = self._distances(image)
        if len(distances) >= COMPARED:  # with those like it: a part may be of smoother material than others
            alike = [self.sharpness[row] for row in distances.argsort()[:ALIKE]]
            if sharpness_of(image) < SHARP_SHARE * float(np.median(alike)):
                return "blurred"
        usual = float(np.median(self.novelty[1:])) if len(self.novelty) > COMPARED else 0.0
        is_known = len(distances) > 0 and float(distances.min()) < max(SAME, NEW_SHARE * usual)
        return f"the part of {self._names[int(distances.argmin())]} again" if is_known else ""

    def add(self, frame: Frame, image: np.ndarray) -> Path:
        """Write the frame as the camera gave it, under a number of its own; `image` is the same in 8 bits."""
        from nnet_edge.files import write_atomically

        path = self.folder / f"{self._last + 1:06d}.png"
        while path.exists():  # another program put it there meanwhile
            self._last += 1
            path = self.folder / f"{self._last + 1:06d}.png"
        write_atomically(path, png_of(frame.image, self.bits or frame.bits))
        self._last += 1
        self.white.append(white_share(image))
        self._remember(path.name, image)
        self.kept.append(path)
        return path

    def _distances(self, image: np.ndarray) -> np.ndarray:
        """How unlike the picture is to each that was kept, float (N,)."""
        import numpy as np

        from nnet_edge.runtime.web.teach import describe

        if not self._described:
            return np.empty(0)
        found: np.ndarray = np.sqrt(((np.stack(self._described) - describe(image)) ** 2).mean(axis=1))
        return found

    def _remember(self, name: str, image: np.ndarray) -> None:
        from nnet_edge.runtime.web.teach import describe

        self.novelty.append(float(self._distances(image).min()) if self._described else 0.0)
        self.sharpness.append(sharpness_of(image))
        self._described.append(describe(image))
        self._names.append(name)

    @property
    def is_enough(self) -> bool:
        """Whether new parts look like those before them."""
        from nnet_edge.runtime.web.teach import is_flat

        return is_flat(self.novelty[1:])


def eight_bits(image: np.ndarray, bits: int | None) -> np.ndarray:
    """The picture in 8 bits; one of more bits than are said by those that hold it."""
    from nnet_edge.bits import choose_bits, to_8_bit

    return image if image.dtype == "uint8" else to_8_bit(image, choose_bits(int(image.max()), bits))


def white_share(image: np.ndarray) -> float:
    """Share of the pixels, uint8 BGR (H, W, 3), at the end of the range."""
    return float((image >= WHITE).all(axis=2).mean())


def sharpness_of(image: np.ndarray) -> float:
    """Variance of the Laplacian of the picture, uint8 BGR (H, W, 3): small where it is blurred."""
    import cv2

    return float(cv2.Laplacian(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.CV_32F).var())


def png_of(image: np.ndarray, bits: int | None) -> bytes:
    """The picture, uint8 or uint16 BGR (H, W, 3), as a PNG that loses nothing; a grey one has one channel.

    Values of 16 bits stay as the camera gave them, and the file declares how many bits they have where that is known.
    """
    import struct
    import zlib

    import cv2

    if (image[..., :1] == image).all():
        image = image[..., 0]
    _, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    content = data.tobytes()
    if image.dtype == "uint8" or bits is None:
        return content
    chunk = b"sBIT" + bytes([bits] * (1 if image.ndim == 2 else 3))
    declared = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content[:33] + declared + content[33:]  # behind signature and IHDR


def spaced(source: Source, every_s: float) -> Iterator[Frame]:
    """The frames of the source, of a camera without the first ones, and one in `every_s` seconds."""
    next_s = 0.0
    for number, frame in enumerate(source):
        now_s = time.monotonic()
        if not source.is_live or (number >= SETTLED and now_s >= next_s):
            next_s = now_s + every_s
            yield frame


class CollectCommand(StreamCommand):
    """A command that takes a source, with the options of sources."""

    headings = (SOURCE_FLAGS,)
    verbose_help = "Say of every picture why it is not kept."


@click.command("collect", cls=CollectCommand, example="nnet-edge collect 0 --out photos --count 60")
@click.argument("source")
@click.option("--out", type=FOLDER, required=True, help="The folder of the photographs; what lies there stays.")
@shown_option(
    "--count", type=click.IntRange(1, 100_000), metavar="PHOTOGRAPHS", default=60, help="To keep in this run."
)
@shown_option("--every", "every_s", type=click.FloatRange(0, 3600), metavar="SECONDS", default=1.0,
              help="Between two photographs of a camera; of files each is looked at.")  # fmt: skip
@click.option("--keep-all", is_flag=True, help="Say what is wrong with a picture, and keep it all the same.")
@click.option("--credentials", metavar="FILE|env:NAME",
              help="What holds user:password of the camera: a file, or env: and a variable's name.")  # fmt: skip
@bits_option
def command(source: str, out: Path, count: int, every_s: float, keep_all: bool, **options: Any) -> None:
    """Collect photographs of good parts from SOURCE.

    Each is looked at as it comes: blurred, badly exposed ones, and the same part once more, are counted and not kept. They are
    written as PNG as the camera gave them, 12 bits as 12 bits. Ctrl-C ends it; a second run goes on with the next number.
    """
    from nnet_edge.runtime.sources.open import open_source_of
    from nnet_edge.text import printable

    table = camera_table(source, 0, credentials_place(options["credentials"], [source]), options)
    opened = open_source_of(read_camera(table, source), None, may_be_absent=False)
    found = Collection(out, options["bits"])
    if earlier := found.read():
        say(f"{out} holds {earlier} photographs already: they stay, and new ones are compared with them")
    say(
        f"{printable(opened.describe())}: show good parts only, each another one, in all the ways in which they may come"
    )
    try:
        with opened, suppress(KeyboardInterrupt):
            collect(opened, found, count, every_s, keep_all)
    finally:
        tell(found, keep_all)
    if not found.kept:
        why = ", ".join(f"{number} {cause}" for cause, number in found.refused.most_common()) or "no picture came"
        raise SourceError(f"no photograph was kept: {why}; see light, focus and exposure, or say --keep-all")


def collect(source: Source, found: Collection, count: int, every_s: float, keep_all: bool) -> None:
    """Look at frame after frame until `count` are kept or the source ends; says what becomes of them."""
    was_enough, last_fault = found.is_enough, ""
    for frame in spaced(source, every_s):
        image = eight_bits(frame.image, found.bits or frame.bits)
        fault = found.fault(image)
        if fault:
            cause = "duplicates" if fault.endswith("again") else fault
            found.refused[cause] += 1
            if cause != last_fault:
                say(f"{'kept all the same' if keep_all else 'not kept'}: {fault}")
            last_fault = cause
        if fault and not keep_all:
            continue
        path = found.add(frame, image)
        last_fault = fault and last_fault
        say(f"{len(found.kept)} of {count}: {path}")
        if found.is_enough and not was_enough:
            was_enough = True
            say("enough: new parts look like those before them; Ctrl-C ends it, or go on")
        if len(found.kept) >= count:
            return


def tell(found: Collection, keep_all: bool) -> None:
    """Say what was kept and what was not, whether it is enough, and what to do next."""
    refused = ", ".join(f"{number} {cause}" for cause, number in found.refused.most_common())
    what = "kept though" if keep_all else "not kept"
    say(f"kept {len(found.kept)} photographs in {found.folder}" + (f"; {what}: {refused}" if refused else ""))
    if found.kept:
        if (white := sum(found.white) / len(found.white)) > SEEN_WHITE:
            warn(f"warning: {white:.0%} of the pixels are white: expose less, unless that is the background")
        if not found.is_enough:
            warn("warning: not enough yet: new parts still look unlike those before them, so go on collecting")
        say(f"next: nnet-edge train {found.folder} --out runs/part")
