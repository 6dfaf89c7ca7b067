"""Anomaly synthesis: pairs of a good and a damaged image, with the mask, for methods that learn from pairs.

`perlin`, that of DRAEM, DeSTSeg and URD:

1. Perlin noise of the image's size on a grid of (2^a, 2^b) cells, a and b drawn from 0 to 5, faded by 6t^5 - 15t^4 + 10t^3,
   times sqrt(2), turned by -90 to 90 degrees; the mask m is where it exceeds 0.5, and may be empty.
2. A texture A, drawn from a folder (DTD) or procedural; DRAEM also changes it in three of ten ways.
3. I (1 - m) + (1 - beta) A m + beta I m, beta drawn from 0 to 0.8.

`simplex`, that of RD++: simplex noise times 0.2 of the range, added in a rectangle of sides 10 to 31 pixels. `cutpaste`, that
of CutPaste: a rectangle of the same image, 2 to 15 per cent of it, its brightness changed by a tenth, at another place. The
mask is the rectangle.

An anomaly may be restricted to the foreground. URD's rule for MVTec AD: anywhere (`none`) for carpet, grid, leather, tile, wood
and transistor; `grabcut` for bottle, cable, hazelnut, metal_nut, pill, toothbrush and zipper; `otsu` for capsule and screw. No
category is known by its name here: say which suits the part.

DRAEM also turns a third of the good images by up to 90 degrees; here good images are turned by the augmentation, if at all.
`painted.py` has the anomalies that early stopping measures with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.data.noise import perlin, simplex_octaves
from nnet_edge.data.textures import augmented, load_textures, of_size, procedural_textures, turned
from nnet_edge.errors import ConfigError
from nnet_edge.geometry import Box
from nnet_edge.settings.synthesis import Synthesis

FINEST = 6  # grids have 2^0 to 2^5 cells a side
LEVEL = 0.5  # of the noise, above which is anomaly
GRABCUT_ROUNDS = 11
LOOKED_AT = 8  # images, before a foreground that nobody has is refused
RECTANGLE_SIDES = (10, 32)  # of simplex noise, pixels; the second is not reached
SIMPLEX_LEVELS = 0.2 * 255
PATCH_AREA, PATCH_SHAPE, PATCH_LIGHT = (0.02, 0.15), 3.3, 0.1


class PairSynthesis:
    """Damaged copies of good `images`, uint8 RGB (N, H, W, 3), by row; (seed, step, row) decides each.

    Only what lies in `window` is damaged, where there is a letterbox around the pictures.

    Textures are loaded once, a foreground when its row is first asked for. Threads may ask at the same time. Raises ConfigError
    for textures that cannot be used, for arrays that are no images, and where no image has the foreground asked for.
    """

    def __init__(self, settings: Synthesis, seed: int, images: np.ndarray, window: Box | None = None) -> None:
        is_large = images.ndim == 4 and min(images.shape[1:3]) >= 2 * RECTANGLE_SIDES[1]
        if not is_large or images.shape[3] != 3 or images.dtype != np.uint8:
            raise ConfigError(
                f"pairs need uint8 RGB images (N, H, W, 3) of at least {2 * RECTANGLE_SIDES[1]} pixels a side, as inputs have, "
                f"not {images.dtype} {images.shape}: resize them first"
            )
        self.settings, self.seed, self.images, self.window = settings, seed, images, window
        self.size: tuple[int, int] = (images.shape[1], images.shape[2])
        self._foregrounds: dict[int, np.ndarray] = {}  # packed bits
        self._damage: Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
        self._damage = {"perlin": self._textured, "simplex": with_simplex_noise, "cutpaste": with_patch}[settings.kind]
        if settings.kind == "perlin":
            folder = settings.textures
            drawn = load_textures(Path(folder), seed, self.size) if folder else procedural_textures(seed)
            self.textures = of_size(drawn, self.size)
        rows = np.linspace(0, len(images), min(len(images), LOOKED_AT), endpoint=False).astype(int)
        if len(rows) and not any(self.foreground(int(row)).any() for row in rows):
            raise ConfigError(
                f"foreground {settings.foreground} finds no part in {len(rows)} images: choose another, or none"
            )

    def pairs(self, rows: Sequence[int] | np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Damaged copies of the images in `rows`, uint8 (N, H, W, 3), and their masks, bool (N, H, W)."""
        anomalous, masks = np.empty((len(rows), *self.size, 3), np.uint8), np.empty((len(rows), *self.size), bool)
        for place, row in enumerate(rows):
            anomalous[place], masks[place] = self.pair(int(row), step)
        return anomalous, masks

    def pair(self, row: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """A damaged copy of the image in `row`, uint8 (H, W, 3), and its mask, bool (H, W), which may be empty."""
        rng = np.random.default_rng([self.seed, 5, step, row])
        image = self.images[row]
        if rng.random() < self.settings.probability:
            damaged, mask = self._damage(image, rng)
            mask &= self.foreground(row)
        else:
            damaged, mask = image, np.zeros(image.shape[:2], bool)
        rest = image
        if self.settings.noise:
            grain = np.float32(self.settings.noise) * rng.standard_normal(image.shape, np.float32)
            rest = np.rint(image + grain).clip(0, 255).astype(np.uint8)
        return np.where(mask[..., None], damaged, rest), mask

    def foreground(self, row: int) -> np.ndarray:
        """Where an anomaly of the image in `row` may lie, bool (H, W)."""
        if self.settings.foreground == "none":
            return self._inside(np.ones(self.size, bool))
        if row not in self._foregrounds:
            found = FOREGROUNDS[self.settings.foreground](self.images[row])
            self._foregrounds[row] = np.packbits(self._inside(found))
        return np.unpackbits(self._foregrounds[row]).reshape(self.size).astype(bool)

    def _inside(self, where: np.ndarray) -> np.ndarray:
        """`where`, bool (H, W), without what lies beside the window."""
        if self.window is None:
            return where
        found = np.zeros_like(where)
        found[self.window.inside] = where[self.window.inside]
        return found

    def _textured(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        mask = perlin_mask(rng, self.size)
        texture = self.textures[rng.integers(len(self.textures))]
        beta = rng.uniform(self.settings.beta_least, self.settings.beta_most)
        if self.settings.texture_augmentation == "draem":
            texture = augmented(texture, rng)
        return cv2.addWeighted(texture, 1 - beta, image, beta, 0), mask


def perlin_mask(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Where turned Perlin noise of a drawn grid exceeds 0.5, bool of that size (height, width)."""
    rows, columns = (1 << int(power) for power in rng.integers(0, FINEST, 2))
    noise = perlin(size, rows, columns, rng.uniform(0, 2 * np.pi, (rows + 1, columns + 1)))
    return turned(noise, rng.uniform(-90, 90)) > LEVEL


def with_simplex_noise(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`image` with simplex noise in a rectangle, which is the mask."""
    height, width = (int(side) for side in rng.integers(*RECTANGLE_SIDES, 2))
    top, left = (int(rng.integers(1, side - own)) for side, own in zip(image.shape, (height, width), strict=False))
    inside = (slice(top, top + height), slice(left, left + width))
    noise = SIMPLEX_LEVELS * simplex_octaves((3, height, width), rng)
    damaged, mask = image.copy(), np.zeros(image.shape[:2], bool)
    damaged[inside] = np.rint(image[inside] + noise.transpose(1, 2, 0)).clip(0, 255)
    mask[inside] = True
    return damaged, mask


def with_patch(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`image` with a piece of itself at another place, which is the mask."""
    size = image.shape[:2]
    area = rng.uniform(*PATCH_AREA) * size[0] * size[1]
    shape = np.exp(rng.uniform(-np.log(PATCH_SHAPE), np.log(PATCH_SHAPE)))  # height over width
    sides = zip((np.sqrt(area * shape), np.sqrt(area / shape)), size, strict=True)
    height, width = (int(np.clip(round(side), 1, limit - 1)) for side, limit in sides)
    (top, to_top), (left, to_left) = (
        rng.integers(0, limit - side + 1, 2).tolist() for side, limit in zip((height, width), size, strict=True)
    )
    patch = image[top : top + height, left : left + width] * np.float32(1 + rng.uniform(-PATCH_LIGHT, PATCH_LIGHT))
    damaged, mask = image.copy(), np.zeros(image.shape[:2], bool)
    inside = (slice(to_top, to_top + height), slice(to_left, to_left + width))
    damaged[inside] = np.rint(patch).clip(0, 255)
    mask[inside] = True
    return damaged, mask


def grabcut_foreground(image: np.ndarray) -> np.ndarray:
    """What GrabCut takes for the part, the frame of one pixel for the background: bool (H, W); 0.2 s an image."""
    height, width = image.shape[:2]
    if image.min() == image.max():  # OpenCV would cut a graph without edges for minutes, and find nothing
        return np.zeros((height, width), bool)
    cv2.setRNGSeed(0)  # of this thread: its clusters begin at random
    found, models = np.zeros((height, width), np.uint8), (np.zeros((1, 65)), np.zeros((1, 65)))
    inside = (1, 1, width - 2, height - 2)
    cv2.grabCut(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), found, inside, *models, GRABCUT_ROUNDS, cv2.GC_INIT_WITH_RECT)
    return (found == cv2.GC_FGD) | (found == cv2.GC_PR_FGD)


def otsu_foreground(image: np.ndarray) -> np.ndarray:
    """What Otsu's threshold takes for dark, bool (H, W): a dark part before a bright background."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)[1] > 0


FOREGROUNDS = {"grabcut": grabcut_foreground, "otsu": otsu_foreground}
