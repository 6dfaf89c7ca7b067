"""Made sets: pictures of known physics, to choose settings on without looking at a set that they are judged by.

Each set asks one question that real sets mix: a narrow texture, a surface lit from changing sides, an arrangement whose parts
must be in their places, a reading within its range, a photographed texture, thirty good pictures or seven hundred, sides from
1 : 1 to 1 : 4. A picture is what a camera would make of a scene: reflectance times light, shot and read noise, 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.data.example_parts import photograph
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import writing_folder

GOOD = "good"
FULL_WELL = 9000.0  # electrons at white: shot noise is the square root of what was collected
READ_NOISE = 12.0  # electrons
TRAIN, TEST_GOOD, TEST_DEFECT = 0, 1, 2  # random numbers of their own

Scene = tuple[np.ndarray, np.ndarray]  # light that reaches the camera, float32 (H, W, 3), 1 is white; mask, bool (H, W)


@dataclass(frozen=True)
class MadeSet:
    """A set: what it asks, its size, and how a scene of it is made."""

    asks: str
    height: int
    width: int
    good: int  # pictures to learn from
    defects: tuple[str, ...]
    scene: Callable[[str, np.random.Generator], Scene]


def picture(name: str, defect: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture of the set `name`, uint8 RGB (H, W, 3), and the mask of its defect, bool (H, W); empty for "good".

    Raises ConfigError for a set or a defect that does not exist.
    """
    made = find(name)
    if defect not in (GOOD, *made.defects):
        raise ConfigError(f"no defect {defect!r} in the set {name}: choose {', '.join((GOOD, *made.defects))}")
    light, mask = made.scene(defect, rng)
    return exposed(light, rng), mask


def find(name: str) -> MadeSet:
    """The set of that name. Raises ConfigError."""
    if name not in SETS:
        raise ConfigError(f"no made set {name!r}: choose {', '.join(SETS)}")
    return SETS[name]


def write_set(name: str, out: Path, seed: int = 0, test_good: int = 40, test_each: int = 20) -> Path:
    """Write the set in MVTec AD layout to `out`, which must not exist and appears at once; (name, seed) decides every pixel.

    Raises ConfigError for an unknown set or when `out` exists, DataError when it cannot be written.
    """
    made = find(name)
    root = [seed, list(SETS).index(name)]
    try:
        with writing_folder(out) as draft:
            for place, count, stream in (("train", made.good, TRAIN), ("test", test_good, TEST_GOOD)):
                for number in range(count):
                    image, _ = picture(name, GOOD, np.random.default_rng([*root, stream, number]))
                    write(draft / place / GOOD / f"{number:03d}.png", image[..., ::-1])
            for kind, defect in enumerate(made.defects):
                for number in range(test_each):
                    image, mask = picture(name, defect, np.random.default_rng([*root, TEST_DEFECT + kind, number]))
                    write(draft / "test" / defect / f"{number:03d}.png", image[..., ::-1])
                    write(draft / "ground_truth" / defect / f"{number:03d}_mask.png", mask.astype(np.uint8) * 255)
    except OSError as error:
        raise DataError(f"cannot write the set {name} to {out}: {error.strerror or error}") from error
    return out


def write(path: Path, pixels: np.ndarray) -> None:
    """A PNG, its folder made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def exposed(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a sensor makes of `light`, uint8 (H, W, 3): exposure within 4 %, shot and read noise."""
    collected = np.maximum(light * rng.normal(1, 0.02), 0) * FULL_WELL
    noisy = collected + rng.standard_normal(light.shape, np.float32) * np.sqrt(collected + READ_NOISE**2)
    return np.rint(255 * noisy / FULL_WELL).clip(0, 255).astype(np.uint8)


# What scenes are made of


