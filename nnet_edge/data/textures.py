"""Foreign textures for synthetic anomalies: those of a folder, or procedural ones, and DRAEM's changes of them.

Procedural ones are drawn at 256x256, and mirrored or cut to the size of the input: their grain is one of pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from nnet_edge.data.folders import find_images
from nnet_edge.data.images import load_images
from nnet_edge.data.noise import perlin
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.geometry import Geometry

MOST_TEXTURES = 512  # of a folder, drawn by the seed: 96 MiB of memory
PROCEDURAL = 120
SIDE = 256  # that they are drawn at, whatever the input's size
AUGMENTERS_AT_ONCE = 3


def load_textures(folder: Path, seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """The images in the tree below `folder`, at most MOST_TEXTURES of them, squeezed to `size`: uint8 RGB (T, H, W, 3).

    Raises ConfigError when there are none, or one of them cannot be read.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ConfigError(f"--textures {folder} {what}: give a folder of images, as DTD, or leave it out")
    try:
        paths = find_images(folder)
        if not paths:
            raise ConfigError(f"--textures {folder} holds no image: give a folder of images, as DTD, or leave it out")
        if len(paths) > MOST_TEXTURES:
            drawn = np.random.default_rng([seed, 4]).choice(len(paths), MOST_TEXTURES, replace=False)
            paths = [paths[index] for index in sorted(drawn)]
        loaded = load_images(paths, skip_bad=True, geometry=Geometry(*size))
    except DataError as error:
        raise ConfigError(f"--textures {folder}: {error}") from error
    if loaded.skipped:
        first = loaded.skipped[0].reason
        raise ConfigError(
            f"--textures {folder}: {len(loaded.skipped)} of {len(paths)} images cannot be read; the first: {first}; "
            "take them away"
        )
    return loaded.images


@functools.lru_cache(maxsize=2)
def procedural_textures(seed: int, count: int = PROCEDURAL) -> np.ndarray:
    """Drawn textures, uint8 RGB (count, 256, 256, 3), read-only, the kinds taking turns; 6 ms each."""
    rng = np.random.default_rng([seed, 4])
    drawn = np.stack([coloured(FIELDS[index % len(FIELDS)](rng), rng) for index in range(count)])
    drawn.setflags(write=False)
    return drawn


