"""Example parts: an inspection line of real photographs, three materials, small variations, defects with known masks.

scikit-image ships photographs of bricks, gravel and grass inside its wheel. A part is a square cut of one of them,
lying on a dark belt below a grey camera. No two parts are equal: place, turn, scale, light, focus and noise differ.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, DataError, MissingExtraError
from nnet_edge.files import writing_folder

KINDS = ("brick", "gravel", "grass")
DEFECTS = ("scratch", "stain", "dent", "missing")
GOOD = "good"
FRAME_SIDE = 320  # pixels, height and width of what the camera gives
PART_SIDE = 272  # pixels, height and width of a part before it is placed
MARGIN = 26  # pixels between a defect's centre and the edge of its part
PHOTO_SHIFT = 8  # pixels that the cut moves in the photograph
TRAIN_STREAM, TEST_STREAM, CAMERA_STREAM = 0, 1, 2  # each with random numbers of its own


@dataclass(frozen=True, slots=True)
class Part:
    """One part as the camera sees it, and the truth about it."""

    image: np.ndarray  # uint8 BGR (320, 320, 3); the three channels are equal
    mask: np.ndarray  # bool (320, 320), True where the defect is
    kind: str
    defect: str  # one of DEFECTS, or "good"

    @property
    def is_anomalous(self) -> bool:
        """Whether the part has a defect."""
        return self.defect != GOOD


@functools.cache
def photograph(kind: str) -> np.ndarray:
    """The photograph of a material: float32 grey (512, 512), 0 to 255; raises ConfigError for an unknown kind."""
    if kind not in KINDS:
        raise ConfigError(f"no photograph of {kind!r}: the line knows {', '.join(KINDS)}")
    try:
        from skimage import data
    except ImportError as error:
        needed = 'the demo needs scikit-image for its photographs: pip install "nnet-edge[train]"'
        raise MissingExtraError(f"{needed} ({error})") from error
    return np.asarray(getattr(data, kind)(), dtype=np.float32)


def make_part(kind: str, defect: str, rng: np.random.Generator) -> Part:
    """A part of `kind` with `defect` ("good" for none); the random numbers decide everything else."""
    surface = _cut(photograph(kind), rng)
    mask = np.zeros_like(surface)
    if defect != GOOD:
        if defect not in _PAINTERS:
            raise ConfigError(f"no defect named {defect!r}: the line knows {', '.join(DEFECTS)}")
        surface, mask = _PAINTERS[defect](surface, rng)
    picture, placed = _place(surface, mask, rng)
    grey = _expose(picture, rng)
    return Part(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), placed > 0.5, kind, defect)


def camera(seed: int, parts: int = 150, good_first: int = 30, defect_share: float = 0.3) -> Iterator[Part]:
    """Part after part under the camera: the first `good_first` are good, later `defect_share` of them have a defect."""
    rng = np.random.default_rng([seed, CAMERA_STREAM])
    for index in range(parts):
        bad = index >= good_first and rng.random() < defect_share
        yield make_part(str(rng.choice(KINDS)), str(rng.choice(DEFECTS)) if bad else GOOD, rng)


def make_line(out: Path, seed: int, train: int = 60, test_good: int = 30, test_each: int = 12) -> Path:
    """Write the line's pictures in MVTec AD layout below `out` (which must not exist) and give `out` back.

    `train` and `test_good` good parts and `test_each` parts of every defect, the materials taking turns. The folder
    appears atomically. Raises ConfigError when `out` exists, DataError when it cannot be written.
    """
    learn, test = (np.random.default_rng([seed, stream]) for stream in (TRAIN_STREAM, TEST_STREAM))
    try:
        with writing_folder(out) as draft:
            _write_parts(draft / "train" / GOOD, None, GOOD, train, learn)
            _write_parts(draft / "test" / GOOD, None, GOOD, test_good, test)
            for defect in DEFECTS:
                _write_parts(draft / "test" / defect, draft / "ground_truth" / defect, defect, test_each, test)
    except OSError as error:
        raise DataError(f"cannot write the line's pictures to {out}: {error.strerror or error}") from error
    return out


def _write_parts(images: Path, masks: Path | None, defect: str, count: int, rng: np.random.Generator) -> None:
    for folder in (images, masks) if masks is not None else (images,):
        folder.mkdir(parents=True)
    for index in range(count):
        part = make_part(KINDS[index % len(KINDS)], defect, rng)
        stem = f"{index:03d}_{part.kind}"
        _write_png(images / f"{stem}.png", part.image[..., 0])
        if masks is not None:
            _write_png(masks / f"{stem}_mask.png", part.mask.astype(np.uint8) * 255)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    encoded, data = cv2.imencode(".png", pixels)
    if not encoded:
        raise DataError(f"OpenCV cannot encode {path} as PNG")
    path.write_bytes(data.tobytes())


def _turned(angle: float, scale: float, source: tuple[float, float], target: tuple[float, float]) -> np.ndarray:
    """The 2x3 matrix that turns by `angle` degrees, scales, and brings the point `source` to `target` (x, y)."""
    matrix = np.asarray(cv2.getRotationMatrix2D(source, angle, scale))
    matrix[:, 2] += np.subtract(target, source)
    return matrix


def _cut(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of the photograph, float32 (272, 272), shifted, turned and scaled a little."""
    height, width = photo.shape
    shift_x, shift_y = rng.uniform(-PHOTO_SHIFT, PHOTO_SHIFT, 2)
    middle = (width / 2 + shift_x, height / 2 + shift_y)
    matrix = _turned(rng.uniform(-2, 2), rng.uniform(0.98, 1.02), middle, (PART_SIDE / 2, PART_SIDE / 2))
    return cv2.warpAffine(photo, matrix, (PART_SIDE, PART_SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _place(surface: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The part on the belt and its defect's mask, float32 (320, 320) each: round corners, a lit edge, a soft shadow."""
    outline = _rounded(PART_SIDE, radius=14)
    depth = cv2.GaussianBlur(outline, (0, 0), 3.0, borderType=cv2.BORDER_CONSTANT)
    edge = cv2.Sobel(depth, cv2.CV_32F, 1, 0) + cv2.Sobel(depth, cv2.CV_32F, 0, 1)  # light from the upper left
    surface = surface + 22.0 * edge
    centre = FRAME_SIDE / 2
    target = (centre + rng.uniform(-4, 4), centre + rng.uniform(-4, 4))
    matrix = _turned(rng.uniform(-1.5, 1.5), 1.0, (PART_SIDE / 2, PART_SIDE / 2), target)
    planes = (surface * outline, outline, mask * outline)
    lit, cover, placed = (cv2.warpAffine(plane, matrix, (FRAME_SIDE, FRAME_SIDE)) for plane in planes)
    shadow = cv2.GaussianBlur(_shifted(cover, 5, 6, border=0.0), (0, 0), 5.0)
    belt = _belt(rng) * (1.0 - 0.55 * shadow)
    return lit + belt * (1.0 - cover), placed


def _shifted(plane: np.ndarray, x: int, y: int, border: float) -> np.ndarray:
    """The plane moved to the right by `x` and down by `y` pixels."""
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    return cv2.warpAffine(plane, matrix, plane.shape[::-1], borderValue=border)


def _rounded(side: int, radius: int) -> np.ndarray:
    """A square with round corners, float32 (side, side), 1 inside and 0 outside."""
    shape = np.zeros((side, side), np.float32)
    cv2.rectangle(shape, (radius, 2), (side - 1 - radius, side - 3), 1.0, -1)
    cv2.rectangle(shape, (2, radius), (side - 3, side - 1 - radius), 1.0, -1)
    for x in (radius, side - 1 - radius):
        for y in (radius, side - 1 - radius):
            cv2.circle(shape, (x, y), radius - 2, 1.0, -1)
    return cv2.GaussianBlur(shape, (0, 0), 0.8)


def _belt(rng: np.random.Generator) -> np.ndarray:
    """A dark rubber belt: fine grain, drawn out along the way of transport (from left to right)."""
    grain = cv2.GaussianBlur(rng.normal(0.0, 1.0, (FRAME_SIDE, FRAME_SIDE)).astype(np.float32), (0, 0), 6.0, sigmaY=0.7)
    return 46.0 + 10.0 * grain


def _expose(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the sensor makes of the scene, uint8: brightness, contrast, light, focus and noise differ a little."""
    ramp = np.linspace(-1, 1, FRAME_SIDE, dtype=np.float32)
    light = 1.0 + rng.uniform(-0.04, 0.04) * ramp[None, :] + rng.uniform(-0.04, 0.04) * ramp[:, None]
    exposed = rng.uniform(0.94, 1.06) * light * picture + rng.uniform(-5, 5)
    focused = cv2.GaussianBlur(exposed, (0, 0), rng.uniform(0.3, 0.6))
    noisy = focused + rng.normal(0.0, rng.uniform(1.5, 3.0), picture.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _somewhere(rng: np.random.Generator, margin: float) -> tuple[float, float]:
    x, y = rng.uniform(margin, PART_SIDE - margin, 2)
    return float(x), float(y)


def _blob(centre: tuple[float, float], radius: float, roughness: float, rng: np.random.Generator) -> np.ndarray:
    """Height of an uneven spot, float32 (272, 272): 1 in the middle, 0 at its edge, negative outside."""
    y, x = np.mgrid[:PART_SIDE, :PART_SIDE].astype(np.float32)
    stretch, turn = rng.uniform(0.75, 1.3), rng.uniform(0, math.pi)
    along = (x - centre[0]) * math.cos(turn) + (y - centre[1]) * math.sin(turn)
    across = (y - centre[1]) * math.cos(turn) - (x - centre[0]) * math.sin(turn)
    noise = cv2.GaussianBlur(rng.normal(0, 1, x.shape).astype(np.float32), (0, 0), radius / 3.0)
    noise /= float(noise.std()) + 1e-6
    return 1.0 - np.hypot(along * stretch, across / stretch) / radius + roughness * noise


def _scratch(surface: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A curved gouge: a bright groove that varies along its way, with a dark side and a few fine strokes beside it."""
    start = np.array(_somewhere(rng, MARGIN + 30))
    angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(80, 150)
    end = start + length * np.array([math.cos(angle), math.sin(angle)])
    if not ((end > MARGIN) & (end < PART_SIDE - MARGIN)).all():
        end = start - (end - start)
    end = np.clip(end, MARGIN, PART_SIDE - MARGIN)
    bow = (start + end) / 2 + rng.uniform(-0.15, 0.15) * (end - start)[::-1] * (1, -1)
    t = np.linspace(0, 1, 60)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bow + t**2 * end
    width, beside = int(rng.integers(8, 12)), np.array([1.5, 2.0])
    groove, side, scar = (np.zeros_like(surface) for _ in range(3))
    for here, there in itertools.pairwise(points):
        strength = float(rng.uniform(0.7, 1.0))
        _stroke(groove, here, there, strength, max(2, width // 2))
        _stroke(side, here + beside, there + beside, strength, max(2, width // 2))
        _stroke(scar, here, there, 1.0, width)
    groove, side = (cv2.GaussianBlur(plane, (0, 0), 0.8) for plane in (groove, side))
    scar = cv2.GaussianBlur(scar, (0, 0), 1.2)
    smooth = cv2.GaussianBlur(surface, (0, 0), 4.0)
    bright = rng.uniform(55, 80) + 1.1 * float(surface.std())  # a busy surface hides a faint one
    worn = surface + 0.85 * scar * (smooth - surface)
    return worn - 0.7 * bright * side + 1.5 * bright * groove, scar


def _stroke(plane: np.ndarray, start: np.ndarray, end: np.ndarray, value: float, width: int) -> None:
    """Draw a line between two points (x, y) given to a sixteenth of a pixel."""
    first, last = (tuple(round(float(value) * 16) for value in point) for point in (start, end))
    cv2.line(plane, first, last, value, width, cv2.LINE_8, shift=4)


def _stain(surface: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Something dark was spilled: an uneven spot that darkens and flattens the surface, darkest along its rim."""
    radius = rng.uniform(24, 40)
    field = _blob(_somewhere(rng, MARGIN + radius), radius, 0.16, rng)
    cover = np.clip(field / 0.12 + 0.5, 0, 1)
    rim = np.exp(-(((field - 0.12) / 0.10) ** 2))
    dark = rng.uniform(0.45, 0.6)
    smooth = cv2.GaussianBlur(surface, (0, 0), 2.5)
    wet = (0.6 * surface + 0.4 * smooth) * (dark - 0.12 * rim)
    return surface + cover * (wet - surface), cover


def _dent(surface: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A blow from above: the texture is drawn inwards, lit on the far side of the hollow, dark on the near side."""
    centre, radius = _somewhere(rng, MARGIN + 24), rng.uniform(28, 40)
    y, x = np.mgrid[:PART_SIDE, :PART_SIDE].astype(np.float32)
    away_x, away_y = x - centre[0], (y - centre[1]) * rng.uniform(0.85, 1.15)
    distance = np.hypot(away_x, away_y) / radius
    hollow = np.where(distance < 1, (1 - np.minimum(distance, 1) ** 2) ** 2, 0).astype(np.float32)
    pull = 0.45 * hollow
    drawn = cv2.remap(surface, x + pull * away_x, y + pull * away_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    slope_x, slope_y = cv2.Sobel(hollow, cv2.CV_32F, 1, 0), cv2.Sobel(hollow, cv2.CV_32F, 0, 1)
    slope = (slope_x + slope_y) / (float(np.abs(slope_x + slope_y).max()) + 1e-6)
    depth = rng.uniform(40, 55) + 1.2 * float(surface.std())  # as with a scratch
    dented = drawn * (1 - 0.4 * hollow) - depth * slope
    return dented, np.clip((1.0 - distance) / 0.2, 0, 1).astype(np.float32)


def _missing(surface: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A piece has come off: the plain, paler base shows, with a shadow below the broken edge."""
    radius = rng.uniform(20, 34)
    field = _blob(_somewhere(rng, MARGIN + radius), radius, 0.22, rng)
    cover = np.clip(field / 0.05 + 0.5, 0, 1)
    grain = cv2.GaussianBlur(rng.normal(0, 1, surface.shape).astype(np.float32), (0, 0), 1.2)
    base = np.full_like(surface, rng.uniform(150, 185)) + 14.0 * grain
    shadow = cv2.GaussianBlur(_shifted(1 - cover, 4, 5, border=1.0), (0, 0), 2.5)
    return surface + cover * (base * (1 - 0.65 * shadow) - surface), cover


Painter = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
_PAINTERS: dict[str, Painter] = {"scratch": _scratch, "stain": _stain, "dent": _dent, "missing": _missing}