def smooth(shape: tuple[int, int], sigma: float | tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and deviation 1 after a Gaussian of `sigma` pixels, (along, down) where two; float32 (H, W)."""
    along, down = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    noise = cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), along, sigmaY=down)
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each pixel, float32 (H, W) each."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return rows, columns


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """1 within `radius` of `centre` (row, column), 0 outside, a pixel's ramp between; float32 (H, W)."""
    rows, columns = grid(shape)
    return (radius - np.hypot(rows - centre[0], columns - centre[1]) + 0.5).clip(0, 1)


def line(shape: tuple[int, int], start: np.ndarray, end: np.ndarray, thickness: int) -> np.ndarray:
    """A line between two points (row, column), float32 (H, W), 0 to 1."""
    plane = np.zeros(shape, np.float32)
    first, last = (tuple(round(16 * float(value)) for value in point[::-1]) for point in (start, end))
    cv2.line(plane, first, last, 1.0, thickness, cv2.LINE_8, shift=4)
    return cv2.GaussianBlur(plane, (0, 0), 0.6)


def somewhere(shape: tuple[int, int], rng: np.random.Generator, margin: float = 0.08) -> np.ndarray:
    """A point (row, column), `margin` of each side away from the border."""
    return rng.uniform(margin, 1 - margin, 2) * shape


def scratched(shape: tuple[int, int], rng: np.random.Generator, longest: float) -> np.ndarray:
    """A scratch of a third of `longest` pixels to all of it, any way, 2 to 3 pixels wide; float32 (H, W), 0 to 1."""
    middle, angle = somewhere(shape, rng, 0.15), rng.uniform(0, np.pi)
    half = rng.uniform(longest / 3, longest) / 2 * np.array((np.sin(angle), np.cos(angle)))
    return line(shape, middle - half, middle + half, int(rng.integers(2, 4)))


def spot(shape: tuple[int, int], rng: np.random.Generator, radii: tuple[float, float]) -> np.ndarray:
    """An uneven spot, float32 (H, W), 0 to 1."""
    centre, radius = somewhere(shape, rng, 0.12), rng.uniform(*radii)
    rows, columns = grid(shape)
    depth = 1 - np.hypot(rows - centre[0], columns - centre[1]) / radius
    return ((depth + 0.2 * smooth(shape, radius / 2, rng)) * 4).clip(0, 1)


def lit(heights: np.ndarray, albedo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lambert's law on a height field (H, W) below a lamp 40 to 50 degrees high from any side, with diffuse light."""
    slope_down, slope_along = np.gradient(heights)
    side, high = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(40, 50))
    lamp = np.cos(high) * np.sin(side), np.cos(high) * np.cos(side), np.sin(high)
    facing = (lamp[2] - lamp[0] * slope_down - lamp[1] * slope_along) / np.sqrt(1 + slope_down**2 + slope_along**2)
    return (albedo * (0.25 + 0.5 * np.maximum(facing, 0))[..., None]).astype(np.float32)


def coloured(plane: np.ndarray, colour: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    """The plane (H, W) in one colour, float32 (H, W, 3)."""
    return plane[..., None] * np.asarray(colour, np.float32)


# The sets


def brushed(defect: str, rng: np.random.Generator) -> Scene:
    """Brushed steel, four times as tall as wide: grain along the columns, a slow shade of the lamp."""
    shape = (512, 128)
    its = rng.spawn(1)[0]  # the defect's: the same scene with and without it
    rows, columns = grid(shape)
    shade = 1 + 0.1 * rng.normal() * (rows / shape[0] - 0.5) + 0.1 * rng.normal() * (columns / shape[1] - 0.5)
    plane = (0.45 + 0.03 * smooth(shape, (0.7, 40.0), rng) + 0.01 * smooth(shape, 0.8, rng)) * shade
    mark = np.zeros(shape, np.float32)
    if defect == "scratch":
        mark = scratched(shape, its, 70)
        plane = plane + mark * its.choice((-0.12, 0.15))
    elif defect == "pit":
        mark = disc(shape, tuple(somewhere(shape, its)), its.uniform(2.5, 6))
        plane = plane * (1 - 0.5 * mark)
    elif defect == "stain":
        mark = spot(shape, its, (10, 24))
        plane = plane * (1 - 0.12 * mark)
    return coloured(plane.astype(np.float32)), mark > 0.5


def casting(defect: str, rng: np.random.Generator) -> Scene:
    """A cast plate with a raised ring, rough, lit from any side: the shading changes, the shape may not."""
    shape = (320, 320)
    its = rng.spawn(1)[0]  # the defect's: the same scene with and without it
    rows, columns = grid(shape)
    away = np.hypot(rows - 160 - rng.normal(0, 2), columns - 160 - rng.normal(0, 2))
    heights = 10 / (1 + np.exp((np.abs(away - 90) - 22) / 3)) + 0.35 * smooth(shape, 1.5, rng)
    mark = np.zeros(shape, np.float32)
    if defect in ("dent", "burr"):
        centre, radius = somewhere(shape, its, 0.12), its.uniform(6, 14)
        bell = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * (radius / 2) ** 2))
        heights = heights + (0.45 if defect == "burr" else -0.45) * radius * bell
        mark = bell / np.exp(-2.0) - 0.5
    elif defect == "groove":
        mark = scratched(shape, its, 90)
        heights = heights - 2.0 * cv2.GaussianBlur(mark, (0, 0), 1.0)
    return lit(heights, coloured(np.ones(shape, np.float32), (0.95, 0.93, 0.9)), rng), mark > 0.5


