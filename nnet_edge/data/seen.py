"""What a network would see of pictures: the smallest defect, the grid of tiles that suits, the crop of a common foreground.

A defect is seen from VISIBLE pixels of the network on: two cells of the finest layer maps, stride 4, so that one of them lies
in it wherever it falls; the map's Gaussian (sigma 4) is no wider. In pixels of the photograph that is more by as many times as
pictures are made smaller.

`auto` takes the fewest tiles with which pictures are made smaller by MUCH at most and stay within STRETCHED of their shape, and
which hardly enlarge any; where no grid of MOST_AUTO tiles does, the one that makes them smaller the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.bits import MOST
from nnet_edge.data.images import choose_geometry, sizes_of
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import write_atomically
from nnet_edge.geometry import LARGEST_CANVAS, Box, Geometry, most_frequent
from nnet_edge.image_files import read_image
from nnet_edge.tiles import OVERLAP, CropShare, Tiles

VISIBLE = 8  # pixels of the network, each way
MUCH = (
    1.5  # times smaller, from which on tiles are advised, and which `auto` stays below where it can; see docs/tiles.md
)
WARNED = 4.0  # times smaller, from which on that is a warning
STRETCHED = 1.5  # times, one way beside the other
LITTLE = 0.75  # of a pixel for one of the network, at least, in a direction in which `auto` cuts
ENLARGED = 2.0  # times larger, beyond which a tile shows the network nothing new
MOST_AUTO = 16  # tiles
LOOKS = (
    96  # pixels of the network, each way, that hold 97 % of what a place of the deepest maps depends on (docs/tiles.md)
)

LOOKED_AT = 64  # good images that a common foreground is found in
FOREGROUND_SIDE = 256  # pixels of the longer side, at which it is
CONTRAST = 20.0  # grey levels between foreground and border, at least
COMMON = 0.05  # of the images, at least, in which a place is foreground
SPARE = 0.03  # of the picture, around the foreground
ALL = 0.9  # of the picture, from which on a crop gains nothing


AUTO = "auto"  # of crop and tiles


@dataclass(frozen=True)
class AskedInput:
    """How pictures are to get into the input, in the words of the command line; None: the fit that suits, no tiles, no crop."""

    fit: str | None = None
    tiles: str | None = None
    overlap: float | None = None
    crop: str | None = None


def settle_input(
    paths: Sequence[Path],
    size: tuple[int, int],
    asked: AskedInput,
    say: Callable[[str], None],
    folder: Path | None = None,
    bits: int | None = None,
) -> Geometry:
    """The input of that size (height, width) for the good images at `paths`, as it was asked for; says what it sees of them.

    A crop that was found is shown by a picture in `folder`. Raises ConfigError, and DataError where a crop is to be found and
    no image can be read.
    """
    sizes, crop = sizes_of(paths), None
    if asked.crop is not None and asked.crop.strip() == AUTO:
        found = common_foreground(paths, bits or MOST)
        crop = found.crop
        say(found.text if folder is None else f"{found.text}; {write_crop(found, folder)} shows it")
    elif asked.crop is not None:
        crop = CropShare.parse(asked.crop, sizes[0] if len(set(sizes)) == 1 else None)
    geometry = choose_geometry(sizes, size, asked.fit, crop)
    if not sizes:  # loading says why
        return geometry
    picture = most_frequent(sizes)
    geometry, text = choose_tiles(asked.tiles, asked.overlap, geometry, picture)
    for line in (text, *advice(geometry, picture)):
        if line:
            say(line)
    return geometry


@dataclass(frozen=True)
class Scale:
    """How many pixels of the photograph one of the network stands for."""

    down: float
    across: float

    @classmethod
    def of(cls, geometry: Geometry, picture: tuple[int, int]) -> Scale:
        """That of a picture of this size (height, width), crop and fit included."""
        part, window = geometry.part(*picture), geometry.window
        return cls(part.height / window.height, part.width / window.width)

    @property
    def most(self) -> float:
        """The larger of both."""
        return max(self.down, self.across)

    @property
    def smallest_defect(self) -> str:
        """Width and height that a defect must have to be seen, pixels of the photograph."""
        return f"{max(1, math.ceil(VISIBLE * self.across))}x{max(1, math.ceil(VISIBLE * self.down))}"


def advice(geometry: Geometry, picture: tuple[int, int]) -> list[str]:
    """What to say before a training on pictures of this size (height, width): the smallest defect, and what tiles would do."""
    scale = Scale.of(geometry, picture)
    height, width = picture
    made = f"{scale.most:.1f} times smaller" if scale.most > 1 else f"{1 / max(scale.most, 0.01):.1f} times larger"
    if geometry.tiles is not None:
        made += f" as {geometry.tiles} tiles"
    text = (
        f"a defect must have about {scale.smallest_defect} pixels of the photograph to be seen ({VISIBLE}x{VISIBLE} of the "
        f"network, which gets pictures of {width}x{height} {made})"
    )
    narrow = []
    if geometry.tiles is not None and min(geometry.network.size) < LOOKS:
        narrow = [
            f"warning: tiles of {geometry.network.text} are smaller than the {LOOKS}x{LOOKS} pixels that a place of the "
            f"deepest maps looks at, so borders that no picture has decide there: give --size {LOOKS} or more"
        ]
    if scale.most <= MUCH:
        return [text, *narrow]
    found = auto_tiles(geometry, picture)
    better = None if found is None else Scale.of(geometry.with_tiles(found), picture)
    if found is not None and better is not None and better.most < scale.most / 1.2:
        text += f"; --tiles {found} would make that {better.smallest_defect}"
    if scale.most <= WARNED:
        return [text, *narrow]
    return [
        text,
        *narrow,
        f"warning: pictures are made {scale.most:.1f} times smaller, and what is finer is lost before the network sees it",
    ]


def choose_tiles(
    text: str | None, overlap: float | None, geometry: Geometry, picture: tuple[int, int]
) -> tuple[Geometry, str]:
    """The geometry with the tiles that `--tiles` asks for, for pictures of this size (height, width); and what to say of them.

    Raises ConfigError for a grid or an overlap that is invalid, or that enlarges what a tile shows more than twice.
    """
    if text is None and overlap is not None:
        raise ConfigError("--overlap belongs to --tiles: give those too")
    if text is None:
        return geometry, ""
    overlap = OVERLAP if overlap is None else overlap
    if text.strip() == AUTO:
        found = auto_tiles(geometry, picture, overlap)
        if found is None:
            return geometry, f"tiles: none, for pictures of {picture[1]}x{picture[0]} are hardly made smaller"
        made = geometry.with_tiles(found)
        scale = Scale.of(made, picture)
        reason = (
            f"the fewest with which pictures of {picture[1]}x{picture[0]} are made smaller by {MUCH:g} times at most"
        )
        if scale.most > MUCH:
            reason = (
                f"of {MOST_AUTO} tiles at most those that make pictures of {picture[1]}x{picture[0]} smaller the least"
            )
        return made, f"tiles: {found}, {reason} ({scale.across:.1f} across, {scale.down:.1f} down)"
    made = geometry.with_tiles(Tiles.parse(text, overlap, geometry.height, geometry.width))
    scale = Scale.of(made, picture)
    if min(scale.down, scale.across) * ENLARGED < 1:
        height, width = (
            round(side * times) for side, times in zip(geometry.size, (scale.down, scale.across), strict=True)
        )
        raise ConfigError(
            f"--tiles {text}: a tile would show {width}x{height} pixels of pictures of {picture[1]}x{picture[0]}, and the "
            f"network looks at {geometry.width}x{geometry.height}: enlarged more than {ENLARGED:g} times it shows nothing new; "
            "give fewer tiles"
        )
    return made, ""


def auto_tiles(geometry: Geometry, picture: tuple[int, int], overlap: float = OVERLAP) -> Tiles | None:
    """The grid that suits pictures of this size (height, width), by the rule above; None: one piece does."""
    plain = Geometry(*geometry.network.size, geometry.fit, geometry.picture, crop=geometry.crop)
    found: list[tuple[tuple[bool, float, float], Tiles | None]] = []
    for rows in range(1, MOST_AUTO + 1):
        for columns in range(1, MOST_AUTO // rows + 1):
            tiles = None
            if rows * columns > 1:
                tiles = Tiles(rows, columns, overlap, *plain.size)
                if max(tiles.canvas) > LARGEST_CANVAS:
                    continue
            scale = Scale.of(plain if tiles is None else plain.with_tiles(tiles), picture)
            if (rows > 1 and scale.down < LITTLE) or (columns > 1 and scale.across < LITTLE):
                continue
            stretched = max(scale.down, scale.across) / min(scale.down, scale.across)
            does = scale.most <= MUCH and stretched <= STRETCHED
            rank = (rows * columns, stretched) if does else (scale.most, float(rows * columns))
            found.append(((not does, *rank), tiles))
    return min(found, key=lambda one: one[0])[1]


@dataclass(frozen=True)
class Foreground:
    """Where the parts lie in the good images."""

    crop: CropShare | None  # None: they fill the picture, or nothing stands out
    text: str  # for people
    picture: np.ndarray  # of it, uint8 BGR (H, W, 3)


def common_foreground(paths: Sequence[Path], bits: int) -> Foreground:
    """The crop that holds what stands out from the border in good images. Raises DataError when none can be read."""
    chosen = [paths[row] for row in np.linspace(0, len(paths) - 1, min(len(paths), LOOKED_AT)).astype(int)]
    pictures = [picture for picture in (small(path, bits) for path in chosen) if picture is not None]
    if not pictures:
        raise DataError("--crop auto: none of the good images can be read")
    height, width = pictures[0].shape[:2]
    same = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in pictures]
    masks = np.array([foreground(picture) for picture in same])
    shown = cv2.cvtColor(np.mean(same, axis=0).astype(np.uint8), cv2.COLOR_RGB2BGR)
    common = np.argwhere(masks.mean(axis=0) >= COMMON)
    if (~masks.any(axis=(1, 2))).mean() > COMMON or not len(common):
        return Foreground(None, "crop: none, for nothing stands out from the border of the good images", shown)
    (top, left), (bottom, right) = common.min(axis=0), common.max(axis=0) + 1
    x, y = max(0.0, left / width - SPARE), max(0.0, top / height - SPARE)
    crop = CropShare(x, y, min(1.0, right / width + SPARE) - x, min(1.0, bottom / height + SPARE) - y)
    if crop.width * crop.height >= ALL:
        return Foreground(None, "crop: none, for the parts fill the good images", shown)
    inside = Box(*crop.box(height, width))
    dark = shown // 2
    dark[inside.inside] = shown[inside.inside]
    corner, opposite = (inside.left, inside.top), (inside.left + inside.width - 1, inside.top + inside.height - 1)
    cv2.rectangle(dark, corner, opposite, (90, 190, 90), 1)
    return Foreground(crop, f"crop: {crop}, where {len(pictures)} good images differ from their border", dark)


def write_crop(found: Foreground, folder: Path) -> Path:
    """Where the picture of it lies from now on, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "crop.png"
    write_atomically(path, cv2.imencode(".png", found.picture)[1].tobytes())
    return path


def small(path: Path, bits: int) -> np.ndarray | None:
    """The picture at `path`, its longer side 256 pixels at most; None when it cannot be read: loading it says so."""
    try:
        image = read_image(path, bits)
    except DataError:
        return None
    scale = min(1.0, FOREGROUND_SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def foreground(image: np.ndarray) -> np.ndarray:
    """What differs from the colour of the border of an RGB image (H, W, 3): bool (H, W), nothing where nothing stands out."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    far = np.abs(image.astype(np.float32) - np.median(border, axis=0)).max(axis=2)
    far = cv2.GaussianBlur(far, (0, 0), 1)
    _, mask = cv2.threshold(far.astype(np.uint8), 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    if not mask.any() or far[mask > 0].mean() - far[mask == 0].mean() < CONTRAST:
        return np.zeros(image.shape[:2], bool)
    return cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0
