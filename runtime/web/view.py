"""A camera's picture as the page shows it: small, on demand with map, regions and what is not inspected."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from nnet_edge.frame import Frame, Prediction
from nnet_edge.imaging import to_rgb
from nnet_edge.runtime.overlay import FONT, GREEN, RED, SCALE_END

LEAST_SHARE = 0.35  # of the threshold, below which the map is not painted: a good part looks as it is
HEAT_SHARE = 0.6  # of the colour where the map is at twice the threshold and above
DIMMED = 0.35  # brightness of what is not inspected
SHARES = np.arange(256) / 255  # of twice the threshold
WEIGHTS = np.where(SHARES > LEAST_SHARE / SCALE_END, HEAT_SHARE * np.sqrt(SHARES), 0).astype(np.float32)


def draw_view(frame: Frame, parts: Sequence[Prediction], width: int, has_overlay: bool) -> np.ndarray:
    """The frame as uint8 BGR (h, w, 3), not wider than `width`; with an overlay, `parts` are drawn where they lie."""
    rows, columns = frame.image.shape[:2]
    scale = min(1.0, width / columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    picture = cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA if scale <= 0.5 else cv2.INTER_LINEAR)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        picture = cv2.cvtColor(to_rgb(picture), cv2.COLOR_RGB2BGR)
    if has_overlay:
        for part in parts:
            draw_part(picture, part, size[0] / columns, size[1] / rows)
    return picture


def draw_part(picture: np.ndarray, part: Prediction, across: float, down: float) -> None:
    """Paint a prediction into `picture`, whose pixels are `across` and `down` times those of the camera."""
    height, width = part.frame.image.shape[:2]
    crop = part.frame.crop
    left, top = (0, 0) if crop is None else (crop.x, crop.y)
    x, y = round(left * across), round(top * down)
    panel = picture[y : round((top + height) * down), x : round((left + width) * across)]
    if panel.size == 0:
        return
    size = panel.shape[1], panel.shape[0]
    if part.inspected is not None:
        seen = cv2.resize(part.inspected.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
        panel[:] = np.where(seen[..., None], panel, cv2.convertScaleAbs(panel, alpha=DIMMED))
    if part.anomaly_map is not None:
        blend_heat(panel, part.anomaly_map, part.threshold)
    for region in part.regions:
        corner = x + round(region.x * across), y + round(region.y * down)
        opposite = corner[0] + round(region.width * across) - 1, corner[1] + round(region.height * down) - 1
        cv2.rectangle(picture, corner, opposite, RED, 2)
        text_at = corner[0], max(12, corner[1] - 5)
        cv2.putText(picture, f"{region.peak / part.threshold:.2f}", text_at, FONT, 0.45, RED, 1, cv2.LINE_AA)
    if crop is not None:
        end = x + size[0] - 1, y + size[1] - 1
        tone = RED if part.is_anomalous else GREEN
        cv2.rectangle(picture, (x, y), end, tone, 1)
        cv2.putText(picture, crop.name, (x + 4, y + 14), FONT, 0.45, tone, 1, cv2.LINE_AA)


def blend_heat(panel: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> None:
    """Colour `panel`, uint8 BGR (h, w, 3), where the map is of interest, the more the stranger it is.

    The map is enlarged as 8 bits, as `overlay.colour` has it, and blended in one pass: people look on all day.
    """
    share = anomaly_map * (255 / (SCALE_END * threshold))
    shares = cv2.resize(np.clip(share, 0, 255).astype(np.uint8), panel.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if not WEIGHTS[shares.max()]:
        return  # weights ascend: nothing is of interest
    weight = cv2.LUT(shares, WEIGHTS)
    panel[:] = cv2.blendLinear(cv2.applyColorMap(shares, cv2.COLORMAP_TURBO), panel, weight, 1 - weight)