ITEMS = ("ring", "bolt", "cap", "ring", "cap", "bolt", "bolt", "ring")  # of a tray's pockets, row by row
ITEM_COLOURS = {"ring": (0.75, 0.72, 0.65), "bolt": (0.55, 0.57, 0.6), "cap": (0.2, 0.35, 0.75)}


def item(plane: np.ndarray, kind: str, centre: np.ndarray, rng: np.random.Generator) -> None:
    """Lay an item of `kind` into the scene, turned any way and tinted a little."""
    shape = plane.shape[:2]
    if kind == "bolt":
        angle = rng.uniform(0, np.pi)
        half = 24 * np.array((np.sin(angle), np.cos(angle)))
        cover = np.maximum(line(shape, centre - half, centre + half, 9), disc(shape, tuple(centre - half), 11))
    else:
        cover = disc(shape, tuple(centre), 22)
        if kind == "ring":
            cover = cover - disc(shape, tuple(centre), 11)
    colour = np.asarray(ITEM_COLOURS[kind], np.float32) * np.float32(rng.normal(1, 0.03))
    plane += cover[..., None] * (colour - plane)


def tray(defect: str, rng: np.random.Generator) -> Scene:
    """A tray of eight pockets, twice as tall as wide: an item is missing, doubled or in another's place."""
    shape = (512, 256)
    its = rng.spawn(1)[0]  # the defect's: the same scene with and without it
    plane = coloured(0.22 + 0.01 * smooth(shape, 1.0, rng), (1, 1, 1.05))
    pockets = [np.array((64.0 + 128 * row, 64.0 + 128 * column)) for row in range(4) for column in range(2)]
    kinds: list[list[str]] = [[kind] for kind in ITEMS]
    wrong: list[int] = []
    if defect == "missing":
        wrong = [int(its.integers(8))]
        kinds[wrong[0]] = []
    elif defect == "doubled":
        wrong = [int(its.integers(8))]
        kinds[wrong[0]] = 2 * kinds[wrong[0]]
    elif defect == "swapped":
        one = int(its.integers(8))
        other = int(its.choice([place for place in range(8) if ITEMS[place] != ITEMS[one]]))
        wrong = [one, other]
        kinds[one], kinds[other] = kinds[other], kinds[one]
    mask = np.zeros(shape, bool)
    rows, columns = grid(shape)
    for place, (pocket, inside, by_chance) in enumerate(zip(pockets, kinds, rng.spawn(8), strict=True)):
        rim = np.maximum(np.abs(rows - pocket[0]), np.abs(columns - pocket[1]))
        plane += coloured(0.12 * np.exp(-(((rim - 56) / 2) ** 2)))
        spread = 18 if len(inside) > 1 else 0
        for number, kind in enumerate(inside):
            item(plane, kind, pocket + by_chance.normal(0, 4, 2) + spread * (2 * number - 1), by_chance)
        if place in wrong:
            mask |= rim < 50
    if defect == "scratch":
        mark = scratched(shape, its, 120)
        plane += coloured(0.35 * mark)
        mask = mark > 0.5
    return plane, mask


def dial(defect: str, rng: np.random.Generator) -> Scene:
    """A scale three times as wide as tall whose pointer stands anywhere in its green range, if the part is good."""
    shape = (192, 576)
    its = rng.spawn(1)[0]  # the defect's: the same scene with and without it
    rows, columns = grid(shape)
    plane = coloured(0.8 + 0.004 * smooth(shape, 2.0, rng))
    band = (np.abs(rows - 140) < 10).astype(np.float32)
    green = band * ((columns > 190) & (columns < 386))
    plane = plane * (1 - 0.6 * coloured(band - green, (0.1, 1, 1)) - 0.6 * coloured(green, (1, 0.2, 1)))
    ticks = [48.0 + 24 * number for number in range(21)]
    mask = np.zeros(shape, bool)
    lost = int(its.integers(21)) if defect == "tick" else None
    for number, column in enumerate(ticks):
        if number == lost:
            mask |= (np.abs(columns - column) < 7) & (np.abs(rows - 92) < 32)
        else:
            mark = line(shape, np.array((62.0, column)), np.array((122.0 if number % 5 else 132.0, column)), 3)
            plane -= coloured(0.65 * mark)
    places = [rng.uniform(200, 376)]
    if defect == "range":
        places = [its.uniform(50, 165) if its.random() < 0.5 else its.uniform(411, 526)]
    elif defect == "two":
        places.append(float(np.clip(places[0] + its.choice((-1, 1)) * its.uniform(60, 140), 50, 526)))
    for number, place in enumerate(places):
        pointer = line(shape, np.array((170.0, place)), np.array((30.0, place + rng.normal(0, 2))), 5)
        plane += pointer[..., None] * (np.asarray((0.75, 0.1, 0.1), np.float32) - plane)
        if (defect == "range" and number == 0) or (defect == "two" and number == 1):
            mask |= pointer > 0.3
    return plane.astype(np.float32), mask


