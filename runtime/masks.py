"""Where in a camera's picture the map counts, and when a part stands at a line across it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Crop
from nnet_edge.imaging import SIDE
from nnet_edge.stream_settings import Polygon, Trigger, VerdictSettings

FRACTION_BITS = 4  # corners are drawn to a sixteenth of a pixel
HALF_COVERED = 127.5  # of 255: a point of the map counts when at least half of it does


def inspected_part(settings: VerdictSettings, height: int, width: int, crop: Crop | None = None) -> np.ndarray | None:
    """Where the map of a picture (or of its `crop`) counts, bool (256, 256), not to be changed; None: everywhere.

    Raises ConfigError for a mask picture of another size, and when nothing is left to inspect.
    """
    if not (settings.regions_of_interest or settings.ignored or settings.interest_picture or settings.ignored_picture):
        return None
    counts = np.full((height, width), 0 if settings.regions_of_interest or settings.interest_picture else 255, np.uint8)
    draw(counts, settings.regions_of_interest, 255)
    if settings.interest_picture is not None:
        counts |= read_mask(settings.interest_picture, height, width)
    draw(counts, settings.ignored, 0)
    if settings.ignored_picture is not None:
        counts &= ~read_mask(settings.ignored_picture, height, width)
    if crop is not None:
        counts = counts[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]
    rule = cv2.INTER_AREA if min(counts.shape) >= SIDE else cv2.INTER_LINEAR
    inspected: np.ndarray = cv2.resize(counts, (SIDE, SIDE), interpolation=rule) > HALF_COVERED
    if not inspected.any():
        where = "the picture" if crop is None else f"the crop {crop.name}"
        raise ConfigError(f"the regions leave nothing of {where} ({width}x{height} pixels) to inspect: draw them anew")
    inspected.flags.writeable = False
    return inspected


def draw(mask: np.ndarray, polygons: Sequence[Polygon], value: int) -> None:
    """Fill the polygons in `mask`, uint8 (H, W), with `value`."""
    for polygon in polygons:
        corners = np.round(np.array(polygon) * (1 << FRACTION_BITS)).astype(np.int32)
        cv2.fillPoly(mask, [corners], value, shift=FRACTION_BITS)


def read_mask(path: Path, height: int, width: int) -> np.ndarray:
    """The picture at `path` as uint8 (H, W), 255 where it is brighter than mid grey. Raises ConfigError."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ConfigError(f"the mask {path} cannot be read: {error.strerror}") from error
    mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if mask is None:
        raise ConfigError(f"the mask {path} is no picture: save it as PNG")
    if mask.shape != (height, width):
        raise ConfigError(
            f"the mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels and the camera gives {width}x{height}: "
            "draw it on a picture of the camera"
        )
    return np.where(mask > HALF_COVERED, np.uint8(255), np.uint8(0))


def require_inside(crops: Sequence[Crop], height: int, width: int) -> None:
    """Nothing, when each crop lies in a picture of `height` x `width`. Raises ConfigError otherwise."""
    for crop in crops:
        if crop.x + crop.width > width or crop.y + crop.height > height:
            raise ConfigError(
                f"the crop {crop.name} ({crop.width}x{crop.height} at {crop.x}, {crop.y}) reaches beyond the camera's "
                f"{width}x{height} pixels: make it smaller"
            )


class TriggerLine:
    """Says in which frame a part reaches the line; one thread at a time."""

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._is_taken = False

    def is_reached(self, image: np.ndarray) -> bool:
        """Whether a part stands at the line and did not in the frame before; `image` uint8 BGR (H, W, 3) or grey.

        Raises ConfigError when the line does not lie in the picture.
        """
        trigger = self._trigger
        height, width = image.shape[:2]
        points = np.array((trigger.start, trigger.end))
        if (points[:, 0] >= width).any() or (points[:, 1] >= height).any():
            raise ConfigError(
                f"the trigger line from {trigger.start} to {trigger.end} leaves the camera's {width}x{height} pixels"
            )
        steps = int(np.abs(points[1] - points[0]).max()) + 1
        columns, rows = np.round(np.linspace(points[0], points[1], steps)).astype(int).T
        grey = float(image[rows, columns].mean())
        above = trigger.level - grey if trigger.dark else grey - trigger.level
        was_taken = self._is_taken
        self._is_taken = above > (-trigger.hysteresis if was_taken else 0)
        return self._is_taken and not was_taken