def of_size(textures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The textures (T, h, w, 3) at `size` (height, width), mirrored at their ends where they are smaller, else cut."""
    if textures.shape[1:3] == size:
        return textures
    rows, columns = (
        np.pad(np.arange(there), (0, max(0, wanted - there)), mode="symmetric")[:wanted]
        for there, wanted in zip(textures.shape[1:3], size, strict=True)
    )
    return textures[:, rows[:, None], columns]


def coloured(field: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A float32 field (256, 256), stretched over 2 to 4 drawn colours, with grain: uint8 (256, 256, 3)."""
    low, high = float(field.min()), float(field.max())
    levels = ((field - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    colours = rng.uniform(0, 255, (int(rng.integers(2, 5)), 3))
    if rng.random() < 0.25:
        colours[:] = colours.mean(axis=1, keepdims=True)  # grey, as many materials are
    stops = np.linspace(0, 255, len(colours))
    palette = np.stack([np.interp(np.arange(256), stops, channel) for channel in colours.T], axis=-1)
    grain = rng.uniform(0, 14) * rng.standard_normal((SIDE, SIDE, 1), np.float32)
    return np.rint(palette[levels] + grain).clip(0, 255).astype(np.uint8)


def clouds(rng: np.random.Generator, first: int = 2, octaves: int = 5) -> np.ndarray:
    """Octaves of Perlin noise from `first` cells a side on, float32 (256, 256), about -1 to 1."""
    total = np.zeros((SIDE, SIDE), np.float32)
    for octave in range(octaves):
        cells = first << octave
        total += perlin((SIDE, SIDE), cells, cells, rng.uniform(0, 2 * np.pi, (cells + 1, cells + 1))) / 2**octave
    return total


def along(rng: np.random.Generator, longest: float, shortest: float = 6) -> tuple[np.ndarray, np.ndarray]:
    """Turned coordinates, in periods of a drawn length from `shortest` to `longest` pixels: two float32 (256, 256)."""
    angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(shortest), np.log(longest)))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / np.float32(period)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cosine + y * sine, y * cosine - x * sine


def hardened(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A wave from -1 to 1 with drawn hardness, from a sine to a square."""
    return np.tanh(wave * np.float32(np.exp(rng.uniform(0, 3))))


def stripes(rng: np.random.Generator) -> np.ndarray:
    """Waves along a line, bent a little."""
    u, _ = along(rng, 60)
    return hardened(np.sin(2 * np.pi * (u + rng.uniform(0, 0.5) * clouds(rng, 2, 2))), rng)


def checker(rng: np.random.Generator) -> np.ndarray:
    """A chessboard."""
    u, v = along(rng, 60)
    return (np.floor(u) + np.floor(rng.uniform(0.5, 2) * v)) % 2


def weave(rng: np.random.Generator) -> np.ndarray:
    """Threads that go above and below each other."""
    u, v = along(rng, 30)
    is_above = (np.floor(u) + np.floor(v)) % 2 == 0
    return np.where(is_above, np.abs(np.sin(np.pi * u)), 0.8 * np.abs(np.sin(np.pi * v))).astype(np.float32)


def cells(rng: np.random.Generator) -> np.ndarray:
    """A Voronoi diagram: a grey value a cell, or the way to its seed."""
    count = int(np.exp(rng.uniform(np.log(12), np.log(600))))
    away = np.ones((SIDE, SIDE), np.uint8)
    away[tuple(rng.integers(0, SIDE, (2, count)))] = 0
    distance, labels = cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    values = rng.random(count + 1).astype(np.float32)[labels]
    return distance if rng.random() < 0.5 else values


def dots(rng: np.random.Generator) -> np.ndarray:
    """Round spots on a turned grid, each a little off its place."""
    u, v = along(rng, 40, 9)
    shift = rng.uniform(-0.2, 0.2, (2, 64, 64)).astype(np.float32)
    row, column = (np.floor(values).astype(int) & 63 for values in (v, u))
    away = np.hypot(u % 1 - 0.5 - shift[0][row, column], v % 1 - 0.5 - shift[1][row, column])
    return np.clip((rng.uniform(0.18, 0.38) - away) / 0.06, 0, 1)


def bricks(rng: np.random.Generator) -> np.ndarray:
    """Rows of blocks, each row shifted by half, with joints between."""
    u, v = along(rng, 40, 14)
    row = np.floor(v)
    u = u / 2 + 0.5 * (row % 2)
    values = rng.random((64, 64)).astype(np.float32)[row.astype(int) & 63, np.floor(u).astype(int) & 63]
    is_joint = (v % 1 < 0.12) | (u % 1 < 0.06)
    return np.where(is_joint, np.float32(-0.8), values)


def wood(rng: np.random.Generator) -> np.ndarray:
    """Rings around an axis, with turbulence."""
    u, v = along(rng, 160, 60)
    way = np.hypot(u + rng.uniform(-2, 2), v * rng.uniform(0.1, 1)) + rng.uniform(0.05, 0.3) * clouds(rng, 2, 4)
    return (way * rng.uniform(4, 16)) % 1


def marble(rng: np.random.Generator) -> np.ndarray:
    """Veins: a wave whose phase is turbulent."""
    u, _ = along(rng, 120, 30)
    return np.abs(np.sin(np.pi * (u + rng.uniform(0.8, 2.5) * np.abs(clouds(rng, 2, 5)))))


def gradient(rng: np.random.Generator) -> np.ndarray:
    """A slope along a line or around a point, sometimes in steps."""
    u, v = along(rng, 256, 128)
    slope = u if rng.random() < 0.5 else np.hypot(u - rng.uniform(0, 1), v - rng.uniform(0, 1))
    return np.floor(slope * rng.uniform(4, 20)) if rng.random() < 0.4 else slope


def strokes(rng: np.random.Generator) -> np.ndarray:
    """Fine scratches about a direction, as of brushed metal, or fibres any way."""
    plane = rng.standard_normal((SIDE, SIDE), np.float32) * 0.3
    turn, spread = rng.uniform(0, np.pi), rng.choice([0.05, 0.4, np.pi])
    for _ in range(int(rng.integers(60, 300))):
        angle, half, middle = turn + rng.uniform(-spread, spread), rng.uniform(10, 120), rng.uniform(0, SIDE, 2)
        ends = np.rint(middle + np.outer((-half, half), (np.cos(angle), np.sin(angle)))).astype(int).tolist()
        cv2.line(plane, ends[0], ends[1], float(rng.normal(0, 1.5)), int(rng.integers(1, 4)), cv2.LINE_AA)
    return plane


FIELDS: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (
    clouds, stripes, checker, cells, dots, wood, bricks, marble, weave, gradient, strokes,
)  # fmt: skip


def augmented(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`texture`, uint8 (H, W, 3), after three of DRAEM's ten changes of colour and geometry, in a drawn order."""
    for index in rng.choice(len(AUGMENTERS), AUGMENTERS_AT_ONCE, replace=False):
        texture = AUGMENTERS[index](texture, rng)
    return texture


def through_pillow(change: Callable[[Image.Image], Image.Image], image: np.ndarray) -> np.ndarray:
    """What a function of Pillow makes of a uint8 RGB image (H, W, 3)."""
    return np.asarray(change(Image.fromarray(image)))


def with_gamma(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each channel to a power from 0.5 to 2."""
    curves = 255 * (np.arange(256)[:, None] / 255) ** rng.uniform(0.5, 2, 3)
    return cv2.LUT(image, np.rint(curves).astype(np.uint8)[:, None])


def with_brightness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The luminance (Y of YCrCb) times 0.8 to 1.2, plus -30 to 30."""
    planes = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    factor, summand = rng.uniform(0.8, 1.2), rng.uniform(-30, 30)
    curve = np.rint(np.arange(256) * factor + summand).clip(0, 255).astype(np.uint8)
    planes[..., 0] = curve[planes[..., 0]]
    return cv2.cvtColor(planes, cv2.COLOR_YCrCb2RGB)


def with_sharpness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Softer or sharper, by Pillow's factor from 0 to 2."""
    return through_pillow(lambda picture: ImageEnhance.Sharpness(picture).enhance(rng.uniform(0, 2)), image)


def with_hue(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hue and saturation moved by -50 to 50 of 255 each."""
    planes = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
    turn, more = rng.integers(-50, 51, 2)
    planes[..., 0] = (planes[..., 0] + round(turn * 180 / 255)) % 180
    planes[..., 1] += more
    return cv2.cvtColor(planes.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)


def solarized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the time: what is 32 to 128 (drawn) or brighter inverted."""
    threshold, is_done = int(rng.integers(32, 129)), rng.random() < 0.5
    return through_pillow(lambda picture: ImageOps.solarize(picture, threshold), image) if is_done else image


def posterized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The highest 1 to 8 bits kept."""
    return through_pillow(lambda picture: ImageOps.posterize(picture, int(rng.integers(1, 9))), image)


def inverted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The negative."""
    return 255 - image


def with_contrast(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Stretched to the whole range, 0 to 20 per cent cut off at both ends."""
    return through_pillow(lambda picture: ImageOps.autocontrast(picture, float(rng.uniform(0, 20))), image)


def equalized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An even histogram in each channel."""
    return through_pillow(ImageOps.equalize, image)


def rotated(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by -45 to 45 degrees, black outside."""
    return turned(image, rng.uniform(-45, 45))


def turned(image: np.ndarray, degrees: float) -> np.ndarray:
    """An image (H, W) or (H, W, 3) turned around its middle, 0 where nothing was; bilinear."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


AUGMENTERS: tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], ...] = (
    with_gamma, with_brightness, with_sharpness, with_hue, solarized, posterized, inverted, with_contrast, equalized, rotated,
)  # fmt: skip