def gravel(defect: str, rng: np.random.Generator) -> Scene:
    """Cuts of a photograph of gravel, turned any way: grass between the stones, a smear, a dark line."""
    shape = (256, 256)
    its = rng.spawn(1)[0]  # the defect's: the same scene with and without it
    plane = cut(photograph("gravel"), shape, rng)
    mark = np.zeros(shape, np.float32)
    if defect == "grass":
        mark = spot(shape, its, (14, 30))
        plane = plane + mark * (cut(photograph("grass"), shape, its) - plane)
    elif defect == "smear":
        mark = spot(shape, its, (14, 30))
        plane = plane + mark * (cv2.GaussianBlur(plane, (0, 0), 5) - plane)
    elif defect == "line":
        mark = scratched(shape, its, 110)
        plane = plane * (1 - 0.75 * mark)
    return coloured(plane), mark > 0.5


def bricks(defect: str, rng: np.random.Generator) -> Scene:
    """A wall twice as wide as tall that hardly moves: a crack, a joint that was filled, damp."""
    shape = (240, 480)
    its = rng.spawn(1)[0]  # the defect's: the same scene with and without it
    top, left = 128 + int(rng.integers(-6, 7)), 16 + int(rng.integers(-6, 7))
    plane = (photograph("brick")[top : top + shape[0], left : left + shape[1]] / 255).astype(np.float32)
    plane = plane * np.float32(1 + 0.05 * rng.normal()) + 0.02 * smooth(shape, 60, rng)
    mark = np.zeros(shape, np.float32)
    if defect == "crack":
        points = [somewhere(shape, its, 0.2)]
        heading = its.uniform(0, 2 * np.pi)
        for _ in range(int(its.integers(5, 9))):
            heading += its.normal(0, 0.6)
            points.append(points[-1] + 16 * np.array((np.sin(heading), np.cos(heading))))
            mark = np.maximum(mark, line(shape, points[-2], points[-1], 2))
        plane = plane * (1 - 0.6 * mark)
    elif defect == "filled":
        mark = spot(shape, its, (14, 28))
        plane = plane + mark * (0.62 + 0.03 * smooth(shape, 1.5, its) - plane)
    elif defect == "damp":
        mark = spot(shape, its, (20, 45))
        plane = plane * (1 - 0.25 * mark)
    return coloured(plane.astype(np.float32)), mark > 0.5


def cut(photo: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A cut of a grey photograph, 0 to 255, turned any way: float32 (H, W), 0 to 1."""
    height, width = shape
    matrix = np.asarray(cv2.getRotationMatrix2D((photo.shape[1] / 2, photo.shape[0] / 2), rng.uniform(0, 360), 1.0))
    middle = width / 2 - photo.shape[1] / 2, height / 2 - photo.shape[0] / 2
    matrix[:, 2] += np.add(middle, rng.uniform(-60, 60, 2))
    return cv2.warpAffine(photo, matrix, (width, height), borderMode=cv2.BORDER_REFLECT).astype(np.float32) / 255


SETS = {
    "brushed": MadeSet("a narrow grey texture, 1 : 4", 512, 128, 80, ("scratch", "pit", "stain"), brushed),
    "casting": MadeSet("shading that changes, 40 good parts", 320, 320, 40, ("dent", "burr", "groove"), casting),
    "tray": MadeSet(
        "the right item in each place, 1 : 2", 512, 256, 120, ("missing", "doubled", "swapped", "scratch"), tray
    ),
    "dial": MadeSet("a reading in its range, 3 : 1, 700 good parts", 192, 576, 700, ("range", "two", "tick"), dial),
    "gravel": MadeSet("a photographed texture, any way up", 256, 256, 200, ("grass", "smear", "line"), gravel),
    "bricks": MadeSet(
        "a structure that hardly moves, 2 : 1, 30 good parts", 240, 480, 30, ("crack", "filled", "damp"), bricks
    ),
}
