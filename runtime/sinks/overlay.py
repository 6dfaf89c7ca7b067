"""A verdict as a picture: the frame with its regions, beside it its map in colours that always mean the same."""

from __future__ import annotations

import cv2
import numpy as np

from nnet_edge.errors import SinkError
from nnet_edge.frame import Prediction
from nnet_edge.imaging import to_rgb

SCALE_END = 2.0  # the colours run from 0 to twice the threshold, in every picture of every bundle
HEAT_SHARE = 0.55  # of the colour, the rest is the frame
SMALLEST_SIDE, LARGEST_SIDE = 240, 720  # a panel's height, pixels: text stays readable, files stay small
BAR_HEIGHT, LEGEND_WIDTH = 32, 56  # pixels
RED, GREEN, WHITE, DARK = (60, 60, 230), (90, 190, 90), (255, 255, 255), (32, 32, 32)  # BGR
FONT = cv2.FONT_HERSHEY_SIMPLEX


def annotate(prediction: Prediction) -> np.ndarray:
    """The verdict as a picture, uint8 BGR (h, w, 3): a line of text above the frame with its regions and its map."""
    frame = to_panel(prediction.frame.image)
    panels = np.hstack([draw_regions(frame, prediction), draw_heat(frame, prediction), draw_legend(frame.shape[0])])
    return np.vstack([draw_verdict(panels.shape[1], prediction), panels])


def colour(anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """The map in colours, uint8 BGR (H, W, 3): blue at 0, green at the threshold, red from twice the threshold on."""
    share = np.clip(anomaly_map / (SCALE_END * threshold), 0, 1)
    return cv2.applyColorMap(np.round(255 * share).astype(np.uint8), cv2.COLORMAP_TURBO)


def to_panel(image: np.ndarray) -> np.ndarray:
    """The frame as uint8 BGR of a height that people can look at, same proportions."""
    bgr = cv2.cvtColor(to_rgb(image), cv2.COLOR_RGB2BGR)
    height, width = bgr.shape[:2]
    panel_height = min(max(height, SMALLEST_SIDE), LARGEST_SIDE)
    panel_width = max(64, round(width * panel_height / height))
    rule = cv2.INTER_AREA if panel_height < height else cv2.INTER_LINEAR
    return cv2.resize(bgr, (panel_width, panel_height), interpolation=rule)


def draw_regions(panel: np.ndarray, prediction: Prediction) -> np.ndarray:
    """`panel` with a box around each region, and the region's peak relative to the threshold."""
    picture = panel.copy()
    draw_inspected(picture, prediction)
    rows, columns = panel.shape[0] / prediction.frame.image.shape[0], panel.shape[1] / prediction.frame.image.shape[1]
    for region in prediction.regions:
        top_left = round(region.x * columns), round(region.y * rows)
        bottom_right = round((region.x + region.width) * columns) - 1, round((region.y + region.height) * rows) - 1
        cv2.rectangle(picture, top_left, bottom_right, RED, 2)
        text_at = top_left[0], max(12, top_left[1] - 5)
        cv2.putText(picture, f"{region.peak / prediction.threshold:.2f}", text_at, FONT, 0.45, RED, 1, cv2.LINE_AA)
    return picture


def draw_inspected(picture: np.ndarray, prediction: Prediction) -> None:
    """Darken in `picture` what is not inspected, and outline what is; nothing where everything is."""
    if prediction.inspected is None:
        return
    height, width = picture.shape[:2]
    counts = cv2.resize(prediction.inspected.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    picture[counts == 0] //= 2
    outlines, _ = cv2.findContours(counts, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, GREEN, 1)


def draw_heat(panel: np.ndarray, prediction: Prediction) -> np.ndarray:
    """`panel` under the coloured map, with a white line where the map crosses the threshold."""
    height, width = panel.shape[:2]
    if prediction.anomaly_map is None:
        raise SinkError(f"frame {prediction.frame.index} has no map to paint: a sink that paints must say `wants_maps`")
    enlarged = cv2.resize(prediction.anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(cv2.cvtColor(panel, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    picture = cv2.addWeighted(colour(enlarged, prediction.threshold), HEAT_SHARE, grey, 1 - HEAT_SHARE, 0)
    above = (enlarged > prediction.threshold).astype(np.uint8)
    outlines, _ = cv2.findContours(above, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, WHITE, 1)
    return picture


def draw_legend(height: int) -> np.ndarray:
    """What the colours mean, uint8 BGR (height, 56, 3): score / threshold from 0 at the bottom to 2 at the top."""
    legend = np.full((height, LEGEND_WIDTH, 3), DARK, np.uint8)
    values = np.linspace(SCALE_END, 0, height, dtype=np.float32)[:, None]
    legend[:, 6:20] = colour(np.repeat(values, 14, axis=1), 1.0)
    for value in (0.0, 1.0, SCALE_END):
        row = round((height - 1) * (1 - value / SCALE_END))
        text_at = 24, min(max(row + 4, 12), height - 4)
        cv2.putText(legend, f"{value:g}", text_at, FONT, 0.4, WHITE, 1, cv2.LINE_AA)
    return legend


def draw_verdict(width: int, prediction: Prediction) -> np.ndarray:
    """A line of text on the verdict's colour, uint8 BGR (32, width, 3)."""
    bar = np.full((BAR_HEIGHT, width, 3), RED if prediction.is_anomalous else GREEN, np.uint8)
    name = prediction.frame.name or f"{prediction.frame.stream} {prediction.frame.index}"
    printable = name.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
    text = f"{prediction.word}  score / threshold {prediction.relative_score:.2f}  {printable}"
    cv2.putText(bar, text, (8, 21), FONT, 0.5, WHITE, 1, cv2.LINE_AA)
    return bar
